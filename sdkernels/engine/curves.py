r"""Run curves of nested configurations on living channels alone.

*Nested.* A product that reads what a site hands on, with nothing but channelwise functions between, is a sum over
living channels whose values never change. The curve is walked backwards, from everything clamped to nothing, and
channels are added back:

.. math:: z_t = z_{t+1} + W_{:, \text{returning}} * a_{\text{returning}}

so that a whole curve costs one product. Adding only, never subtracting, keeps rounding small.

*Compact.* Every later product multiplies computed inputs into computed outputs alone, by a contiguous slice of its
permuted weights. A clamped unit is no variable any more: what it sends on folds into the next product's bias.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sdkernels.engine.families import Curve
from sdkernels.engine.graph import Graph, Values, storage
from sdkernels.engine.liveness import Layout, Liveness
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Knowledge, Linear, Mark, Same, Size, Unknown
from sdkernels.ops import perturb

# What running sums are kept in: half precision would lose digits.
SUM_DTYPES = (torch.float64, torch.float32)


@dataclass
class Compact:
    """A tensor's computed channels in a layout's order, at one point."""

    data: Tensor  # [N, A, ...] with A in the node's channel dimension
    layout: Layout
    is_free: bool  # whether nobody else holds its memory, so that it may be written


def find_frozen(know: Knowledge, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes whose living channels have the same values in all configurations: the intact model's."""
    frozen: set[fx.Node] = set()
    for node in nodes:
        own = [s for s in know.sources(node) if s in know.rules]
        is_frozen = all(s in frozen for s in own)
        match rule := know.rules[node]:
            case Each() | Flatten() | Same():
                pass
            case Mark() | Affine() | Join():
                is_frozen &= all(know.dims[s] == know.dims[node] for s in own)
            case Linear():
                is_frozen &= rule.product.is_depthwise and know.dims[rule.source] == know.dims[node]
            case Binary():  # with a parameter or a number
                others = [s for s in know.sources(node) if s not in know.rules]
                is_frozen &= len(own) == 1 and all(other.op == "get_attr" for other in others)
            case _:
                is_frozen = False
        if is_frozen:
            frozen.add(node)
    return frozen


class CurveRun:
    """Walks curves, a tile of examples at a time.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        values: for each site, what a clamped unit becomes; broadcasts to one example.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(self, graph: Graph, know: Knowledge, values: Sequence[Tensor], like: Tensor) -> None:
        self.graph, self.know = graph, know
        self.nodes = [n for n in graph.nodes if n in graph.dependent]
        self.frozen = find_frozen(know, self.nodes)
        self.values = [value.to(like.device, like.dtype) for value in values]
        self.is_zero = [not value.count_nonzero() for value in self.values]
        self.adds_up = like.dtype in SUM_DTYPES
        live = [n for n in self.nodes if n not in self.frozen]
        read = {s for n in live for s in know.sources(n)} | {graph.output}
        self.keep = frozenset(self.intact_of(n) for n in read if n in self.frozen)
        # What is evaluated at each point, and which values nobody reads after it.
        self.steps: list[tuple[fx.Node, list[fx.Node]]] = []
        last = {s: n for n in live for s in know.sources(n)}
        for node in live:
            done = [s for s in know.sources(node) if last[s] is node and s in know.rules and s not in self.frozen]
            self.steps.append((node, [s for s in done if s is not graph.output]))

    def intact_of(self, node: fx.Node) -> fx.Node:
        """The node whose intact value a node's is."""
        rule = self.know.rules[node]
        return rule.result if isinstance(rule, Linear) else node

    def is_nested(self, node: fx.Node) -> bool:
        """Whether a node is a product whose inputs only die: a running sum along the curve."""
        rule = self.know.rules[node]
        return (
            isinstance(rule, Linear)
            and not rule.product.is_depthwise
            and rule.source in self.frozen
            and self.know.dims[rule.source] == self.know.dims[node]
            and self.adds_up
        )

    def plan(self, curve: Curve) -> "CurvePlan":
        """What does not depend on the data: layouts, permuted weights, biases."""
        return CurvePlan(self, curve)

    def logits(self, plan: "CurvePlan", intact: Values, examples: int) -> Iterator[tuple[int, Tensor]]:
        """Each point of a curve, the last first, and its logits [N, L]."""
        walk = _Walk(self, plan, intact, examples)
        for point in range(plan.curve.points - 1, -1, -1):
            yield point, walk.at(point)


