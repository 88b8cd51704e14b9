r"""What one unit sends to the linear layer that reads it, taken away: every unit alone, without a product.

Maths
-----
Let :math:`z = W a + b` be the layer's intact output, for all positions s (a Linear, or a 1x1 convolution). With unit
:math:`c_k` clamped to :math:`v`, and no other,

.. math:: y_{k,n,d,s} = \phi\bigl(\alpha_d\, (z_{n,d,s} + W_{d,c_k} (v_{c_k} - a_{n,c_k,s})) + \beta_d\bigr)

with :math:`\phi` the identity or ReLU and :math:`\alpha, \beta` an affine map such as a batch norm's.

Floor: one write of ``y``.
"""

import torch
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.layout import DTYPE_CODES, DTYPES, computed_in


def rank_one(
    z: Tensor,  # [N, D] or [N, D, S]
    weight: Tensor,  # [D, C]
    a: Tensor,  # [N, C] or [N, C, S]
    units: Tensor,  # [K]
    *,
    value: Tensor | None = None,  # [C]
    scale: Tensor | None = None,  # [D]
    shift: Tensor | None = None,  # [D]
    relu: bool = False,
) -> Tensor:  # [K, N, D] or [K, N, D, S]
    """The outputs of a linear layer with each of K units clamped by itself: ``act(scale * (z + w (v - a)) + shift)``.

    Args:
        z: the intact output of the layer, before any activation, ``[N, D]`` or ``[N, D, S]``; float64, float32,
            bfloat16 or float16. float16 and bfloat16 are computed in float32 and rounded once.
        weight: the layer's weight ``[D, C]``, of ``z``'s dtype, as ``a`` and ``value`` are.
        a: what the layer read, ``[N, C]`` or ``[N, C, S]``.
        units: int64 ``[K]``, which unit to clamp, 0 to C - 1; any number of times.
        value: what a clamped unit becomes, ``[C]``; 0 if not given.
        scale, shift: an affine map ``[D]``, both or neither, float64 for a float64 ``z``, else float32.
        relu: rectify at the end.

    Returns:
        ``[K, N, D]`` or ``[K, N, D, S]``, contiguous.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or devices that do not fit, an empty ``z``, units out of range.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> z, w, a = torch.tensor([[10.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 3.0]])
        >>> rank_one(z, w, a, torch.tensor([0, 1])).flatten()
        tensor([6., 4.])
    """
    floats = (z, weight, a, value, scale, shift)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats):
        raise RuntimeError("rank_one has no gradient; call it under torch.no_grad()")
    result: Tensor = torch.ops.sdkernels.rank_one(z, weight, a, units, value, scale, shift, relu)
    return result


def reference(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """The specification, in pure torch."""
    wide = computed_in(z.dtype)
    positions = z.shape[2:]
    a, weight = a.to(wide)[:, units], weight.to(wide)[:, units]  # [N, K, S], [D, K]
    clamped = 0 if value is None else value.to(wide)[units].view(-1, *[1] * len(positions))
    change = clamped - a
    rows = (1, -1, *[1] * len(positions))  # of d, against [N, D, S]
    y = torch.stack([z.to(wide) + weight[:, k].view(rows) * change[:, k, None] for k in range(len(units))])
    if scale is not None and shift is not None:
        y = scale.view(rows) * y + shift.view(rows)
    if relu:
        y = torch.where(y < 0, 0, y)
    return y.to(z.dtype)


def native(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """The C++ version: CPU tensors."""
    y = _fake(z, weight, a, units)
    z, a = (t[..., None] if t.ndim == 2 else t for t in (z, a))
    small = [t if t is None else t.contiguous() for t in (weight.t(), units, value, scale, shift)]
    native_function("rank_one", z)(
        z.data_ptr(),
        a.data_ptr(),
        [0 if t is None else t.data_ptr() for t in small],
        y.data_ptr(),
        [len(units), *z.shape, a.shape[1]],
        list(z.stride()),
        list(a.stride()),
        relu,
        DTYPE_CODES[z.dtype],
    )
    return y


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("rank_one")}


def _fake(z: Tensor, weight: Tensor, a: Tensor, units: Tensor, *_: object) -> Tensor:
    return z.new_empty([len(units), *z.shape])


def _check(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> None:
    dtypes = {"z": z.dtype, "weight": weight.dtype, "a": a.dtype}
    if value is not None:
        dtypes["value"] = value.dtype
    if z.dtype not in DTYPES or len(set(dtypes.values())) > 1:
        got = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"rank_one: z, weight, a and value share one of {', '.join(map(str, DTYPES))}; got {got}")
    if units.dtype != torch.int64:
        raise TypeError(f"rank_one: units are int64, not {units.dtype}")
    shapes = {"z": list(z.shape), "weight": list(weight.shape), "a": list(a.shape), "units": list(units.shape)}
    if z.ndim not in (2, 3) or a.ndim != z.ndim or weight.ndim != 2 or units.ndim != 1 or 0 in (z.numel(), len(units)):
        raise ValueError(
            "rank_one: z is [N, D] or [N, D, S], weight [D, C], a [N, C] or [N, C, S] like z, units [K], none of "
            f"them empty; got {shapes}"
        )
    outputs, inputs = weight.shape
    if z.shape[1] != outputs or list(a.shape) != [z.shape[0], inputs, *z.shape[2:]]:
        raise ValueError(f"rank_one: with weight [D, C] = {[outputs, inputs]}, z and a do not fit: {shapes}")
    if (scale is None) != (shift is None):
        raise ValueError("rank_one: scale and shift are given together or not at all")
    wide = computed_in(z.dtype)
    for name, given, width, dtype in (
        ("value", value, inputs, z.dtype),
        ("scale", scale, outputs, wide),
        ("shift", shift, outputs, wide),
    ):
        if given is not None and (list(given.shape) != [width] or given.dtype != dtype):
            raise ValueError(f"rank_one: {name} is {dtype} [{width}]; got {given.dtype} {list(given.shape)}")
    everything = (weight, a, units, value, scale, shift)
    if any(t is not None and t.device != z.device for t in everything):
        raise ValueError(f"rank_one: every tensor must be on {z.device}, as z is")
    if int(units.min()) < 0 or int(units.max()) >= inputs:
        raise ValueError(f"rank_one: units must lie in 0 to {inputs - 1}; got {int(units.min())} to {int(units.max())}")


torch.library.define(
    "sdkernels::rank_one",
    "(Tensor z, Tensor weight, Tensor a, Tensor units, Tensor? value, Tensor? scale, Tensor? shift, bool relu) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::rank_one", ("cpu", "cuda"))(dispatcher("rank_one", IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::rank_one")(_fake)
