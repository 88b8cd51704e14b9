"""Cases of ``nested_linear``, ``nested_linear_score`` and ``rank_one``: a small MLP's last layers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from python_bench.gpu.case import TORCH, Case, require, runs
from python_bench.gpu.clock import Cases, Clock, normal, require_close
from python_bench.gpu.sums import torch_score
from sdkernels.ops import nested_linear, nested_linear_score, rank_one
from sdkernels.ops.nested_linear import IMPLEMENTATIONS as NESTED
from sdkernels.ops.nested_linear import SCORE_IMPLEMENTATIONS as NESTED_SCORE
from sdkernels.ops.nested_linear import reference as nested_reference
from sdkernels.ops.nested_linear import score_of_reference
from sdkernels.ops.rank_one import IMPLEMENTATIONS as RANK_ONE
from sdkernels.ops.rank_one import reference as rank_one_reference

NETWORK = {  # N, C, D, L, T
    "full": (16384, 512, 512, 10, 128),
    "quick": (4096, 512, 512, 10, 16),
    "tiny": (9, 6, 5, 4, 3),
}
ALONE = {"full": (256, 1024, 512, 512), "quick": (32, 1024, 512, 512), "tiny": (3, 4, 5, 6)}  # K, N, D, C
ERROR = 1e-5  # of float32 sums of 512 products, relative to the greatest
MARGIN = 1e-5
EXAMPLES = 2048  # that the reference takes at once


def linear_cases(device: torch.device, scale: str, clock: Clock) -> Cases:
    """A curve without a head, a curve with its scores, and every unit alone."""
    return {
        "nested_linear: a curve's outputs": lambda: nested_case(Curve.random(NETWORK[scale], device)).measures(clock),
        "nested_linear_score: a curve's scores": lambda: nested_score_case(
            Curve.random(NETWORK[scale], device)
        ).measures(clock),
        "rank_one: affine + ReLU": lambda: rank_one_case(ALONE[scale], device).measures(clock),
    }


@dataclass(frozen=True)
class Curve:
    """Two layers and a curve of random nested ablations over the units of both, pooled."""

    a: Tensor  # [N, C]
    units: Tensor  # [C]
    weight: Tensor  # [D, C]
    bias: Tensor  # [1, D]
    head: Tensor  # [L, D]
    head_bias: Tensor  # [1, L]
    living_in: Tensor  # [T]
    living_out: Tensor  # [T]
    labels: Tensor  # [N]

    @classmethod
    def random(cls, sizes: tuple[int, int, int, int, int], device: torch.device) -> "Curve":
        """From nothing clamped to everything."""
        n, c, d, classes, points = sizes
        generator = torch.Generator().manual_seed(0)
        in_first = torch.randperm(c + d, generator=generator) < c
        clamped = torch.linspace(0, c + d, points).long()
        first_clamped = torch.cat([torch.zeros(1, dtype=torch.int64), in_first.cumsum(0)])[clamped]
        return cls(
            normal(n, c, device=device).relu_(),
            torch.randperm(c, generator=generator).to(device),
            normal(d, c, device=device, seed=1) * c**-0.5,
            normal(1, d, device=device, seed=2) * 0.1,
            normal(classes, d, device=device, seed=3) * d**-0.5,
            normal(1, classes, device=device, seed=4) * 0.1,
            c - first_clamped,
            d - (clamped - first_clamped),
            torch.randint(0, classes, (n,), generator=generator).to(device),
        )

    @property
    def shape(self) -> str:
        """For the table."""
        n, (d, c), classes, points = len(self.a), self.weight.shape, len(self.head), len(self.living_in)
        return f"float32, {n} examples, {c} -> {d} -> {classes}, {points} points"

    def layers(self, head: bool = True, a: Tensor | None = None, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """Arguments of the op, in the order of its schema."""
        a = self.a if a is None else a
        floats = [t.to(dtype) for t in (a, self.weight, self.bias, self.head, self.head_bias)]
        last = floats[3:] if head else (None, None)
        return (floats[0], self.units, *floats[1:3], *last, self.living_in, self.living_out, True)

    def walk(self, out: Tensor, head: bool) -> Tensor:
        """The same algorithm in plain torch: running sums, living slices, outputs [T, D, N] or logits [T, L, N]."""
        a = self.a.t().index_select(0, self.units)  # [C, N]
        sums = self.bias.t().expand(-1, a.shape[1]).clone()  # [D, N]
        added = 0
        living = list(zip(self.living_in.tolist(), self.living_out.tolist(), strict=True))
        for t in range(len(living) - 1, -1, -1):
            inputs, outputs = living[t]
            if inputs > added:
                sums.addmm_(self.weight[:, added:inputs], a[added:inputs])
                added = inputs
            if head:
                hidden = sums[:outputs].relu()
                torch.addmm(self.head_bias.t(), self.head[:, :outputs], hidden, out=out[t])
            else:
                torch.clamp_min(sums[:outputs], 0, out=out[t, :outputs])
                out[t, outputs:] = 0
        return out


def nested_case(curve: Curve) -> Case:
    """The outputs at every point."""
    points, outputs = len(curve.living_in), len(curve.weight)
    arguments = curve.layers(head=False)
    run: dict[str, Callable[[], Tensor]] = dict(runs("nested_linear", NESTED, arguments))
    buffer = curve.a.new_empty(points, outputs, len(curve.a))
    run[TORCH] = lambda: curve.walk(buffer, head=False)

    def check(name: str) -> str:
        buffer.fill_(torch.nan)
        result = run[name]()
        require(result.shape == buffer.shape, f"its shape is {list(result.shape)}")
        error = 0.0
        for first in range(0, len(curve.a), EXAMPLES):
            part = slice(first, first + EXAMPLES)
            expected = nested_reference(*curve.layers(head=False, a=curve.a[part], dtype=torch.float64))
            error = max(error, require_close(f"examples from {first}", result[:, :, part], expected, ERROR))
        return f"all outputs to {error:.0e} (float64 reference)"

    def call() -> Tensor:
        a, units, weight, bias, _, _, living_in, living_out, _ = arguments
        return nested_linear(a, units, weight, bias, living_in, living_out)

    return Case(
        curve.shape,
        run,
        call,
        check,
        bytes=buffer.nbytes + curve.a.nbytes + curve.weight.nbytes,
        flop=2.0 * curve.a.numel() * outputs,
        target="bound by its writes",
    )


def nested_score_case(curve: Curve) -> Case:
    """Nothing but counts and sums leaves."""
    options = (True, 0, False, -1.0)  # losses, as the opponent
    run: dict[str, Callable[[], Any]] = dict(
        runs("nested_linear", NESTED_SCORE, (*curve.layers(), curve.labels, None, *options))
    )
    points, classes = len(curve.living_in), len(curve.head)
    buffer = curve.a.new_empty(points, classes, len(curve.a))
    run[TORCH] = lambda: torch_score(curve.walk(buffer, head=True).transpose(1, 2).contiguous(), curve.labels)

    @cache
    def expected() -> tuple[Tensor, ...]:
        scoring = (curve.labels, None, True, 0, False, MARGIN)
        return score_of_reference(*(*curve.layers(dtype=torch.float64), *scoring))

    def check(name: str) -> str:
        result = run[name]()
        correct, loss = (result[0], result[1]) if name == TORCH else (result[0], result[2])
        error = require_close("loss", loss, expected()[2], ERROR)
        wrong = (correct - expected()[0]).abs()
        require(
            bool((wrong <= expected()[5]).all()), f"correct counts differ from float64's by up to {int(wrong.max())}"
        )
        return f"counts equal up to ambiguous ones, losses to {error:.0e} (float64 reference)"

    def call() -> object:
        a, units, weight, bias, head, head_bias, living_in, living_out, _ = curve.layers()
        return nested_linear_score(
            a, units, weight, bias, living_in, living_out, curve.labels, head=head, head_bias=head_bias
        )

    products = curve.weight.numel() + classes * int(curve.living_out.sum())
    return Case(
        curve.shape, run, call, check, flop=2.0 * len(curve.a) * products, target="near the float32 product peak"
    )


def rank_one_case(sizes: tuple[int, int, int, int], device: torch.device) -> Case:
    """Every unit clamped to 0 by itself."""
    k, n, d, c = sizes
    z, weight, a = (normal(*s, device=device, seed=i) for i, s in enumerate(((n, d), (d, c), (n, c))))
    scale, shift = (normal(d, device=device, seed=i) for i in (3, 4))
    units = torch.arange(k, device=device) % c
    run: dict[str, Callable[[], Tensor]] = dict(
        runs("rank_one", RANK_ONE, (z, weight, a, units, None, scale, shift, True))
    )
    buffer = z.new_empty(k, n, d)

    def in_torch() -> Tensor:
        sent = weight.t()[units][:, None]  # [K, 1, D]
        torch.addcmul(z, sent, a.t()[units][:, :, None], value=-1, out=buffer)
        return buffer.mul_(scale).add_(shift).relu_()

    run[TORCH] = in_torch

    def check(name: str) -> str:
        buffer.fill_(torch.nan)
        result = run[name]()
        error = 0.0
        for i in range(k):
            expected = rank_one_reference(z, weight, a, units[i : i + 1], None, scale, shift, True)
            error = max(error, require_close(f"unit {i}", result[i : i + 1], expected, ERROR))
        return f"all outputs to {error:.0e}"

    return Case(
        f"{k} units, float32 {[n, d]}",
        run,
        lambda: rank_one(z, weight, a, units, scale=scale, shift=shift, relu=True),
        check,
        bytes=sum(t.nbytes for t in (buffer, z, weight, a)),
        target=">= 85% of copy",
    )
