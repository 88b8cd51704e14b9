r"""Run curves of nested configurations on living channels alone.

*Nested.* A product that reads what a site hands on, with nothing but channelwise functions between, is a sum over
living channels whose values never change. The curve is walked backwards, from everything clamped to nothing, and
channels are added back:

.. math:: z_t = z_{t+1} + W_{:, \text{returning}} * a_{\text{returning}}

so that a whole curve costs one product. Adding only, never subtracting, keeps rounding small.

*Compact.* Every later product multiplies computed inputs into computed outputs alone, by a contiguous slice of its
permuted weights. A clamped unit is no variable any more: what it sends on folds into the next product's bias.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sdkernels.engine.constants import Constants, along, scaled
from sdkernels.engine.curves import CurvePlan, CurveRun
from sdkernels.engine.graph import Values, storage
from sdkernels.engine.liveness import Layout
from sdkernels.engine.marked import clamped, has_one_mark
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Linear, Mark, Same, Size, Unknown
from sdkernels.ops import perturb


@dataclass
class Compact:
    """A tensor's computed channels in a layout's order, at one point."""

    data: Tensor  # [N, A, ...] with A in the node's channel dimension
    layout: Layout
    is_free: bool  # whether nobody else holds its memory, so that it may be written
    is_rectified: bool = False  # whether the ReLU behind it is done


class Walk:
    """One curve on one tile of examples.

    Args:
        run, plan: of the curve.
        intact: values that the configurations share.
        clamped: for each site, what its clamped units are, [1, *example] or [N, *example].
        values_in_range: of sites whose units are clamped in a range of activations: what they are there.
        examples: N.
    """

    def __init__(
        self,
        run: CurveRun,
        plan: CurvePlan,
        intact: Values,
        clamped: Sequence[Tensor],
        values_in_range: Mapping[int, Tensor],
        examples: int,
    ) -> None:
        self._run, self._plan, self._intact, self._n = run, plan, intact, examples
        self._clamped, self._values_in_range = clamped, values_in_range
        self._rules, self._dims = run.know.rules, run.know.dims
        self._sums: dict[fx.Node, Tensor] = {}  # running sums of nested products
        self._added: dict[fx.Node, int] = {}  # how many channels are in them
        self._protected = {storage(v) for v in intact.values() if isinstance(v, Tensor)}
        self._states: dict[int, tuple[dict[fx.Node, Any], Constants]] = {}  # of the points that are run together

    def logits(self, together: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Runs of points, the last first, and their logits [k, N, L]; a run has at most ``together`` points."""
        for stop in range(self._plan.curve.points, 0, -together):
            points = range(stop - 1, max(stop - together, 0) - 1, -1)
            yield torch.tensor(points), torch.stack(self._run_points(points))

    def _run_points(self, points: range) -> list[Tensor]:
        """Logits [N, L] at some points, from the last to the first."""
        self._states = {p: ({}, Constants(self._run, self._plan, self._intact, self._clamped, p)) for p in points}
        for node, done in self._run.steps:
            alike = self._alike(node, points)
            if alike:
                self._product_of_all(node, alike)
            for point in points:
                if point not in alike:
                    self._enter(point)
                    self._values[node] = self._evaluate(node)
            for values, _ in self._states.values():
                for source in done:
                    values.pop(source, None)
        results: list[Tensor] = []
        for point in points:
            self._enter(point)
            results.append(self._whole(self._run.graph.output))
        return results

    def _enter(self, point: int) -> None:
        """Everything that follows happens at this point."""
        self._point = point
        self._values, self._constants = self._states[point]

    def _alike(self, node: fx.Node, points: range) -> list[int]:
        """The points at which a product reads all of its inputs and has the same outputs, if there are several."""
        rule, source, layout = self._rules[node], self._plan.inputs.get(node), self._plan.layouts.get(node)
        if not isinstance(rule, Linear) or source is None or layout is None or self._run.is_nested(node):
            return []
        rows = max(layout.counts[p] for p in points)
        alike = [p for p in points if source.counts[p] == len(source.order) > 0 and layout.counts[p] == rows > 0]
        return alike if len(alike) > 1 else []

    def _product_of_all(self, node: fx.Node, points: list[int]) -> None:
        """One product for several points."""
        rule, layout = self._rules[node], self._plan.layouts[node]
        assert isinstance(rule, Linear)  # noqa: S101 - _alike has seen it
        rows = layout.counts[points[0]]
        source, dim = self._plan.inputs[node], rule.product.dim(len(rule.source.meta["shape"]))
        parts: list[Tensor] = []
        for point in points:
            self._enter(point)
            parts.append(self._take(rule.source, source, dim)[0])
        weight = rule.product.part(self._plan.weights[node], slice(rows), slice(None))
        relu = node in self._run.know.rectified
        result = rule.product(torch.cat(parts), weight, self._plan.biases[node][:rows], relu)
        for point, part in zip(points, result.split(len(parts[0])), strict=True):
            self._enter(point)
            self._values[node] = Compact(part, layout, is_free=True, is_rectified=relu)

    def _evaluate(self, node: fx.Node) -> Any:
        match rule := self._rules[node]:
            case Size():
                shape = torch.Size((self._n, *rule.shape[1:]))
                return shape if rule.index is None else shape[rule.index]
            case Unknown():
                return self._run.graph.call(node, self._whole, self._protected)
            case Linear() if node not in self._plan.weights:  # grouped
                product = rule.product
                return product(self._whole(rule.source), product.weight, product.bias)
            case Same():
                return self._values[rule.source]
            case Mark() if rule.by_value:
                return self._clamp_in_range(rule, node)
        layout = self._plan.layouts[node]
        rows = layout.counts[self._point]
        if rows == 0:
            return Compact(self._empty(node), layout, is_free=True)
        match rule:
            case Mark():
                data, is_free = self._take(rule.source, layout, self._dims[node])
            case Each() if rule.function is F.relu and getattr(self._values.get(rule.source), "is_rectified", False):
                return self._values[rule.source]
            case Each():
                data, is_free = self._take(rule.source, layout, self._dims[rule.source])
                if rule.function is F.relu:
                    data, is_free = (data.clamp_min_(0) if is_free else data.clamp_min(0)), True
                else:
                    result = rule.function(data)
                    is_free = is_free or storage(result) != storage(data)
                    data = result
            case Affine():
                data, _ = self._take(rule.source, layout, self._dims[node])
                channels = layout.order[:rows].to(data.device)
                data, is_free = scaled(data, rule, channels), True
            case Binary():
                data, is_free = self._binary(rule, node, layout), True
            case Join():
                data, is_free = self._join(rule, node, layout), True
            case Flatten():
                data, is_free = self._flatten(rule, node, layout), False
            case Linear():
                data, is_free = self._product(rule, node, layout)
        is_rectified = isinstance(rule, Linear) and node in self._run.know.rectified
        return Compact(data, layout, is_free, is_rectified)

    # What operands give.

    def _take(self, source: fx.Node, want: Layout, dim: int | None) -> tuple[Tensor, bool]:
        """The channels of a value that a layout computes at this point, and whether they may be written."""
        value = self._values.get(source)
        if isinstance(value, Compact) and value.layout is want and self._dims[source] == dim:
            return value.data, value.is_free and len(source.users) == 1
        return self._gather(source, want.order[: want.counts[self._point]], dim)

    def _gather(self, source: fx.Node, channels: Tensor, dim: int | None) -> tuple[Tensor, bool]:
        """Any channels of a value, and whether they may be written."""
        assert dim is not None  # noqa: S101 - only tensors with channels are taken from
        value = self._values.get(source)
        if source not in self._rules or isinstance(value, Tensor) or self._dims[source] != dim:
            whole: Tensor = self._whole(source)
            if len(channels) == whole.shape[dim] and torch.equal(channels, torch.arange(len(channels))):
                return whole, False
            return whole.index_select(dim, channels.to(whole.device)), True
        alive = self._plan.live.alive[source][channels] > self._point
        constant = None if alive.all() else self._constants.of(source)
        if not alive.any():
            like = self._run.like
            shape = [self._n, *source.meta["shape"][1:]]
            shape[dim] = len(channels)
            if constant is None:
                return like.new_zeros(shape), True
            return constant.index_select(dim, channels.to(like.device)).expand(shape).clone(
                memory_format=torch.contiguous_format
            ), True
        if isinstance(value, Compact):
            data = value.data
            channels_in_data = value.layout.position[channels].clamp_max(data.shape[dim] - 1)
        else:  # frozen
            data, channels_in_data = self._intact[self._run.intact_of(source)], channels
        taken = data.index_select(dim, channels_in_data.to(data.device))
        if alive.all():
            return taken, True
        dead = (~alive).nonzero().squeeze(1).to(data.device)
        if constant is None:
            return taken.index_fill_(dim, dead, 0), True
        shape = list(taken.shape)
        shape[dim] = len(dead)
        filling = constant.index_select(dim, channels.to(data.device)[dead]).expand(shape)
        return taken.index_copy_(dim, dead, filling), True

    def _whole(self, source: fx.Node) -> Any:
        """A node's value with every channel in its own place."""
        if source not in self._rules:
            return self._intact[source]
        value = self._values.get(source)
        if value is not None and not isinstance(value, Compact):
            return value
        dim = self._dims[source]
        assert dim is not None  # noqa: S101 - compact and frozen values have channels
        alive = self._plan.live.alive[source] > self._point
        if value is None:
            data = self._intact[self._run.intact_of(source)]
            if alive.all():
                return data
            constant = self._constants.of(source)
            if not alive.any():
                return (
                    self._constants.or_zeros(constant, source)
                    .expand(data.shape)
                    .clone(memory_format=torch.contiguous_format)
                )
            if constant is not None and len(constant) > 1:
                return torch.where(along(alive.to(data.device), data.ndim, dim), data, constant)
            filling = data.new_zeros(()) if constant is None else constant[0]
            return perturb(data, ~alive[None].to(data.device), filling, unit_dim=dim)[0]
        if value.layout.is_whole:
            return value.data
        everything = self._plan.live.layout_of(torch.full_like(self._plan.live.alive[source], self._plan.curve.points))
        return self._take(source, everything, dim)[0]

    def _empty(self, node: fx.Node) -> Tensor:
        shape = [self._n, *node.meta["shape"][1:]]
        dim = self._dims[node]
        assert dim is not None  # noqa: S101 - it has a layout
        shape[dim] = 0
        return self._run.like.new_empty(shape)

    # The rules.

    def _clamp_in_range(self, rule: Mark, node: fx.Node) -> Tensor:
        """All channels of a site whose own activations decide where they are clamped."""
        clamp, x = self._run.clamps[rule.site], self._whole(rule.source)
        dies = self._plan.curve.deaths[rule.site] <= self._point
        changed = clamp.within(x, self._values_in_range[rule.site])
        return torch.where(along(dies.to(x.device), x.ndim, self._dims[node]), changed, x)

    def _binary(self, rule: Binary, node: fx.Node, layout: Layout) -> Tensor:
        dim, ndim = self._dims[node], len(node.meta["shape"])
        assert dim is not None  # noqa: S101
        operands: list[Any] = []
        free: list[Tensor] = []  # that may hold the result
        for operand in rule.operands:
            if not isinstance(operand, fx.Node):
                operands.append(operand)
            elif self._run.know.channels(operand):
                data, is_free = self._take(operand, layout, dim)
                operands.append(data)
                free += [data] if is_free else []
            else:
                operands.append(self._broadcast(operand, layout, dim, ndim, node.meta["shape"][dim]))
        first, second = operands
        shape = torch.broadcast_shapes(*[o.shape for o in operands if isinstance(o, Tensor)])
        first = first if isinstance(first, Tensor) else second.new_full((), first)
        out = next((data for data in free if data.shape == shape), None)
        return rule.function(first, second, out=out)

    def _broadcast(self, operand: fx.Node, layout: Layout, dim: int, ndim: int, channels: int) -> Any:
        """The part of an operand without channels of its own that meets the computed channels."""
        value = self._whole(operand)
        if not isinstance(value, Tensor):
            return value
        own = dim - (ndim - value.ndim)
        if layout.is_whole or own < 0 or value.shape[own] != channels or channels == 1:
            return value
        return value.index_select(own, layout.order[: layout.counts[self._point]].to(value.device))

    def _join(self, rule: Join, node: fx.Node, layout: Layout) -> Tensor:
        dim = self._dims[node]
        assert dim is not None  # noqa: S101
        parts: list[Tensor] = []
        places = torch.full((len(layout.order),), -1)
        first = at = 0
        for source in rule.sources:
            channels = int(source.meta["shape"][dim])
            own = self._plan.live.computed(node)[first : first + channels]
            want = self._plan.live.layout_of(own.contiguous())
            rows = want.counts[self._point]
            if rows:
                parts.append(self._take(source, want, dim)[0])
            places[first + want.order[:rows]] = at + torch.arange(rows)
            first, at = first + channels, at + rows
        joined = torch.cat(parts, dim)
        wanted = places[layout.order[:at]]
        if torch.equal(wanted, torch.arange(at)):
            return joined
        return joined.index_select(dim, wanted.to(joined.device))

    def _flatten(self, rule: Flatten, node: fx.Node, layout: Layout) -> Tensor:
        ends = self._plan.live.computed(node)
        by_channel = ends.view(-1, rule.width).amax(1)
        want = self._plan.live.layout_of(by_channel)
        data = self._take(rule.source, want, 1)[0].flatten(1)
        flat = self._plan.live.layout_of(by_channel.repeat_interleave(rule.width))
        if flat is layout:
            return data
        rows = layout.counts[self._point]
        return data.index_select(1, flat.position[layout.order[:rows]].to(data.device))

    def _product(self, rule: Linear, node: fx.Node, layout: Layout) -> tuple[Tensor, bool]:
        product, plan = rule.product, self._plan
        rows = layout.counts[self._point]
        bias = plan.biases[node][:rows]
        relu = node in self._run.know.rectified
        if product.is_depthwise:
            each = len(layout.order) // product.inputs
            channels = layout.order[:rows] // each
            x, _ = self._gather(rule.source, channels, 1)
            return product(x, plan.weights[node][:rows], bias, relu), True
        source = plan.inputs[node]
        columns = source.counts[self._point]
        own = self._clamped_by_example(rule, node)
        constant = self._bias_of_dead(rule, node, rows) if own is None else None
        if self._run.is_nested(node) and (columns > 0 or own is not None):
            sums = self._nested(rule, node, layout, columns, own)
            y, is_free = product.read(sums, rows, plan.biases[node], relu and constant is None)
            if constant is not None:
                y = y + constant
                return (y.clamp_min_(0) if relu else y), True
            return (y, is_free) if is_free or len(self._states) == 1 else (y.clone(), True)
        if columns == 0:
            shape = [self._n, *node.meta["shape"][1:]]
            dim = product.dim(len(shape))
            shape[dim] = rows
            only = along(bias, len(shape), dim) if constant is None else along(bias, len(shape), dim) + constant
            only = only.expand(shape).clone(memory_format=torch.contiguous_format)
            return (only.clamp_min_(0) if relu else only), True
        x, _ = self._take(rule.source, source, product.dim(len(rule.source.meta["shape"])))
        weight = product.part(plan.weights[node], slice(rows), slice(columns))
        if constant is None:
            return product(x, weight, bias, relu), True
        y = product(x, weight, bias).add_(constant)
        return (y.clamp_min_(0) if relu else y), True

    def _nested(self, rule: Linear, node: fx.Node, layout: Layout, columns: int, own: Tensor | None) -> Tensor:
        """The running sum with all channels added that live at this point.

        Where clamped channels are ``own`` [N, C, ...], not the same for all examples, the sum begins with them, and
        what returns is the difference from them: z = W own + sum over the living of W_c (a_c - own_c).
        """
        product, plan = rule.product, self._plan
        most = layout.counts[0]
        added = self._added.get(node, 0)
        bias = plan.biases[node][:most]
        dim = product.dim(len(rule.source.meta["shape"]))
        intact = self._intact[self._run.intact_of(rule.source)]
        if own is not None and node not in self._sums:
            everything = product.part(plan.weights[node], slice(most), slice(None))
            order = plan.inputs[node].order.to(own.device)
            self._sums[node] = product.start(own.index_select(dim, order), everything, bias)
        if columns > added:
            channels = plan.inputs[node].order[added:columns].to(intact.device)
            x = intact.index_select(dim, channels)
            x = x if own is None else x - own.index_select(dim, channels)
            new = product.part(plan.weights[node], slice(most), slice(added, columns))
            if node in self._sums:
                product.add(self._sums[node], x, new)
            else:
                self._sums[node] = product.start(x, new, bias)
            self._added[node] = columns
        return self._sums[node]

    def _clamped_by_example(self, rule: Linear, node: fx.Node) -> Tensor | None:
        """What the inputs of a running sum are with all units clamped, [N, C, ...], if each example has its own."""
        if not self._run.is_nested(node) or not has_one_mark(self._run.know, rule.source):
            return None
        value = clamped(self._run.know, self._clamped, rule.source)
        return value if value is not None and len(value) > 1 else None

    def _bias_of_dead(self, rule: Linear, node: fx.Node, rows: int) -> Tensor | None:
        """What the dead channels send to each output, [1, D, ...]; None for nothing."""
        if self._dims.get(rule.source) != self._dims[node]:
            return None
        constant = self._constants.of(rule.source)
        if constant is None:
            return None
        dead = self._plan.live.alive[rule.source] <= self._point
        dim = rule.product.dim(constant.ndim)
        channels = dead.nonzero().squeeze(1).to(constant.device)
        order = self._plan.layouts[node].order[:rows].to(constant.device)
        product = rule.product.by_column
        weight = product.arranged(order, channels)
        sent: Tensor = product(constant.index_select(dim, channels), weight, None)
        return sent
