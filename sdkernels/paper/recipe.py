"""What a figure is: networks, how they are measured, what is drawn of it, and what the paper claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Comparison, Condition, Networks, NetworkSettings, Sweep
from sdkernels.lab.sweep.results import Compared
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.claims import Claim

PRESETS = ("quick", "small", "paper")

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Family:
    """Networks of one architecture on one data set, trained alike; a figure varies them.

    Attributes:
        data, model, training, examples, split, standardise, image_size: as
            :class:`~sdkernels.lab.sweep.NetworkSettings` has them.
        shape: what the model's function takes: ``{"hidden": [512, 512]}``, ``{"width": 0.25}``.
        repeats: networks of each kind, which differ in initialisation, shuffling and, if there are any, corrupted
            labels.
        together, checkpoint_seconds: as :class:`~sdkernels.lab.sweep.Sweep` has them.
    """

    data: str
    model: str
    shape: Mapping[str, Any]
    training: TrainingOptions
    examples: int | None = None
    split: str = "train"
    standardise: bool = False
    image_size: int | None = None
    repeats: int = 1
    together: int = 1
    checkpoint_seconds: float = 10.0

    def sweep(self, networks: Sequence[NetworkSettings], *conditions: Condition) -> Sweep:
        """Networks of this family, each measured under these conditions."""
        return Sweep(tuple(networks), conditions, together=self.together, checkpoint_seconds=self.checkpoint_seconds)

    def network(self, seed: int, repeat: int = 0, **changes: Any) -> NetworkSettings:
        """One of them.

        Args:
            seed: of the figure; every repeat has one of its own, made from it.
            repeat: from 0.
            changes: ``corruption``, ``corruption_seed``, ``until``, training options, or further ``shape``.

        Example:
            >>> family = Family("digits", "mlp", {"hidden": [16]}, TrainingOptions(epochs=3))
            >>> network = family.network(0, 1, corruption=0.5, learning_rate=0.01)
            >>> network.seed, network.corruption, network.training.learning_rate
            (1, 0.5, 0.01)
        """
        own = ("data", "model", "examples", "split", "standardise", "image_size")
        of_training = {f.name for f in fields(TrainingOptions)}
        of_network = {f.name for f in fields(NetworkSettings)}
        return NetworkSettings(
            **{name: value for name in own if (value := getattr(self, name)) is not None},
            **{name: value for name, value in changes.items() if name in of_network},
            options={**self.shape, **{k: v for k, v in changes.items() if k not in of_network | of_training}},
            training=replace(self.training, **{k: v for k, v in changes.items() if k in of_training}),
            seed=1000 * seed + repeat,
        )


@dataclass(frozen=True)
class Done(Generic[OptionsT]):
    """What a recipe draws and tests.

    Attributes:
        options: that it was run with.
        networks: trained and measured, by part: most figures have one, some one a data set.
        absent: parts that were not run, and why.
        compared: what comparisons of networks gave, by name.
        device: where a recipe's own work is done.
    """

    options: OptionsT
    networks: Mapping[str, Networks]
    absent: Mapping[str, str] = field(default_factory=dict)
    compared: Mapping[str, Compared] = field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True)
class Recipe(Generic[OptionsT]):
    """A figure of a paper.

    Attributes:
        name: ``"fig1a"``.
        title: what it shows, and where it stands in the paper.
        presets: options by preset; a frozen dataclass, which may hold others, as :class:`Family`.
        sweeps: the networks of each part and how they are measured; none, of a figure that needs no networks.
        table: the figure's data, one row an observation.
        draw: the figure of them.
        claims: the paper's claims, tested on them.
        choices: what the paper leaves open, and what stands here instead.
        needs: parts that run only where their data set is; else they are left out and marked so.
        comparisons: how networks of each part are compared with one another.
    """

    name: str
    title: str
    presets: Mapping[str, OptionsT]
    sweeps: Callable[[OptionsT], Mapping[str, Sweep]]
    table: Callable[[Done[OptionsT]], pd.DataFrame]
    draw: Callable[[Done[OptionsT], pd.DataFrame], Figure]
    claims: Callable[[Done[OptionsT], pd.DataFrame], list[Claim]]
    choices: Mapping[str, str]
    needs: Mapping[str, str] = field(default_factory=dict)
    comparisons: Callable[[OptionsT], Mapping[str, Sequence[Comparison]]] = lambda _options: {}
