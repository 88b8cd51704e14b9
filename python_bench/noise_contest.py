"""Robustness to noise against its opponents: each tuned, all in turns, accuracies compared before any ratio.

Every contestant draws noise of its own, so that counts cannot be equal: mean accuracies and losses by scale must agree
within six standard errors, and where the scale is 0 counts must be the intact model's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sdkernels as sd
from python_bench.contest import CLEARLY_SLOWER, LEAST, OURS, DifferentResultsError, sample, seconds
from python_bench.noise_workloads import NoiseWorkload, prepare_noise
from python_bench.opponents.noise import NOISE_OPPONENTS, NoiseTask
from python_bench.opponents.task import Scores, Setting
from python_bench.race import Part, Race, Turns, duration

DEVIATIONS = "standard deviations"  # a note
STANDARD_ERRORS = 6.0
FEW = 32  # examples, where the scale is 0
TRIES = 3

Opponent = Callable[[NoiseTask, Setting], Scores]


class NoiseContest:
    """A workload, ready to run.

    Args:
        workload: what is run.
        budget: seconds a turn of an opponent may take; one that needs longer is timed on random configurations, or on
            random runs where it makes use of the draws that a run's scales share.
    """

    def __init__(self, workload: NoiseWorkload, budget: float) -> None:
        self.workload = workload
        self._task = prepare_noise(workload)
        self._generator = torch.Generator().manual_seed(0)  # which configurations are timed
        self._chosen: dict[str, Tensor] = {}
        self.settings: dict[str, Setting] = {}
        self.parts: dict[str, Part] = {}
        self._ours([0.0])  # what is compiled or measured at first use is done now
        contestants: dict[str, Callable[[], Any]] = {OURS: self._all_of_ours}
        for name, opponent in NOISE_OPPONENTS.items():
            contestants[name] = self._enter(name, opponent, budget)
        self.turns = Turns(contestants)

    def run_opponents(self) -> None:
        """A turn of each."""
        for name in self._chosen:
            self.turns.take(name)

    def run_ours(self) -> None:
        """The package's turn."""
        self.turns.take(OURS)

    def result(self) -> Race:
        """The race.

        Raises:
            DifferentResultsError: an opponent's results are not the package's, or not the intact model's at scale 0.
        """
        self._check_scale_zero()
        variance = self._loss_variance()
        errors = {name: self._standard_errors(name, variance) for name in self._chosen}
        if wrong := {name: both for name, both in errors.items() if not all(e <= STANDARD_ERRORS for e in both)}:
            raise DifferentResultsError(f"differences of accuracies and losses, in standard errors: {wrong}")
        notes: dict[str, Any] = {"examples": len(self._task.network.labels), "configurations": len(self._task.factors)}
        notes |= {f"{name}'s best": str(setting) for name, setting in self.settings.items()}
        measuring = duration(max(0.0, self._measuring_seconds()))
        notes[DEVIATIONS] = f"given to all; sdkernels' own pass that measures them would add {measuring}"
        largest = (max(column) for column in zip(*errors.values(), strict=True))
        notes["largest differences of accuracies, losses in standard errors"] = ", ".join(f"{e:.1f}" for e in largest)
        return Race(self.workload.heading(), self.turns.seconds, notes, self.parts)

    def _ours(self, scales: Sequence[float] | Tensor, examples: int | None = None, **options: Any) -> sd.NoiseCurve:
        network = self._task.network
        given: dict[str, Any] = {"repeats": 1, "sd": self._task.deviations}
        return sd.noise_robustness(
            network.model,
            list(network.layers),
            (network.inputs[:examples], network.labels[:examples]),
            scales=scales,
            common_random_numbers=self.workload.same_draws,
            **given | options,
        )

    def _all_of_ours(self) -> sd.NoiseCurve:
        return self._ours(self.workload.factors(), repeats=self.workload.runs)

    def _enter(self, name: str, opponent: Opponent, budget: float) -> Callable[[], Scores]:
        setting, a_configuration = self._tuned(name, opponent)
        self.settings[name] = setting
        configurations = len(self._task.factors)
        affordable = max(LEAST, int(budget / a_configuration))
        chosen = torch.arange(configurations)
        if affordable < configurations:
            together = self.workload.scales if self._reuses_draws(name) else setting.configurations
            chosen = sample(configurations, affordable, together, self._generator)
        self._chosen[name] = chosen
        whole = self._task.channels_last() if setting.channels_last else self._task
        part = whole.only(chosen)
        if len(chosen) < configurations:
            nothing = whole.only(chosen[:0])
            once = min(seconds(lambda: opponent(nothing, setting)) for _ in range(2))
            self.parts[name] = Part(len(chosen), configurations, once=once)
        return lambda: opponent(part, setting)

    def _reuses_draws(self, name: str) -> bool:
        return self.workload.same_draws and name != "hook loop"

    def _tuned(self, name: str, opponent: Opponent) -> tuple[Setting, float]:
        """The best setting, one choice after another, and its seconds a configuration over all examples."""
        network = self.workload.network
        folds = (1,) if name == "hook loop" else network.folds
        batches = [size for size in network.batches if size <= network.examples]
        few = self._task.only(torch.arange(self.workload.scales if self._reuses_draws(name) else max(folds)))
        few = few.only(torch.arange(len(few.factors)), max(batches))
        is_maps = few.network.inputs.ndim == 4
        in_layout = {False: few, True: few.channels_last() if is_maps else few}
        best, best_time = Setting(batches[-1]), float("inf")

        def consider(setting: Setting) -> None:
            nonlocal best, best_time
            run = partial(opponent, in_layout[setting.channels_last], setting)
            time = seconds(run)
            if time < CLEARLY_SLOWER * best_time:
                time = min(time, seconds(run))
            if time < best_time:
                best, best_time = setting, time

        for size in batches:
            consider(Setting(size))
        if is_maps:
            consider(best._replace(channels_last=True))
        for fold in folds[1:]:
            consider(best._replace(configurations=fold))
        return best, best_time / len(few.factors) * network.examples / len(few.network.labels)

    def _standard_errors(self, name: str, loss_variance: Tensor) -> tuple[float, float]:
        at = self._chosen[name] % self.workload.scales
        ours, theirs = self.turns.results[OURS], self.turns.results[name]
        return (
            accuracy_disagreement(ours.correct, theirs.correct, at, len(self._task.network.labels)),
            loss_disagreement(ours.loss, theirs.loss, at, loss_variance),
        )

    def _loss_variance(self) -> Tensor:
        """Of a run's mean loss, by scale [T], as if examples were drawn anew too: more than they have, being fixed."""
        curve = self._ours(self.workload.factors(), repeats=self.workload.runs, metrics=("loss", squared_loss))
        return (curve.metric("squared_loss") - curve.loss**2).mean(0) / curve.examples

    def _check_scale_zero(self) -> None:
        few = replace(self._task, factors=torch.zeros_like(self._task.factors)).only(torch.arange(1), FEW)
        network = few.network
        with torch.no_grad():
            intact = int((network.model(network.inputs).argmax(1) == network.labels).sum())
        counts = {OURS: int(self._ours([0.0], FEW).correct)}
        for name, setting in self.settings.items():
            whole = few.channels_last() if setting.channels_last else few
            counts[name] = int(NOISE_OPPONENTS[name](whole, setting).correct)
        if set(counts.values()) != {intact}:
            raise DifferentResultsError(f"at scale 0, of {len(network.labels)}; intact {intact}: {counts}")

    def _measuring_seconds(self) -> float:
        def least(**options: Any) -> float:
            return min(seconds(lambda: self._ours([0.0], **options)) for _ in range(TRIES))

        return least(sd=None) - least()


