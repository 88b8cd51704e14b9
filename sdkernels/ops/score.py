r"""Logits of many configurations -> exact counts and float64 sums.

Maths
-----
For logits :math:`z_{k,n,l}` of configurations k, examples n and classes l, and labels :math:`y_n`,

.. math::

   \text{correct}_k &= |\{n : \arg\max_l z_{k,n,l} = y_n\}| \\
   \text{loss}_k &= \sum_n \log \sum_l e^{z_{k,n,l}} - z_{k,n,y_n}

Of equal logits the one of the lowest index wins, as in ``argmax``, and nan is above all numbers. An example is right
among the *top* m if fewer than m logits come before its label's: greater ones, or equal ones of a lower index.

An example is *ambiguous* if the second of its logits is within :math:`\text{margin} \cdot s` of the first, :math:`s`
being the greatest of their magnitudes: rounding alone may let them change places. A logit of -1000 or less is taken for
a mask, and does not count for :math:`s`.

The log-sum-exp subtracts the greatest logit first; the CPU computes it in float64 throughout, and on GPUs float32,
bfloat16 and float16 logits are computed in float32. Sums over examples are float64 in a fixed order.

Floor: one read of the logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.labels import check_class_labels
from sdkernels.ops.layout import DTYPE_CODES, DTYPES

# A logit at or below this is taken for a mask.
MASKED = -1e3


class Score(NamedTuple):
    """Sums over N examples for K configurations; what was not asked for is None."""

    correct: Tensor  # int64 [K]
    top: Tensor | None  # int64 [K]
    loss: Tensor | None  # float64 [K], nats
    class_correct: Tensor | None  # int64 [K, L]
    agreement: Tensor | None  # int64 [K]
    ambiguous: Tensor | None  # int64 [K]


def score(
    logits: Tensor,  # [K, N, L]
    labels: Tensor,  # [N]
    *,
    loss: bool = True,
    top: int | None = None,
    per_class: bool = False,
    prediction: Tensor | None = None,  # [N]
    margin: float | None = None,
) -> Score:
    """Score logits of K configurations against labels: counts of right predictions, and what else is asked for.

    Args:
        logits: ``[K, N, L]`` of any strides; float64, float32, bfloat16 or float16.
        labels: int64 ``[N]``, 0 to L - 1.
        loss: sum the cross-entropy.
        top: count examples whose label is among this many best classes.
        per_class: count right predictions label by label.
        prediction: int64 ``[N]``, predictions to count agreement with, such as those of the intact model.
        margin: count ambiguous examples, at least 0.

    Returns:
        A :class:`Score`: counts int64 ``[K]``, ``loss`` float64 ``[K]`` in nats, ``class_correct`` int64 ``[K, L]``.

    Raises:
        TypeError: a dtype that is not listed.
        ValueError: shapes or devices that do not fit, empty logits, labels or predictions out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0], [0.0, 3.0]], [[1.0, 2.0], [0.0, 3.0]]])
        >>> score(logits, torch.tensor([0, 1])).correct
        tensor([2, 1])
    """
    options = (loss, 0 if top is None else top, per_class, -1.0 if margin is None else margin)
    check_options("score", top, margin, logits.shape[-1] if logits.ndim else 0)
    return named(torch.ops.sdkernels.score(logits.detach(), labels, prediction, *options))


def check_options(op: str, top: int | None, margin: float | None, classes: int) -> None:
    """Refuse a top or a margin that count nothing."""
    if top is not None and not 1 <= top <= classes:
        raise ValueError(f"{op}: top={top}; it must lie in 1 to {classes}, the number of classes")
    if margin is not None and not margin >= 0:
        raise ValueError(f"{op}: margin={margin}; it must be at least 0")


def named(sums: tuple[Tensor, ...]) -> Score:
    """The op's outputs by name; empty ones were not asked for."""
    correct, *others = sums
    return Score(correct, *(t if t.numel() else None for t in others))


