r"""A whole ablation curve through a linear layer, at the price of one product; with a head, through both layers.

Maths
-----
At point :math:`t` of a curve the first :math:`i_t` inputs (in the order ``units``) and the first :math:`o_t` outputs
live; both counts never grow along the curve. With :math:`\phi` ReLU or the identity,

.. math::

   h_{t,d,n} &= \phi\Bigl(b_{t,d} + \sum_{c < i_t} W_{d,c}\, a_{n,\,\text{units}_c}\Bigr)
                \text{ for } d < o_t,\ 0 \text{ for the others} \\
   z_{t,l,n} &= g_{t,l} + \sum_d V_{l,d}\, h_{t,d,n}

The first sum is nested: walked from the last point to the first, units only return, so an output that lived before
gains the returning inputs' part, and one that returns starts from all living inputs. Every product
:math:`W_{d,c}\, a_{n,c}` is formed at most once a curve instead of once a point. What clamped units send on stands in
the biases, which may differ from point to point.

Without a head (V, g) the op gives :math:`h`, with one it gives :math:`z`, and :func:`nested_linear_score` scores
:math:`z` as :func:`sdkernels.ops.score` would, so that nothing but counts and sums leaves. float16 and bfloat16 are
computed in float32 and rounded at the end.

Floor: one pass over the weights, one write a point.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.labels import check_class_labels
from sdkernels.ops.layout import DTYPE_CODES, DTYPES, computed_in
from sdkernels.ops.score import Score, check_options, empty_sums, named
from sdkernels.ops.score import reference as score_reference


def nested_linear(
    a: Tensor,  # [N, C]
    units: Tensor,  # [C] int64
    weight: Tensor,  # [D, C]
    bias: Tensor,  # [1 or T, D]
    living_in: Tensor,  # [T] int64
    living_out: Tensor,  # [T] int64
    *,
    head: Tensor | None = None,  # [L, D]
    head_bias: Tensor | None = None,  # [1 or T, L]
    relu: bool = True,
) -> Tensor:  # [T, D, N], or [T, L, N] with a head
    """A linear layer's outputs at every point of a curve of nested ablations, or those of a head that reads them.

    Args:
        a: activations of the first ablated layer, ``[N, C]``; float64, float32, bfloat16 or float16.
        units: int64 ``[C]``, a permutation: which column of ``a`` is input c; those clamped last come first.
        weight: ``[D, C]``, both sides already in order: column c belongs to ``units[c]``, rows clamped last first.
        bias: ``[D]`` a point, or one row for all points.
        living_in: int64 ``[T]``, on the CPU: how many inputs live at each point; never growing.
        living_out: int64 ``[T]``, likewise of outputs.
        head: the weight ``[L, D]`` of a second Linear, its columns in the order of ``weight``'s rows.
        head_bias: ``[L]`` a point, or one row for all points; with ``head``.
        relu: rectify the outputs, before the head.

    Returns:
        ``[T, D, N]``, clamped outputs 0; with a head ``[T, L, N]``; contiguous, in ``a``'s dtype.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes that do not fit, counts that grow or leave 0..C or 0..D, units that are no permutation.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> a, eye = torch.tensor([[1.0, 2.0]]), torch.eye(2)
        >>> units, living = torch.tensor([1, 0]), torch.tensor([2, 1, 0])
        >>> nested_linear(a, units, eye, torch.zeros(1, 2), living, living)[:, :, 0]
        tensor([[2., 1.],
                [2., 0.],
                [0., 0.]])
    """
    _refuse_gradients(a, weight, bias, head, head_bias)
    result: Tensor = torch.ops.sdkernels.nested_linear(
        a, units, weight, bias, head, head_bias, living_in, living_out, relu
    )
    return result


def nested_linear_score(
    a: Tensor,  # [N, C]
    units: Tensor,  # [C] int64
    weight: Tensor,  # [D, C]
    bias: Tensor,  # [1 or T, D]
    living_in: Tensor,  # [T] int64
    living_out: Tensor,  # [T] int64
    labels: Tensor,  # [N]
    *,
    head: Tensor,  # [L, D]
    head_bias: Tensor,  # [1 or T, L]
    relu: bool = True,
    loss: bool = True,
    top: int | None = None,
    per_class: bool = False,
    prediction: Tensor | None = None,  # [N]
    margin: float | None = None,
) -> Score:
    """:func:`nested_linear` with a head, and :func:`sdkernels.ops.score` of its logits: each point a configuration.

    Args:
        a, units, weight, bias, living_in, living_out, head, head_bias, relu: as there.
        labels, loss, top, per_class, prediction, margin: as there.

    Returns:
        A :class:`sdkernels.ops.score.Score` of T configurations.

    Raises:
        TypeError, ValueError, RuntimeError: as both.

    Example:
        >>> a, eye = torch.tensor([[1.0, 2.0]]), torch.eye(2)
        >>> zero, units, living = torch.zeros(1, 2), torch.tensor([0, 1]), torch.tensor([2, 1])
        >>> labels = torch.tensor([1])
        >>> nested_linear_score(a, units, eye, zero, living, living, labels, head=eye, head_bias=zero).correct
        tensor([1, 0])
    """
    _refuse_gradients(a, weight, bias, head, head_bias)
    check_options("nested_linear_score", top, margin, head.shape[0] if head.ndim else 0)
    options = (loss, 0 if top is None else top, per_class, -1.0 if margin is None else margin)
    return named(
        torch.ops.sdkernels.nested_linear_score(
            a, units, weight, bias, head, head_bias, living_in, living_out, relu, labels, prediction, *options
        )
    )


def _refuse_gradients(*floats: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats):
        raise RuntimeError("nested_linear has no gradient; call it under torch.no_grad()")


def reference(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor | None,
    head_bias: Tensor | None,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
) -> Tensor:
    """The specification, in pure torch: each point by itself."""
    return _walk(a, units, weight, bias, head, head_bias, living_in, living_out, relu).to(a.dtype)


def score_of_reference(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor,
    head_bias: Tensor,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
    labels: Tensor,
    prediction: Tensor | None,
    *options: bool | int | float,
) -> tuple[Tensor, ...]:
    """The specification of the scores, in pure torch."""
    logits = _walk(a, units, weight, bias, head, head_bias, living_in, living_out, relu)
    return score_reference(logits.transpose(1, 2), labels, prediction, *options)  # type: ignore[arg-type]


def _walk(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor | None,
    head_bias: Tensor | None,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
) -> Tensor:
    """[T, D or L, N] in the dtype that is computed in."""
    points, wide = len(living_in), computed_in(a.dtype)
    a, weight, bias = a.to(wide), weight.to(wide), bias.to(wide)
    result = a.new_zeros(points, len(weight if head is None else head), len(a))
    for t, (i, o) in enumerate(zip(living_in.tolist(), living_out.tolist(), strict=True)):
        hidden = F.linear(a[:, units[:i]], weight[:o, :i], bias[t % len(bias), :o])
        hidden = hidden.relu() if relu else hidden
        if head is None or head_bias is None:
            result[t, :o] = hidden.t()
        else:
            result[t] = F.linear(hidden, head[:, :o].to(wide), head_bias[t % len(head_bias)].to(wide)).t()
    return result


def native(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor | None,
    head_bias: Tensor | None,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
) -> Tensor:
    """The C++ version: CPU tensors."""
    out = _fake(a, units, weight, bias, head, head_bias, living_in, living_out, relu)
    _call(a, units, weight, bias, head, head_bias, living_in, living_out, relu, out.data_ptr(), [0] * 8, 0, -1.0)
    return out


def native_score(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor,
    head_bias: Tensor,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
    labels: Tensor,
    prediction: Tensor | None,
    *options: bool | int | float,
) -> tuple[Tensor, ...]:
    """The C++ version of the scores: CPU tensors."""
    sums = empty_sums(a, len(living_in), len(head), prediction is not None, options)
    labels, prediction = labels.contiguous(), prediction if prediction is None else prediction.contiguous()
    pointers = [labels.data_ptr(), 0 if prediction is None else prediction.data_ptr()]
    pointers += [t.data_ptr() if t.numel() else 0 for t in sums]
    _call(a, units, weight, bias, head, head_bias, living_in, living_out, relu, 0, pointers, options[1], options[3])
    return tuple(sums)


def _call(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor | None,
    head_bias: Tensor | None,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
    out: int,
    score_pointers: list[int],
    top: bool | int | float,
    margin: bool | int | float,
) -> None:
    wide = computed_in(a.dtype)
    floats = [t if t is None else t.to(wide).contiguous() for t in (weight, bias, head, head_bias)]
    tensors = [*floats, *(t.contiguous() for t in (units, living_in, living_out))]
    native_function("nested_linear", a)(
        a.data_ptr(),
        [0 if t is None else t.data_ptr() for t in tensors],
        out,
        score_pointers,
        [*a.shape, len(weight), 0 if head is None else len(head), len(living_in)],
        list(a.stride()),
        [len(bias), 0 if head_bias is None else len(head_bias)],
        relu,
        top,
        margin,
        DTYPE_CODES[a.dtype],
    )


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("nested_linear")}
SCORE_IMPLEMENTATIONS = {
    "reference": score_of_reference,
    "native": native_score,
    "triton": triton_version("nested_linear", "nested_linear_score"),
}


def _fake(a: Tensor, *others: Tensor | bool | None) -> Tensor:
    _, weight, _, head, _, _, living_out, _ = others
    rows = weight if head is None else head
    return a.new_empty(len(living_out), len(rows), len(a))  # type: ignore[arg-type]


def _fake_score(a: Tensor, *others: Tensor | bool | int | float | None) -> tuple[Tensor, ...]:
    head, living_out, prediction, options = others[3], others[6], others[9], others[10:]
    return tuple(empty_sums(a, len(living_out), len(head), prediction is not None, options))  # type: ignore[arg-type]


def _check(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor | None,
    head_bias: Tensor | None,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
) -> None:
    if (head is None) != (head_bias is None):
        raise ValueError("nested_linear: head and head_bias are given together or not at all")
    given = {"a": a, "weight": weight, "bias": bias, "head": head, "head_bias": head_bias}
    floats = {name: t for name, t in given.items() if t is not None}
    counts = {"units": units, "living_in": living_in, "living_out": living_out}
    if a.dtype not in DTYPES or any(t.dtype != a.dtype for t in floats.values()):
        got = ", ".join(f"{name} {t.dtype}" for name, t in floats.items())
        raise TypeError(
            f"nested_linear: a, weight, bias, head and head_bias share one of {', '.join(map(str, DTYPES))}; got {got}"
        )
    if any(t.dtype != torch.int64 for t in counts.values()):
        got = ", ".join(f"{name} {t.dtype}" for name, t in counts.items())
        raise TypeError(f"nested_linear: units, living_in and living_out are int64; got {got}")
    if any(t.device != a.device for t in (*floats.values(), units)):
        raise ValueError(f"nested_linear: every tensor but the counts must be on {a.device}, as a is")
    if living_in.device.type != "cpu" or living_out.device.type != "cpu":
        raise ValueError("nested_linear: living_in and living_out are read on the CPU; move them there")
    shapes = {name: list(t.shape) for name, t in {**floats, **counts}.items()}
    if a.ndim != 2 or weight.ndim != 2 or living_in.ndim != 1 or 0 in (*a.shape, *weight.shape, len(living_in)):
        raise ValueError(f"nested_linear: a is [N, C], weight [D, C], living_in [T], none of them empty; got {shapes}")
    outputs, points = weight.shape[0], len(living_in)
    fits = shapes["weight"] == [outputs, a.shape[1]] and shapes["units"] == [a.shape[1]]
    fits &= shapes["bias"] in ([1, outputs], [points, outputs]) and shapes["living_out"] == [points]
    if head is not None and head_bias is not None:
        fits &= head.ndim == 2 and len(head) > 0 and head.shape[1] == outputs
        fits = fits and shapes["head_bias"] in ([1, len(head)], [points, len(head)])
    if not fits:
        raise ValueError(
            f"nested_linear: with N, C = {list(a.shape)}, D = {outputs} and T = {points}, weight is [D, C], units [C], "
            f"bias [1 or T, D], living_out [T], head [L, D], head_bias [1 or T, L]; got {shapes}"
        )
    for name, living, most in (("living_in", living_in, a.shape[1]), ("living_out", living_out, outputs)):
        if (living.diff() > 0).any() or living[0] > most or living[-1] < 0:
            raise ValueError(f"nested_linear: {name} must lie in 0..{most} and never grow; got {living.tolist()}")
    if not torch.equal(units.sort().values, torch.arange(a.shape[1], device=units.device)):
        raise ValueError(f"nested_linear: units is no permutation of 0..{a.shape[1] - 1}")


def _check_score(a: Tensor, *others: Tensor | bool | int | float | None) -> None:
    _check(a, *others[:8])  # type: ignore[arg-type]
    labels, prediction = others[8:10]
    classes = len(others[3])  # type: ignore[arg-type]
    for name, given in (("nested_linear_score", labels), ("nested_linear_score (prediction)", prediction)):
        if isinstance(given, Tensor):
            check_class_labels(name, given, len(a), classes, a.device)


torch.library.define(
    "sdkernels::nested_linear",
    "(Tensor a, Tensor units, Tensor weight, Tensor bias, Tensor? head, Tensor? head_bias, Tensor living_in, "
    "Tensor living_out, bool relu) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::nested_linear", ("cpu", "cuda"))(dispatcher("nested_linear", IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::nested_linear")(_fake)
torch.library.define(
    "sdkernels::nested_linear_score",
    "(Tensor a, Tensor units, Tensor weight, Tensor bias, Tensor head, Tensor head_bias, Tensor living_in, "
    "Tensor living_out, bool relu, Tensor labels, Tensor? prediction, bool loss, int top, bool per_class, "
    "float margin) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::nested_linear_score", ("cpu", "cuda"))(
    dispatcher("nested_linear", SCORE_IMPLEMENTATIONS, _check_score)
)
torch.library.register_fake("sdkernels::nested_linear_score")(_fake_score)
