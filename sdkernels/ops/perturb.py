r"""Clamp units of an activation, many configurations at once.

Maths
-----
For configurations :math:`k` and units :math:`c` of an activation :math:`x`,

.. math:: y_{k,n,c,s} = \begin{cases} v_{c,s} & \text{if unit } c \text{ is ablated in configuration } k \\
                                      x_{n,c,s} & \text{otherwise} \end{cases}

A *select*, not a product with a 0/1 mask: an ablated ``inf`` or ``nan`` becomes the value, and every value but the
clamped ones keeps its bits. One read of ``x``, one write of ``y``; a clamped feature map is not read at all.

The gradient is the select's own: :math:`\partial x = \sum_k [\text{not ablated}]\,\partial y` and
:math:`\partial v = \sum_{k,n} [\text{ablated}]\,\partial y`.
"""

import torch
from torch import Tensor

from sdkernels.ops.backend import check_error_code, dispatcher, native_library

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def perturb(
    x: Tensor,  # [N, ...] shared by all configurations, or [K, N, ...]
    ablated: Tensor,  # [K, C] bool
    value: Tensor,  # broadcasts to one example, x.shape[1:] of a shared x
    *,
    unit_dim: int = 1,
    shared: bool = True,
) -> Tensor:  # [K, N, ...]
    """Clamp the ablated units of ``x`` to ``value``, in K configurations: ``where(ablated, value, x)``.

    Args:
        x: activations, ``[N, ...]`` if ``shared`` by all configurations, else ``[K, N, ...]``; float64, float32,
            bfloat16 or float16. Units (C) stand in dimension ``unit_dim`` of ``[N, ...]``.
        ablated: bool ``[K, C]``, True where a unit is clamped.
        value: what a clamped unit becomes, in ``x``'s dtype; anything that broadcasts to one example: ``[]`` for a
            number, ``[C, 1, 1]`` a channel, ``[C, H, W]`` an element.
        unit_dim: the unit dimension of ``[N, ...]``, at least 1.
        shared: whether one ``x`` serves all configurations.

    Returns:
        ``[K, N, ...]``, dense; an example lies in memory as those of ``x`` do (channels-last stays so).

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that do not fit, or an empty ``x``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, float("nan")]])
        >>> perturb(x, torch.tensor([[False, False, True], [True, False, True]]), torch.tensor(0.0))
        tensor([[[1., 2., 0.]],
        <BLANKLINE>
                [[0., 2., 0.]]])
    """
    result: Tensor = torch.ops.sdkernels.perturb(x, ablated, value, unit_dim, shared)
    return result


def reference(x: Tensor, ablated: Tensor, value: Tensor, unit_dim: int, shared: bool) -> Tensor:
    """The specification, in pure torch."""
    configurations = x[None] if shared else x  # [K or 1, N, ...]
    y = _empty_output(x, ablated, shared)
    return y.copy_(torch.where(_broadcast_mask(ablated, y.ndim, unit_dim), value, configurations))


def native(x: Tensor, ablated: Tensor, value: Tensor, unit_dim: int, shared: bool) -> Tensor:
    """The C++ version: CPU tensors."""
    y = _empty_output(x, ablated, shared)
    first = 0 if shared else 1  # the dimension N of x
    example = x.shape[first + 1 :]
    value = value.expand(example)
    order = _memory_order(x, first)
    x, value = x.permute(*range(first + 1), *(first + 1 + d for d in order)), value.permute(order)
    at = order.index(unit_dim - 1)
    before, after = value.shape[:at].numel(), value.shape[at + 1 :].numel()
    x, ablated, value = x.contiguous(), ablated.contiguous(), value.contiguous()
    code = native_library().perturb(
        x.data_ptr(),
        ablated.data_ptr(),
        value.data_ptr(),
        y.data_ptr(),
        ablated.shape[0],
        x.shape[first],
        before,
        ablated.shape[1],
        after,
        shared,
        x.element_size(),
        torch.get_num_threads(),
    )
    check_error_code("perturb", code)
    return y


IMPLEMENTATIONS = {"reference": reference, "native": native}


def _fake(x: Tensor, ablated: Tensor, value: Tensor, unit_dim: int, shared: bool) -> Tensor:
    return _empty_output(x, ablated, shared)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, ablated, value, ctx.unit_dim, ctx.shared = inputs
    ctx.save_for_backward(ablated)
    ctx.value_shape = value.shape


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    (ablated,) = ctx.saved_tensors
    mask = _broadcast_mask(ablated, grad.ndim, ctx.unit_dim)
    grad_x = torch.where(mask, 0, grad)
    grad_value = torch.where(mask, grad, 0).sum_to_size(ctx.value_shape)
    return grad_x.sum(0) if ctx.shared else grad_x, None, grad_value, None, None


def _check(x: Tensor, ablated: Tensor, value: Tensor, unit_dim: int, shared: bool) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"perturb: x is {x.dtype}; use one of {', '.join(str(t) for t in DTYPES)}")
    if ablated.dtype != torch.bool or value.dtype != x.dtype:
        raise TypeError(
            f"perturb: ablated must be torch.bool and value {x.dtype} as x; got {ablated.dtype} and {value.dtype}"
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
    if ablated.ndim != 2 or ablated.shape[0] == 0 or ablated.shape[1] != units:
        raise ValueError(
            f"perturb: ablated {list(ablated.shape)} must be [K, C] with C = {units}, dimension {unit_dim} of "
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


torch.library.define(
    "sdkernels::perturb",
    "(Tensor x, Tensor ablated, Tensor value, int unit_dim, bool shared) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::perturb", ("cpu", "cuda"))(dispatcher(IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::perturb")(_fake)
torch.library.register_autograd("sdkernels::perturb", _backward, setup_context=_setup_context)


def _broadcast_mask(ablated: Tensor, ndim: int, unit_dim: int) -> Tensor:
    """[K, C] -> [K, 1, ..., C, ..., 1], to broadcast against [K, N, ...]."""
    shape = [1] * ndim
    shape[0], shape[unit_dim + 1] = ablated.shape
    return ablated.view(shape)


def _memory_order(x: Tensor, first: int) -> list[int]:
    """The dimensions of one example from the outermost in memory to the innermost; as they stand if x is not dense."""
    strides = x.stride()[first + 1 :]
    order = sorted(range(len(strides)), key=lambda d: strides[d], reverse=True)
    dense = x.permute(*range(first + 1), *(first + 1 + d for d in order)).is_contiguous()
    return order if dense and not x.is_contiguous() else list(range(len(strides)))


def _empty_output(x: Tensor, ablated: Tensor, shared: bool) -> Tensor:
    first = 0 if shared else 1  # the dimension N of x
    order = _memory_order(x, first)
    example = x.shape[first + 1 :]
    y = x.new_empty([ablated.shape[0], x.shape[first], *(example[d] for d in order)])
    return y.permute(0, 1, *(2 + order.index(d) for d in range(len(order))))
