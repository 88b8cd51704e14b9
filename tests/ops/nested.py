"""nested_linear by its definition, masks and whole products in float64, and cases to try it on."""

from typing import Any

import torch
from torch import Tensor

from tests.ops.backends import Backend


def random_case(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    per_point: bool = False,
    whole: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of N, C, D, L, T, by name; without a head if L is 0. ``whole`` numbers make every sum exact."""
    n, c, d, classes, points = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        if whole:
            return torch.randint(-2, 3, size, generator=generator).to(dtype)
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    def living(most: int) -> Tensor:
        return torch.randint(0, most + 1, (points,), generator=generator).sort(descending=True).values

    rows = points if per_point else 1
    units = torch.randperm(c, generator=generator)
    case = {"a": draw(n, c), "units": units, "weight": draw(d, c), "bias": draw(rows, d)}
    case |= {"living_in": living(c), "living_out": living(d)}
    return case | {"head": draw(classes, d), "head_bias": draw(rows, classes)} if classes else case


def on(backend: Backend, case: dict[str, Any]) -> dict[str, Any]:
    """The case where a backend wants it: counts stay on the CPU."""
    stay = ("living_in", "living_out")
    moved = {n: t.to(backend.device) for n, t in case.items() if isinstance(t, Tensor) and n not in stay}
    return {**case, **moved}


def nested(
    a: Tensor,  # [N, C]
    units: Tensor,  # [C]
    weight: Tensor,  # [D, C]
    bias: Tensor,  # [1 or T, D]
    living_in: Tensor,  # [T]
    living_out: Tensor,  # [T]
    *,
    head: Tensor | None = None,  # [L, D]
    head_bias: Tensor | None = None,  # [1 or T, L]
    relu: bool = True,
) -> Tensor:  # [T, D or L, N] float64
    """All arguments as :func:`sdkernels.ops.nested_linear` takes them, on the CPU."""
    a, weight, bias = a.double(), weight.double(), bias.double()
    in_order = torch.zeros_like(weight)
    in_order[:, units] = weight  # columns back to those of a
    results = []
    for t in range(len(living_in)):
        alive_in = torch.zeros(a.shape[1], dtype=torch.float64)
        alive_in[units[: living_in[t]]] = 1
        alive_out = (torch.arange(len(weight)) < living_out[t]).double()
        hidden = (a * alive_in) @ in_order.T + bias[t % len(bias)]
        if relu:
            hidden = torch.where(hidden > 0, hidden, 0)
        hidden = hidden * alive_out
        if head is not None and head_bias is not None:
            hidden = hidden @ head.double().T + head_bias[t % len(head_bias)].double()
        results.append(hidden.T)
    return torch.stack(results)


def error_of(result: Tensor, exact: Tensor) -> float:
    """The greatest, relative to the greatest number; without a scale of its own."""
    return float((result.cpu().double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300))
