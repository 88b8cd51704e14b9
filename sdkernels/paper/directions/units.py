"""What figures 5b, 6, 7 and A1 to A4 share: the ConvNets whose units are studied, and the statistics of those units.

Each of these figures asks for the same networks and, by the same arguments, the same statistics: whichever is run first
trains and measures them, and the others find them in the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd

from sdkernels.analysis.statistics import UnitStatistics
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.lab.sweep import Condition, Networks, NetworkSettings
from sdkernels.lab.sweep.settings import flat
from sdkernels.paper.frames import trained
from sdkernels.paper.measures import named
from sdkernels.paper.recipe import Family

CONVOLUTIONS = named("conv", range(1, 12))

STATISTICS = "statistics"

CHOICES = {
    "head": "unpublished: the average over space, straight to the classes; a shape with head=flatten is the other",
    "end of training": "published: 100 epochs (preset paper); else fewer, on fewer examples, of a narrower network",
    "preset small": "2,000 examples for 30 epochs, at which networks with and without batch norm fit their data alike. "
    "4,000 for 12 epochs were tried first, with one network of a kind: figure A1 then had the other sign, figures 5b "
    "and 6 the same ones",
}


def convnets(family: Family, seed: int, batch_norm: Sequence[bool] = (True, False)) -> tuple[NetworkSettings, ...]:
    """One ConvNet a repeat, first those with batch norm, then those without.

    ``batch_norm`` always stands in the settings, with ``(True,)`` alone too: a network that leaves it to the model's
    default would be trained again.

    Example:
        >>> from sdkernels.paper.networks import CONVNETS
        >>> networks = convnets(CONVNETS["quick"], 0)
        >>> [(network.options["batch_norm"], network.seed) for network in networks[3:5]]
        [(True, 3), (False, 0)]
    """
    repeats = range(family.repeats)
    return tuple(family.network(seed, repeat, batch_norm=norm) for norm in batch_norm for repeat in repeats)


def statistics_condition(
    layers: Sequence[str], measured: int | None = None, *, on: str = "test", name: str = STATISTICS, **arguments: Any
) -> Condition:
    """Statistics of the layers' units over the test set, from which selectivity, mutual information and who is dead
    follow.

    Args:
        layers: as people name them; units are studied after their nonlinearity.
        measured: the first so many examples, or all.
        on: ``"test"``, as published, or ``"train"``.
        name: under which :meth:`sdkernels.lab.sweep.Networks.result` has them.
        arguments: further ones of :func:`sdkernels.unit_statistics`.
    """
    return Condition(name, "unit_statistics", tuple(layers), on, measured, arguments)


@dataclass(frozen=True)
class Selectivity:
    """The class selectivity index of each unit.

    Attributes:
        kind: what the largest class mean is held against: the ``"macro"`` mean of the other classes' means, or the
            ``"micro"`` mean of the other classes' examples.
        column, words: what it is called in tables and on axes.
    """

    kind: Literal["macro", "micro"] = "macro"
    column: ClassVar[str] = "selectivity"
    words: ClassVar[str] = "class selectivity"

    def of(self, statistics: UnitStatistics) -> UnitScore:
        """The score of every unit; nan for dead ones."""
        return statistics.selectivity(self.kind)


@dataclass(frozen=True)
class Information:
    """What each unit says of the class, in bits.

    Attributes:
        bins: of equal mass, beside one for exactly 0.
        correction: ``"miller-madow"`` takes off the bias of few examples.
        column, words: what it is called in tables and on axes.
    """

    bins: int = 20
    correction: Literal["none", "miller-madow"] = "none"
    column: ClassVar[str] = "mutual_information"
    words: ClassVar[str] = "mutual information with the class (bits)"

    def of(self, statistics: UnitStatistics) -> UnitScore:
        """The score of every unit; 0 for dead ones."""
        return statistics.mutual_information(self.bins, correction=self.correction)


def score_frame(
    networks: Networks, score: Selectivity | Information, *settings: str, condition: str = STATISTICS
) -> pd.DataFrame:
    """One row a unit of each network: ``network``, the settings that are named, ``layer`` as people name it, ``unit``,
    the score by its ``column``, and ``dead``, whether the unit is 0 at every position of every example."""
    parts: list[pd.DataFrame] = []
    (layers,) = (one.layers for one in networks.sweep.conditions if one.name == condition)
    for index in trained(networks):
        found = score.of(networks.result(index, condition))  # type: ignore[arg-type]  # the condition's function says so
        table: pd.DataFrame = found.to_pandas().rename(columns={found.name: score.column})
        table["layer"] = table.layer.map(dict(zip(found.layers, layers, strict=True)))
        values = flat(networks.sweep.networks[index])
        for place, name in enumerate(settings):
            table.insert(place, name, [values.get(name)] * len(table))
        table.insert(0, "network", index)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)
