"""Figure 6: what single feature maps say of the class, with and without batch norm."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, greater
from sdkernels.paper.directions.compared import TWO, legend_above
from sdkernels.paper.directions.units import (
    CHOICES,
    CONVOLUTIONS,
    Information,
    Selectivity,
    convnets,
    score_frame,
    statistics_condition,
)
from sdkernels.paper.drawing import DASHES, new_figure
from sdkernels.paper.recipe import Done, Family, Recipe

PART = "batch norm"

BARS = 30


@dataclass(frozen=True)
class Options:
    """Networks, each of them with and without batch norm, and the score of their units.

    Attributes:
        score: selectivity or mutual information, and how it is taken.
        layers: whose units are pooled.
        measured: the first so many test examples, or all.
    """

    networks: Family
    score: Selectivity | Information
    layers: tuple[str, ...] = CONVOLUTIONS
    measured: int | None = None
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """Networks with batch norm and without, and statistics of their units."""
    condition = statistics_condition(options.layers, options.measured)
    return {PART: options.networks.sweep(convnets(options.networks, options.seed), condition)}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a unit of each network."""
    return score_frame(done.networks[PART], done.options.score, "batch_norm", "seed")


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """How the score is distributed over live feature maps: means over networks, and bands of one standard deviation."""
    score = done.options.score
    live = table[~table.dead]
    scores = live[score.column]
    edges = np.histogram_bin_edges(scores, BARS, (min(0.0, scores.min()), scores.max()))
    figure, ((ax,),) = new_figure(height=3.3)
    for norm, colour, dash in zip((True, False), TWO, DASHES, strict=False):
        own = table[table.batch_norm == norm]
        of_network = live[live.batch_norm == norm].groupby("network")[score.column]
        if own.empty or not len(of_network):
            continue
        shares = np.array([100 * np.histogram(values, edges)[0] / len(values) for _, values in of_network])
        mean, spread = shares.mean(0), shares.std(0, ddof=1) if len(shares) > 1 else np.zeros(BARS)
        label = f"with{'' if norm else 'out'} batch norm\n({int(own.dead.sum())} of {len(own)} maps dead)"
        ax.stairs(mean, edges, color=colour, linestyle=dash, linewidth=1.4, label=label)
        ax.stairs(mean + spread, edges, baseline=np.maximum(mean - spread, 0), fill=True, color=colour, alpha=0.18)
        ax.axvline(of_network.mean().mean(), color=colour, linestyle=dash, linewidth=0.9)
    ax.set(xlabel=score.words, ylabel="live feature maps (%)", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0)
    legend_above(figure, ax)
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Batch norm lowers selectivity, and raises mutual information; and whether dead units decide that."""
    score = done.options.score
    lowers = isinstance(score, Selectivity)
    what = "selectivity" if lowers else "mutual information"
    claim = f"Batch norm {'lowers' if lowers else 'raises'} the {what} of feature maps: difference of networks' means "
    sides = "without batch norm less with" if lowers else "with batch norm less without"
    found = [_claim(table[~table.dead], score.column, lowers, claim + f"over live maps, {sides}", "positive (shown)")]
    if table.dead.any():
        as_zero = table.assign(**{score.column: table[score.column].where(~table.dead, 0.0)})
        found.append(_claim(as_zero, score.column, lowers, claim + f"over all maps, dead ones counted as 0, {sides}"))
    return found


def _claim(table: pd.DataFrame, column: str, lowers: bool, claim: str, published: str = "") -> Claim:
    of_network = table.groupby(["batch_norm", "network"], as_index=False)[column].mean()
    norms = (False, True) if lowers else (True, False)
    first, second = (of_network[of_network.batch_norm == norm][column] for norm in norms)
    names = ("with", "without")
    return greater(first, second, claim=claim, published=published, names=names[::-1] if lowers else names)


_CHOICES = {
    **CHOICES,
    "dead maps": "maps that are 0 at every position of every test example have no selectivity; they are left out of "
    "both figures and of the means, and counted in the legend. Where there are any, each claim is tested with them as "
    "well, counted as 0",
    "pooling": "maps of all eleven layers of all networks; the last three are half of them. The line is the mean over "
    "networks of the share of their live maps, the band one standard deviation, the vertical line the mean score",
}


def _recipe(
    name: str, what: str, scores: Mapping[str, Selectivity | Information], choices: Mapping[str, str]
) -> Recipe[Options]:
    title = f"{what} with and without batch norm, CIFAR-10 ConvNet (Morcos et al. 2018, figure {name[3:]})"
    presets = {preset: Options(family, scores[preset]) for preset, family in networks.CONVNETS.items()}
    return Recipe(name, title, presets, sweeps, table, draw, claims, {**_CHOICES, **choices})


FIG6A = _recipe(
    "fig6a",
    "Class selectivity",
    dict.fromkeys(networks.CONVNETS, Selectivity()),
    {
        "the other classes' mean": "read as the mean of their means (kind=macro) or of their examples (kind=micro), "
        "which is the same where classes are of one size, as in CIFAR-10",
    },
)
FIG6B = _recipe(
    "fig6b",
    "Mutual information",
    {"quick": Information(bins=10, correction="miller-madow"), "small": Information(), "paper": Information()},
    {
        "estimator": "unpublished: of an example's mean over a map, in 20 bins of equal mass and one for exactly 0. "
        "Preset quick has few test examples: 10 bins, and the bias taken off as Miller and Madow have it",
    },
)
