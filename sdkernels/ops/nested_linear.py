r"""A whole ablation curve through Linear, ReLU, Linear, at the price of one product for the first Linear.

Maths
-----
At point :math:`t` of a curve the first :math:`i_t` inputs (in the order ``units``) and the first :math:`o_t` hidden
units live; both counts never grow along the curve. The logits are

.. math::

   z_{t,d,n} &= b_{t,d} + \sum_{c < i_t} W_{d,c}\, a_{n,\,\text{units}_c} \\
   y_{t,l,n} &= h_{t,l} + \sum_{d < o_t} V_{l,d}\, \max(z_{t,d,n}, 0)

The first sum is nested: walked from the last point to the first, units only return, so a hidden unit that lived before
gains the returning inputs' part, and one that returns starts from all living inputs. Every product
:math:`W_{d,c}\, a_{n,c}` is formed at most once a curve instead of once a point. What clamped units send on stands in
the biases, which may differ from point to point.

Floor: one pass over the weights, one write a point.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkernels.ops.backend import check_error_code, dispatcher, native_library

DTYPES = (torch.float64, torch.float32)


def nested_linear(
    a: Tensor,  # [N, C]
    units: Tensor,  # [C] int64
    weight: Tensor,  # [D, C]
    bias: Tensor,  # [1 or T, D]
    head: Tensor,  # [L, D]
    head_bias: Tensor,  # [1 or T, L]
    living_in: Tensor,  # [T] int64
    living_out: Tensor,  # [T] int64
) -> Tensor:  # [T, L, N]
    """Logits ``[T, L, N]`` at every point of a curve of nested ablations through Linear, ReLU, Linear.

    Args:
        a: activations of the first ablated layer, ``[N, C]``, float32 or float64.
        units: int64 ``[C]``, a permutation: which column of ``a`` is input c; those clamped last come first.
        weight: ``[D, C]``, both sides already in order: column c belongs to ``units[c]``, rows clamped last first.
        bias: ``[D]`` a point, or one row for all points.
        head: the second Linear's weight ``[L, D]``, its columns in the order of ``weight``'s rows.
        head_bias: ``[L]`` a point, or one row for all points.
        living_in: int64 ``[T]``, on the CPU: how many inputs live at each point; never growing.
        living_out: int64 ``[T]``, likewise of hidden units.

    Returns:
        ``[T, L, N]``, contiguous.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes that do not fit, counts that grow or leave 0..C or 0..D, units that are no permutation.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> a, eye = torch.tensor([[1.0, 2.0]]), torch.eye(2)
        >>> zero = torch.zeros(1, 2)
        >>> units, living = torch.tensor([1, 0]), torch.tensor([2, 1, 0])
        >>> nested_linear(a, units, eye, zero, eye, zero, living, living)[:, :, 0]
        tensor([[2., 1.],
                [2., 0.],
                [0., 0.]])
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (a, weight, bias, head, head_bias)):
        raise RuntimeError("nested_linear has no gradient; call it under torch.no_grad()")
    result: Tensor = torch.ops.sdkernels.nested_linear(a, units, weight, bias, head, head_bias, living_in, living_out)
    return result


def reference(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor,
    head_bias: Tensor,
    living_in: Tensor,
    living_out: Tensor,
) -> Tensor:
    """The specification, in pure torch: each point by itself."""
    points = len(living_in)
    bias, head_bias = bias.expand(points, -1), head_bias.expand(points, -1)
    logits = a.new_empty(points, len(head), len(a))
    for t, (i, o) in enumerate(zip(living_in.tolist(), living_out.tolist(), strict=True)):
        hidden = F.linear(a[:, units[:i]], weight[:o, :i], bias[t, :o]).relu()
        logits[t] = F.linear(hidden, head[:, :o], head_bias[t]).t()
    return logits


