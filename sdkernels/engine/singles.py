r"""Run configurations that clamp one unit each: rank-one updates, and no work where nothing changes.

*Absent already.* Where a unit's activation equals its clamp value for an example, as that of a ReLU that did not fire,
the intact outcome stands: such pairs of configuration and example are left out, and the others are rows of one batch.

*One channel.* Behind the unit's site only one channel differs from the intact model, through all channelwise functions.

*Rank one.* The product that reads it is an update of its intact value, with no product over channels:

.. math:: z_k = z + W_{:, c_k} * (v_{c_k} - a_{c_k})

Behind that, whole rows run through the rest of the network.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sdkernels.engine.curves import SUM_DTYPES
from sdkernels.engine.families import Alone
from sdkernels.engine.fused import Update, find_update
from sdkernels.engine.graph import Graph, Values, storage
from sdkernels.engine.marked import clamped
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Knowledge, Linear, Mark, Same, Size
from sdkernels.ops import rank_one
from sdkernels.ops.backend import choose_backend


@dataclass
class One:
    """The channels of a tensor that differ from the intact model's: a block of them in every row."""

    data: Tensor  # [P, ...] with the block in the node's channel dimension
    first: Tensor  # [P], the block's first channel


@dataclass(frozen=True)
class Folding:
    """Which tensors have examples in dimension 0, so that rows of several configurations may stand there."""

    by_example: frozenset[fx.Node]
    is_possible: bool  # whether every tensor has examples there or nothing to do with examples at all


def find_folding(graph: Graph, probe: Tensor) -> Folding:
    """Compare every value on a batch and on that batch twice."""

    def everything(inputs: Tensor) -> Values:
        shared = graph.shared_values(inputs)
        return {**shared, **graph.values(shared, lambda _index, _mark, x: x, keep=graph.dependent)}

    once, twice = everything(probe), everything(torch.cat([probe, probe]))
    found: set[fx.Node] = set()
    is_possible = True
    for node, one in once.items():
        two = twice[node]
        if not isinstance(one, Tensor):
            is_possible &= node in graph.dependent or one == two  # a size of a dependent tensor is taken anew
        elif one.ndim and two.shape == (2 * one.shape[0], *one.shape[1:]) and one.shape[0] == len(probe):
            found.add(node)
        else:
            is_possible &= one.shape == two.shape and torch.equal(one, two)
    return Folding(frozenset(found), is_possible)