def squared_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each example [N]."""
    return F.cross_entropy(logits.double(), labels, reduction="none") ** 2


def accuracy_disagreement(ours: Tensor, theirs: Tensor, at: Tensor, examples: int) -> float:
    """The largest difference of mean accuracies at a scale, in standard errors.

    Args:
        ours: counts [R, T].
        theirs: counts [k], of some runs and scales.
        at: the scale of each of these, below T.
        examples: that counts are of.

    A run's variance is the binomial one, which none with fixed examples exceeds, or that of both sides' runs about
    their means, if greater.
    """
    worst = 0.0
    for _, sides in _by_scale(ours.double() / examples, theirs.double() / examples, at):
        pooled = torch.cat(sides)
        p = (pooled.sum() * examples + 1) / (len(pooled) * examples + 2)  # neither 0 nor 1, so that errors are not zero
        squares = sum(((side - side.mean()) ** 2).sum() for side in sides)
        variance = torch.maximum(p * (1 - p) / examples, squares / max(1, len(pooled) - 2))
        worst = max(worst, float(_difference(sides) / variance.sqrt()))
    return worst


def loss_disagreement(ours: Tensor, theirs: Tensor, at: Tensor, variance: Tensor) -> float:
    """The same of mean losses, given a run's variance at each scale [T].

    Losses grow with the noise where accuracies are at chance, and so tell its size there.
    """
    return max(float(_difference(sides) / variance[scale].sqrt()) for scale, sides in _by_scale(ours, theirs, at))


def _by_scale(ours: Tensor, theirs: Tensor, at: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Both sides' runs at each scale that both have."""
    return ((scale, (ours[:, scale], theirs[at == scale])) for scale in at.unique().tolist())


def _difference(sides: tuple[Tensor, Tensor]) -> Tensor:
    """Of the means, over its standard error if the variance of a run were 1."""
    return (sides[0].mean() - sides[1].mean()).abs() / sum(1 / len(side) for side in sides) ** 0.5
