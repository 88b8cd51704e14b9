"""What channels are that hold no variable at a point: the clamp values, and what functions make of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sdkernels.engine.curves import CurvePlan, CurveRun
from sdkernels.engine.graph import Values
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Linear, Mark, Same


class Constants:
    """At one point of a curve; computed when asked for, at a batch size of one where no example has its own.

    Args:
        run, plan: of the curve.
        intact: values that the configurations share.
        clamped: for each site, what its clamped units are, [1, *example] or [N, *example].
        point: its number.
    """

    def __init__(self, run: CurveRun, plan: CurvePlan, intact: Values, clamped: Sequence[Tensor], point: int) -> None:
        self._run, self._plan, self._intact, self._clamped, self._point = run, plan, intact, clamped, point
        self._rules, self._dims = run.know.rules, run.know.dims
        self._found: dict[fx.Node, Tensor | None] = {}

    def of(self, node: fx.Node) -> Tensor | None:
        """What a node's dead channels are at this point, [1, C, ...] or [N, C, ...]; None where all are zero, or none
        is dead."""
        if node not in self._plan.live.alive or bool((self._plan.live.alive[node] > self._point).all()):
            return None
        if node not in self._found:
            self._found[node] = self._make(node)
        return self._found[node]

    def _make(self, node: fx.Node) -> Tensor | None:
        match rule := self._rules[node]:
            case Mark():
                source = self.of(rule.source) if self._dims.get(rule.source) == self._dims[node] else None
                if source is None and self._run.is_zero[rule.site]:
                    return None
                value = self._clamped[rule.site]
                clamped = self._plan.curve.deaths[rule.site] <= self._point
                before = torch.zeros_like(value) if source is None else source
                return torch.where(along(clamped.to(value.device), value.ndim, self._dims[node]), value, before)
            case Each():
                source = self.of(rule.source)
                return None if source is None and rule.keeps_zero else rule.function(self.or_zeros(source, rule.source))
            case Affine():
                everyone = torch.arange(len(rule.scale), device=rule.scale.device)
                return scaled(self.or_zeros(self.of(rule.source), rule.source), rule, everyone)
            case Binary():
                operands = [self._operand(o) for o in rule.operands]
                return rule.function(*operands)
            case Join():
                parts = [self.of(s) for s in rule.sources]
                if all(part is None for part in parts):
                    return None
                whole = [self.or_zeros(p, s) for p, s in zip(parts, rule.sources, strict=True)]
                examples = max(len(part) for part in whole)
                return torch.cat([part.expand(examples, *part.shape[1:]) for part in whole], self._dims[node] or 1)
            case Flatten():
                source = self.of(rule.source)
                return None if source is None else source.flatten(1)
            case Same():
                return self.of(rule.source)
            case Linear():  # depthwise
                product = rule.product
                return product(self.or_zeros(self.of(rule.source), rule.source), product.weight, product.bias)
        raise AssertionError(f"{node} has no constants")

    def or_zeros(self, constant: Tensor | None, node: fx.Node) -> Tensor:
        return self._run.like.new_zeros(1, *node.meta["shape"][1:]) if constant is None else constant

    def _operand(self, operand: Any) -> Any:
        if not isinstance(operand, fx.Node):
            return operand
        if operand not in self._rules:
            return self._intact[operand]
        return self.or_zeros(self.of(operand), operand)


def scaled(x: Tensor, rule: Affine, channels: Tensor) -> Tensor:
    """A rule's scale and shift of some channels of x [N, C', ...]."""
    scale, shift = (along(t.to(x.dtype)[channels], x.ndim, 1) for t in (rule.scale, rule.shift))
    return torch.addcmul(shift, x, scale)


def along(t: Tensor, ndim: int, dim: int | None) -> Tensor:
    """[C] -> [1, ..., C, ..., 1]."""
    shape = [1] * ndim
    shape[dim or 0] = len(t)
    return t.view(shape)