class SinglesRun:
    """Runs single units, several of them a pass.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        alone: the configurations.
        folding: as :func:`find_folding` found it.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(
        self,
        graph: Graph,
        know: Knowledge,
        alone: Sequence[Alone],
        folding: Folding,
        like: Tensor,
    ) -> None:
        self.graph, self.know, self.folding = graph, know, folding
        self.nodes = [n for n in graph.nodes if n in graph.dependent]
        self._device, self._element_bytes = like.device, like.element_size()
        self.alone = [group for group in alone if graph.sites[group.site] is not None]
        self.below = {group.site: self._below(group.site) for group in self.alone}
        self._updates = {site: find_update(know, below, graph.output) for site, below in self.below.items()}
        if like.dtype not in SUM_DTYPES or choose_backend(like.device, "rank_one") == "reference":
            self._updates = {}
        read = {s for below in self.below.values() for n in below for s in self.reads(n)}
        self.keep = frozenset(n for n in read | {graph.output} if n in graph.dependent)
        self.pairs = self.active = 0  # of configuration and example: all, and those that differ from the intact model

    def logits(
        self, group: Alone, intact: Values, clamped_units: Sequence[Tensor], examples: int, configs_per_pass: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Configurations [k] of a group and their logits [k, N, L].

        ``clamped_units`` are, for each site, what its units are once clamped, [1, *example] or [N, *example].
        """
        step = configs_per_pass if self.folding.is_possible else 1
        for configurations, units in zip(group.configurations.split(step), group.units.split(step), strict=True):
            if self.graph.sites[group.site] is None:  # the logits do not depend on it
                logits = intact[self.graph.output]
                yield configurations, logits.expand(len(configurations), *logits.shape)
            elif (update := self._updates.get(group.site)) is not None:
                yield configurations, self._update(group.site, update, units.to(self._device), intact, clamped_units)
            else:
                value = clamped_units[group.site]
                yield configurations, self._pass(group.site, units, intact, value, examples)

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose intact values a node below a site may ask for."""
        rule = self.know.rules[node]
        return [*self.know.sources(node), rule.result if isinstance(rule, Linear) else node]

    def row_bytes(self, site: int) -> int:
        """About how much memory a row, an example in a configuration, takes behind a site."""
        if self._updates.get(site) is not None:
            return 2 * int(self.graph.output.meta["shape"][1]) * self._element_bytes
        sizes = [math.prod(n.meta["shape"][1:]) for n in self.below.get(site, []) if "shape" in n.meta]
        return 3 * max(sizes, default=1) * self._element_bytes

    def modes(self, site: int) -> dict[fx.Node, str]:
        """How each node below a site runs: on one channel, as a rank-one update, or dense."""
        found: dict[fx.Node, str] = {}
        for node in self.below[site]:
            rule = self.know.rules[node]
            before = [found[s] for s in self.know.sources(node) if s in found]
            is_one = bool(before) and all(mode == "one channel" for mode in before)
            match rule:
                case Mark() if node is self.graph.sites[site]:
                    found[node] = "one channel"
                case Mark():
                    is_one &= self.know.dims.get(rule.source) == self.know.dims[node]
                    found[node] = "one channel" if is_one else "dense"
                case Linear():
                    is_one &= self.know.dims.get(rule.source) == self.know.dims[node]
                    if rule.product.is_depthwise:
                        found[node] = "one channel" if is_one else "dense"
                    else:
                        found[node] = "rank-one" if is_one and rule.product.groups == 1 else "dense"
                case Each() | Affine() | Binary() | Flatten() | Same():
                    found[node] = "one channel" if is_one else "dense"
                case Join():
                    found[node] = "one channel" if is_one and len(before) == 1 else "dense"
                case _:
                    found[node] = "dense"
        return found

    def _below(self, site: int) -> list[fx.Node]:
        """The nodes that a site's units reach, and the sizes that those read: of rows, whoever took them."""
        reached: set[fx.Node] = set()
        sizes: set[fx.Node] = set()
        for node in self.nodes:
            if node is self.graph.sites[site] or any(s in reached for s in self._sources(node)):
                reached.add(node)
            is_number = "shape" not in node.meta and any(s in sizes for s in node.all_input_nodes)
            if isinstance(self.know.rules[node], Size) or is_number:
                sizes.add(node)
        for node in reversed(self.nodes):
            if node in sizes and any(user in reached for user in node.users if node in self.know.sources(user)):
                reached.add(node)
        return [n for n in self.nodes if n in reached]

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        rule = self.know.rules[node]
        return [rule.source] if isinstance(rule, Size) else self.know.sources(node)

    def _update(
        self,
        site: int,
        update: Update,
        units: Tensor,
        intact: Values,
        clamped_units: Sequence[Tensor],
    ) -> Tensor:
        """Logits [k, N, L] by one kernel, :func:`sdkernels.ops.rank_one`."""
        rule = self.know.rules[update.first]
        assert isinstance(rule, Linear)  # noqa: S101 - find_update has seen it
        a, value = intact[rule.source], clamped(self.know, clamped_units, rule.source, site)
        assert value is not None  # noqa: S101 - below the site
        self.pairs += len(a) * len(units)
        self.active += int((a.index_select(1, units) != value.index_select(1, units)).count_nonzero())
        if len(value) > 1:  # each example has its own: only the differences matter
            a, value = a - value, value.new_zeros(1, value.shape[1])
        arguments = (intact[update.result], rule.product.weight, a, units)
        if update.last is None:
            return rank_one(*arguments, value=value[0])
        head = self.know.rules[update.last]
        assert isinstance(head, Linear)  # noqa: S101 - find_update has seen it
        options = {"head": head.product.weight, "head_bias": head.product.bias, "intact": intact[self.graph.output]}
        return rank_one(*arguments, value=value[0], relu=True, **options)

    def _pass(self, site: int, units: Tensor, intact: Values, value: Tensor, examples: int) -> Tensor:
        """Logits [k, N, L] with each of the units alone clamped."""
        mark = self.graph.sites[site]
        assert mark is not None  # noqa: S101 - groups without one are unread
        dim = self.know.dims[mark]
        assert dim is not None  # noqa: S101 - sites have units
        activation = intact[mark.all_input_nodes[0]]
        units = units.to(activation.device)
        ours, clamp = activation.index_select(dim, units), value.index_select(dim, units)
        differs = (ours != clamp).movedim(dim, 1).flatten(2).any(2) if ours.ndim > 2 else ours != clamp  # [N, k]
        self.pairs += differs.numel()
        base: Tensor = intact[self.graph.output]
        if not self.folding.is_possible or bool(differs.all()):
            which = torch.arange(len(units), device=units.device).repeat_interleave(examples)
            row = torch.arange(examples, device=units.device).repeat(len(units))
        else:
            which, row = differs.t().nonzero().unbind(1)
        self.active += len(row)
        logits = base.expand(len(units), *base.shape).clone()
        if len(row):
            rows = _Rows(self, intact, units, which, row)
            of = row if len(clamp) > 1 else torch.zeros_like(row)
            logits[which, row] = rows.run(site, mark, clamp.movedim(dim, 1)[of, which].unsqueeze(1).movedim(1, dim))
        return logits


