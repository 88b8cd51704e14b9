"""What figures 7 and A2 to A4 share: a part for each data set, and one row a unit of its networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from sdkernels.analysis.statistics import UnitStatistics
from sdkernels.lab.sweep import Condition, Networks, NetworkSettings, Sweep
from sdkernels.paper.directions import units
from sdkernels.paper.directions.units import (
    CONVOLUTIONS,
    STATISTICS,
    Information,
    Selectivity,
    convnets,
    statistics_condition,
)
from sdkernels.paper.frames import trained
from sdkernels.paper.measures import named
from sdkernels.paper.networks import CONVNETS, MLPS, RESNETS
from sdkernels.paper.recipe import Family

IMPORTANCE = "importance"

BLOCKS = tuple(
    block for stage, count in enumerate((3, 4, 6, 3), 1) for block in named(f"block{stage}.", range(1, count + 1))
)

NEEDS = {"ImageNet": "ImageNet"}
WITHOUT = "needs ImageNet"

CHOICES = {
    **units.CHOICES,
    "networks": "how many is unpublished; correlations are taken within each, and then averaged by Fisher's z",
    "units": "of every hidden layer after its ReLU; of ResNet-50, the outputs of its 16 blocks",
    "dead units": "those that are 0 on all test examples have no selectivity, and are left out; claims say what they "
    "change where there are any",
}

_DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "imagenet": "ImageNet"}
_MODELS = {"mlp": "MLP", "convnet": "ConvNet", "resnet50": "ResNet-50"}


@dataclass(frozen=True)
class Part:
    """Networks of one architecture on one data set, and which of their units are looked at.

    Attributes:
        layers: as people name them, the first layer first.
        ablated_on: the first so many test examples, on which single units are ablated, or all; statistics are of all.
        cells: how finely distributions of activations are kept, by :func:`sdkernels.unit_statistics`; None: as by
            default; 0: not, and no mutual information.
        apart: take each layer's statistics by itself, where those of all would be too many for one result.
    """

    networks: Family
    layers: tuple[str, ...]
    ablated_on: int | None = None
    cells: int | None = None
    apart: bool = False

    @property
    def title(self) -> str:
        """What was really used: ``"digits, MLP"``."""
        data, model = self.networks.data, self.networks.model
        return f"{_DATA.get(data, data)}, {_MODELS.get(model, model)}"

    def settings(self, seed: int) -> tuple[NetworkSettings, ...]:
        """One network a repeat; ConvNets have batch norm."""
        if self.networks.model == "convnet":
            return convnets(self.networks, seed, (True,))
        return tuple(self.networks.network(seed, repeat) for repeat in range(self.networks.repeats))

    def statistics(self) -> tuple[Condition, ...]:
        """Those of the units over the test set, of all layers or of one after the other."""
        arguments: dict[str, Any] = {} if self.cells is None else {"cells": self.cells}
        if not self.apart:
            return (statistics_condition(self.layers, **arguments),)
        return tuple(statistics_condition((layer,), name=f"{STATISTICS} {layer}", **arguments) for layer in self.layers)

    def importance(self) -> Condition:
        """What test loss and accuracy become without each unit."""
        metrics = {"metrics": ["loss", "accuracy"]}
        return Condition(IMPORTANCE, "unit_importance", self.layers, "test", self.ablated_on, metrics)

    def sweep(self, seed: int, *further: Condition) -> Sweep:
        """The networks, statistics of their units, and further measurements."""
        return self.networks.sweep(self.settings(seed), *self.statistics(), *further)


def mnist_part(preset: str) -> Part:
    """MLPs, both hidden layers."""
    return Part(MLPS[preset], ("hidden1", "hidden2"))


def cifar10_part(preset: str) -> Part:
    """ConvNets, all convolutions."""
    return Part(CONVNETS[preset], CONVOLUTIONS, {"quick": None, "small": 500, "paper": None}[preset])


def imagenet_part(preset: str, cells: int = 0) -> Part:
    """ResNet-50, the output of every block."""
    return Part(RESNETS[preset], BLOCKS, {"quick": None, "small": 1000, "paper": None}[preset], cells, apart=cells > 0)


def unit_frame(networks: Networks, part: Part, *scores: Selectivity | Information) -> pd.DataFrame:
    """One row a unit of each network, layer after layer: ``network``, ``layer``, ``depth`` (from 1), ``unit``,
    ``dead``, and the scores by their columns."""
    frames = []
    for index in trained(networks):
        found = [_statistics(networks, index, condition) for condition in part.statistics()]
        counts = [count for one in found for count in one.unit_counts]
        columns = {
            "network": index,
            "layer": np.repeat(part.layers, counts),
            "depth": np.repeat(np.arange(1, len(counts) + 1), counts),
            "unit": np.concatenate([np.arange(count) for count in counts]),
            "dead": torch.cat([one.dead for one in found]).numpy(),
        }
        for score in scores:
            columns[score.column] = torch.cat([score.of(one).values for one in found]).numpy()
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def joined(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The parts' tables below each other, behind a column ``part``."""
    return pd.concat(parts, names=["part"]).reset_index("part").reset_index(drop=True)


def _statistics(networks: Networks, index: int, condition: Condition) -> UnitStatistics:
    found = networks.result(index, condition.name)
    if not isinstance(found, UnitStatistics):
        raise TypeError(f"{condition.name}: a {type(found).__name__} has no statistics of units")
    return found
