"""What ops ask of activations and of their labels, before any kernel runs."""

import torch
from torch import Tensor

from sdkernels.ops.layout import DTYPES


def check_activation(op: str, x: Tensor, unit_dim: int) -> int:
    """How many units an activation [N, ...] has.

    Raises:
        TypeError: a dtype that ops do not take.
        ValueError: it is empty, or has no such dimension.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x is {x.dtype}; use one of {', '.join(str(t) for t in DTYPES)}")
    if x.numel() == 0:
        raise ValueError(f"{op}: x {list(x.shape)} is empty")
    if not 1 <= unit_dim < x.ndim:
        raise ValueError(f"{op}: unit_dim={unit_dim}, but x {list(x.shape)} is read as [N, ...]")
    return x.shape[unit_dim]


def check_class_labels(op: str, labels: Tensor, examples: int, classes: int, device: torch.device) -> None:
    """Refuse labels that are not int64 [N] of classes 0 to L - 1.

    Raises:
        TypeError: not int64.
        ValueError: another shape or device, or out of range; names the first such example.
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"{op}: labels are {labels.dtype}; they are int64")
    if list(labels.shape) != [examples] or labels.device != device:
        raise ValueError(f"{op}: labels {list(labels.shape)} on {labels.device} must be [{examples}] on {device}")
    least, greatest = labels.aminmax()
    if int(least) < 0 or int(greatest) >= classes:
        at = int(((labels < 0) | (labels >= classes)).nonzero()[0])
        raise ValueError(
            f"{op}: label {int(labels[at])} of example {at} is out of range: with {classes} classes labels are 0 to "
            f"{classes - 1}"
        )
