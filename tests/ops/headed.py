"""rank_one with a head by its definition, in float64, and cases to try it on."""

from typing import Any

import torch
from torch import Tensor

from tests.ops.clamped import random_case
from tests.ops.tensors import integers, numbers
from tests.ops.tolerances import of_sums, same_bits


def head_case(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    intact: bool = True,
    bias: bool = True,
    seed: int = 0,
    **options: bool,
) -> dict[str, Any]:
    """Arguments of N, C, D, L, K, by name; where ``intact`` is given about half of ``a`` is at its value."""
    n, c, d, classes, k = shape
    case = random_case((n, c, d, (), k), dtype, seed=seed, **options)
    case["head"] = numbers((classes, d), dtype, seed + 6)
    if bias:
        case["head_bias"] = numbers([classes], dtype, seed + 7)
    if intact:
        case["intact"] = numbers((n, classes), dtype, seed + 8)
        at_value = integers(0, 2, (n, c), seed + 9).bool()
        case["a"] = torch.where(at_value, case.get("value", torch.zeros(c, dtype=dtype)), case["a"])
    return case


def hidden_of(z, weight, a, units, value=None, scale=None, shift=None, relu=False) -> Tensor:
    """What the head reads, [K, N, D] in float64, by the definition."""
    z, weight, a = z.double(), weight.double(), a.double()
    clamped_to = torch.zeros(a.shape[1]).double() if value is None else value.double()
    hidden = torch.stack([z + torch.outer(clamped_to[c] - a[:, c], weight[:, c]) for c in units.tolist()])
    if scale is not None:
        hidden = scale.double() * hidden + shift.double()
    return torch.where(hidden < 0, 0, hidden) if relu else hidden


def logits_of(
    head: Tensor, head_bias: Tensor | None = None, intact: Tensor | None = None, **case: Any
) -> tuple[Tensor, Tensor]:
    """Logits [K, N, L] in float64 by the definition, and where they are intact [K, N]."""
    logits = hidden_of(**case) @ head.double().T + (0 if head_bias is None else head_bias.double())
    absent = torch.zeros(logits.shape[:2], dtype=torch.bool)
    if intact is not None:
        for k, c in enumerate(case["units"].tolist()):
            absent[k] = case["a"][:, c] == (case["value"][c] if "value" in case else 0)
            logits[k, absent[k]] = intact[absent[k]].double()
    return logits, absent


def is_float(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def assert_logits(result: Tensor, case: dict[str, Any]) -> None:
    """Equal to the definition; to the bit where they are intact."""
    expected, absent = logits_of(**case)
    assert result.shape == expected.shape
    assert result.dtype == case["z"].dtype
    assert result.is_contiguous()
    result = result.cpu()
    plain = logits_of(**{**case, "intact": None})[0]
    assert (result.double() - expected).abs().max() <= of_sums(result.dtype) * plain.abs().max()
    if absent.any():
        assert same_bits(result[absent], case["intact"].expand(len(absent), -1, -1)[absent])
