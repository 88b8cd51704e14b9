"""Run pairs of units: the network with one unit clamped takes the intact one's place, and the others are single units.

All pairs with a unit i in common share the network with i clamped: it runs once, below i's site, and everything that is
known of single units holds on it. The product that reads both units is two updates of rank one,

.. math:: z_{ij} = (z + W_{:,i} (v_i - a_i)) + W_{:,j} (v_j - a_j)

the first of which is done once. *Absent already* holds twice: an example for which i is at its clamp value has the
logits of j alone, which are known, and one for which j is, those of i alone. Only the others are run.

The unit in common is upstream of the other, or beside it: what a single unit reaches is run with nothing else clamped
there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sdkernels.engine.families import Alone
from sdkernels.engine.graph import Graph, Values, storage
from sdkernels.engine.pairs import Common, Pairs
from sdkernels.engine.rules import Knowledge, Mark, Size
from sdkernels.engine.singles import Folding, SinglesRun
from sdkernels.engine.values import Clamp

# An example's logits with each unit alone are kept if they take no more bytes.
KEPT_LOGITS = 2**18


@dataclass(frozen=True)
class _Base:
    """The network with one unit clamped, on some of a tile's examples."""

    rows: Tensor | None  # int64 [n], those for which the unit differs from its clamp value; None: all
    examples: int  # n
    values: Values
    clamped: Sequence[Tensor]


@dataclass(frozen=True)
class _Site:
    """What is run where a unit of a site is clamped."""

    steps: list[tuple[fx.Node, list[fx.Node]]]  # nodes, and the values that nobody reads after each
    given: frozenset[fx.Node]  # read by them or by single units, and run by neither
    is_divisible: bool  # whether some of the examples may run without the others


