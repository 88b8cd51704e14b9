"""Sampling less: examples are drawn in random order until an accuracy, or an area under a curve, is known well enough.

A series is a weighted mean of configurations' outcomes, example by example, with weights that add up to 1: the outcome
of one configuration, whose mean is its accuracy, or that of the points of a curve by the trapezoid rule, whose mean is
the area under it. It lies in [0, 1], so that :class:`~sdkernels.analysis.sequential.ConfidenceSequence` bounds its mean
over the data set, whenever one looks. Examples are drawn in stages; a configuration stops with the last of its series.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdkernels.analysis.sequential import ConfidenceSequence
from sdkernels.engine.job import Job, Outcome
from sdkernels.engine.outcomes import unpack

FIRST_STAGE = 64  # examples
GROWTH = 1.3  # of the examples drawn so far, from stage to stage
MOST_ELEMENTS = 2**23  # of outcomes that are weighted at once


class Series(NamedTuple):
    """A weighted mean of configurations' outcomes."""

    configurations: Tensor  # int64 [k]
    weights: Tensor  # float64 [k], with a sum of 1


@dataclass(frozen=True)
class Sampling:
    """When to stop.

    Attributes:
        tolerance: the half width of an interval that is narrow enough.
        confidence: of each interval, by itself.
        seed: of the order in which examples are drawn.
    """

    tolerance: float
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("tolerance", "confidence"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < 1:
                raise ValueError(f"{name}={given!r} must be a number between 0 and 1")


class Sampled(NamedTuple):
    """What was sampled."""

    outcome: Outcome
    used: Tensor  # int64 [K], examples that each configuration was scored on
    bounds: Tensor  # float64 [J, 2], of each series' mean


def each_alone(configurations: int) -> list[Series]:
    """Every configuration's accuracy."""
    one = torch.ones(1, dtype=torch.float64)
    return [Series(torch.tensor([k]), one) for k in range(configurations)]


def area_under(fraction: Tensor, curves: int) -> list[Series]:
    """The area under each of R curves of T points [T], configuration r * T + t being point t of curve r."""
    steps = fraction.double().diff() / 2
    weights = torch.cat([steps, steps.new_zeros(1)]) + torch.cat([steps.new_zeros(1), steps])
    points = torch.arange(len(fraction))
    return [Series(r * len(fraction) + points, weights) for r in range(curves)]


def run_sampled(job: Job, sampling: Sampling, series: Sequence[Series], run: Callable[[Job], Outcome]) -> Sampled:
    """Run the job's family by ``run`` on more and more examples, until every series is known well enough."""
    order = job.batches.indexed().shuffled(sampling.seed)
    sequence = ConfidenceSequence(len(series), len(order), confidence=sampling.confidence, tolerance=sampling.tolerance)
    used = torch.zeros(job.family.configurations, dtype=torch.int64)
    whole: Outcome | None = None
    open_series = torch.arange(len(series))
    drawn, stage = 0, FIRST_STAGE
    while len(open_series) and drawn < len(order):
        part = order[drawn : drawn + stage]
        chosen = torch.cat([series[j].configurations for j in open_series]).unique()
        family = job.family if len(chosen) == len(used) else job.family.only(chosen)
        outcome = run(
            replace(job, family=family, root=job.family, chosen=chosen, batches=job.batches.drawn(part), outcomes=True)
        )
        _update(sequence, series, open_series, chosen, _correct(outcome, len(part)))
        used[chosen] += len(part)
        whole = _added(whole, outcome, chosen, len(used))
        open_series = (~sequence.is_narrow).nonzero().squeeze(1)
        drawn += len(part)
        stage = max(FIRST_STAGE, int(drawn * (GROWTH - 1)))
    if whole is None:
        raise ValueError("data is empty: it gave no example")
    return Sampled(whole, used, sequence.bounds)


def _update(
    sequence: ConfidenceSequence, series: Sequence[Series], which: Tensor, chosen: Tensor, correct: Tensor
) -> None:
    """Add outcomes [k, n] of configurations [k] to some of the series, all of one length, as many as fit memory."""
    length, examples = len(series[0].weights), correct.shape[1]
    for part in which.split(max(1, MOST_ELEMENTS // (length * examples))):
        rows = torch.searchsorted(chosen, torch.stack([series[j].configurations for j in part]))  # [j, T]
        weights = torch.stack([series[j].weights for j in part])
        values = torch.einsum("jt,jtn->jn", weights, correct[rows].double())
        sequence.update(values.clamp(0, 1), part)  # weights add up to 1 but for rounding


def _correct(outcome: Outcome, examples: int) -> Tensor:
    """bool [k, n]."""
    if outcome.outcomes is None:
        raise ValueError("the run kept no outcomes")
    return unpack(outcome.outcomes, examples)


def _added(whole: Outcome | None, outcome: Outcome, chosen: Tensor, configurations: int) -> Outcome:
    """The sums of ``outcome``'s configurations [k] added to those of all [K]."""
    sums: dict[str, Tensor] = {}
    for name, more in outcome.sums.items():
        before = more.new_zeros(configurations, *more.shape[1:]) if whole is None else whole.sums[name]
        sums[name] = before.index_add(0, chosen.to(more.device), more)
    if whole is None:
        return replace(outcome, sums=sums, outcomes=None)
    return replace(
        whole,
        sums=sums,
        intact={name: total + outcome.intact[name] for name, total in whole.intact.items()},
        examples=whole.examples + outcome.examples,
        class_examples=whole.class_examples + outcome.class_examples,
    )
