"""Run a family on a model: batches outside, configurations inside, counts out."""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from sdkernels.engine.batches import Batch, Batches, check_labels, gather
from sdkernels.engine.exported import find_graph
from sdkernels.engine.families import Family, Noise
from sdkernels.engine.graph import Graph, UntraceableError, is_close
from sdkernels.engine.loop import Call, Change, adding_noise, changed_logits, clamping, run_loop
from sdkernels.engine.memory import is_out_of_memory, memory_limit
from sdkernels.engine.outcomes import Outcomes
from sdkernels.engine.pairs import Pairs
from sdkernels.engine.plan import Plan
from sdkernels.engine.scores import Metric, Scores
from sdkernels.engine.sites import Site
from sdkernels.engine.tiles import TileRun
from sdkernels.engine.values import Clamp
from sdkernels.ops import random_stream

# Enough examples to find the layers' shapes and to check a traced graph against its model.
PROBE_EXAMPLES = 8

# Enough to see that a configuration is computed as hooks would.
CHECKED_EXAMPLES = 2


class SdkernelsWarning(UserWarning):
    """Something that the user should know: a slower way was taken, or an ablation did nothing."""


@dataclass(frozen=True)
class Job:
    """What is to be scored.

    Attributes:
        model: in evaluation mode.
        sites: where units are clamped.
        batches: the data.
        family: the configurations.
        clamps: for each site, what a clamped unit becomes.
        metrics: as :func:`sdkernels.engine.scores.check_metrics` gives them.
        probe: a few examples, and ``probe_logits`` [N, L] what the model gives for them.
        advance: hears of examples x configurations done; of a negative number where they are to be done again.
        outcomes: whether each prediction's being correct is kept.
        graphs: by the shape of an example, the traced models that were seen to do what the model does.
    """

    model: nn.Module
    sites: list[Site]
    batches: Batches
    family: Family
    clamps: list[Clamp]
    metrics: Sequence[Metric]
    probe: Batch
    probe_logits: Tensor
    advance: Callable[[int], None]
    outcomes: bool = False
    graphs: dict[torch.Size, Graph] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """L."""
        return self.probe_logits.shape[1]

    @property
    def calls(self) -> list[Call]:
        """The sites, as hooks need to know them."""
        return [site.hooked for site in self.sites]

    def make_outcomes(self) -> Outcomes | None:
        """Where outcomes are noted, if they are."""
        return Outcomes(self.family.configurations, self.batches.examples) if self.outcomes else None


@dataclass(frozen=True)
class Outcome:
    """Sums over ``examples`` examples: of the intact model each ``[1, ...]``, of K configurations each ``[K, ...]``."""

    intact: dict[str, Tensor]
    sums: dict[str, Tensor]
    examples: int
    class_examples: Tensor  # int64 [L]
    plan: Plan
    outcomes: Tensor | None = None  # uint8 [K, ceil(N / 8)], a bit an example: whether it is correct


def run(job: Job, *, method: str, configs_per_batch: int | None, memory_fraction: float) -> Outcome:
    """Score every configuration of the job's family on every example."""
    with torch.no_grad():
        probe, logits = job.probe, job.probe_logits
        if not job.graphs:
            check_repeatable(job.model, probe.inputs, logits)
        tiles: TileRun | None = None
        outcome: Outcome | None = None
        reason, done = "method='loop'", 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            job.advance(count)

        if method == "auto":
            try:
                tiles = prepare(job, probe, logits, configs_per_batch)
                limit = memory_limit(probe.inputs.device, memory_fraction)
                outcome = _run_tiles(replace(job, advance=advance), tiles, limit, configs_per_batch)
            except UntraceableError as error:  # maybe on later inputs, of another shape
                tiles, reason = None, str(error)
                job.advance(-done)
                warn(f"{type(job.model).__name__} runs as a hook loop, the slow way, because {error}")
        if outcome is None:
            outcome = _run_loop(job, reason)
    return outcome


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


