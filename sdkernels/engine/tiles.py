"""Run a family on a traced model, a tile of examples at a time: the intact model first, then every configuration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, fx

from sdkernels.engine.apart import ApartRun, is_apart
from sdkernels.engine.batches import Batch
from sdkernels.engine.curves import CurvePlan, CurveRun
from sdkernels.engine.families import Alone, Curve, Family, Noise
from sdkernels.engine.fused import FusedTail, can_fuse
from sdkernels.engine.graph import Graph, Values
from sdkernels.engine.memory import WORKING_SET, Budget, find_budget
from sdkernels.engine.noise import NoiseRun
from sdkernels.engine.pairs import Common, Pairs
from sdkernels.engine.pairwise import PairsRun
from sdkernels.engine.plan import Plan, Work
from sdkernels.engine.rules import learn
from sdkernels.engine.scores import Scores
from sdkernels.engine.singles import SinglesRun, find_folding
from sdkernels.engine.sites import Site
from sdkernels.engine.values import Clamp
from sdkernels.engine.walk import Walk

# Permuted weights kept from tile to tile, in bytes; those of further curves are made again for each tile.
PERMUTED_WEIGHTS = 2**30

# Enough to see how memory grows.
MEASURED_EXAMPLES = 4


class Tile(NamedTuple):
    """Examples that are run at once."""

    values: Values  # of the intact model: what the configurations share and read
    clamped: list[Tensor]  # for each site, what its clamped units are, [1, *example] or [N, *example]
    values_in_range: dict[int, Tensor]  # of sites with a range: what they are where they are in it
    logits: Tensor  # [N, L], the intact model's
    batch: Batch


def _identity(_index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
    return activation


class TileRun:
    """Scores all configurations of a family on tiles of examples.

    Args:
        graph: the traced model.
        sites: where units are clamped.
        family: the configurations.
        clamps: for each site, what a clamped unit becomes.
        probe: a few examples.
        configs_per_pass: how many single units share a forward pass; None leaves the choice.
    """

    def __init__(
        self,
        graph: Graph,
        sites: list[Site],
        family: Family,
        clamps: Sequence[Clamp],
        probe: Batch,
        configs_per_pass: int | None,
    ) -> None:
        self.graph, self.family = graph, family
        self._curves, self._alone = family.curves(), family.alone()
        self._configs_per_pass = configs_per_pass
        sites = [_shaped(site, mark) for site, mark in zip(sites, graph.sites, strict=True)]
        know = learn(graph, sites, [i for i, clamp in enumerate(clamps) if clamp.is_ranged])
        first_read = next((mark for mark in graph.sites if mark is not None), graph.output)
        self._products = know.made_bytes(graph.model)
        like = torch.empty(0, dtype=first_read.meta["dtype"], device=probe.inputs.device)
        self._sites, self._clamps = sites, [clamp.to(like) for clamp in clamps]
        self._curve_run = CurveRun(graph, know, self._clamps, like)
        self._tail = can_fuse(self._curve_run)
        self._singles: SinglesRun | None = None
        self._pairs: PairsRun | None = None
        if self._alone:
            folding = find_folding(graph, probe.inputs)
            self._singles = SinglesRun(graph, know, self._alone, folding, like)
            if isinstance(family, Pairs):
                self._pairs = PairsRun(graph, know, self._clamps, family, folding, like)
        apart = [] if self._tail is not None else [curve for curve in self._curves if is_apart(curve)]
        self._apart = ApartRun(graph, know, self._clamps, apart) if apart else None
        self._curves = [curve for curve in self._curves if not any(curve is other for other in apart)]
        self._noise = NoiseRun(graph, know, sites, family, like) if isinstance(family, Noise) else None
        self._plans: dict[int, CurvePlan] = {}
        self._few = self._curve_run.plan(_few_points(self._curves[0])) if self._curves else None
        self._passes: dict[int, int] = {}  # units that share a pass, by site
        self._spare = self._space  # bytes for configurations that run side by side
        self._weights = float(PERMUTED_WEIGHTS)
        self._keep = (self._curve_run.keep if self._curves else frozenset()) | (
            self._singles.keep if self._singles else frozenset()
        )
        self._keep |= self._noise.keep if self._noise else frozenset()
        self._keep |= self._pairs.keep if self._pairs else frozenset()

    def intact(self, batch: Batch, look: Callable[[int, fx.Node, Tensor], Tensor] = _identity) -> Tile:
        """Run the intact model; ``look`` sees every site's activation."""
        donated = {} if batch.donors is None else self._activations(batch.donors)
        activations: dict[int, Tensor] = {}

        def see(index: int, mark: fx.Node, activation: Tensor) -> Tensor:
            if self._clamps[index].is_ranged:
                activations[index] = activation.clone()  # what follows may write into it
            return look(index, mark, activation)

        shared = self.graph.shared_values(batch.inputs)
        values = self.graph.values(shared, see, keep=self._keep)
        kept = {node: values[node] for node in self._keep}
        clamped: list[Tensor] = []
        values_in_range: dict[int, Tensor] = {}
        for i, (site, clamp) in enumerate(zip(self._sites, self._clamps, strict=True)):
            if self.graph.sites[i] is None:  # nobody reads it
                clamped.append(batch.inputs.new_empty(0))
                continue
            value = clamp.of(batch.labels, donated.get(i))
            value = value.expand(len(value), *site.example_shape)
            if clamp.is_ranged:
                values_in_range[i] = value
                value = clamp.within(activations[i], value)
            clamped.append(value)
        return Tile({**shared, **kept}, clamped, values_in_range, values[self.graph.output], batch)

    def _activations(self, inputs: Tensor) -> dict[int, Tensor]:
        """What the intact model's sites give."""
        found: dict[int, Tensor] = {}

        def see(index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
            found[index] = activation.clone()  # what follows may write into it
            return activation

        self.graph.values(self.graph.shared_values(inputs), see)
        return found

    def score(self, tile: Tile, scores: Scores, advance: Callable[[int], None]) -> None:
        """Add every configuration's scores on a tile."""
        prediction = tile.logits.argmax(1)
        n = len(tile.batch.labels)
        for index, curve in enumerate(self._curves):
            plan = self._plan(index)
            if self._tail is not None:
                fused = FusedTail(self._curve_run, self._tail, plan, tile.clamped)
                self._score_fused(tile, prediction, curve, fused, scores)
                advance(n * curve.points)
                continue
            for points, logits in self._walk(plan, tile).logits(self._together(n)):
                scores.add(curve.configurations[points], logits, tile.batch, prediction)
                advance(n * len(points))
        for configurations, logits in self._other_logits(tile):
            scores.add(configurations, logits, tile.batch, prediction)
            advance(n * len(configurations))

    def logits(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        """Every configuration's logits on a tile: numbers [k] and logits [k, N, L], run by run."""
        for index, curve in enumerate(self._curves):
            plan = self._plan(index)
            if self._tail is not None:
                fused = FusedTail(self._curve_run, self._tail, plan, tile.clamped)
                yield curve.configurations, fused.logits(tile.values, slice(None))
                continue
            for points, logits in self._walk(plan, tile).logits(self._together(len(tile.batch.labels))):
                yield curve.configurations[points], logits
        yield from self._other_logits(tile)

    def some_logits(self, batch: Batch) -> Iterator[tuple[int, Tensor]]:
        """A few configurations of every kind and their logits [N, L], to be checked against the model itself."""
        tile = self.intact(batch)
        if (few := self._few) is not None:
            if self._tail is not None:
                logits = FusedTail(self._curve_run, self._tail, few, tile.clamped).logits(tile.values, slice(None))
                yield from zip(few.curve.configurations.tolist(), logits, strict=True)
            else:
                for points, logits in self._walk(few, tile).logits(2):
                    yield from zip(few.curve.configurations[points].tolist(), logits, strict=True)
        for configurations, logits in self._single_logits(_few_units(self._alone), tile):
            yield from zip(configurations.tolist(), logits, strict=True)
        if self._pairs is not None:
            common = self._pairs.few()
            for configurations, logits in self._pair_logits(self._pairs.few_alone(common), tile, common):
                yield from zip(configurations.tolist(), logits, strict=True)
        if self._apart is not None:
            count = len(self._apart.configurations)
            for configurations, logits in self._apart_logits(tile, sorted({0, count // 2, count - 1})):
                yield int(configurations), logits[0]
        if self._noise is not None:
            configurations, logits = next(self._noise.logits(tile.values, tile.batch.ids))
            chosen = sorted({0, len(logits) // 2, len(logits) - 1})
            yield from zip(configurations[chosen].tolist(), logits[chosen], strict=True)

    def budget(self, probe: Batch, limit: float, are_counted: bool) -> Budget:
        """Measure the memory of a tile on a probe.

        Args:
            probe: a few examples.
            limit: bytes that must not be passed.
            are_counted: whether an op counts all metrics, so that it needs no logits.
        """
        self._spare, self._weights = min(self._space, limit / 8), min(PERMUTED_WEIGHTS, limit / 4)
        plan = self._plan(0) if self._curves else None

        def work(examples: int) -> None:
            part = probe.part(slice(examples))
            donors = None if part.donors is None else part.donors.clone()
            tile = self.intact(part._replace(inputs=part.inputs.clone(), donors=donors))
            if plan is not None and self._tail is not None:
                fused = FusedTail(self._curve_run, self._tail, plan, tile.clamped)
                fused.arguments(tile.values, slice(None))
            elif self._few is not None:
                for _ in self._walk(self._few, tile).logits(1):
                    pass
            self._make_present(tile)
            for group in _few_units(self._alone, self._passes):
                for _ in self._single_logits([group], tile):
                    pass
            if self._pairs is not None:
                given = tile.values, tile.clamped, tile.values_in_range
                self._pairs.rehearse(*given, tile.logits, self._passes)
            if self._apart is not None:
                next(self._apart_logits(tile))
            if self._noise is not None:
                next(self._noise.logits(tile.values, tile.batch.ids))

        self._passes = {group.site: self._configs_per_pass or 1 for group in self._alone}
        examples = min(len(probe.labels), MEASURED_EXAMPLES)
        budget = find_budget(work, examples, limit)
        if self._singles is not None and self._configs_per_pass is None:
            tile = budget.tile(probe.inputs.device)
            space = min(self._space, limit / 4)
            self._passes = {
                g.site: max(1, min(len(g.units), int(space / (tile * self._singles.row_bytes(g.site)))))
                for g in self._alone
            }
            budget = find_budget(work, examples, limit)
        self.counts = (0,) * len(self.counts)
        budget = replace(budget, fixed=budget.fixed + self._products)
        if plan is None:
            return budget
        weights = plan.bytes + min(plan.bytes * len(self._curves), self._weights + plan.bytes)
        row = self._curve_run.row_bytes
        if self._tail is not None:
            row = 0 if are_counted else self._logit_bytes
        most = max(curve.points for curve in self._curves)
        return replace(
            budget, fixed=budget.fixed + weights, spare=self._spare if row else 0.0, spare_by_example=most * row
        )

    def halve_spare(self) -> None:
        """Let configurations that run side by side take half as much: fewer examples alone would make room for more."""
        self._spare /= 2

    @property
    def counts(self) -> tuple[int, ...]:
        """How many rows of single units and of pairs there were, and how many were run; to go back to."""
        singles = () if self._singles is None else (self._singles.pairs, self._singles.active)
        return (*singles, *(() if self._pairs is None else self._pairs.counts))

    @counts.setter
    def counts(self, counts: tuple[int, ...]) -> None:
        if self._singles is not None:
            self._singles.pairs, self._singles.active = counts[:2]
        if self._pairs is not None:
            self._pairs.counts = counts[2:]

    def plan(self, tile: int, budget: Budget) -> Plan:
        """What was done; call it after the last tile."""
        work = Work(self.graph)
        notes: list[str] = []
        for index in range(len(self._curves)):
            work.add_curve(self._curve_run, self._plan(index))
        if self._tail is not None and self._curves:
            notes.append(f"one kernel, nested_linear, runs {self._tail.first.name} to {self._tail.last.name}")
        if self._curves and not self._curve_run.adds_up:
            notes.append(f"no nested sums: running sums in {self._curve_run.like.dtype} would lose digits")
        if self._singles is not None:
            work.add_singles(self._singles)
            absent = 1 - self._singles.active / max(self._singles.pairs, 1)
            notes.append(f"absent already: {absent:.1%} of the pairs of unit and example")
        if self._pairs is not None:
            work.add_pairs(self._pairs)
            absent = 1 - self._pairs.singles.active / max(self._pairs.pairs, 1)
            notes.append(
                f"pairs: {len(self._pairs.common)} units are clamped once each, and on that their partners, as single "
                f"units; absent already: {absent:.1%} of the rows of pair and example"
            )
        if self._apart is not None:
            work.add_apart(self._apart)
        if self._noise is not None:
            work.add_noise(self._noise)
        rows = work.rows(self.family.configurations)
        return Plan(rows, self.family.configurations, tuple(notes), tile, budget.peak(tile), budget.limit)

    def _together(self, examples: int) -> int:
        """How many points of a curve are run side by side: few examples alone would not fill the processor."""
        return max(1, int(self._spare / (examples * self._curve_run.row_bytes)))

    @property
    def _space(self) -> float:
        return float(WORKING_SET.get(self._curve_run.like.device.type, WORKING_SET["cpu"]))

    @property
    def _logit_bytes(self) -> int:
        """An example's logits, twice: a user's metric gets a copy."""
        return 2 * int(self.graph.output.meta["shape"][1]) * self._curve_run.like.element_size()

    def _make_present(self, tile: Tile) -> None:
        """Let every activation differ from its clamp value: absent pairs take no memory, and a probe may have many."""
        for group in self._alone:
            mark = self.graph.sites[group.site]
            if mark is not None and self._singles is not None:
                source = mark.all_input_nodes[0]
                other = (tile.clamped[group.site] == 0).to(tile.values[source].dtype)
                tile.values[source] = other.expand_as(tile.values[source]).clone()

    def _plan(self, index: int) -> CurvePlan:
        if index in self._plans:
            return self._plans[index]
        plan = self._curve_run.plan(self._curves[index])
        if sum(p.bytes for p in (plan, *self._plans.values())) <= self._weights:
            self._plans[index] = plan
        return plan

    def _score_fused(self, tile: Tile, prediction: Tensor, curve: Curve, fused: FusedTail, scores: Scores) -> None:
        n = len(tile.batch.labels)
        step = n
        if not scores.are_counted:  # logits of all points are made
            step = max(1, int(self._spare / (curve.points * self._logit_bytes)))
        for start in range(0, n, step):
            examples = slice(start, min(start + step, n))
            part, predicted = tile.batch.part(examples), prediction[examples]
            if scores.are_counted:
                options = scores.options(tile.logits.dtype, predicted)
                scores.add_counted(curve.configurations, fused.score(tile.values, examples, part.labels, options))
            else:
                scores.add(curve.configurations, fused.logits(tile.values, examples), part, predicted)

    def _walk(self, plan: CurvePlan, tile: Tile) -> Walk:
        n = len(tile.batch.labels)
        return Walk(self._curve_run, plan, tile.values, tile.clamped, tile.values_in_range, n)

    def _other_logits(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        """Configurations [k] that are on no curve, and their logits [k, N, L]."""
        if self._pairs is not None:
            yield from self._pair_logits(self._alone, tile, self._pairs.common, is_whole=True)
        else:
            yield from self._single_logits(self._alone, tile)
        if self._apart is not None:
            yield from self._apart_logits(tile)
        if self._noise is not None:
            yield from self._noise.logits(tile.values, tile.batch.ids)

    def _apart_logits(self, tile: Tile, only: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._apart is not None  # noqa: S101 - there are such configurations
        n = len(tile.batch.labels)
        return self._apart.logits(tile.values, tile.clamped, tile.values_in_range, n, only)

    def _pair_logits(
        self, groups: Sequence[Alone], tile: Tile, common: Sequence[Common], is_whole: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Single units, and the pairs that need no others; the former are given too if that ``is_whole``."""
        assert self._pairs is not None  # noqa: S101 - there are pairs
        alone = self._pairs.room(tile.logits)
        for configurations, logits in self._single_logits(groups, tile):
            if alone is not None:
                alone[configurations] = logits
            if is_whole:
                yield configurations, logits
        given = tile.values, tile.clamped, tile.values_in_range
        yield from self._pairs.logits(*given, alone, len(tile.batch.labels), self._passes, common)

    def _single_logits(self, groups: Sequence[Alone], tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(tile.batch.labels)
        for group in groups:
            assert self._singles is not None  # noqa: S101 - there are groups
            together = self._passes.get(group.site, 1)
            yield from self._singles.logits(group, tile.values, tile.clamped, n, together)


def _shaped(site: Site, mark: fx.Node | None) -> Site:
    """A site as it is on inputs of this graph's shape: of texts of several lengths it was found on the first."""
    shape = site.example_shape if mark is None else tuple(map(int, mark.meta["shape"][1:]))
    return replace(site, example_shape=shape) if len(shape) == len(site.example_shape) else site


def _few_points(curve: Curve) -> Curve:
    """The first, the middle and the last point of a curve."""
    chosen = torch.tensor(sorted({0, curve.points // 2, curve.points - 1}))
    deaths = tuple((chosen[:, None] < death).sum(0) for death in curve.deaths)
    return Curve(curve.configurations[chosen], deaths)


def _few_units(groups: Sequence[Alone], counts: dict[int, int] | None = None) -> list[Alone]:
    """Of each group one unit in the middle, or as many as ``counts`` says."""
    return [group.middle(1 if counts is None else counts[group.site]) for group in groups]
