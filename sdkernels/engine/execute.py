"""Run a family on a model: batches outside, configurations inside, counts out."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sdkernels.engine.batches import Batches, check_labels, gather
from sdkernels.engine.chain import Chain, NoChainError, find_chain
from sdkernels.engine.dense import DenseRun
from sdkernels.engine.families import Cumulative, Family
from sdkernels.engine.graph import Graph, UntraceableError, Values, is_close, trace
from sdkernels.engine.loop import run_loop
from sdkernels.engine.plan import Plan, loop_plan, make_plan
from sdkernels.engine.scores import Metric, Scores
from sdkernels.engine.sites import Site, watch
from sdkernels.engine.walk import ChainRun, check_chain

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
    family: Family
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
        with watch(job.model, job.sites, lambda i, activation: check_finite(job.sites[i].name, activation, 0)):
            logits = job.model(probe.clone())  # a model may write into its inputs
        check_repeatable(job.model, probe, logits)
        graph: Graph | None = None
        reason = "method='loop'"
        if method == "auto":
            try:
                graph = trace(job.model, job.sites, probe, logits)
            except UntraceableError as error:
                reason = str(error)
                message = f"{type(job.model).__name__} runs as a hook loop, the slow way, because {error}"
                warnings.warn(message, SdkernelsWarning, stacklevel=4)
        outcome = _run_graph(job, graph, probe, logits, configs_per_batch) if graph else _run_loop(job, reason)
    _warn_of_no_effect(job, outcome, graph)
    return outcome


def _run_graph(job: Job, graph: Graph, probe: Tensor, probe_logits: Tensor, configs_per_batch: int) -> Outcome:
    intact = Scores(job.metrics, 1, job.classes, probe.device)
    ablated = Scores(job.metrics, job.family.configurations, job.classes, probe.device)

    def intact_batches() -> Iterator[tuple[Values, Tensor, Tensor]]:
        """Batch by batch: shared values, labels, intact predictions."""
        example = 0

        def look(index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
            check_finite(job.sites[index].name, activation, example)
            return activation

        for inputs, labels in job.batches:
            check_labels(labels, job.classes, example)
            shared = graph.shared_values(inputs)
            logits = graph.logits(shared, look)
            prediction = logits.argmax(1)
            intact.count_examples(labels)
            intact.add(slice(0, 1), logits[None], labels, prediction)
            yield shared, labels, prediction
            example += len(labels)

    def score(configurations: slice, logits: Tensor, labels: Tensor, prediction: Tensor) -> None:
        ablated.add(configurations, logits, labels, prediction)
        job.advance(logits.shape[0] * logits.shape[1])

    chain: Chain | None = None
    reason = ""
    try:
        if not isinstance(job.family, Cumulative):
            raise NoChainError("these configurations are not nested")
        found = find_chain(graph, job.sites)
        start = graph.shared_values(probe)[found.start]
        check_chain(graph, found, job.family, job.classes, start, probe_logits)
        chain = found
    except NoChainError as error:
        reason = str(error)
    plan = make_plan(graph, job.family, chain, reason)
    if chain is None or not isinstance(job.family, Cumulative):
        dense = DenseRun(graph, [site.unit_dim for site in job.sites], job.family, job.values, configs_per_batch, probe)
        for shared, labels, prediction in intact_batches():
            for configurations, logits in dense.logits(shared, len(labels)):
                score(configurations, logits, labels, prediction)
    else:
        walk = ChainRun(graph, chain, job.family, job.values, job.classes, start)
        # The prefix runs on batches as they come; the chain, which is narrow, on as many examples as it likes.
        starts = ((shared[chain.start], labels, prediction) for shared, labels, prediction in intact_batches())
        for activation, labels, prediction in gather(starts, walk.tile):
            for part, configurations, logits in walk.logits(activation):
                score(configurations, logits, labels[part], prediction[part])
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


def check_repeatable(model: nn.Module, probe: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits for an example change from call to call, or with the others of its batch.

    Raises:
        ValueError: says which; ablation scores would depend on chance, or on how the data is batched.
    """
    name = type(model).__name__
    if not is_close(model(probe.clone()), logits):
        raise ValueError(f"{name} gives other logits at every call; an ablation needs a fixed function")
    half = (len(probe) + 1) // 2
    for part in (slice(0, half), slice(half, len(probe))):
        if len(probe[part]) and not is_close(model(probe[part].clone()), logits[part]):
            raise ValueError(
                f"{name} mixes the examples of a batch: its logits for {len(probe[part])} examples change when they "
                f"are a batch by themselves and not among {len(probe)}; scores would depend on the batch size"
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
        warnings.warn(message, SdkernelsWarning, stacklevel=5)
        return
    ablating = job.family.is_ablating.to(outcome.sums["accuracy"].device)
    visible = "loss" in outcome.sums and job.classes > 1  # accuracy alone may well stay as it was
    if visible and ablating.any() and (outcome.sums["loss"][ablating] == outcome.intact["loss"]).all():
        names = [site.name for site in job.sites]
        message = (
            f"ablating units of {names} did not change the loss: their activations equal the clamp value on all of the "
            "data, or the model does not read what this layer gives"
        )
        warnings.warn(message, SdkernelsWarning, stacklevel=5)
