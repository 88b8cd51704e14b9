"""Run a family on a model: batches outside, configurations inside, counts out."""

from functools import partial

import torch

from sdkernels.engine.batches import gather
from sdkernels.engine.checks import check_repeatable, warn
from sdkernels.engine.graph import UntraceableError
from sdkernels.engine.job import Job, Outcome, Tally
from sdkernels.engine.keeping import Keeping
from sdkernels.engine.parts import run_in_parts
from sdkernels.engine.plan import Plan
from sdkernels.engine.runner import GraphRunner, LoopRunner, Runner, check_probe, loop_instead
from sdkernels.engine.stopping import heed


def run(
    job: Job, *, method: str, configs_per_batch: int | None, memory_fraction: float, keeping: Keeping | None = None
) -> Outcome:
    """Score every configuration of the job's family on every example; ``keeping`` says where work is kept, or done."""
    with torch.no_grad():
        if not job.graphs:
            check_repeatable(job.model, job.probe.inputs, job.probe_logits)
        if keeping is not None and keeping.workers is not None:
            memory_fraction /= getattr(keeping.workers, "sharing", 1)
        open_runner = partial(
            open_runner_of, method=method, configs_per_batch=configs_per_batch, memory_fraction=memory_fraction
        )
        if keeping is not None:
            total, plan = run_in_parts(job, open_runner, keeping)
        else:
            total, plan = _run_here(job, open_runner(job))
    outcomes = total.ablated.outcomes
    return Outcome(
        total.intact.sums,
        total.ablated.sums,
        total.examples,
        total.intact.class_examples,
        plan,
        None if outcomes is None else outcomes.packed,
    )


def open_runner_of(job: Job, *, method: str, configs_per_batch: int | None, memory_fraction: float) -> Runner:
    """What scores the job's batches: the traced graph, or else hooks, with a warning."""
    if method == "loop":
        return LoopRunner(job, "method='loop'")
    try:
        return GraphRunner(job, configs_per_batch, memory_fraction)
    except UntraceableError as error:
        check_probe(job)
        return loop_instead(job, error)


def _run_here(job: Job, runner: Runner) -> tuple[Tally, Plan]:
    total = Tally(job, job.batches.examples)
    batches = job.batches.numbered()
    for batch in batches if runner.size is None else gather(batches, runner.size):
        try:
            total.add(runner.score(batch))
        except UntraceableError as error:  # inputs of another shape
            runner = loop_instead(job, error)
            total.add(runner.score(batch))
        heed("nothing of this call is kept: store= was not given")
        del batch  # or it would still be there while the next one is put together
    return total, runner.plan()


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
