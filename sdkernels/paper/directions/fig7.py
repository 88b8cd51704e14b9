"""Figures 7 and A4: whether units that say much of the class matter more to the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdkernels.analysis.importance import UnitImportance
from sdkernels.lab.sweep import Networks, Sweep
from sdkernels.paper.claims import Claim, correlated, paired_greater, pooled_correlation, untestable
from sdkernels.paper.directions.parts import (
    CHOICES,
    IMPORTANCE,
    NEEDS,
    WITHOUT,
    Part,
    cifar10_part,
    imagenet_part,
    joined,
    mnist_part,
    unit_frame,
)
from sdkernels.paper.directions.relations import MARGIN, claim_relation, draw_by_layer, draw_units, relate
from sdkernels.paper.directions.units import Information, Selectivity
from sdkernels.paper.drawing import new_figure
from sdkernels.paper.frames import trained
from sdkernels.paper.recipe import PRESETS, Done, Recipe

LOSS = "loss_gained"


@dataclass(frozen=True)
class Options:
    """Networks by data set, and what importance is held against.

    Attributes:
        against: the column that is drawn and tested.
        early: so many of the ConvNet's convolutions count as its early layers.
    """

    mnist: Part
    cifar10: Part
    imagenet: Part
    against: Literal["selectivity", "mutual_information"] = "selectivity"
    selectivity: Selectivity = field(default_factory=Selectivity)
    information: Information = field(default_factory=Information)
    early: int = 5
    seed: int = 0

    @property
    def parts(self) -> Mapping[str, Part]:
        """As the paper calls them."""
        return {"MNIST": self.mnist, "CIFAR-10": self.cifar10, "ImageNet": self.imagenet}

    @property
    def words(self) -> str:
        """What importance is held against."""
        return (self.selectivity if self.against == "selectivity" else self.information).words


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """Networks with statistics of their units, and each unit ablated by itself."""
    return {name: part.sweep(options.seed, part.importance()) for name, part in options.parts.items()}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a unit of each network of each part."""
    options = done.options
    found = {}
    for name, networks in done.networks.items():
        part = options.parts[name]
        scores = (options.selectivity,) if part.cells == 0 else (options.selectivity, options.information)
        found[name] = unit_frame(networks, part, *scores).assign(**_losses(networks))
    return joined(found)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Above, loss against the score, a point a unit; below, their correlation within each layer."""
    names = list(table.part.unique())
    figure, axes = new_figure(len(names), 2, height=2.6, width=3.6)
    for column, name in enumerate(names):
        rows = table[table.part == name]
        above, below = axes[:, column]
        live = rows[~rows.dead]
        draw_units(above, live, done.options.against, LOSS)
        above.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        above.set(title=done.options.parts[name].title, xlabel=done.options.words)
        above.set(ylabel="test loss gained without it")
        above.set_yscale("symlog", linthresh=_typical(live[LOSS]))
        draw_by_layer(below, relate(rows, LOSS, done.options.against))
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """What the paper says of selectivity, or of mutual information; with the former, which layers matter."""
    parts = {str(name): rows for name, rows in table.groupby("part", sort=False)}
    if done.options.against == "mutual_information":
        return [_claim_no_information(name, parts.get(name)) for name in done.options.parts]
    score, rows = done.options.against, parts["CIFAR-10"]
    on_mnist = claim_relation(
        relate(parts["MNIST"], LOSS, score),
        margin=MARGIN,
        claim="MNIST: how selective a unit is says little of how much it matters: rank correlation of selectivity and "
        "importance",
        published="0.095, slight",
        published_value=0.095,
    )
    on_cifar10 = claim_relation(
        relate(rows, LOSS, score),
        sign=-1,
        claim="CIFAR-10: the more selective a feature map is, the less it matters: rank correlation of selectivity and "
        "importance",
        published_value=-0.428,
    )
    poor = "ImageNet: how selective a feature map is says little of how much it matters: rank correlation"
    on_imagenet = (
        claim_relation(relate(parts["ImageNet"], LOSS, score), margin=MARGIN, claim=poor)
        if "ImageNet" in parts
        else untestable(poor, WITHOUT, "a poor predictor")
    )
    return [
        on_mnist,
        on_cifar10,
        _claim_early_drive(rows, done.options.early),
        _claim_early_matter("CIFAR-10", rows),
        on_imagenet,
        _claim_early_matter("ImageNet", parts.get("ImageNet")),
    ]


def _claim_no_information(name: str, rows: pd.DataFrame | None) -> Claim:
    claim = f"{name}: mutual information says little of how much a unit matters: rank correlation with importance"
    if rows is None:
        return untestable(claim, WITHOUT, "mostly none")
    return claim_relation(relate(rows, LOSS, "mutual_information"), margin=MARGIN, claim=claim, published="mostly none")


def _claim_early_drive(rows: pd.DataFrame, early: int) -> Claim:
    """Over the units of early layers pooled, and over those of the others."""
    claim = (
        "CIFAR-10: early layers drive the negative correlation: that within later layers less that within early ones"
    )
    published, layers = "positive (text)", rows.layer.unique()
    if not 0 < early < len(layers):
        return untestable(claim, f"early={early} of {len(layers)} layers leaves none on one side", published)
    halves = (rows[rows.depth <= early], rows[rows.depth > early])
    first, rest = (np.array([found.rho for found in relate(half, LOSS, "selectivity").pooled]) for half in halves)
    known = np.isfinite(first) & np.isfinite(rest)
    names = (f"{layers[early]} on", f"up to {layers[early - 1]}")
    return paired_greater(rest[known], first[known], claim=claim, published=published, names=names)


def _claim_early_matter(name: str, rows: pd.DataFrame | None) -> Claim:
    claim = (
        f"{name}: early layers matter more: rank correlation of depth and the mean importance of a layer's live units"
    )
    published = "negative (shown)"
    if rows is None:
        return untestable(claim, WITHOUT, published)
    mean = rows[~rows.dead].groupby(["network", "depth"])[LOSS].mean().unstack("network")
    if mean.shape[1] == 1:
        return correlated(mean.index, mean.iloc[:, 0], sign=-1, claim=claim, published=published, of="layers")
    rhos = [float(of_network.corr(mean.index.to_series(), method="spearman")) for _, of_network in mean.items()]
    return pooled_correlation(rhos, sign=-1, claim=claim, published=published)


def _losses(networks: Networks) -> dict[str, NDArray[np.float64]]:
    """By column, what is lost without each unit of each network."""
    found = [networks.result(index, IMPORTANCE) for index in trained(networks)]
    kept = [one for one in found if isinstance(one, UnitImportance)]
    return {
        LOSS: np.concatenate([one.importance("loss").numpy() for one in kept]),
        "accuracy_lost": np.concatenate([one.importance("accuracy").numpy() for one in kept]),
    }


def _typical(losses: pd.Series) -> float:
    """A power of ten below which half of the losses lie: up to it the axis is linear, beyond it logarithmic."""
    return float(10 ** np.ceil(np.log10(losses.abs().median() or 1e-6)))


def _recipe(name: str, title: str, presets: Mapping[str, Options], **choices: str) -> Recipe[Options]:
    choices = {
        **CHOICES,
        "importance": "the change of test loss, with its sign: positive where the network is worse without the unit; "
        "on the first test examples at preset small (ablated_on)",
        "early layers": "unpublished which: the first 5 of the ConvNet's 11 convolutions; the pooled units of these "
        "against those of the others",
        **choices,
    }
    return Recipe(
        name, f"{title} (Morcos et al. 2018, figure {name[3:]})", presets, sweeps, table, draw, claims, choices, NEEDS
    )


FIG7 = _recipe(
    "fig7",
    "Importance of single units against class selectivity",
    {preset: Options(mnist_part(preset), cifar10_part(preset), imagenet_part(preset)) for preset in PRESETS},
)
FIGA4 = _recipe(
    "figA4",
    "Importance of single units against mutual information with the class",
    {
        preset: Options(mnist_part(preset), cifar10_part(preset), imagenet_part(preset, cells=20), "mutual_information")
        for preset in PRESETS
    },
    **{
        "mutual information": "unpublished estimator: 20 bins of equal mass and one for exactly 0 "
        "(information.bins), base 2; information.correction=miller-madow takes off its bias"
    },
)
