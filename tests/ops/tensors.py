"""Tensors to test with: numbers of a seed, the same numbers in many memory layouts, other numbers of threads."""

from contextlib import contextmanager

import torch
from torch import Tensor

# How an activation [N, ...] may lie in memory, by name; see `laid_out`.
LAYOUTS = ["contiguous", "channels-last", "transposed", "every-other-unit", "every-other-position", "window"]


def numbers(shape: tuple[int, ...] | list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal draws, whatever the global random state."""
    return torch.randn(list(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(low: int, high: int, shape: tuple[int, ...] | list[int], seed: int = 0) -> Tensor:
    """int64 from low to high - 1."""
    return torch.randint(low, high, list(shape), generator=torch.Generator().manual_seed(seed))


def chances(shape: tuple[int, ...] | list[int], probability: float, seed: int = 0) -> Tensor:
    """Bool, True with this probability."""
    return torch.rand(list(shape), generator=torch.Generator().manual_seed(seed)) < probability


def laid_out(x: Tensor, layout: str, unit_dim: int = 1) -> Tensor:
    """The numbers of ``x`` in another layout; nan stands between them wherever there is room."""
    if layout == "channels-last":
        return x.movedim(unit_dim, -1).contiguous().movedim(-1, unit_dim)
    if layout == "transposed":
        return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    if layout == "every-other-unit":
        return _sliced(x, {unit_dim: slice(1, None, 2)}, [2 * n if d == unit_dim else n for d, n in enumerate(x.shape)])
    if layout == "every-other-position":
        return _sliced(x, {x.ndim - 1: slice(None, None, 2)}, [*x.shape[:-1], 2 * x.shape[-1]])
    if layout == "window":  # of all dimensions but that of the examples
        inner = {d: slice(1, -2) for d in range(1, x.ndim)}
        return _sliced(x, inner, [n + 3 * (d > 0) for d, n in enumerate(x.shape)])
    return x.contiguous()


def _sliced(x: Tensor, where: dict[int, slice], shape: list[int]) -> Tensor:
    around = x.new_full(shape, torch.nan)
    view = around[tuple(where.get(d, slice(None)) for d in range(x.ndim))]
    view.copy_(x)
    return view


@contextmanager
def threads(count: int):
    """torch, and so the native core, works with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
