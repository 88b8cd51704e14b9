"""What each example's own logit loses without each unit of a layer, against captum's way and a hook loop."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from python_bench.contest import LEAST, OURS, DifferentResultsError, sample, seconds
from python_bench.opponents import Setting, Task
from python_bench.opponents.attributions import ATTRIBUTIONS
from python_bench.opponents.captum_ablation import evaluations
from python_bench.race import Part, Race, Turns
from python_bench.workloads import WORKLOADS as ENGINE_WORKLOADS
from python_bench.workloads import Workload, prepare
from python_bench.workloads import tiny as engine_tiny
from sdkernels.analysis.attribution import LayerUnitAblation

FURTHER = "sdkernels, every further batch"
BUDGET = 20.0  # seconds a turn of an opponent
ROUNDING = 1e-5  # of the largest logit: in float32 either side adds in an order of its own

WORKLOADS = {
    "attribution_mlp": replace(
        ENGINE_WORKLOADS["units_mlp"],
        title="Attributions of the 512 units of relu1, MLP 784-512-512-10, {examples} examples",
        layers=("relu1",),
        examples=1000,
        folds=(1, 8, 64),
        turns=5,
    ),
    "attribution_convnet": replace(
        ENGINE_WORKLOADS["units_convnet"],
        title="Attributions of the feature maps of relu9, CIFAR-10 ConvNet, {examples} images 32 x 32",
        layers=("relu9",),
        examples=32,
        folds=(1, 8, 32),
        turns=3,
    ),
    "attribution_resnet18": replace(
        ENGINE_WORKLOADS["units_resnet18"],
        title="Attributions of the 512 units of layer4.0, ResNet-18, {examples} images 64 x 64",
        layers=("layer4.0",),
        examples=32,
        folds=(1, 8, 32),
        turns=3,
    ),
}


def tiny(name: str) -> Workload:
    """A toy of the same kind."""
    small = engine_tiny(name.replace("attribution", "units"))
    return replace(small, title=f"tiny {name}, {{examples}} examples", layers=WORKLOADS[name].layers)


class Attributions:
    """A workload, ready to run; targets are the labels.

    Args:
        workload: of one layer, every unit alone.
        budget: seconds a turn of an opponent may take; one that needs longer is timed on random units.
    """

    def __init__(self, workload: Workload, budget: float) -> None:
        self.workload = workload
        self._task, _ = prepare(workload, torch.device("cpu"))
        self._generator = torch.Generator().manual_seed(0)  # which units are timed
        self._chosen: dict[str, Tensor] = {}
        self.settings: dict[str, Setting] = {}
        self.parts: dict[str, Part] = {}
        (layer,) = self._task.layers
        kept = LayerUnitAblation(self._task.model, layer)
        contestants: dict[str, Callable[[], Tensor]] = {
            OURS: lambda: self._attribute(LayerUnitAblation(self._task.model, layer)),
            FURTHER: lambda: self._attribute(kept),
        }
        for name, opponent in ATTRIBUTIONS.items():
            if name != "captum" or importlib.util.find_spec("captum"):
                contestants[name] = self._enter(name, opponent, budget)
        self._attribute(kept)  # what is compiled or measured at first use is done now
        self.turns = Turns(contestants)

    def run_others(self) -> None:
        """A turn of each but the package's first batch."""
        for name in self.turns.seconds:
            if name != OURS:
                self.turns.take(name)

    def run_ours(self) -> None:
        """The package's turn: it traces the model, checks the graph, and runs."""
        self.turns.take(OURS)

    def result(self) -> Race:
        """The race.

        Raises:
            DifferentResultsError: the results differ by more than rounding.
        """
        worst = {name: self._error(name) for name in self.turns.seconds if name != OURS}
        if wrong := {name: error for name, error in worst.items() if not error <= ROUNDING}:
            raise DifferentResultsError(f"differences, parts of the largest logit: {wrong}")
        notes: dict[str, Any] = {"examples": len(self._task.labels), "units": len(self._task.ablated)}
        notes |= {f"{name}'s best": str(setting) for name, setting in self.settings.items()}
        notes["largest difference, as a part of the largest logit"] = f"{max(worst.values()):.0e}"
        return Race(self.workload.heading(), self.turns.seconds, notes, self.parts)

    def _attribute(self, ours: LayerUnitAblation) -> Tensor:
        return ours.attribute(self._task.inputs, target=self._task.labels)

    def _error(self, name: str) -> float:
        chosen = self._chosen.get(name, torch.arange(len(self._task.ablated)))
        with torch.no_grad():
            largest = self._task.model(self._task.inputs).abs().max()
        return float((self.turns.results[name] - self.turns.results[OURS][:, chosen]).abs().max() / largest)

    def _enter(self, name: str, opponent: Callable[[Task, Setting], Tensor], budget: float) -> Callable[[], Tensor]:
        setting, a_unit = self._tuned(opponent, (1,) if name == "hook loop" else self.workload.folds)
        self.settings[name] = setting
        whole = self._task.channels_last() if setting.channels_last else self._task
        units = len(whole.ablated)
        affordable = max(LEAST, int(budget / a_unit))
        chosen = torch.arange(units)
        if affordable < units:
            chosen = sample(units, affordable, setting.configurations, self._generator)
        part = whole.only(chosen)
        if len(chosen) < units and name == "captum":
            self.parts[name] = Part(evaluations(part), evaluations(whole), "evaluations")
        elif len(chosen) < units:
            self.parts[name] = Part(1 + len(chosen), 1 + units, "evaluations")
        self._chosen[name] = chosen
        return lambda: opponent(part, setting)

    def _tuned(self, opponent: Callable[[Task, Setting], Tensor], folds: tuple[int, ...]) -> tuple[Setting, float]:
        """The best number of units a pass and memory layout, and its seconds a unit."""
        task = self._task
        few = task.only(torch.arange(min(max(folds), len(task.ablated))))
        layouts = (False, True) if task.inputs.ndim == 4 else (False,)
        tried: dict[Setting, float] = {}
        for channels_last in layouts:
            here = few.channels_last() if channels_last else few
            for fold in folds:
                setting = Setting(len(task.labels), fold, channels_last)
                run = partial(opponent, here, setting)
                tried[setting] = min(seconds(run) for _ in range(2)) / len(few.ablated)
        best = min(tried, key=tried.__getitem__)
        return best, tried[best]


@pytest.mark.parametrize("name", WORKLOADS)
def test_attribution(name, benchmark, report, is_tiny):
    workload = tiny(name) if is_tiny else WORKLOADS[name]
    attributions = Attributions(workload, 0.0 if is_tiny else BUDGET)
    benchmark.pedantic(attributions.run_ours, setup=attributions.run_others, rounds=workload.turns)
    result = attributions.result()
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)