def empty_sums(like: Tensor, configurations: int, classes: int, has_prediction: bool, options: tuple) -> list[Tensor]:  # type: ignore[type-arg]
    """Zeros for the op's outputs, in their order; [0] for those that are not asked for."""
    loss, top, per_class, margin = options
    k = configurations
    shapes = [[k], [k if top else 0], [k if loss else 0], [k, classes] if per_class else [0, classes]]
    shapes += [[k if has_prediction else 0], [k if margin >= 0 else 0]]
    dtypes = [torch.float64 if i == 2 else torch.int64 for i in range(6)]
    return [like.new_zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]


def reference(
    logits: Tensor,
    labels: Tensor,
    prediction: Tensor | None,
    loss: bool,
    top: int,
    per_class: bool,
    margin: float,
) -> tuple[Tensor, ...]:
    """The specification, in pure torch."""
    configurations, _, classes = logits.shape
    options = (loss, top, per_class, margin)
    sums = empty_sums(logits, configurations, classes, prediction is not None, options)
    best = logits.contiguous().argmax(-1)  # [K, N]
    right = best == labels
    sums[0] += right.sum(1)
    if top:
        at_label = logits.gather(-1, labels.expand(configurations, -1)[..., None])  # [K, N, 1]
        above = (logits > at_label) | (logits.isnan() & ~at_label.isnan())
        tied = (logits == at_label) | (logits.isnan() & at_label.isnan())
        before = tied & (torch.arange(classes, device=logits.device) < labels[:, None])
        sums[1] += ((above | before).sum(-1) < top).sum(1)
    if loss:
        wide = logits.double()
        at_label = wide.gather(-1, labels.expand(configurations, -1)[..., None])[..., 0]
        sums[2] += (wide.logsumexp(-1) - at_label).sum(1)
    if per_class:
        sums[3].index_add_(1, labels, right.long())
    if prediction is not None:
        sums[4] += (best == prediction).sum(1)
    if margin >= 0:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        first = wide.amax(-1, keepdim=True)
        lowest = torch.where(wide > MASKED, wide, first).amin(-1, keepdim=True)
        size = torch.maximum(first.abs(), lowest.abs())
        sums[5] += ((wide >= first - margin * size).sum(-1) > 1).sum(1)
    return tuple(sums)


def native(
    logits: Tensor,
    labels: Tensor,
    prediction: Tensor | None,
    loss: bool,
    top: int,
    per_class: bool,
    margin: float,
) -> tuple[Tensor, ...]:
    """The C++ version: CPU tensors."""
    configurations, _, classes = logits.shape
    options = (loss, top, per_class, margin)
    sums = empty_sums(logits, configurations, classes, prediction is not None, options)
    labels = labels.contiguous()
    prediction = prediction if prediction is None else prediction.contiguous()
    native_function("score", logits)(
        logits.data_ptr(),
        labels.data_ptr(),
        0 if prediction is None else prediction.data_ptr(),
        [t.data_ptr() if t.numel() else 0 for t in sums],
        list(logits.shape),
        list(logits.stride()),
        top,
        margin,
        DTYPE_CODES[logits.dtype],
    )
    return tuple(sums)


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("score")}


def _fake(
    logits: Tensor, labels: Tensor, prediction: Tensor | None, *options: bool | int | float
) -> tuple[Tensor, ...]:
    return tuple(empty_sums(logits, logits.shape[0], logits.shape[2], prediction is not None, options))


def _check(
    logits: Tensor,
    labels: Tensor,
    prediction: Tensor | None,
    loss: bool,
    top: int,
    per_class: bool,
    margin: float,
) -> None:
    if logits.dtype not in DTYPES:
        raise TypeError(f"score: logits are {logits.dtype}; use one of {', '.join(str(t) for t in DTYPES)}")
    if logits.ndim != 3 or logits.numel() == 0:
        raise ValueError(f"score: logits {list(logits.shape)} must be [K, N, L], and not empty")
    check_class_labels("score", labels, logits.shape[1], logits.shape[2], logits.device)
    if prediction is not None:
        check_class_labels("score (prediction)", prediction, logits.shape[1], logits.shape[2], logits.device)


torch.library.define(
    "sdkernels::score",
    "(Tensor logits, Tensor labels, Tensor? prediction, bool loss, int top, bool per_class, float margin) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::score", ("cpu", "cuda"))(dispatcher("score", IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::score")(_fake)
