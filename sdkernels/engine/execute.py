"""Run a family on a model: batches outside, configurations inside, counts out."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from sdkernels.engine.batches import Batches, check_labels, gather
from sdkernels.engine.exported import find_graph
from sdkernels.engine.families import Family
from sdkernels.engine.graph import Graph, UntraceableError, is_close
from sdkernels.engine.loop import ablated_logits, run_loop
from sdkernels.engine.memory import is_out_of_memory, memory_limit
from sdkernels.engine.plan import Plan
from sdkernels.engine.scores import Metric, Scores
from sdkernels.engine.sites import Site
from sdkernels.engine.tiles import TileRun

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
        values: for each site, what a clamped unit becomes; broadcasts to one example.
        metrics: as :func:`sdkernels.engine.scores.check_metrics` gives them.
        probe: a few inputs [N, ...], and ``probe_logits`` [N, L] what the model gives for them.
        advance: hears of examples x configurations done; of a negative number where they are to be done again.
    """

    model: nn.Module
    sites: list[Site]
    batches: Batches
    family: Family
    values: list[Tensor]
    metrics: Sequence[Metric]
    probe: Tensor
    probe_logits: Tensor
    advance: Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    """Sums over ``examples`` examples: of the intact model each ``[1, ...]``, of K configurations each ``[K, ...]``."""

    intact: dict[str, Tensor]
    sums: dict[str, Tensor]
    examples: int
    class_examples: Tensor  # int64 [L]
    plan: Plan


def run(job: Job, *, method: str, configs_per_batch: int | None, memory_fraction: float) -> Outcome:
    """Score every configuration of the job's family on every example."""
    with torch.no_grad():
        probe, logits = job.probe, job.probe_logits
        check_repeatable(job.model, probe, logits)
        tiles: TileRun | None = None
        outcome: Outcome | None = None
        reason, done = "method='loop'", 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            job.advance(count)

        if method == "auto":
            try:
                tiles = _prepare(job, probe, logits, configs_per_batch)
                limit = memory_limit(probe.device, memory_fraction)
                outcome = _run_tiles(replace(job, advance=advance), tiles, limit, configs_per_batch)
            except UntraceableError as error:  # maybe on later inputs, of another shape
                tiles, reason = None, str(error)
                job.advance(-done)
                message = f"{type(job.model).__name__} runs as a hook loop, the slow way, because {error}"
                warnings.warn(message, SdkernelsWarning, stacklevel=4)
        if outcome is None:
            outcome = _run_loop(job, reason)
    _warn_of_no_effect(job, outcome, tiles.graph if tiles else None)
    return outcome


def _prepare(job: Job, probe: Tensor, logits: Tensor, configs_per_batch: int | None) -> TileRun:
    """Trace the model on inputs of this shape, and see that a few configurations of every kind give what hooks give.

    Raises:
        UntraceableError: it cannot be traced, or does something else than its graph says.
    """
    graph = find_graph(job.model, job.sites, probe, logits)
    tiles = TileRun(graph, job.sites, job.family, job.values, probe, configs_per_batch)
    inputs = probe[:CHECKED_EXAMPLES]
    labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    calls = [(site.module, site.call, site.unit_dim, site.select) for site in job.sites]
    for configuration, found in tiles.some_logits(inputs, labels):
        masks = [mask[0] for mask in job.family.ablated(slice(configuration, configuration + 1))]
        if any(mask.any() for mask in masks):
            expected = ablated_logits(job.model, calls, inputs, masks, job.values)
        else:
            expected = logits[:CHECKED_EXAMPLES]
        if not is_close(found, expected):
            raise UntraceableError(
                f"its graph gives other logits than the model with hooks at configuration {configuration}"
            )
    return tiles