def native(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor,
    head_bias: Tensor,
    living_in: Tensor,
    living_out: Tensor,
) -> Tensor:
    """The C++ version: CPU tensors."""
    tensors = [t.contiguous() for t in (a, units, weight, bias, head, head_bias, living_in, living_out)]
    (examples, inputs), (classes, outputs), points = a.shape, head.shape, len(living_in)
    logits = a.new_empty(points, classes, examples)
    code = native_library().nested_linear(
        *(t.data_ptr() for t in (*tensors, logits)),
        examples,
        inputs,
        outputs,
        classes,
        points,
        len(bias),
        len(head_bias),
        a.element_size(),
        torch.get_num_threads(),
    )
    check_error_code("nested_linear", code)
    return logits


IMPLEMENTATIONS = {"reference": reference, "native": native}


def _fake(a: Tensor, *others: Tensor) -> Tensor:
    head, living_out = others[3], others[6]
    return a.new_empty(len(living_out), len(head), len(a))


_ARGUMENTS = ("a", "units", "weight", "bias", "head", "head_bias", "living_in", "living_out")
_FLOATS = ("a", "weight", "bias", "head", "head_bias")
_COUNTS = ("units", "living_in", "living_out")


def _check(*arguments: Tensor) -> None:
    given = dict(zip(_ARGUMENTS, arguments, strict=True))
    floats, counts = ({name: given[name] for name in names} for names in (_FLOATS, _COUNTS))
    a, head = floats["a"], floats["head"]
    units, living_in, living_out = counts.values()
    if a.dtype not in DTYPES or any(t.dtype != a.dtype for t in floats.values()):
        got = ", ".join(f"{name} {t.dtype}" for name, t in floats.items())
        raise TypeError(f"nested_linear: a, weight, bias, head and head_bias are all float32 or all float64; got {got}")
    if any(t.dtype != torch.int64 for t in counts.values()):
        got = ", ".join(f"{name} {t.dtype}" for name, t in counts.items())
        raise TypeError(f"nested_linear: units, living_in and living_out are int64; got {got}")
    if any(t.device != a.device for t in (*floats.values(), units)):
        raise ValueError(f"nested_linear: every tensor but the counts must be on {a.device}, as a is")
    shapes = {name: list(t.shape) for name, t in {**floats, **counts}.items()}
    if a.ndim != 2 or head.ndim != 2 or living_in.ndim != 1 or 0 in (*a.shape, *head.shape, len(living_in)):
        raise ValueError(f"nested_linear: a is [N, C], head [L, D], living_in [T], none of them empty; got {shapes}")
    inputs, (classes, outputs), points = a.shape[1], head.shape, len(living_in)
    rows = {"bias": outputs, "head_bias": classes}
    fits = all(shapes[name] in ([1, width], [points, width]) for name, width in rows.items())
    fits &= shapes["weight"] == [outputs, inputs] and shapes["units"] == [inputs] and shapes["living_out"] == [points]
    if not fits:
        raise ValueError(
            f"nested_linear: with N, C = {list(a.shape)}, L, D = {list(head.shape)} and T = {points}, weight is "
            f"[D, C], units [C], bias [1 or T, D], head_bias [1 or T, L], living_out [T]; got {shapes}"
        )
    for name, living, most in (("living_in", living_in, inputs), ("living_out", living_out, outputs)):
        if (living.diff() > 0).any() or living[0] > most or living[-1] < 0:
            raise ValueError(f"nested_linear: {name} must lie in 0..{most} and never grow; got {living.tolist()}")
    if not torch.equal(units.sort().values, torch.arange(inputs, device=units.device)):
        raise ValueError(f"nested_linear: units is no permutation of 0..{inputs - 1}")


torch.library.define(
    "sdkernels::nested_linear",
    "(Tensor a, Tensor units, Tensor weight, Tensor bias, Tensor head, Tensor head_bias, Tensor living_in, "
    "Tensor living_out) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::nested_linear", ("cpu", "cuda"))(dispatcher(IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::nested_linear")(_fake)
