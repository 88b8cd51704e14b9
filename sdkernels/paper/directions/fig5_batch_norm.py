"""Figure 5b: ConvNets with and without batch norm, while more and more of their feature maps are ablated."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, greater
from sdkernels.paper.directions import compared, units
from sdkernels.paper.directions.compared import draw_two
from sdkernels.paper.directions.corruption import chance_of
from sdkernels.paper.directions.units import convnets
from sdkernels.paper.frames import area_frame, result_frame
from sdkernels.paper.measures import Ablation
from sdkernels.paper.recipe import Done, Family, Recipe

PART = "batch norm"


@dataclass(frozen=True)
class Options:
    """Networks, each of them with and without batch norm, and how they are ablated."""

    networks: Family
    ablation: Ablation
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """Networks with batch norm and without, ablated in the same orders."""
    kinds = convnets(options.networks, options.seed)
    return {PART: options.networks.sweep(kinds, options.ablation.condition(options.seed))}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a network, order and point."""
    return result_frame(done.networks[PART], "ablation", "batch_norm", "seed")


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Accuracy against the fraction of feature maps ablated."""
    words = {norm: _words(norm) for norm in (True, False)}
    return draw_two(table, done.networks[PART], done.options.ablation, by="batch_norm", words=words)


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Batch norm makes networks more robust, and not only more accurate."""
    metric = done.options.ablation.metrics[0]
    areas = area_frame(done.networks[PART], "ablation", "batch_norm", metric=metric)
    return [
        _claim(
            areas,
            claim="Batch norm makes a network more robust to ablation: difference of areas under the curve",
            published="positive (curves shown)",
        ),
        _claim(
            above_chance(areas, table, chance_of(done.networks[PART], metric), metric),
            claim="It does so beyond what it adds to the intact network's accuracy: difference of areas, each as a "
            "part of the intact network's, both above chance",
        ),
    ]


def above_chance(areas: pd.DataFrame, table: pd.DataFrame, chance: float, metric: str = "accuracy") -> pd.DataFrame:
    """Areas above chance as a part of the intact network's accuracy above chance: 1 where ablation does no harm.

    Args:
        areas: one row a network and order, with ``auc``.
        table: one row a network, order and point; where none are ablated, the network is intact.
        chance: accuracy of a network that knows nothing.
    """
    intact = areas.network.map(table[table.ablated == 0].groupby("network")[metric].first())
    return areas.assign(auc=(areas.auc - chance) / (intact - chance))


def _claim(areas: pd.DataFrame, *, claim: str, published: str = "") -> Claim:
    of_network = areas.groupby(["batch_norm", "network"], as_index=False).auc.mean()
    with_it, without = (of_network[of_network.batch_norm == norm].auc for norm in (True, False))
    return greater(with_it, without, claim=claim, published=published, names=(_words(True), _words(False)))


def _words(batch_norm: bool) -> str:
    return f"with{'' if batch_norm else 'out'} batch norm"


FIG5B = Recipe(
    "fig5b",
    "Cumulative ablation with and without batch norm, CIFAR-10 ConvNet (Morcos et al. 2018, figure 5b)",
    {preset: Options(family, compared.ABLATIONS[preset]) for preset, family in networks.CONVNETS.items()},
    sweeps,
    table,
    draw,
    claims,
    {
        **units.CHOICES,
        **compared.CHOICES,
        "initialisation": "unpublished: as He et al. 2015, so that networks without batch norm train too. "
        "One with and one without share their shuffling and their orders",
    },
)
