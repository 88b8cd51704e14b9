"""rank_one by its definition, one unit and one output at a time, and cases to try it on."""

from typing import Any

import torch
from torch import Tensor

from tests.ops.backends import Backend
from tests.ops.tensors import integers, numbers


def random_case(shape, dtype=torch.float32, *, value=True, affine=True, relu=True, seed=0) -> dict[str, Any]:
    """Arguments of N, C, D, positions (() or one number) and K, by name."""
    n, c, d, positions, k = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    case = {
        "z": numbers((n, d, *positions), dtype, seed),
        "weight": numbers((d, c), dtype, seed + 1),
        "a": numbers((n, c, *positions), dtype, seed + 2),
        "units": integers(0, c, [k], seed),
        "relu": relu,
    }
    if value:
        case["value"] = numbers([c], dtype, seed + 3)
    if affine:
        case |= {"scale": numbers([d], wide, seed + 4), "shift": numbers([d], wide, seed + 5)}
    return case


def on(backend: Backend, case: dict[str, Any]) -> dict[str, Any]:
    """The case where a backend wants it."""
    return {name: t.to(backend.device) if isinstance(t, Tensor) else t for name, t in case.items()}


def clamped(z, weight, a, units, value=None, scale=None, shift=None, relu=False) -> Tensor:
    """One unit and one output at a time, every step rounded."""
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    y = z.new_empty(len(units), *z.shape)
    for k, c in enumerate(units.tolist()):
        v = torch.zeros((), dtype=wide) if value is None else value[c].to(wide)
        change = v - a[:, c].to(wide)  # [N] or [N, S]
        for d in range(z.shape[1]):
            product = weight[d, c].to(wide) * change
            row = z[:, d].to(wide) + product
            if scale is not None:
                row = scale[d] * row
                row = row + shift[d]
            y[k, :, d] = torch.where(row < 0, 0, row) if relu else row
    return y