class CurvePlan:
    """One curve's layouts and permuted weights."""

    def __init__(self, run: CurveRun, curve: Curve) -> None:
        self.curve = curve
        self.live = Liveness(run.know, run.nodes, run.graph.output, curve)
        self.layouts = {node: self.live.layout(node) for node in self.live.alive}
        self.inputs: dict[fx.Node, Layout] = {}  # of each product
        self.weights: dict[fx.Node, Tensor] = {}  # permuted on both sides
        self.biases: dict[fx.Node, Tensor] = {}
        for node in run.nodes:
            rule = run.know.rules[node]
            if not isinstance(rule, Linear) or (rule.product.groups > 1 and not rule.product.is_depthwise):
                continue
            product, out = rule.product, self.layouts[node]
            rows = out.order.to(product.weight.device)
            weight = product.weight if out.is_whole else product.weight.index_select(0, rows)
            if not rule.product.is_depthwise:
                self.inputs[node] = self._input_layout(run, rule, node)
                columns = self.inputs[node].order.to(weight.device)
                weight = weight if self.inputs[node].is_whole else weight.index_select(1, columns)
            self.weights[node] = weight
            self.biases[node] = product.bias if out.is_whole else product.bias.index_select(0, rows)

    @property
    def bytes(self) -> int:
        """Memory of the permuted weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    def _input_layout(self, run: CurveRun, rule: Linear, node: fx.Node) -> Layout:
        source, inputs = rule.source, rule.product.inputs
        if source not in self.live.alive or run.know.dims[source] != run.know.dims[node]:
            return self.live.layout_of(torch.full((inputs,), self.curve.points))
        wanted = self.live.computed(node).amax().expand(inputs)
        return self.live.layout_of(torch.minimum(self.live.alive[source], wanted))


class _Walk:
    """One curve on one tile of examples."""

    def __init__(self, run: CurveRun, plan: CurvePlan, intact: Values, examples: int) -> None:
        self._run, self._plan, self._intact, self._n = run, plan, intact, examples
        self._rules, self._dims = run.know.rules, run.know.dims
        self._values: dict[fx.Node, Any] = {}  # of this point
        self._constants: dict[fx.Node, Tensor | None] = {}  # of this point
        self._sums: dict[fx.Node, Tensor] = {}  # running sums of nested products
        self._added: dict[fx.Node, int] = {}
        self._protected = {storage(v) for v in intact.values() if isinstance(v, Tensor)}
        self._point = 0

    def at(self, point: int) -> Tensor:
        """Logits [N, L] at a point; points must be asked for from the last to the first."""
        self._point = point
        self._values.clear()
        self._constants.clear()
        for node, done in self._run.steps:
            self._values[node] = self._evaluate(node)
            for source in done:
                self._values.pop(source, None)
        logits: Tensor = self._whole(self._run.graph.output)
        return logits

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
                source = self._values[rule.source]
                return source
        layout = self._plan.layouts[node]
        rows = layout.counts[self._point]
        if rows == 0:
            return Compact(self._empty(node), layout, is_free=True)
        match rule:
            case Mark():
                data, is_free = self._take(rule.source, layout, self._dims[node])
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
                data, is_free = _affine(data, rule, channels), True
            case Binary():
                data, is_free = self._binary(rule, node, layout), True
            case Join():
                data, is_free = self._join(rule, node, layout), True
            case Flatten():
                data, is_free = self._flatten(rule, node, layout), False
            case Linear():
                data, is_free = self._product(rule, node, layout)
        return Compact(data, layout, is_free)

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
        constant = None if alive.all() else self._constant(source)
        if not alive.any():
            like = self._run.values[0]
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
            constant = self._constant(source)
            if not alive.any():
                return self._or_zeros(constant, source).expand(data.shape).clone(memory_format=torch.contiguous_format)
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
        return self._run.values[0].new_empty(shape)

    # The constants of channels that are not alive.

    def _constant(self, node: fx.Node) -> Tensor | None:
        """What a node's dead channels are at this point, [1, C, ...]; None where all are zero, or none is dead."""
        if node not in self._plan.live.alive or bool((self._plan.live.alive[node] > self._point).all()):
            return None
        if node not in self._constants:
            self._constants[node] = self._make_constant(node)
        return self._constants[node]

    def _make_constant(self, node: fx.Node) -> Tensor | None:
        match rule := self._rules[node]:
            case Mark():
                source = self._constant(rule.source) if self._dims.get(rule.source) == self._dims[node] else None
                if source is None and self._run.is_zero[rule.site]:
                    return None
                value = self._run.values[rule.site].expand(node.meta["shape"][1:])[None]
                clamped = self._plan.curve.deaths[rule.site] <= self._point
                before = torch.zeros_like(value) if source is None else source
                return torch.where(_along(clamped.to(value.device), value.ndim, self._dims[node]), value, before)
            case Each():
                source = self._constant(rule.source)
                return (
                    None if source is None and rule.keeps_zero else rule.function(self._or_zeros(source, rule.source))
                )
            case Affine():
                everyone = torch.arange(len(rule.scale), device=rule.scale.device)
                return _affine(self._or_zeros(self._constant(rule.source), rule.source), rule, everyone)
            case Binary():
                operands = [self._constant_operand(o) for o in rule.operands]
                return rule.function(*operands)
            case Join():
                parts = [self._constant(s) for s in rule.sources]
                if all(part is None for part in parts):
                    return None
                whole = [self._or_zeros(p, s) for p, s in zip(parts, rule.sources, strict=True)]
                return torch.cat(whole, self._dims[node] or 1)
            case Flatten():
                source = self._constant(rule.source)
                return None if source is None else source.flatten(1)
            case Same():
                return self._constant(rule.source)
            case Linear():  # depthwise
                product = rule.product
                return product(self._or_zeros(self._constant(rule.source), rule.source), product.weight, product.bias)
        raise AssertionError(f"{node} has no constants")

    def _or_zeros(self, constant: Tensor | None, node: fx.Node) -> Tensor:
        return self._run.values[0].new_zeros(1, *node.meta["shape"][1:]) if constant is None else constant

    def _constant_operand(self, operand: Any) -> Any:
        if not isinstance(operand, fx.Node):
            return operand
        if operand not in self._rules:
            return self._intact[operand]
        return self._or_zeros(self._constant(operand), operand)

    # The rules.

    def _binary(self, rule: Binary, node: fx.Node, layout: Layout) -> Tensor:
        dim, ndim = self._dims[node], len(node.meta["shape"])
        assert dim is not None  # noqa: S101
        operands: list[Any] = []
        for operand in rule.operands:
            if not isinstance(operand, fx.Node):
                operands.append(operand)
            elif self._run.know.channels(operand):
                operands.append(self._take(operand, layout, dim))
            else:
                operands.append(self._broadcast(operand, layout, dim, ndim, node.meta["shape"][dim]))
        first, second = (o[0] if isinstance(o, tuple) else o for o in operands)
        if isinstance(operands[0], tuple) and operands[0][1] and first.shape == _shape(first, second):
            return rule.function(first, second, out=first)  # type: ignore[call-arg]
        if (
            rule.function is torch.add
            and isinstance(operands[1], tuple)
            and operands[1][1]
            and second.shape == _shape(first, second)
        ):
            return second.add_(first)
        if not isinstance(first, Tensor):
            first = second.new_full((), first)
        return rule.function(first, second)

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
        if product.is_depthwise:
            each = len(layout.order) // product.inputs
            channels = layout.order[:rows] // each
            x, _ = self._gather(rule.source, channels, 1)
            return product(x, plan.weights[node][:rows], bias), True
        source = plan.inputs[node]
        constant = self._bias_of_dead(rule, node, rows)
        columns = source.counts[self._point]
        if self._run.is_nested(node):
            sums = self._nested(rule, node, layout, columns)[self._rows(node, rows)]
            return (sums, False) if constant is None else (sums + constant, True)
        if columns == 0:
            shape = [self._n, *node.meta["shape"][1:]]
            dim = product.dim(len(shape))
            shape[dim] = rows
            only = _along(bias, len(shape), dim) if constant is None else _along(bias, len(shape), dim) + constant
            return only.expand(shape).clone(memory_format=torch.contiguous_format), True
        x, _ = self._take(rule.source, source, product.dim(len(rule.source.meta["shape"])))
        y = product(x, plan.weights[node][:rows, :columns], bias)
        return (y if constant is None else y.add_(constant)), True

    def _rows(self, node: fx.Node, rows: int) -> tuple[Any, ...]:
        dim = self._dims[node]
        assert dim is not None  # noqa: S101
        return (*[slice(None)] * dim, slice(rows))

    def _nested(self, rule: Linear, node: fx.Node, layout: Layout, columns: int) -> Tensor:
        """The running sum with all channels added that live at this point."""
        product, plan = rule.product, self._plan
        most = layout.counts[0]
        added = self._added.get(node, 0)
        weight = plan.weights[node][:most]
        dim = product.dim(len(rule.source.meta["shape"]))
        if columns > added:
            channels = plan.inputs[node].order[added:columns]
            intact = self._intact[self._run.intact_of(rule.source)]
            x = intact.index_select(dim, channels.to(intact.device))
            if node not in self._sums:
                self._sums[node] = product(x, weight[:, added:columns], plan.biases[node][:most])
            elif product.convolve is None:
                flat = self._sums[node].view(-1, most)
                flat.addmm_(x.reshape(-1, columns - added), weight[:, added:columns].t())
            else:
                self._sums[node] += product(x, weight[:, added:columns], None)
            self._added[node] = columns
        elif node not in self._sums:
            shape = [self._n, *node.meta["shape"][1:]]
            shape[dim] = most
            self._sums[node] = (
                _along(plan.biases[node][:most], len(shape), dim)
                .expand(shape)
                .clone(memory_format=torch.contiguous_format)
            )
        return self._sums[node]

    def _bias_of_dead(self, rule: Linear, node: fx.Node, rows: int) -> Tensor | None:
        """What the dead channels send to each output, [1, D, ...]; None for nothing."""
        if self._dims.get(rule.source) != self._dims[node]:
            return None
        constant = self._constant(rule.source)
        if constant is None:
            return None
        dead = self._plan.live.alive[rule.source] <= self._point
        dim = rule.product.dim(constant.ndim)
        channels = dead.nonzero().squeeze(1).to(constant.device)
        order = self._plan.layouts[node].order[:rows].to(constant.device)
        weight = rule.product.weight.index_select(0, order).index_select(1, channels)
        sent: Tensor = rule.product(constant.index_select(dim, channels), weight, None)
        return sent


def _affine(x: Tensor, rule: Affine, channels: Tensor) -> Tensor:
    scale, shift = (_along(t.to(x.dtype)[channels], x.ndim, 1) for t in (rule.scale, rule.shift))
    return torch.addcmul(shift, x, scale)


def _along(t: Tensor, ndim: int, dim: int | None) -> Tensor:
    """[C] -> [1, ..., C, ..., 1]."""
    shape = [1] * ndim
    shape[dim or 0] = len(t)
    return t.view(shape)


def _shape(first: Any, second: Any) -> torch.Size:
    shapes = [t.shape for t in (first, second) if isinstance(t, Tensor)]
    return torch.broadcast_shapes(*shapes)