def _run_tiles(job: Job, tiles: TileRun, limit: float, configs_per_batch: int | None) -> Outcome:
    by_shape = {job.probe.inputs.shape[1:]: tiles}  # as texts of several lengths
    device = job.batches.device
    intact = Scores(job.metrics, 1, job.classes, device)
    ablated = Scores(job.metrics, job.family.configurations, job.classes, device, job.make_outcomes())
    budget = tiles.budget(job.probe, limit, ablated.are_counted)
    size = _even(budget.tile(device), job.batches.examples)

    def look(index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
        check_finite(job.sites[index].name, activation, intact.examples)
        return activation

    def fits(batch: Batch) -> bool:
        """Run a tile, all of it or nothing: what memory runs out on leaves no trace, and holds none."""
        here, labels = by_shape[batch.inputs.shape[1:]], batch.labels
        before, counts, done = ablated.snapshot(), here.counts, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            job.advance(count)

        try:
            tile = here.intact(batch, look)
            here.score(tile, ablated, advance)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(labels) == 1:
                raise MemoryError(
                    f"memory ran out on one example ({error}); where configs_per_batch is given, a lower one takes less"
                ) from error
            ablated.sums, here.counts = before, counts
            here.halve_spare()
            job.advance(-done)
            return False
        intact.count_examples(labels)
        intact.add(torch.zeros(1, dtype=torch.int64), tile.logits[None], batch, tile.logits.argmax(1))
        return True

    read = 0
    for batch in gather(job.batches.numbered(), size):
        check_labels(batch.labels, job.classes, read)
        check_class_means(job, batch.labels)
        count, shape = len(batch.labels), batch.inputs.shape[1:]
        read += count
        if shape not in by_shape:
            probe = batch.part(slice(PROBE_EXAMPLES))
            here = prepare(job, probe, job.model(probe.inputs.clone()), configs_per_batch)
            size = min(size, here.budget(probe, limit, ablated.are_counted).tile(device))
            by_shape[shape] = here
        start = 0
        while start < count:
            part = slice(start, min(start + size, count))
            if fits(batch.part(part)):
                start = part.stop
            else:
                size = (part.stop - part.start + 1) // 2
        del batch  # or it would still be there while the next one is put together
    plan = tiles.plan(size, budget)
    packed = ablated.outcomes.packed if ablated.outcomes else None
    return Outcome(intact.sums, ablated.sums, intact.examples, intact.class_examples, plan, packed)


def _even(tile: int, examples: int | None) -> int:
    """Examples a tile, all about alike: a small last one would use the processor badly."""
    return tile if examples is None else math.ceil(examples / math.ceil(examples / tile))


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


def _run_loop(job: Job, reason: str) -> Outcome:
    examples = 0
    class_examples = torch.zeros(job.classes, dtype=torch.int64)
    outcomes = job.make_outcomes()

    def see_labels(labels: Tensor, _logits: Tensor) -> None:
        nonlocal examples, class_examples
        check_labels(labels, job.classes, examples)
        check_class_means(job, labels)
        examples += len(labels)
        class_examples += labels.cpu().bincount(minlength=job.classes)

    def see_correct(configuration: int, batch: Batch, correct: Tensor) -> None:
        if outcomes is not None:
            outcomes.write(torch.tensor([configuration]), batch.places, correct[None])

    intact, sums = run_loop(
        job.model,
        job.calls,
        job.batches.numbered(),
        job.family.configurations,
        _change_of(job),
        job.metrics,
        check=lambda index, activation: check_finite(job.sites[index].name, activation, examples),
        check_labels=see_labels,
        see=see_correct,
        advance=job.advance,
    )
    plan = Plan([], job.family.configurations, (f"no graph: {reason}",))
    return Outcome(intact, sums, examples, class_examples, plan, outcomes.packed if outcomes else None)


def check_class_means(job: Job, labels: Tensor) -> None:
    """Refuse labels of classes whose means are not known.

    Raises:
        ValueError: names the class.
    """
    for clamp in job.clamps:
        if clamp.by == "class":
            is_known = clamp.value.flatten(1).isfinite().all(1)
            if len(unknown := labels[~is_known[labels]]):
                raise ValueError(
                    f"class {int(unknown[0])} has no example among those that class means are taken over; give "
                    "value_data that has some of every class"
                )


def check_repeatable(model: nn.Module, probe: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits for an example change from call to call, or with the others of its batch.

    Raises:
        ValueError: says which; ablation scores would depend on chance, or on how the data is batched.
    """
    name = type(model).__name__
    # Some without those before and after them.
    parts = [slice(1, 1 + len(probe) // 2)] if len(probe) > 2 else [slice(i, i + 1) for i in range(len(probe))]
    if all(is_close(model(probe[part].clone()), logits[part]) for part in parts):
        return
    if not is_close(model(probe.clone()), logits):
        raise ValueError(f"{name} gives other logits at every call; an ablation needs a fixed function")
    raise ValueError(
        f"{name} mixes the examples of a batch: its logits for {len(probe[parts[0]])} examples change when they are a "
        f"batch by themselves and not among {len(probe)}; scores would depend on the batch size"
    )


def check_finite(name: str, activation: Tensor, start: int) -> None:
    """Refuse non-finite intact activations; ``start`` is the number of examples before this batch.

    Raises:
        ValueError: names the layer, how many elements, and the first example.
    """
    if activation.sum().isfinite():  # a sum is cheaper than a mask, and finite only if all are
        return
    wrong = ~activation.isfinite()
    if not wrong.any():
        return
    example = int(wrong.flatten(1).any(1).nonzero()[0])
    raise ValueError(
        f"layer {name!r}: {int(wrong.sum())} of {activation.numel()} intact activations of a batch are not finite "
        f"({int(activation.isnan().sum())} nan), the first in example {start + example}; look at the inputs and weights"
    )


def warn_of_no_effect(job: Job, outcome: Outcome) -> None:
    """Say so if the job's ablations did nothing."""
    graph = next(iter(job.graphs.values()), None)
    unread = [site.name for site, mark in zip(job.sites, graph.sites, strict=True) if mark is None] if graph else []
    if unread:
        warn(f"the logits do not depend on layers {unread}: ablating them does nothing")
        return
    ablating = job.family.is_ablating.to(outcome.sums["accuracy"].device)
    visible = "loss" in outcome.sums and job.classes > 1  # accuracy alone may well stay as it was
    if visible and ablating.any() and (outcome.sums["loss"][ablating] == outcome.intact["loss"]).all():
        names = [site.name for site in job.sites]
        warn(
            f"ablating units of {names} did not change the loss: their activations equal the clamp value on all of the "
            "data, or the model does not read what this layer gives"
        )


def warn(message: str) -> None:
    """Warn at the line that called the package."""
    frame, level = sys._getframe(1), 2  # the caller of this function
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sdkernels":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SdkernelsWarning, stacklevel=level)
