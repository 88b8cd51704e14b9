"""How ops see an activation: every example as [A, C, B], C units with A positions before them and B after.

Maps [N, C, H, W] are A = 1, B = H W; features [N, F] are A = B = 1; tokens [N, T, F] are A = T, B = 1. Channels-last
memory is the same shape with other strides, so no version of an op copies it.
"""

from itertools import pairwise

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# How the core and its callers call them.
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def by_units(x: Tensor, unit_dim: int, lead: int = 1) -> Tensor:
    """x [*lead, ...] as [*lead, A, C, B]; units stand in ``unit_dim`` of [N, ...], where N is the last of the leading.

    A view, unless the positions before or after the units cannot be counted with one stride (a window cut out of a
    map): then a copy.
    """
    example = x.shape[lead:]
    before, units, after = example[: unit_dim - 1], example[unit_dim - 1], example[unit_dim:]
    return x.reshape(*x.shape[:lead], before.numel(), units, after.numel())


def empty_like_examples(x: Tensor, shape: list[int], unit_dim: int, lead: int) -> Tensor:
    """An uninitialised [*shape, *example]; examples lie in memory as those of a dense x do, else contiguously."""
    example, strides = x.shape[lead:], x.stride()[lead:]
    order = sorted(range(len(example)), key=lambda d: strides[d], reverse=True)
    dense = x.permute(*range(lead), *(lead + d for d in order)).is_contiguous()
    one_stride = all(_has_one_stride(x.shape[dims], x.stride()[dims]) for dims in _around(lead, unit_dim))
    if x.is_contiguous() or not dense or not one_stride:
        return x.new_empty([*shape, *example])
    y = x.new_empty([*shape, *(example[d] for d in order)])
    return y.permute(*range(len(shape)), *(len(shape) + order.index(d) for d in range(len(order))))


def _around(lead: int, unit_dim: int) -> tuple[slice, slice]:
    """The dimensions before the units and after them."""
    return slice(lead, lead + unit_dim - 1), slice(lead + unit_dim, None)


def _has_one_stride(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these dimensions can be counted with one stride."""
    long = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(long))


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What ops compute in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_unit(values: Tensor) -> Tensor:
    """[..., C] -> [..., C, 1], to stand against [..., A, C, B]."""
    return values[..., None]
