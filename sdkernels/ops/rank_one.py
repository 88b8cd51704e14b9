r"""What one unit sends to the linear layer that reads it, taken away: every unit alone, without a product.

Maths
-----
Let :math:`z = W a + b` be the layer's intact output, for all positions s (a Linear, or a 1x1 convolution). With unit
:math:`c_k` clamped to :math:`v`, and no other,

.. math:: y_{k,n,d,s} = \phi\bigl(\alpha_d\, (z_{n,d,s} + W_{d,c_k} (v_{c_k} - a_{n,c_k,s})) + \beta_d\bigr)

with :math:`\phi` the identity or ReLU and :math:`\alpha, \beta` an affine map such as a batch norm's. A head that
reads the layer, for one position, gives

.. math:: \ell_{k,n,l} = g_l + \sum_d V_{l,d}\, y_{k,n,d}

and where intact logits are given, :math:`\ell_{k,n} = \text{intact}_n` wherever :math:`a_{n,c_k} = v_{c_k}`: clamping
changes nothing there, and nothing is computed. That is every example for which a ReLU did not fire, often half of them.
A row of logits is summed in an order that depends on D alone: not on other rows, on threads, or on how units and
examples are divided among calls. float16 and bfloat16 are computed in float32 and rounded at the end.

Floor: one write of ``y``; with a head, 2 L + 2 operations for each of its K N D numbers, which never reach memory.
"""

import torch
import torch.nn.functional as F
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
    head: Tensor | None = None,  # [L, D]
    head_bias: Tensor | None = None,  # [L]
    intact: Tensor | None = None,  # [N, L]
) -> Tensor:  # [K, N, D] or [K, N, D, S]; [K, N, L] with a head
    """The outputs of a linear layer with each of K units clamped by itself: ``act(scale * (z + w (v - a)) + shift)``.

    With a head, the logits of a second Linear that reads them, ``head @ y + head_bias``, for ``z`` of ``[N, D]``.
    Where ``a`` equals the value already (a ReLU that did not fire), clamping changes nothing: those rows are copied
    from ``intact``, if it is given, and cost next to nothing. What cannot be taken back is a ``z`` that is inf or nan:
    clamping the unit that made it so gives nan, not the finite output of a layer that never saw it.

    Args:
        z: the intact output of the layer, before any activation, ``[N, D]`` or ``[N, D, S]``; float64, float32,
            bfloat16 or float16. float16 and bfloat16 are computed in float32 and rounded once.
        weight: the layer's weight ``[D, C]``, of ``z``'s dtype, as ``a`` and ``value`` are.
        a: what the layer read, ``[N, C]`` or ``[N, C, S]``.
        units: int64 ``[K]``, which unit to clamp, 0 to C - 1; any number of times.
        value: what a clamped unit becomes, ``[C]``; 0 if not given.
        scale, shift: an affine map ``[D]``, both or neither, float64 for a float64 ``z``, else float32.
        relu: rectify at the end, before the head.
        head, head_bias: a Linear's weight ``[L, D]`` and, with it, bias ``[L]`` (0 if not given), of ``z``'s dtype.
        intact: the logits ``[N, L]`` with nothing clamped, with a head, of ``z``'s dtype; whatever they are, they are
            the result where ``a == value``.

    Returns:
        ``[K, N, D]`` or ``[K, N, D, S]``; with a head ``[K, N, L]``; contiguous.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or devices that do not fit, an empty ``z``, units out of range.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> z, w, a = torch.tensor([[10.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 3.0]])
        >>> rank_one(z, w, a, torch.tensor([0, 1])).flatten()
        tensor([6., 4.])
        >>> rank_one(z, w, a, torch.tensor([0, 1]), relu=True, head=torch.tensor([[0.5], [2.0]]))[:, 0]
        tensor([[ 3., 12.],
                [ 2.,  8.]])
    """
    floats = (z, weight, a, value, scale, shift, head, head_bias, intact)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats):
        raise RuntimeError("rank_one has no gradient; call it under torch.no_grad()")
    given = (z, weight, a, units, value, scale, shift, relu)
    result: Tensor
    if head is None:
        if head_bias is not None or intact is not None:
            raise ValueError("rank_one: head_bias and intact belong to a head; give it too")
        result = torch.ops.sdkernels.rank_one(*given)
    else:
        result = torch.ops.sdkernels.rank_one_head(*given, head, head_bias, intact)
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
    return _changed(z, weight, a, units, value, scale, shift, relu).to(z.dtype)


