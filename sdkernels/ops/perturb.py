r"""Clamp units of an activation and add noise to them, many configurations at once.

Maths
-----
For configurations :math:`k`, examples :math:`n`, units :math:`c` and positions :math:`s` of an activation :math:`x`,

.. math::

   y_{k,n,c,s} &= \hat x_{k,n,c,s} + \sigma_{k,c}\, \varepsilon_{k,n,c,s} \\
   \hat x_{k,n,c,s} &= \begin{cases} v_{c,s} & \text{if unit } c \text{ is ablated in configuration } k \\
                                 \phi(a_c\, x_{n,c,s} + b_c) & \text{otherwise} \end{cases}

with :math:`\phi` the identity or ReLU, and :math:`\varepsilon` standard normal draws of
:mod:`sdkernels.ops.random_stream`, which depend on the seed, the configuration's id, the example's index, the site and
the element, and are never stored. ReLU comes before the noise: what is added is not rectified again.

A *select*, not a product with a 0/1 mask: an ablated ``inf`` or ``nan`` becomes the value; without affine and noise
every value but the clamped ones keeps its bits, and so do units whose :math:`\sigma` is 0. float16 and bfloat16 are
computed in float32 and rounded once. Products and sums are rounded one by one, so every backend gives the same bits.

Floor: one read of ``x``, one write of ``y``; a clamped feature map is not read at all.

The gradient is the select's own: :math:`\partial x = \sum_k [\text{not ablated}]\, \phi'\, a\, \partial y`,
:math:`\partial v = \sum_{k,n} [\text{ablated}]\, \partial y`; that of :math:`a` and :math:`b` likewise. There is none
for :math:`\sigma`.
"""

import torch
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.layout import DTYPE_CODES, DTYPES, by_units, computed_in, empty_like_examples, per_unit
from sdkernels.ops.random_stream import check_ids, check_seed, check_site, seed_tensor
from sdkernels.ops.random_stream import reference as draw


def perturb(
    x: Tensor,  # [N, ...] shared by all configurations, or [K, N, ...]
    ablated: Tensor,  # [K, C] bool, or [K, ceil(C / 8)] uint8
    value: Tensor,  # broadcasts to one example, x.shape[1:] of a shared x
    *,
    scale: Tensor | None = None,  # [C]
    shift: Tensor | None = None,  # [C]
    relu: bool = False,
    sigma: Tensor | None = None,  # [K, C]
    seed: Tensor | int | None = None,  # []
    configurations: Tensor | None = None,  # [K]
    examples: Tensor | None = None,  # [N]
    site: int = 0,
    per_map: bool = False,
    unit_dim: int = 1,
    shared: bool = True,
    out: Tensor | None = None,  # [K, N, ...]
) -> Tensor:  # [K, N, ...]
    """Clamp the ablated units of ``x`` and add noise, in K configurations.

    ``y = where(ablated, value, act(scale * x + shift)) + sigma * normal``; what is not given is left out.

    Args:
        x: activations, ``[N, ...]`` if ``shared`` by all configurations, else ``[K, N, ...]``; float64, float32,
            bfloat16 or float16. Units (C) stand in dimension ``unit_dim`` of ``[N, ...]``.
        ablated: True where a unit is clamped, bool ``[K, C]``; or a bit a unit, uint8 ``[K, ceil(C / 8)]``, as
            :func:`pack_mask` makes it.
        value: what a clamped unit becomes, in ``x``'s dtype; anything that broadcasts to one example: ``[]`` for a
            number, ``[C, 1, 1]`` a channel, ``[C, H, W]`` an element.
        scale, shift: an affine map a unit before the clamp, such as a batch norm's: ``[C]``, both or neither, float64
            for a float64 ``x``, else float32.
        relu: rectify before the clamp.
        sigma: standard deviation of the noise, ``[K, C]``, at least 0, in the dtype of ``scale``; clamped units get
            theirs too.
        seed: any 64 bits, as an int or an int64 tensor ``[]``; with ``sigma``, as the next two.
        configurations: their ids, int64 ``[K]``, 0 to 2**32 - 1.
        examples: their indices in the data set, int64 ``[N]``, likewise.
        site: the id of this place in the network; other sites get other draws.
        per_map: one draw for all positions of a unit, not one for each.
        unit_dim: the unit dimension of ``[N, ...]``, at least 1.
        shared: whether one ``x`` serves all configurations.
        out: where to write, of the result's shape and ``x``'s dtype; then nothing is allocated.

    Returns:
        ``[K, N, ...]``, ``out`` if given; else an example lies in memory as those of a dense ``x`` do (channels-last
        stays so).

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that do not fit, an empty ``x``, noise without its ids.
        RuntimeError: a gradient is wanted for ``sigma``, or through ``out``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, float("nan")]])
        >>> perturb(x, torch.tensor([[False, False, True], [True, False, True]]), torch.tensor(0.0))
        tensor([[[1., 2., 0.]],
        <BLANKLINE>
                [[0., 2., 0.]]])
    """
    if seed is not None:
        seed = seed_tensor(seed, x.device)
    arguments = (x, ablated, value, scale, shift, relu, sigma, seed, configurations, examples, site, per_map)
    if sigma is not None and sigma.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("perturb: sigma has no gradient; detach it")
    if out is None:
        result: Tensor = torch.ops.sdkernels.perturb(*arguments, unit_dim, shared)
        return result
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (*arguments, out)):
        raise RuntimeError("perturb: out= has no gradient; call it under torch.no_grad(), or without out=")
    torch.ops.sdkernels.perturb_into(out, *arguments, unit_dim, shared)
    return out