class PairsRun:
    """Runs pairs of units, given the logits of each unit alone.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        clamps: for each site, what a clamped unit becomes.
        family: the pairs.
        folding: as :func:`sdkernels.engine.singles.find_folding` found it.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(
        self, graph: Graph, know: Knowledge, clamps: Sequence[Clamp], family: Pairs, folding: Folding, like: Tensor
    ) -> None:
        self._graph, self._know, self._clamps, self._folding = graph, know, clamps, folding
        self.singles = SinglesRun(graph, know, family.alone(), folding, like)
        sites = range(len(family.unit_counts))
        self.common = family.in_common(torch.tensor([[self._may_be_first(a, b) for b in sites] for a in sites]))
        self._place = family.units  # of a unit alone among the configurations
        self._starts = [sum(family.unit_counts[:site]) for site in sites]
        below = self.singles.below
        self._read = {s for nodes in below.values() for n in nodes for s in self.singles.reads(n)} | {graph.output}
        self._sites = {site: self._site(nodes) for site, nodes in below.items()}
        given = {n for site in self._sites.values() for n in site.given}
        self.keep = self.singles.keep | {n for n in given if n in graph.dependent}
        self.firsts = self.first_rows = 0  # of unit in common and example: all, and those that were run
        self.pairs = 0  # of pair and example; of these ``singles.active`` were run

    @property
    def counts(self) -> tuple[int, ...]:
        """How much was run so far, to go back to."""
        return self.firsts, self.first_rows, self.pairs, self.singles.pairs, self.singles.active

    @counts.setter
    def counts(self, counts: tuple[int, ...]) -> None:
        self.firsts, self.first_rows, self.pairs, self.singles.pairs, self.singles.active = counts

    def room(self, logits: Tensor) -> Tensor | None:
        """Where the logits of V units alone are kept, [V, N, L] like the intact model's; None if they are many."""
        wanted = len(self._place) * logits[:1].nbytes
        return logits.new_empty(len(self._place), *logits.shape) if wanted <= KEPT_LOGITS else None

    def logits(
        self,
        intact: Values,
        clamped: Sequence[Tensor],
        values_in_range: Mapping[int, Tensor],
        alone: Tensor | None,
        examples: int,
        together: Mapping[int, int],
        only: Sequence[Common] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Configurations [k] and their logits [k, N, L].

        Args:
            intact: values of the intact model.
            clamped: for each site, what its clamped units are, [1, *example] or [N, *example].
            values_in_range: what they are in their range, of sites with one.
            alone: the logits of each unit alone, [V, N, L], if they were kept.
            examples: N.
            together: how many second units share a pass, by their site.
            only: some of the pairs.
        """
        for common in self.common if only is None else only:
            rows = None if alone is None else self._differs(common, intact, clamped)
            self.firsts += examples
            base = self._base(common, intact, clamped, values_in_range, rows, examples)
            self.first_rows += base.examples
            for group in common.others:
                self.pairs += len(group.units) * examples
                yield from self._on(base, group, alone, together.get(group.site, 1))

    def few(self) -> list[Common]:
        """A few pairs of every kind: of a unit in common, the middle one of each site."""
        chosen = [self.common[i] for i in sorted({0, len(self.common) // 2, len(self.common) - 1})]
        return [Common(c.site, c.unit, tuple(group.middle(1) for group in c.others)) for c in chosen]

    def few_alone(self, few: Sequence[Common]) -> list[Alone]:
        """The second units of some pairs, alone."""
        return [Alone(g.site, self._places(g), g.units) for common in few for g in common.others]

    def rehearse(
        self,
        intact: Values,
        clamped: Sequence[Tensor],
        values_in_range: Mapping[int, Tensor],
        logits: Tensor,
        together: Mapping[int, int],
    ) -> None:
        """Take as much memory as the pairs of a tile may, whatever is absent in it."""
        examples = len(logits)
        alone = self.room(logits)
        everyone = None if alone is None else torch.arange(examples, device=logits.device)
        largest: dict[tuple[int, int], tuple[Common, Alone]] = {}
        for common in self.common:
            for group in common.others:
                known = largest.get((common.site, group.site))
                if known is None or len(group.units) > len(known[1].units):
                    largest[common.site, group.site] = common, group
        for common, group in largest.values():
            base = self._base(common, intact, clamped, values_in_range, everyone, examples)
            few = group.middle(together.get(group.site, 1))
            # On values in which nothing is absent, while those with a unit clamped are held too.
            held = _Base(base.rows, examples, intact, clamped)
            for _ in self._on(held, few, alone, together.get(group.site, 1)):
                pass
            del base

    def _on(self, base: _Base, group: Alone, alone: Tensor | None, together: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Single units on a network that has one clamped already, [k] and [k, N, L]."""
        if base.rows is None or alone is None:
            yield from self.singles.logits(group, base.values, base.clamped, base.examples, together)
            return
        places = self._places(group).to(alone.device)
        if base.examples == 0:
            for configurations, own in zip(group.configurations.split(together), places.split(together), strict=True):
                yield configurations, alone[own]
            return
        done = 0
        for configurations, logits in self.singles.logits(group, base.values, base.clamped, base.examples, together):
            whole = alone[places[done : done + len(configurations)]]
            done += len(configurations)
            yield configurations, whole.index_copy_(1, base.rows, logits)

    def _differs(self, common: Common, intact: Values, clamped: Sequence[Tensor]) -> Tensor | None:
        """int64 [n]: the examples for which a unit is not at its clamp value; None for all of them."""
        mark = self._graph.sites[common.site]
        if mark is None:
            return torch.zeros(0, dtype=torch.int64, device=intact[self._graph.output].device)
        if not self._sites[common.site].is_divisible:
            return None
        dim = self._dim(mark)
        own = intact[mark.all_input_nodes[0]].select(dim, common.unit)
        differs = (own != clamped[common.site].select(dim, common.unit)).reshape(len(own), -1).any(1)
        return None if bool(differs.all()) else differs.nonzero().squeeze(1)

    def _base(
        self,
        common: Common,
        intact: Values,
        clamped: Sequence[Tensor],
        values_in_range: Mapping[int, Tensor],
        rows: Tensor | None,
        examples: int,
    ) -> _Base:
        """Run what a unit reaches with it clamped, on all examples or on ``rows``."""
        own = examples if rows is None else len(rows)
        mark = self._graph.sites[common.site]
        if mark is None or own == 0:
            return _Base(rows, own, intact, clamped)
        site, dim = self._sites[common.site], self._dim(mark)
        values: Values = {n: self._of_rows(n, intact[n], rows) for n in site.given if n in intact}
        now = [c if rows is None or len(c) < 2 else c.index_select(0, rows) for c in clamped]
        protected = {storage(v) for v in values.values() if isinstance(v, Tensor)}
        for node, finished in site.steps:
            rule = self._know.rules[node]
            if node is mark:
                x = values[node.all_input_nodes[0]].clone()
                x.select(dim, common.unit).copy_(now[common.site].select(dim, common.unit))
                values[node] = x
            elif isinstance(rule, Mark):
                x = values[rule.source]
                if (clamp := self._clamps[rule.site]).is_ranged:
                    value = values_in_range[rule.site]
                    value = value if rows is None or len(value) < 2 else value.index_select(0, rows)
                    now[rule.site] = clamp.within(x, value)
                values[node] = x
            elif isinstance(rule, Size):
                shape = torch.Size((own, *rule.shape[1:]))
                values[node] = shape if rule.index is None else shape[rule.index]
            else:
                values[node] = self._graph.call(node, values.__getitem__, protected)
            if node in self._read and isinstance(values[node], Tensor):
                protected.add(storage(values[node]))
            for read in finished:
                values.pop(read, None)
        return _Base(rows, own, values, now)

    def _of_rows(self, node: fx.Node, value: object, rows: Tensor | None) -> object:
        if rows is None or node not in self._folding.by_example or not isinstance(value, Tensor):
            return value
        return value.index_select(0, rows)

    def _site(self, nodes: Sequence[fx.Node]) -> _Site:
        reads = {n: [] if isinstance(self._know.rules[n], Size) else n.all_input_nodes for n in nodes}
        last = {read: node for node in nodes for read in reads[node]}
        steps = [(n, [r for r in reads[n] if last[r] is n and r not in self._read]) for n in nodes]
        given = ({read for node in nodes for read in reads[node]} | self._read) - set(nodes)
        is_plain = all("shape" in n.meta for n in given if n in self._graph.dependent)
        return _Site(steps, frozenset(given), self._folding.is_possible and is_plain)

    def _may_be_first(self, first: int, second: int) -> bool:
        """Whether a unit of the second site reaches none of the first."""
        mark = self._graph.sites[first]
        return first == second or mark is None or mark not in self.singles.below.get(second, [])

    def _places(self, group: Alone) -> Tensor:
        return torch.searchsorted(self._place, self._starts[group.site] + group.units)

    def _dim(self, mark: fx.Node) -> int:
        dim = self._know.dims[mark]
        assert dim is not None  # noqa: S101 - sites have units
        return dim