def _changed(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """The specification, not yet rounded."""
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
    return y


def reference_head(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    head: Tensor,
    head_bias: Tensor | None,
    intact: Tensor | None,
) -> Tensor:
    """The specification of a head's logits, in pure torch."""
    wide = computed_in(z.dtype)
    y = _changed(z, weight, a, units, value, scale, shift, relu)  # [K, N, D]
    logits = F.linear(y, head.to(wide), None if head_bias is None else head_bias.to(wide)).to(z.dtype)
    if intact is None:
        return logits
    absent = a[:, units] == (0 if value is None else value[units])  # [N, K]
    return torch.where(absent.t()[..., None], intact, logits).contiguous()


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


def native_head(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    head: Tensor,
    head_bias: Tensor | None,
    intact: Tensor | None,
) -> Tensor:
    """The C++ version of a head's logits: CPU tensors."""
    out = _fake_head(z, weight, a, units, value, scale, shift, relu, head)
    wide = computed_in(z.dtype)
    floats = [t if t is None else t.to(wide).contiguous() for t in (z, weight.t(), scale, shift, head, head_bias)]
    tensors = [*(t if t is None else t.contiguous() for t in (value, intact, units)), *floats]
    native_function("rank_one_head", z)(
        a.data_ptr(),
        [0 if t is None else t.data_ptr() for t in tensors],
        out.data_ptr(),
        [len(units), *z.shape, a.shape[1], len(head)],
        list(a.stride()),
        relu,
        DTYPE_CODES[z.dtype],
    )
    return out


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("rank_one")}
HEAD_IMPLEMENTATIONS = {
    "reference": reference_head,
    "native": native_head,
    "triton": triton_version("rank_one_head"),
}


def _fake(z: Tensor, weight: Tensor, a: Tensor, units: Tensor, *_: object) -> Tensor:
    return z.new_empty([len(units), *z.shape])


def _fake_head(z: Tensor, *others: Tensor | bool | None) -> Tensor:
    units, head = others[2], others[7]
    return z.new_empty(len(units), len(z), len(head))  # type: ignore[arg-type]


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


def _check_head(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    head: Tensor,
    head_bias: Tensor | None,
    intact: Tensor | None,
) -> None:
    _check(z, weight, a, units, value, scale, shift, relu)
    if z.ndim != 2:
        raise ValueError(f"rank_one: a head reads z of [N, D], without positions; got z {list(z.shape)}")
    examples, outputs = z.shape
    if head.ndim != 2 or len(head) == 0 or head.shape[1] != outputs:
        raise ValueError(f"rank_one: head is [L, D], D = {outputs} as in z, not empty; got {list(head.shape)}")
    for name, given, shape in (
        ("head", head, list(head.shape)),
        ("head_bias", head_bias, [len(head)]),
        ("intact", intact, [examples, len(head)]),
    ):
        if given is None:
            continue
        if given.dtype != z.dtype:
            raise TypeError(f"rank_one: {name} has z's dtype, {z.dtype}; got {given.dtype}")
        if list(given.shape) != shape:
            raise ValueError(f"rank_one: {name} is {shape}, to fit z and head; got {list(given.shape)}")
        if given.device != z.device:
            raise ValueError(f"rank_one: every tensor must be on {z.device}, as z is")


torch.library.define(
    "sdkernels::rank_one",
    "(Tensor z, Tensor weight, Tensor a, Tensor units, Tensor? value, Tensor? scale, Tensor? shift, bool relu) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::rank_one", ("cpu", "cuda"))(dispatcher("rank_one", IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::rank_one")(_fake)
torch.library.define(
    "sdkernels::rank_one_head",
    "(Tensor z, Tensor weight, Tensor a, Tensor units, Tensor? value, Tensor? scale, Tensor? shift, bool relu, "
    "Tensor head, Tensor? head_bias, Tensor? intact) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::rank_one_head", ("cpu", "cuda"))(
    dispatcher("rank_one_head", HEAD_IMPLEMENTATIONS, _check_head)
)
torch.library.register_fake("sdkernels::rank_one_head")(_fake_head)
