"""Score a job's configurations on a batch: on the traced graph, or by the hook loop where there is none."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, fx

from sdkernels.engine.batches import Batch, check_labels
from sdkernels.engine.checks import PROBE_EXAMPLES, check_class_means, check_finite, warn
from sdkernels.engine.exported import find_graph
from sdkernels.engine.families import Noise
from sdkernels.engine.graph import UntraceableError, is_close
from sdkernels.engine.job import Job, Tally
from sdkernels.engine.loop import Change, adding_noise, changed_logits, clamping, run_loop
from sdkernels.engine.memory import Exhausted, is_out_of_memory, memory_limit
from sdkernels.engine.pairs import Pairs
from sdkernels.engine.plan import Plan
from sdkernels.engine.tiles import TileRun
from sdkernels.ops import random_stream

# Enough to see that a configuration is computed as hooks would.
CHECKED_EXAMPLES = 2


class Runner(Protocol):
    """Scores batches of a job."""

    @property
    def size(self) -> int | None:
        """Examples that it takes at once; None: whatever comes."""

    def score(self, batch: Batch) -> Tally:
        """All configurations on a batch of any size; ``batch.places`` counts the examples before it."""

    def plan(self) -> Plan:
        """What was done; call it after the last batch."""


def prepare(job: Job, probe: Batch, logits: Tensor, configs_per_batch: int | None) -> TileRun:
    """Trace the model on inputs of this shape, and see that a few configurations of every kind give what hooks give.

    Raises:
        UntraceableError: it cannot be traced, or does something else than its graph says.
    """
    shape = probe.inputs.shape[1:]
    if shape in job.graphs:
        return TileRun(job.graphs[shape], job.sites, job.family, job.clamps, probe, configs_per_batch)
    graph = find_graph(job.model, job.sites, probe.inputs, logits)
    tiles = TileRun(graph, job.sites, job.family, job.clamps, probe, configs_per_batch)
    jumps = any(clamp.is_ranged for clamp in job.clamps) and logits.dtype != torch.float64
    part = probe.part(slice(PROBE_EXAMPLES if jumps else CHECKED_EXAMPLES))
    is_ablating, change_of = job.family.is_ablating, _change_of(job)
    for configuration, found in tiles.some_logits(part):
        if is_ablating[configuration]:
            expected = changed_logits(job.model, job.calls, part.inputs, change_of(configuration, part))
        else:
            expected = logits[: len(part.labels)]
        # A range's edge is a jump: an activation within rounding of it may fall on either side, now and then.
        agree = [is_close(f, e) for f, e in zip(found, expected, strict=True)] if jumps else []
        if not is_close(found, expected, logits) and 2 * sum(agree) <= len(agree):
            raise UntraceableError(
                f"its graph gives other logits than the model with hooks at configuration {configuration}"
            )
    job.graphs[shape] = graph
    return tiles


class GraphRunner:
    """Scores batches on the traced graph, as many examples at a time as memory allows.

    Args:
        job: what is to be scored.
        configs_per_batch: how many single units share a forward pass; None leaves the choice.
        memory_fraction: the part of the device's memory that may be taken.

    Raises:
        UntraceableError: there is no graph that does what the model does; later, by :meth:`score`, for inputs of
            another shape, before any of them is scored.
    """

    def __init__(self, job: Job, configs_per_batch: int | None, memory_fraction: float) -> None:
        self._job, self._configs_per_batch = job, configs_per_batch
        self._device = job.batches.device
        tiles = prepare(job, job.probe, job.probe_logits, configs_per_batch)
        self._first = tiles
        self._by_shape = {job.probe.inputs.shape[1:]: tiles}  # as texts of several lengths
        self._limit = memory_limit(self._device, memory_fraction)
        self._are_counted = Tally(job, 0).ablated.are_counted
        self._budget = tiles.budget(job.probe, self._limit, self._are_counted)
        self.size = _even(self._budget.tile(self._device), job.batches.examples)

    def score(self, batch: Batch) -> Tally:
        """All configurations on a batch."""
        begin = int(batch.places[0])
        check_labels(batch.labels, self._job.classes, begin)
        check_class_means(self._job.clamps, batch.labels)
        tiles = self._tiles_for(batch)
        tally = Tally(self._job, len(batch.labels))
        batch = batch._replace(places=batch.places - begin)
        start = 0
        while start < len(batch.labels):
            part = batch.part(slice(start, start + self.size))
            if self._fits(tiles, part, tally, begin):
                start += len(part.labels)
            else:
                self.size = (len(part.labels) + 1) // 2
        return tally

    def plan(self) -> Plan:
        """What was done, and in what memory."""
        return self._first.plan(self.size, self._budget)

    def _tiles_for(self, batch: Batch) -> TileRun:
        shape = batch.inputs.shape[1:]
        if shape not in self._by_shape:
            probe = batch.part(slice(PROBE_EXAMPLES))
            tiles = prepare(self._job, probe, self._job.model(probe.inputs.clone()), self._configs_per_batch)
            budget = tiles.budget(probe, self._limit, self._are_counted)
            self.size = min(self.size, budget.tile(self._device))
            self._by_shape[shape] = tiles
        return self._by_shape[shape]

    def _fits(self, tiles: TileRun, batch: Batch, tally: Tally, begin: int) -> bool:
        """Run a tile, all of it or nothing: what memory runs out on leaves no trace, and holds none."""
        before, counts, done = tally.ablated.snapshot(), tiles.counts, 0

        def look(index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
            check_finite(self._job.sites[index].name, activation, begin + int(batch.places[0]))
            return activation

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._job.advance(count)

        try:
            tile = tiles.intact(batch, look)
            tiles.score(tile, tally.ablated, advance)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch.labels) == 1:
                raise Exhausted(
                    f"memory ran out on one example ({error}); where configs_per_batch is given, a lower one takes less"
                ) from error
            tally.ablated.sums, tiles.counts = before, counts
            tiles.halve_spare()
            self._job.advance(-done)
            return False
        tally.intact.count_examples(batch.labels)
        tally.intact.add(torch.zeros(1, dtype=torch.int64), tile.logits[None], batch, tile.logits.argmax(1))
        return True


class LoopRunner:
    """Scores batches by hooks, one whole forward pass a configuration.

    Args:
        job: what is to be scored.
        reason: why by hooks, for the plan.
    """

    size: None = None

    def __init__(self, job: Job, reason: str) -> None:
        self._job, self._reason = job, reason
        self._most: int | None = None  # examples at once, where memory has run out on more

    def score(self, batch: Batch) -> Tally:
        """All configurations on a batch."""
        begin = int(batch.places[0])
        batch = batch._replace(places=batch.places - begin)
        tally = Tally(self._job, len(batch.labels))
        longest = self._job.batches.longest  # a tile may be of many batches, and memory bears one
        while tally.examples < len(batch.labels):
            size = longest if self._most is None else min(longest, self._most)
            part = batch.part(slice(tally.examples, tally.examples + size))
            if not self._fits(part, tally, begin):
                self._most = (len(part.labels) + 1) // 2
        return tally

    def _fits(self, batch: Batch, tally: Tally, begin: int) -> bool:
        """Run some examples, all of them or none, should memory run out on them."""
        job, done = self._job, 0

        def see_activation(index: int, activation: Tensor) -> None:
            check_finite(job.sites[index].name, activation, begin + tally.examples)

        def see_labels(labels: Tensor, _logits: Tensor) -> None:
            check_labels(labels, job.classes, begin + tally.examples)
            check_class_means(job.clamps, labels)

        def see_correct(configuration: int, batch: Batch, correct: Tensor) -> None:
            if tally.ablated.outcomes is not None:
                tally.ablated.outcomes.write(torch.tensor([configuration]), batch.places, correct[None])

        def advance(count: int) -> None:
            nonlocal done
            done += count
            job.advance(count)

        try:
            intact, sums = run_loop(
                job.model,
                job.calls,
                [batch],
                job.family.configurations,
                _change_of(job),
                job.metrics,
                check=see_activation,
                check_labels=see_labels,
                see=see_correct,
                advance=advance,
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch.labels) == 1:
                raise Exhausted(f"memory ran out on one example ({error}): the model itself takes too much") from error
            job.advance(-done)
            return False
        tally.intact.count_examples(batch.labels)
        for scores, found in ((tally.intact, intact), (tally.ablated, sums)):
            for name, total in found.items():
                scores.sums[name] += total
        return True

    def plan(self) -> Plan:
        """That there is no graph, and why."""
        return Plan([], self._job.family.configurations, (f"no graph: {self._reason}",))


def _change_of(job: Job) -> Callable[[int, Batch], Change]:
    """What a hook loop does to the sites' outputs, by configuration and batch."""
    if isinstance(family := job.family, Noise):
        scales = [family.factors[:, None] * sd.cpu() for sd in family.deviations]

        def normals(site: int, configuration: int, ids: Tensor, elements: int) -> Tensor:
            draw = family.draws[configuration : configuration + 1].to(ids.device)
            return random_stream("normal", family.seed, draw, ids, elements, site=site)[0]

        return adding_noise(job.calls, scales, normals, family.per_map)
    masks = family.one_by_one() if isinstance(family, Pairs) else family.ablated(slice(None))
    return clamping(job.model, job.calls, masks, job.clamps)


def _even(tile: int, examples: int | None) -> int:
    """Examples a tile, all about alike: a small last one would use the processor badly."""
    return tile if examples is None else math.ceil(examples / math.ceil(examples / tile))


def check_probe(job: Job) -> None:
    """Refuse a model that overflows on the first examples already: for that alone a graph may differ from it.

    Raises:
        ValueError: names the layer.
    """
    if not job.probe_logits.isfinite().all():

        def see(index: int, activation: Tensor) -> None:
            check_finite(job.sites[index].name, activation, 0)

        changed_logits(job.model, job.calls, job.probe.inputs, see)


def loop_instead(job: Job, error: UntraceableError) -> Runner:
    """Hooks, from here on, and a warning."""
    warn(f"{type(job.model).__name__} runs as a hook loop, the slow way, because {error}")
    return LoopRunner(job, str(error))
