"""What is refused before anything is scored, or while it is; and warnings that name the caller's line."""

import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdkernels.engine.graph import is_close
from sdkernels.engine.values import Clamp

# Enough examples to find the layers' shapes and to check a traced graph against its model.
PROBE_EXAMPLES = 8


class SdkernelsWarning(UserWarning):
    """Something that the user should know: a slower way was taken, or an ablation did nothing."""


def warn(message: str) -> None:
    """Warn at the line that called the package."""
    frame, level = sys._getframe(1), 2  # the caller of this function
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sdkernels":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SdkernelsWarning, stacklevel=level)


def check_default_device() -> None:
    """Refuse a default device other than the CPU, where the package counts; models and data may be anywhere.

    Raises:
        ValueError: names the device, and what to do.
    """
    if (device := torch.get_default_device()).type != "cpu":
        raise ValueError(
            f"torch's default device is {device}, and this package counts on the CPU: call it, and methods of its "
            "results, within `with torch.device('cpu'):`; model and data stay where they are"
        )


def check_class_means(clamps: Sequence[Clamp], labels: Tensor) -> None:
    """Refuse labels of classes whose means are not known.

    Raises:
        ValueError: names the class.
    """
    for clamp in clamps:
        if clamp.by == "class":
            is_known = clamp.value.flatten(1).isfinite().all(1)
            if len(unknown := labels[~is_known[labels]]):
                raise ValueError(
                    f"class {int(unknown[0])} has no example among those that class means are taken over; give "
                    "value_data that has some of every class"
                )


def check_repeatable(model: nn.Module, probe: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits for an example change from call to call, or with the others of its batch.

    Raises:
        ValueError: says which; ablation scores would depend on chance, or on how the data is batched.
    """
    name = type(model).__name__
    # Some without those before and after them.
    parts = [slice(1, 1 + len(probe) // 2)] if len(probe) > 2 else [slice(i, i + 1) for i in range(len(probe))]
    if all(is_close(model(probe[part].clone()), logits[part]) for part in parts):
        return
    if not is_close(model(probe.clone()), logits):
        raise ValueError(f"{name} gives other logits at every call; an ablation needs a fixed function")
    raise ValueError(
        f"{name} mixes the examples of a batch: its logits for {len(probe[parts[0]])} examples change when they are a "
        f"batch by themselves and not among {len(probe)}; scores would depend on the batch size"
    )


def check_finite(name: str, activation: Tensor, start: int) -> None:
    """Refuse non-finite intact activations; ``start`` is the number of examples before this batch.

    Raises:
        ValueError: names the layer, how many elements, and the first example.
    """
    if activation.sum().isfinite():  # a sum is cheaper than a mask, and finite only if all are
        return
    wrong = ~activation.isfinite()
    if not wrong.any():
        return
    example = int(wrong.flatten(1).any(1).nonzero()[0])
    raise ValueError(
        f"layer {name!r}: {int(wrong.sum())} of {activation.numel()} intact activations of a batch are not finite "
        f"({int(activation.isnan().sum())} nan), the first in example {start + example}; look at the inputs and weights"
    )