def _run_tiles(job: Job, tiles: TileRun, limit: float, configs_per_batch: int | None) -> Outcome:
    by_shape = {job.batches.first()[0].shape[1:]: tiles}  # as texts of several lengths
    device = job.batches.device
    intact = Scores(job.metrics, 1, job.probe_logits.shape[1], device)
    ablated = Scores(job.metrics, job.family.configurations, job.probe_logits.shape[1], device)
    budget = tiles.budget(job.probe, limit, ablated.are_counted)
    size = min(budget.tile(device), job.batches.examples or budget.tile(device))

    def look(index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
        check_finite(job.sites[index].name, activation, intact.examples)
        return activation

    def fits(inputs: Tensor, labels: Tensor) -> bool:
        """Run a tile, all of it or nothing: what memory runs out on leaves no trace, and holds none."""
        here = by_shape[inputs.shape[1:]]
        before, pairs, done = ablated.snapshot(), here.pairs, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            job.advance(count)

        try:
            tile = here.intact(inputs, labels, look)
            here.score(tile, ablated, advance)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(labels) == 1:
                raise MemoryError(
                    f"memory ran out on one example ({error}); where configs_per_batch is given, a lower one takes less"
                ) from error
            ablated.sums, here.pairs = before, pairs
            here.halve_spare()
            job.advance(-done)
            return False
        intact.count_examples(labels)
        intact.add(torch.zeros(1, dtype=torch.int64), tile.logits[None], labels, tile.logits.argmax(1))
        return True

    read = 0
    for inputs, labels in gather(job.batches, size):
        check_labels(labels, job.probe_logits.shape[1], read)
        read += len(labels)
        if inputs.shape[1:] not in by_shape:
            probe = inputs[:PROBE_EXAMPLES]
            here = _prepare(job, probe, job.model(probe.clone()), configs_per_batch)
            size = min(size, here.budget(probe, limit, ablated.are_counted).tile(device))
            by_shape[inputs.shape[1:]] = here
        start = 0
        while start < len(labels):
            part = slice(start, min(start + size, len(labels)))
            if fits(inputs[part], labels[part]):
                start = part.stop
            else:
                size = (part.stop - part.start + 1) // 2
        del inputs, labels  # or they would still be there while the next ones are put together
    plan = tiles.plan(size, budget)
    return Outcome(intact.sums, ablated.sums, intact.examples, intact.class_examples, plan)


def _run_loop(job: Job, reason: str) -> Outcome:
    examples = 0
    class_examples = torch.zeros(job.probe_logits.shape[1], dtype=torch.int64)

    def see_labels(labels: Tensor, _logits: Tensor) -> None:
        nonlocal examples, class_examples
        check_labels(labels, job.probe_logits.shape[1], examples)
        examples += len(labels)
        class_examples += labels.cpu().bincount(minlength=job.probe_logits.shape[1])

    intact, sums = run_loop(
        job.model,
        [(site.module, site.call, site.unit_dim, site.select) for site in job.sites],
        job.batches,
        job.family.ablated(slice(None)),
        job.values,
        job.metrics,
        check=lambda index, activation: check_finite(job.sites[index].name, activation, examples),
        check_labels=see_labels,
        advance=job.advance,
    )
    return Outcome(
        intact, sums, examples, class_examples, Plan([], job.family.configurations, (f"no graph: {reason}",))
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


def _warn_of_no_effect(job: Job, outcome: Outcome, graph: Graph | None) -> None:
    unread = [site.name for site, mark in zip(job.sites, graph.sites, strict=True) if mark is None] if graph else []
    if unread:
        message = f"the logits do not depend on layers {unread}: ablating them does nothing"
        warnings.warn(message, SdkernelsWarning, stacklevel=5)
        return
    ablating = job.family.is_ablating.to(outcome.sums["accuracy"].device)
    visible = "loss" in outcome.sums and job.probe_logits.shape[1] > 1  # accuracy alone may well stay as it was
    if visible and ablating.any() and (outcome.sums["loss"][ablating] == outcome.intact["loss"]).all():
        names = [site.name for site in job.sites]
        message = (
            f"ablating units of {names} did not change the loss: their activations equal the clamp value on all of the "
            "data, or the model does not read what this layer gives"
        )
        warnings.warn(message, SdkernelsWarning, stacklevel=5)
