"""Run a family on a model: batches outside, configurations inside, counts out."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sdkernels.engine.batches import Batches, check_labels
from sdkernels.engine.dense import DenseRun
from sdkernels.engine.families import Cumulative
from sdkernels.engine.graph import Graph, UntraceableError, trace
from sdkernels.engine.loop import run_loop
from sdkernels.engine.plan import Plan, loop_plan, make_plan
from sdkernels.engine.scores import Metric, Scores
from sdkernels.engine.sites import Site
from sdkernels.engine.walk import ChainRun

# Enough examples to find the layers' shapes and to check a traced graph against its model.
PROBE_EXAMPLES = 16


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
        classes: L.
        advance: hears of examples x configurations done.
    """

    model: nn.Module
    sites: list[Site]
    batches: Batches
    family: Cumulative
    values: list[Tensor]
    metrics: Sequence[Metric]
    classes: int
    advance: Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    """Sums over ``examples`` examples: of the intact model each ``[1, ...]``, of K configurations each ``[K, ...]``."""

    intact: dict[str, Tensor]
    sums: dict[str, Tensor]
    examples: int
    class_examples: Tensor  # int64 [L]
    plan: Plan


def run(job: Job, *, method: str, configs_per_batch: int) -> Outcome:
    """Score every configuration of the job's family on every example."""
    with torch.no_grad():
        probe = job.batches.first()[0][:PROBE_EXAMPLES]
        logits = job.model(probe.clone())  # a model may write into its inputs
        check_examples_apart(job.model, probe, logits)
        graph: Graph | None = None
        reason = "method='loop'"
        if method == "auto":
            try:
                graph = trace(job.model, job.sites, probe, logits)
            except UntraceableError as error:
                reason = str(error)
                message = f"{type(job.model).__name__} runs as a hook loop, the slow way, because {error}"
                warnings.warn(message, SdkernelsWarning, stacklevel=3)
        outcome = _run_loop(job, reason) if graph is None else _run_graph(job, graph, probe, configs_per_batch)
    _warn_of_no_effect(job, outcome, graph)
    return outcome


def _run_graph(job: Job, graph: Graph, probe: Tensor, configs_per_batch: int) -> Outcome:
    plan = make_plan(graph, job.sites, job.family)
    if plan.chain is not None:
        like = graph.shared_values(probe)[plan.chain.start]
        way: ChainRun | DenseRun = ChainRun(graph, plan.chain, job.family, job.values, job.classes, like)
    else:
        way = DenseRun(graph, [site.unit_dim for site in job.sites], job.family, job.values, configs_per_batch, probe)
    intact = Scores(job.metrics, 1, job.classes, probe.device)
    ablated = Scores(job.metrics, job.family.configurations, job.classes, probe.device)
    example = 0

    def look(index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
        check_finite(job.sites[index].name, activation, example)
        return activation

    for inputs, labels in job.batches.at_least(way.tile):
        check_labels(labels, job.classes, example)
        shared = graph.shared_values(inputs)
        intact_logits = graph.logits(shared, look)
        prediction = intact_logits.argmax(1)
        intact.count_examples(labels)
        intact.add(slice(0, 1), intact_logits[None], labels, prediction)
        for examples, configurations, logits in way.logits(shared, len(labels)):
            ablated.add(configurations, logits, labels[examples], prediction[examples])
            job.advance(logits.shape[0] * logits.shape[1])
        example += len(labels)
    return Outcome(intact.sums, ablated.sums, intact.examples, intact.class_examples, plan)


def _run_loop(job: Job, reason: str) -> Outcome:
    examples = 0
    class_examples = torch.zeros(job.classes, dtype=torch.int64)

    def see_labels(labels: Tensor, _logits: Tensor) -> None:
        nonlocal examples, class_examples
        check_labels(labels, job.classes, examples)
        examples += len(labels)
        class_examples += labels.cpu().bincount(minlength=job.classes)

    intact, sums = run_loop(
        job.model,
        [(site.module, site.call, site.unit_dim) for site in job.sites],
        job.batches,
        job.family.ablated(slice(None)),
        job.values,
        job.metrics,
        check=lambda index, activation: check_finite(job.sites[index].name, activation, examples),
        check_labels=see_labels,
        advance=job.advance,
    )
    return Outcome(intact, sums, examples, class_examples, loop_plan(job.family, reason))


def check_examples_apart(model: nn.Module, probe: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits for an example depend on the others of its batch, seen on the probe.

    Raises:
        ValueError: says so; ablation scores would depend on how the data is batched.
    """
    half = (len(probe) + 1) // 2
    alone = model(probe[:half].clone())
    tolerance = 1e-6 if logits.dtype == torch.float64 else 1e-2 if logits.dtype != torch.float32 else 1e-3
    close = torch.allclose(alone, logits[:half], tolerance, tolerance * float(logits.abs().max()), equal_nan=True)
    if not close:
        raise ValueError(
            f"{type(model).__name__} mixes the examples of a batch: its logits for the first {half} examples change "
            f"when {len(probe) - half} more follow; scores would depend on the batch size"
        )


def check_finite(name: str, activation: Tensor, start: int) -> None:
    """Refuse non-finite intact activations; ``start`` is the number of examples before this batch.

    Raises:
        ValueError: names the layer, how many elements, and the first example.
    """
    if activation.sum(dtype=torch.float64).isfinite():  # a sum is cheaper than a mask, and finite only if all are
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
        warnings.warn(message, SdkernelsWarning, stacklevel=4)
        return
    ablating = (job.family.points > 0).repeat(len(job.family.orders)).to(outcome.sums["accuracy"].device)
    measured = [name for name in ("loss", "accuracy") if name in outcome.sums]
    if ablating.any() and all((outcome.sums[m][ablating] == outcome.intact[m]).all() for m in measured):
        names = [site.name for site in job.sites]
        message = (
            f"ablating units of {names} changed no score: their activations equal the clamp value on all of the data, "
            "or the model does not read what this layer gives"
        )
        warnings.warn(message, SdkernelsWarning, stacklevel=4)
