"""How many examples the area under an ablation curve needs, for several tolerances, and how much time that saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from python_bench.contest import DifferentResultsError, run_package
from python_bench.race import Turns
from python_bench.sampling_table import Sampled, SamplingTable, Whole, normal_sample_size
from python_bench.workloads import WORKLOADS, Family, Workload, prepare, tiny
from sdkernels import AblationCurve

TOLERANCES = (0.005, 0.01, 0.02)
CONFIDENCE = 0.95
ALL = "all examples"
FIRST = 10  # examples that what is compiled or measured at first use is done on


@dataclass(frozen=True)
class Population:
    """A workload and its examples.

    Attributes:
        whole: how many of them a run without a tolerance is done on.
        turns: of each tolerance, and of the run without.
    """

    name: str
    workload: Workload
    whole: int
    turns: int


def populations(is_tiny: bool) -> list[Population]:
    """The workloads; one is as large as CIFAR-10's test set, and its whole run is extrapolated from a tenth."""
    mlp, convnet = "cumulative_mlp_all_points", "cumulative_convnet"
    make = tiny if is_tiny else WORKLOADS.__getitem__
    every, few, many = (2000, 100, 200) if is_tiny else (10_000, 512, 10_000)
    return [
        Population(mlp, replace(make(mlp), examples=every), every, 1 if is_tiny else 3),
        Population(convnet, replace(make(convnet), examples=few), few, 1),
        Population(convnet, replace(make(convnet), examples=many), many // 10, 1),
    ]


def sampled(population: Population) -> Iterator[Sampled]:
    """A row for each tolerance.

    Raises:
        DifferentResultsError: an area is off by more than twice the tolerance. Where intervals hold with the
            confidence that they claim, that has a chance below one in a million.
    """
    task, family = prepare(population.workload, torch.device("cpu"))
    run_package(task, family, FIRST)
    known = run_package(task, family, population.whole, outcomes=True)
    variances = example_areas(known, family).var(1)  # [R]

    contestants = {ALL: lambda: run_package(task, family, population.whole)}
    for tolerance in TOLERANCES:
        contestants[f"{tolerance}"] = lambda tolerance=tolerance: run_package(
            task, family, tolerance=tolerance, confidence=CONFIDENCE
        )
    turns = Turns(contestants)
    for _ in range(population.turns):
        for name in contestants:
            turns.take(name)

    examples = population.workload.examples
    whole = Whole(turns.seconds[ALL], population.whole, examples)
    for tolerance in TOLERANCES:
        curve = turns.results[f"{tolerance}"]
        error = None
        if population.whole == examples:
            error = float((curve.auc() - turns.results[ALL].auc()).abs().max())
            if error > 2 * tolerance:
                raise DifferentResultsError(f"an area is off by {error}, where the tolerance is {tolerance}")
        yield Sampled(
            population.name,
            tolerance,
            curve.used[:, 0].tolist(),
            [normal_sample_size(float(v), examples, tolerance, CONFIDENCE) for v in variances],
            turns.seconds[f"{tolerance}"],
            whole,
            error,
        )


def example_areas(curve: AblationCurve, family: Family) -> Tensor:
    """The area under each order's curve of each example's outcomes, which are 0 or 1: float64 [R, N]."""
    fraction = family.points.double() / family.orders.shape[1]
    outcomes = curve.outcome_matrix()  # [R, T, N]
    return torch.stack([torch.trapezoid(correct.double(), fraction, dim=0) for correct in outcomes])


def test_sampling(benchmark, report, is_tiny):
    rows: list[Sampled] = []

    def measure() -> None:
        for population in populations(is_tiny):
            rows.extend(sampled(population))

    benchmark.pedantic(measure, rounds=1)
    title = "Examples that every order's area under the accuracy curve needs, to be within a tolerance"
    report(SamplingTable(title, rows, {"confidence": CONFIDENCE}), "sampling")