class _Rows:
    """One pass: P rows, each an example in a configuration."""

    def __init__(self, run: SinglesRun, intact: Values, units: Tensor, which: Tensor, row: Tensor) -> None:
        self._run, self._intact = run, intact
        self._rules, self._dims = run.know.rules, run.know.dims
        self._units = units[which]  # [P]
        self._row = row  # [P], the example
        self._ends = torch.bincount(which, minlength=len(units)).cumsum(0).tolist()  # rows are sorted by unit
        self._values: dict[fx.Node, Any] = {}
        self._rectified: set[fx.Node] = set()  # products that did the ReLU behind them
        self._protected = {storage(v) for v in intact.values() if isinstance(v, Tensor)}

    def run(self, site: int, mark: fx.Node, clamped: Tensor) -> Tensor:
        """Logits [P, L]."""
        below = self._run.below[site]
        last = {s: n for n in below for s in self._run.know.sources(n)}
        for node in below:
            self._values[node] = One(clamped, self._units) if node is mark else self._evaluate(node)
            for source in self._run.know.sources(node):
                if last[source] is node and source is not self._run.graph.output:
                    self._values.pop(source, None)
        logits: Tensor = self._whole(self._run.graph.output)
        return logits

    def _evaluate(self, node: fx.Node) -> Any:
        match rule := self._rules[node]:
            case Size():
                shape = torch.Size((len(self._row), *rule.shape[1:]))
                return shape if rule.index is None else shape[rule.index]
            case Same():
                self._rectified |= {node} if rule.source in self._rectified else set()
                return self._values[rule.source]
            case Mark():  # of another site: nothing of it is clamped
                return (
                    self._values[rule.source]
                    if self._dims.get(rule.source) == self._dims[node]
                    else self._whole(rule.source)
                )
            case Each() if rule.function is F.relu and rule.source in self._rectified:
                return self._values[rule.source]
            case Each():
                return self._each(rule)
            case Affine():
                return self._affine(rule)
            case Binary():
                return self._binary(rule, node)
            case Join():
                return self._join(rule, node)
            case Flatten():
                value = self._values[rule.source]
                if isinstance(value, One):
                    return One(value.data.flatten(1), value.first * rule.width)
                return value.flatten(1)
            case Linear():
                return self._product(rule, node)
        return self._run.graph.call(node, self._whole, self._protected)

    def _whole(self, node: fx.Node) -> Any:
        """A node's value with all its channels, [P, ...]."""
        value = self._values.get(node)
        if value is None:
            own = self._intact[node]
            return own.index_select(0, self._row) if node in self._run.folding.by_example and self._folds else own
        if not isinstance(value, One):
            return value
        dim = self._dims[node]
        assert dim is not None  # noqa: S101 - it has channels
        rows: Tensor = self._intact[node].index_select(0, self._row)
        block = value.data.shape[dim]
        channels = value.first[:, None] + torch.arange(block, device=value.first.device)
        rows.movedim(dim, 1)[torch.arange(len(rows), device=rows.device)[:, None], channels] = value.data.movedim(
            dim, 1
        )
        return rows

    @property
    def _folds(self) -> bool:
        return self._run.folding.is_possible

    def _intact_block(self, node: fx.Node, one: One, shape: torch.Size, dim: int) -> Any:
        """The intact values that stand where a block stands, of an operand that broadcasts to ``shape`` [N, ...]."""
        value = self._intact[node]
        if not isinstance(value, Tensor):
            return value
        by_example = node in self._run.folding.by_example and value.ndim == len(shape)
        full = value.expand(len(value) if by_example else 1, *shape[1:]).movedim(dim, 1)
        channels = one.first[:, None] + torch.arange(one.data.shape[dim], device=one.first.device)
        at = self._row[:, None] if by_example else torch.zeros_like(channels)
        return full[at, channels].movedim(1, dim)

    def _each(self, rule: Each) -> Any:
        value = self._values[rule.source]
        data = value.data if isinstance(value, One) else value
        is_new = isinstance(self._rules.get(rule.source), (Linear, Affine, Binary, Join))  # and no view
        if rule.function is F.relu and is_new and len(rule.source.users) == 1 and storage(data) not in self._protected:
            result = data.clamp_min_(0)
        else:
            result = rule.function(data)
        return One(result, value.first) if isinstance(value, One) else result

    def _affine(self, rule: Affine) -> Any:
        value = self._values[rule.source]
        data = value.data if isinstance(value, One) else value
        scale, shift = rule.scale.to(data.dtype), rule.shift.to(data.dtype)
        if isinstance(value, One):
            channels = value.first[:, None] + torch.arange(data.shape[1], device=data.device)  # [P, block]
            scale, shift = scale[channels], shift[channels]
        else:
            scale, shift = scale[None], shift[None]
        positions = [1] * (data.ndim - 2)
        result = torch.addcmul(shift.view(*shift.shape, *positions), data, scale.view(*scale.shape, *positions))
        return One(result, value.first) if isinstance(value, One) else result

    def _binary(self, rule: Binary, node: fx.Node) -> Any:
        shape, dim = torch.Size(node.meta["shape"]), self._dims[node]
        assert dim is not None  # noqa: S101 - a rule of channels
        ones = [(o, self._values[o]) for o in rule.operands if isinstance(self._values.get(o), One)]
        changed = [o for o in rule.operands if isinstance(o, fx.Node) and o in self._values]
        tracked = all(self._dims[o] == dim for o, _ in ones)
        if len(ones) == len(changed) and tracked and all(_same_block(ones[0][1], one, dim) for _, one in ones):
            one = ones[0][1]
            operands = [
                (self._values[o].data if o in self._values else self._intact_block(o, one, shape, dim))
                if isinstance(o, fx.Node)
                else o
                for o in rule.operands
            ]
            return One(_call(rule, operands), one.first)
        return _call(rule, [self._whole(o) if isinstance(o, fx.Node) else o for o in rule.operands])

    def _join(self, rule: Join, node: fx.Node) -> Any:
        dim = self._dims[node]
        assert dim is not None  # noqa: S101 - a rule of channels
        changed = [s for s in rule.sources if s in self._values]
        if len(changed) == 1 and isinstance(value := self._values[changed[0]], One):
            before = rule.sources[: rule.sources.index(changed[0])]
            return One(value.data, value.first + sum(int(s.meta["shape"][dim]) for s in before))
        return torch.cat([self._whole(s) for s in rule.sources], dim)

    def _product(self, rule: Linear, node: fx.Node) -> Any:
        product, value = rule.product, self._values[rule.source]
        is_one = isinstance(value, One) and self._dims.get(rule.source) == self._dims[node]
        if not is_one or (product.groups > 1 and not product.is_depthwise):
            self._rectified |= {node} & self._run.know.rectified
            return product(self._whole(rule.source), product.weight, product.bias, node in self._rectified)
        dim = self._dims[node]
        assert dim is not None  # noqa: S101 - products have channels
        block = value.data.shape[dim]
        starts = [0, *self._ends[:-1]]
        runs = [(a, b) for a, b in zip(starts, self._ends, strict=True) if b > a]
        firsts = value.first[[a for a, _ in runs]].tolist()
        if product.is_depthwise:
            each = len(product.weight) // product.inputs
            parts = [
                product(
                    value.data[a:b],
                    product.weight[f * each : (f + block) * each],
                    product.bias[f * each : (f + block) * each],
                )
                for (a, b), f in zip(runs, firsts, strict=True)
            ]
            return One(torch.cat(parts), value.first * each)
        before = self._intact_block(rule.source, value, torch.Size((1, *rule.source.meta["shape"][1:])), dim)
        change = value.data - before
        result: Tensor = self._intact[rule.result].index_select(0, self._row)
        update = product.by_column
        for (a, b), f in zip(runs, firsts, strict=True):
            result[a:b] += update(change[a:b], update.part(update.weight, slice(None), slice(f, f + block)), None)
        return result


def _same_block(a: One, b: One, dim: int) -> bool:
    return a.data.shape[dim] == b.data.shape[dim] and torch.equal(a.first, b.first)


def _call(rule: Binary, operands: list[Any]) -> Tensor:
    first, second = operands
    if not isinstance(first, Tensor):
        first = second.new_full((), first)
    return rule.function(first, second)