def pack_mask(ablated: Tensor) -> Tensor:
    """A bool mask ``[K, C]`` as a bit a unit, uint8 ``[K, ceil(C / 8)]``: unit c is bit c % 8 of byte c // 8.

    Example:
        >>> pack_mask(torch.tensor([[True, False, True]]))
        tensor([[5]], dtype=torch.uint8)
    """
    configurations, units = ablated.shape
    padded = ablated.new_zeros((configurations, -(-units // 8) * 8))
    padded[:, :units] = ablated
    bits = padded.view(configurations, -1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=ablated.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(ablated: Tensor, units: int) -> Tensor:
    """A mask as :func:`perturb` takes it -> bool ``[K, C]``."""
    if ablated.dtype == torch.bool:
        return ablated
    bits = ablated[..., None] >> torch.arange(8, dtype=torch.uint8, device=ablated.device)
    return (bits & 1).bool().flatten(1)[:, :units]


def reference(
    out: Tensor,
    x: Tensor,
    ablated: Tensor,
    value: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sigma: Tensor | None,
    seed: Tensor | None,
    configurations: Tensor | None,
    examples: Tensor | None,
    site: int,
    per_map: bool,
    unit_dim: int,
    shared: bool,
) -> None:
    """The specification, in pure torch."""
    y = x if scale is None and not relu else x.to(computed_in(x.dtype))
    y = by_units(y, unit_dim, 1 if shared else 2)  # [N, A, C, B] or [K, N, A, C, B]
    value = by_units(value.expand(x.shape[1 if shared else 2 :])[None], unit_dim)[0]  # [A, C, B]
    units = y.shape[-2]
    if scale is not None and shift is not None:
        y = y * per_unit(scale) + per_unit(shift)
    if relu:
        y = torch.where(y < 0, 0, y)
    y = torch.where(per_unit(unpack_mask(ablated, units)[:, None, None]), value.to(y.dtype), y)  # [K, N, A, C, B]
    if sigma is not None and seed is not None and configurations is not None and examples is not None:
        shape = torch.Size([1, units, 1]) if per_map else value.shape
        noise = draw(examples, configurations, seed, 2, shape.numel(), site)
        noise = noise.view(len(configurations), len(examples), *shape)
        sigma = per_unit(sigma[:, None, None])  # [K, 1, 1, C, 1]
        noisy = y.to(sigma.dtype) + sigma * noise.to(sigma.dtype)
        y = torch.where(sigma == 0, y, noisy.to(x.dtype) if y.dtype == x.dtype else noisy)
    by_units(out, unit_dim, 2).copy_(y)


def native(
    out: Tensor,
    x: Tensor,
    ablated: Tensor,
    value: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sigma: Tensor | None,
    seed: Tensor | None,
    configurations: Tensor | None,
    examples: Tensor | None,
    site: int,
    per_map: bool,
    unit_dim: int,
    shared: bool,
) -> None:
    """The C++ version for CPU tensors, the CUDA version for CUDA tensors."""
    x_view = by_units(x, unit_dim, 1 if shared else 2)
    y_view = by_units(out, unit_dim, 2)
    value = by_units(value.expand(x.shape[1 if shared else 2 :])[None], unit_dim)[0]
    x_strides = (0, *x_view.stride()) if shared else x_view.stride()
    small = [t if t is None else t.contiguous() for t in (ablated, scale, shift, sigma, seed, configurations, examples)]
    native_function("perturb", x)(
        x_view.data_ptr(),
        value.data_ptr(),
        y_view.data_ptr(),
        [0 if t is None else t.data_ptr() for t in small],
        list(y_view.shape),
        list(x_strides),
        list(value.stride()),
        list(y_view.stride()),
        ablated.dtype == torch.uint8,
        relu,
        site,
        per_map,
        DTYPE_CODES[x.dtype],
    )


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("perturb")}


def _fake(
    x: Tensor,
    ablated: Tensor,
    value: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sigma: Tensor | None,
    seed: Tensor | None,
    configurations: Tensor | None,
    examples: Tensor | None,
    site: int,
    per_map: bool,
    unit_dim: int,
    shared: bool,
) -> Tensor:
    lead = 1 if shared else 2
    return empty_like_examples(x, [ablated.shape[0], x.shape[lead - 1]], unit_dim, lead)


def _allocate_and_run(x, *others):  # type: ignore[no-untyped-def]
    _check(x, *others)
    out = _fake(x, *others)
    _run(out, x, *others)
    return out


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ablated, value, scale, shift, ctx.relu, *_, ctx.unit_dim, ctx.shared = inputs
    affine = scale is not None
    ctx.save_for_backward(ablated, x if affine or ctx.relu else None, scale, shift)
    ctx.value_shape, ctx.dtype = value.shape, x.dtype
    ctx.example = x.shape[1 if ctx.shared else 2 :]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    ablated, x, scale, shift = ctx.saved_tensors
    units = ctx.example[ctx.unit_dim - 1]
    mask = _broadcast_mask(unpack_mask(ablated, units), grad.ndim, ctx.unit_dim)
    per_example = [units if d == ctx.unit_dim - 1 else 1 for d in range(len(ctx.example))]
    grad_value = torch.where(mask, grad, 0).sum_to_size(ctx.value_shape)
    grad_x = torch.where(mask, 0, grad)
    grad_scale = grad_shift = None
    if x is not None:
        wide = x.to(computed_in(x.dtype))
        a = 1 if scale is None else scale.view(per_example)
        b = 0 if shift is None else shift.view(per_example)
        grad_x = grad_x.to(wide.dtype)
        if ctx.relu:
            grad_x = torch.where(a * wide + b > 0, grad_x, 0)
        if scale is not None:
            grad_scale = (grad_x * wide).sum_to_size(per_example).view(units)
            grad_shift = grad_x.sum_to_size(per_example).view(units)
        grad_x = (a * grad_x).to(ctx.dtype)
    grad_x = grad_x.sum(0) if ctx.shared else grad_x
    return grad_x, None, grad_value, grad_scale, grad_shift, *[None] * 9


def _check_out(out: Tensor, *arguments) -> None:  # type: ignore[no-untyped-def]
    _check(*arguments)
    x, ablated, unit_dim, shared = arguments[0], arguments[1], arguments[-2], arguments[-1]
    expected = [ablated.shape[0], *(x.shape if shared else x.shape[1:])]
    if list(out.shape) != expected or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"perturb: out must be {x.dtype} {expected} on {x.device}; got {out.dtype} {list(out.shape)} on "
            f"{out.device}"
        )
    if by_units(out, unit_dim, 2).data_ptr() != out.data_ptr() or torch._debug_has_internal_overlap(out) == 1:
        raise ValueError(f"perturb: out with strides {list(out.stride())} cannot be written; give a dense tensor")


def _check(
    x: Tensor,
    ablated: Tensor,
    value: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sigma: Tensor | None,
    seed: Tensor | None,
    configurations: Tensor | None,
    examples: Tensor | None,
    site: int,
    per_map: bool,
    unit_dim: int,
    shared: bool,
) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"perturb: x is {x.dtype}; use one of {', '.join(str(t) for t in DTYPES)}")
    if ablated.dtype not in (torch.bool, torch.uint8) or value.dtype != x.dtype:
        raise TypeError(
            f"perturb: ablated must be torch.bool, or torch.uint8 for packed bits, and value {x.dtype} as x; got "
            f"{ablated.dtype} and {value.dtype}"
        )
    if x.device != ablated.device or x.device != value.device:
        raise ValueError(f"perturb: x is on {x.device}, ablated on {ablated.device}, value on {value.device}")
    if x.numel() == 0:
        raise ValueError(f"perturb: x {list(x.shape)} is empty")
    example = x.shape[1:] if shared else x.shape[2:]  # one example
    if not 1 <= unit_dim <= len(example):
        layout = "[N, ...]" if shared else "[K, N, ...]"
        raise ValueError(f"perturb: unit_dim={unit_dim}, but x {list(x.shape)} is read as {layout}")
    units = example[unit_dim - 1]
    width = units if ablated.dtype == torch.bool else -(-units // 8)
    if ablated.ndim != 2 or ablated.shape[0] == 0 or ablated.shape[1] != width:
        packed = "" if ablated.dtype == torch.bool else ", packed to [K, ceil(C / 8)]"
        raise ValueError(
            f"perturb: ablated {list(ablated.shape)} must be [K, C]{packed} with C = {units}, dimension {unit_dim} of "
            f"{'x' if shared else 'x[0]'}"
        )
    if not shared and x.shape[0] != ablated.shape[0]:
        raise ValueError(f"perturb: x has {x.shape[0]} configurations, ablated has {ablated.shape[0]}")
    try:
        value.expand(example)
    except RuntimeError as error:
        raise ValueError(
            f"perturb: value {list(value.shape)} does not broadcast to one example {list(example)}; a value a unit "
            f"needs the shape {[units if d == unit_dim - 1 else 1 for d in range(len(example))]}"
        ) from error
    if (scale is None) != (shift is None):
        raise ValueError("perturb: scale and shift are given together or not at all")
    for name, given, shape in (
        ("scale", scale, [units]),
        ("shift", shift, [units]),
        ("sigma", sigma, [ablated.shape[0], units]),
    ):
        wide = computed_in(x.dtype)
        if given is not None and given.dtype != wide:
            raise TypeError(f"perturb: {name} is {given.dtype}; for a {x.dtype} x it is {wide}")
        if given is not None and (list(given.shape) != shape or given.device != x.device):
            raise ValueError(f"perturb: {name} {list(given.shape)} on {given.device} must be {shape} on {x.device}")
    if sigma is None:
        return
    if seed is None or configurations is None or examples is None:
        raise ValueError(
            "perturb: noise needs seed, configurations and examples: the ids that fix each draw, so that no split of "
            "the work changes it"
        )
    check_seed("perturb", x.device, seed)
    check_site("perturb", site)
    check_ids("perturb", x.device, configurations=configurations, examples=examples)
    counts = (len(configurations), len(examples))
    if counts != (ablated.shape[0], x.shape[0 if shared else 1]):
        raise ValueError(
            f"perturb: {counts[0]} configurations and {counts[1]} examples have ids, but there are {ablated.shape[0]} "
            f"and {x.shape[0 if shared else 1]}"
        )
    if not bool((sigma >= 0).all()):
        raise ValueError("perturb: sigma has negative or nan entries; it is a standard deviation")


_SCHEMA = (
    "Tensor x, Tensor ablated, Tensor value, Tensor? scale, Tensor? shift, bool relu, Tensor? sigma, Tensor? seed, "
    "Tensor? configurations, Tensor? examples, int site, bool per_map, int unit_dim, bool shared"
)
_run = dispatcher("perturb", IMPLEMENTATIONS, lambda *_: None)
torch.library.define("sdkernels::perturb", f"({_SCHEMA}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.impl("sdkernels::perturb", ("cpu", "cuda"))(_allocate_and_run)
torch.library.register_fake("sdkernels::perturb")(_fake)
torch.library.register_autograd("sdkernels::perturb", _backward, setup_context=_setup_context)
torch.library.define(
    "sdkernels::perturb_into", f"(Tensor(a!) out, {_SCHEMA}) -> ()", tags=(torch.Tag.pt2_compliant_tag,)
)
torch.library.impl("sdkernels::perturb_into", ("cpu", "cuda"))(dispatcher("perturb", IMPLEMENTATIONS, _check_out))
torch.library.register_fake("sdkernels::perturb_into")(lambda out, *_: None)


def _broadcast_mask(ablated: Tensor, ndim: int, unit_dim: int) -> Tensor:
    """[K, C] -> [K, 1, ..., C, ..., 1], to broadcast against [K, N, ...]."""
    shape = [1] * ndim
    shape[0], shape[unit_dim + 1] = ablated.shape
    return ablated.view(shape)
