"""The package against its opponents on one workload: each tuned, all in turns, results compared before any ratio."""

import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sdkernels as sd
from python_bench.opponents import OPPONENTS, Scores, Setting, Task
from python_bench.opponents.captum_ablation import evaluations, expressible
from python_bench.peaks import peaks
from python_bench.race import Part, Race, Turns
from python_bench.workloads import Couples, Family, Workload, prepare

OURS = "sdkernels"
LOOP, PLANNED = "hook loop's GFLOP", "planned GFLOP"  # notes: arithmetic of all configurations on all examples
TOY = 10  # examples: too few for a workload
LEAST = 8  # configurations that an opponent is timed on
WARM_UP = 2  # examples
SPANS = 3  # parts of the configurations that opponents are tuned on, where layers are ablated one by one
CLEARLY_SLOWER = 1.5  # than the best so far: not worth a second try


class DifferentResultsError(AssertionError):
    """A speed-up at other results is none."""


@dataclass(frozen=True)
class Tolerance:
    """What float32 allows: losses by their relative difference, counts by the result's ``ambiguous`` and a share."""

    loss: float = 1e-5
    counts: float = 0.0  # of the examples


TF32 = Tolerance(loss=1e-2, counts=0.01)


class Contest:
    """A workload on a device, ready to run.

    Args:
        workload: what is run.
        device: where.
        budget: seconds a turn of an opponent may take; one that needs longer is timed on a random part of the
            configurations. A toy's is 0: every opponent that can, does a part.
        own_batches: batch sizes that the package is tuned over; None: its default.
        tolerance: how far results may differ.
    """

    def __init__(
        self,
        workload: Workload,
        device: torch.device,
        budget: float,
        own_batches: Sequence[int] | None = None,
        tolerance: Tolerance | None = None,
    ) -> None:
        self.workload = workload
        self._device = device
        self._tolerance = tolerance or Tolerance()
        self._task, self._family = prepare(workload, device)
        self._maps = self._task.inputs.ndim == 4
        self._own = self._task.channels_last() if self._maps and device.type == "cuda" else self._task
        self._generator = torch.Generator().manual_seed(0)  # which configurations are timed
        self._chosen: dict[str, Tensor] = {}
        self.settings: dict[str, str] = {}
        self.parts: dict[str, Part] = {}
        contestants: dict[str, Callable[[], Any]] = {OURS: self._enter_ours(own_batches)}
        for name, opponent in OPPONENTS.items():
            if name == "captum" and not (expressible(self._task) and importlib.util.find_spec("captum")):
                continue
            contestants[name] = self._enter(name, opponent, budget)
        self.turns = Turns(contestants)

    @property
    def opponents(self) -> list[str]:
        """All contestants but the package."""
        return [name for name in self.turns.seconds if name != OURS]

    def run_opponents(self) -> None:
        """A turn of each."""
        for name in self.opponents:
            self.turns.take(name)

    def run_ours(self) -> None:
        """The package's turn."""
        self.turns.take(OURS)

    def differences(self) -> dict[str, str]:
        """What is wrong with the last results, by opponent; nothing, if they are the package's."""
        found = {name: self._difference(self.turns.results[name], self._chosen[name]) for name in self.opponents}
        return {name: difference for name, difference in found.items() if difference}

    def result(self, left_out: Iterable[str] = ()) -> Race:
        """The race.

        Raises:
            DifferentResultsError: an opponent that is not left out has other results than the package.
        """
        left_out = set(left_out)
        if wrong := {name: why for name, why in self.differences().items() if name not in left_out}:
            raise DifferentResultsError(str(wrong))
        seconds = {name: times for name, times in self.turns.seconds.items() if name not in left_out}
        return Race(self.workload.heading(), seconds, self._notes(), self.parts)

    def _notes(self) -> dict[str, Any]:
        result = self.turns.results[OURS]
        examples, configurations = len(self._task.labels), len(self._task.ablated)
        notes: dict[str, Any] = {"examples": examples, "configurations": configurations}
        notes |= {f"{name}'s best": setting for name, setting in self.settings.items()}
        notes["ambiguous"] = int(result.ambiguous.max())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._task.model(self._task.inputs[:1])
        notes[LOOP] = round(counter.get_total_flops() * examples * configurations / 1e9, 3)
        if (planned := planned_gflop(result.plan, examples)) is not None:
            notes[PLANNED] = round(planned, 3)
        return notes | peaks(self._device, small=examples <= TOY)

    def _run(self, call: Callable[[], Any]) -> Any:
        """To the end of what the device was given."""
        result = call()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def _ours(self, examples: int | None, family: Family | Couples | None, **options: int) -> Any:
        return run_package(self._own, family, examples, **options)

    def _enter_ours(self, batches: Sequence[int] | None) -> Callable[[], Any]:
        few = self._family
        if isinstance(few, Family):
            few = Family(few.orders[:1], few.points[::4].contiguous())
        elif few is not None:
            few = Couples(few.pairs[:: max(1, len(few.pairs) // 50)], few.units)

        def tried(size: int | None) -> float:
            options = {"batch_size": size} if size else {}
            return seconds(lambda: self._run(lambda: self._ours(size or WARM_UP, few, **options)))

        if not batches:
            tried(None)  # what is measured or compiled at first use is done now
            return lambda: self._run(lambda: self._ours(None, self._family))
        for size in batches:
            tried(size)
        best = min(batches, key=lambda size: tried(size) / size) if len(batches) > 1 else batches[0]
        self.settings[OURS] = f"{best} examples"
        return lambda: self._run(lambda: self._ours(None, self._family, batch_size=best))

    def _enter(self, name: str, opponent: Callable[[Task, Setting], Scores], budget: float) -> Callable[[], Scores]:
        folds = (1,) if name == "hook loop" else self.workload.folds
        setting, a_configuration = self._tuned(opponent, folds)
        self.settings[name] = str(setting)
        configurations = len(self._task.ablated)
        affordable = max(LEAST, int(budget / a_configuration))
        chosen = torch.arange(configurations)
        if affordable < configurations:
            chosen = sample(configurations, affordable, setting.configurations, self._generator)
        self._chosen[name] = chosen
        whole = self._task.channels_last() if setting.channels_last else self._task
        part = whole.only(chosen)
        if len(chosen) < configurations:
            nothing = whole.only(chosen[:0])
            once = min(seconds(lambda: self._run(lambda: opponent(nothing, setting))) for _ in range(2))
            self.parts[name] = Part(len(chosen), configurations, once=once)
            if name == "captum":
                self.parts[name] = Part(evaluations(part), evaluations(whole), "evaluations", once)
        return lambda: self._run(lambda: opponent(part, setting))

    def _tuned(self, opponent: Callable[[Task, Setting], Scores], folds: Sequence[int]) -> tuple[Setting, float]:
        """The best setting, one choice after another, and its seconds a configuration over all examples."""
        batches = [size for size in self.workload.batches if size <= len(self._task.labels)]
        count, block = len(self._task.ablated), max(folds)
        spans = 1 if isinstance(self._family, Family) or block == 1 else SPANS
        starts = [(count - block) * (2 * i + 1) // (2 * spans) for i in range(spans)]
        few = self._task.only(torch.cat([start + torch.arange(block) for start in starts]), max(batches))
        in_layout = {False: few, True: few.channels_last() if self._maps else few}
        best, best_time = Setting(batches[-1]), float("inf")

        def consider(setting: Setting) -> None:
            nonlocal best, best_time
            run = partial(opponent, in_layout[setting.channels_last], setting)
            time = seconds(lambda: self._run(run))
            if time < CLEARLY_SLOWER * best_time:
                time = min(time, seconds(lambda: self._run(run)))
            if time < best_time:
                best, best_time = setting, time

        for size in batches:
            consider(Setting(size))
        if self._maps:
            consider(best._replace(channels_last=True))
        for fold in folds[1:]:
            consider(best._replace(configurations=fold))
        return best, best_time / len(few.ablated) * len(self._task.labels) / len(few.labels)

    def _difference(self, scores: Scores, chosen: Tensor) -> str:
        ours = self.turns.results[OURS]
        correct, loss, ambiguous = (t.flatten()[chosen] for t in (ours.correct, ours.loss, ours.ambiguous))
        allowed = ambiguous + self._tolerance.counts * len(self._task.labels)
        wrong = int(((scores.correct - correct).abs() > allowed).sum())
        error = float(((scores.loss - loss) / loss).abs().max())
        if not wrong and error <= self._tolerance.loss:
            return ""
        return f"{wrong} of {len(chosen)} counts differ beyond ambiguous ones; losses by up to {error:.0e}"


def run_package(task: Task, family: Family | Couples | None, examples: int | None = None, **options: Any) -> Any:
    """The public function for a task, on the first examples."""
    model, layers, data = task.model, list(task.layers), (task.inputs[:examples], task.labels[:examples])
    if family is None:
        return sd.unit_importance(model, layers, data, **options)
    if isinstance(family, Couples):
        return sd.pair_importance(model, layers, data, pairs=family.pairs, **options)
    return sd.cumulative_ablation(model, layers, data, orders=family.orders, points=family.points, **options)


def run_contest(contest: Contest) -> Race:
    """All turns, where nothing else drives them; opponents with other results are left out of the table."""
    for _ in range(contest.workload.turns):
        contest.run_opponents()
        contest.run_ours()
    return contest.result(left_out=contest.differences())


def sample(count: int, size: int, block: int, generator: torch.Generator) -> Tensor:
    """Indices below ``count``: random blocks, one from each of equal spans, about ``size`` indices in all."""
    blocks = count // block
    spans = min(math.ceil(size / block), blocks)
    starts = (torch.arange(spans) + torch.rand(spans, generator=generator)) * blocks / spans
    starts = starts.long().clamp(max=blocks - 1)
    return (starts[:, None] * block + torch.arange(block)).flatten()


def seconds(run: Callable[[], Any]) -> float:
    """Of one run."""
    start = perf_counter()
    run()
    return perf_counter() - start


def planned_gflop(plan: str, examples: int) -> float | None:
    """The sum that a plan's table ends with; None of a plan that counts nothing."""
    found = re.search(r"^all\s+([\d.]+)", plan, re.MULTILINE)
    return float(found[1]) * examples / 1e3 if found else None
