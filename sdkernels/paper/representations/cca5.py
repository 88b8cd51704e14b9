"""Figure 5: networks of several learning rates cluster by how alike they are, as they do by robustness to ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

import sdkernels as sd
from sdkernels.analysis.similarity.clustering import cut, leaf_order
from sdkernels.lab.sweep import Comparison, Sweep
from sdkernels.paper.claims import Claim
from sdkernels.paper.claims.grouped import agreeing, matching
from sdkernels.paper.claims.nearness import Array, nearer_within
from sdkernels.paper.directions import fig3
from sdkernels.paper.drawing import new_figure, shades
from sdkernels.paper.recipe import Done, Recipe
from sdkernels.paper.representations.pairs import matrix_of, networks_of, pair_frame

COMPARED = "all pairs"

NETWORK = ("network", "learning_rate", "auc", "error", "regime")  # what the table says of each


@dataclass(frozen=True)
class Options:
    """Figure 3b's networks of the other paper, and how they are compared.

    Attributes:
        robustness: the networks, and how they are ablated; the same as there, so that the store has them.
        layer: that is compared.
        method: the paper's, or another.
        measured: the first so many training examples, or all.
    """

    robustness: fig3.Options
    layer: str = "conv8"
    method: Literal["pwcca", "cca", "svcca", "cka"] = "pwcca"
    measured: int | None = None


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """The networks, ablated, as figure 3b has them."""
    return fig3.sweeps(options.robustness)


def comparisons(options: Options) -> Mapping[str, Sequence[Comparison]]:
    """All pairs."""
    everyone = range(len(fig3.networks_by_learning_rate(options.robustness)))
    what = (COMPARED, "pairwise_similarity", everyone, (options.layer,), "train", options.measured)
    return {fig3.PART: [Comparison(*what, arguments={"method": options.method})]}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a pair of networks: distance, and of both the learning rate, area under the ablation curve, error,
    ``regime``, the cluster by that area (0 is the fragile one), and ``cluster``, that by distances."""
    robustness = Done(done.options.robustness, done.networks, done.absent)
    found = fig3.table_of_networks(robustness).rename(columns={"cluster": "regime"})[[*NETWORK]]
    pairs = pair_frame(done.compared[COMPARED], found)
    return pair_frame(done.compared[COMPARED], clustered(networks_of(pairs), pairs))


def clustered(networks: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The networks with their ``cluster``: as many as there are learning rates, by average linkage."""
    distance = matrix_of(pairs, networks.network.tolist())
    return networks.assign(cluster=clusters(distance, networks.learning_rate.nunique()))


def clusters(distance: Array, count: int) -> NDArray[np.int64]:
    """The cluster of each network ``[n]``, of ``count``."""
    found: NDArray[np.int64] = cut(torch.from_numpy(distance), min(count, len(distance))).numpy()
    return found


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Networks x networks along their tree, with what each is beside; and the networks laid out by their distances."""
    networks = networks_of(table)
    distance = matrix_of(table, networks.network.tolist())
    figure, ((left, right),) = new_figure(2, height=3.7, width=4.0)
    rates = sorted(networks.learning_rate.unique())
    _draw_map(left, done.options, networks, distance, rates)
    _draw_places(right, networks, distance, rates)
    handles = [
        Line2D([], [], color=colour, marker=fig3.MARKERS[place], linestyle="", markersize=5, label=f"{rate:g}")
        for place, (rate, colour) in enumerate(zip(rates, shades(len(rates)), strict=True))
    ]
    small: dict[str, Any] = {"frameon": False, "fontsize": 8, "title_fontsize": 8}
    figure.legend(handles=handles, title="learning rate", loc="outside right upper", **small)
    grey: dict[str, Any] = {"color": "0.3", "marker": "o", "linestyle": "", "markersize": 5}
    regimes = [
        Line2D([], [], markerfacecolor="white" if regime == 0 else "0.3", label=f"{'AB'[regime]} ({size})", **grey)
        for regime, size in enumerate(np.bincount(networks.regime))
    ]
    figure.legend(handles=regimes, title="cluster by area", loc="outside right lower", **small)
    return figure


def _draw_map(ax: Axes, options: Options, networks: pd.DataFrame, distance: Array, rates: Sequence[float]) -> None:
    """Distances in the order of the tree, lines between clusters, and two rows above: learning rate, and regime."""
    names = tuple(map(str, networks.network))
    settings = {"method": options.method}
    found = sd.PairwiseSimilarity(
        distance=torch.from_numpy(distance)[None], names=names, layers=(options.layer,), settings=settings
    )
    found.plot(ax=ax, clusters=int(networks.cluster.max()) + 1)
    ax.set_yticks([])
    ax.set(
        title="", xlabel=f"{len(networks)} networks, in one order on both axes", ylabel=f"networks at {options.layer}"
    )
    own = networks.iloc[leaf_order(found.symmetrised[0]).numpy()]
    colours = dict(zip(rates, shades(len(rates)), strict=True))
    strips = [
        ("rate", [colours[rate] for rate in own.learning_rate]),
        ("area", [(1.0, 1.0, 1.0, 1.0) if regime == 0 else (0.3, 0.3, 0.3, 1.0) for regime in own.regime]),
    ]
    for place, (name, cells) in enumerate(strips):
        strip = ax.inset_axes((0, 1.02 + 0.06 * place, 1, 0.045))
        strip.imshow(np.array([cells])[..., :3], aspect="auto", interpolation="nearest")
        strip.set(xticks=[], yticks=[])
        strip.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)


def _draw_places(ax: Axes, networks: pd.DataFrame, distance: Array, rates: Sequence[float]) -> None:
    places, share = laid_out(distance)
    for place, (rate, colour) in enumerate(zip(rates, shades(len(rates)), strict=True)):
        for regime in (0, 1):
            own = ((networks.learning_rate == rate) & (networks.regime == regime)).to_numpy()
            look: dict[str, Any] = {"marker": fig3.MARKERS[place], "edgecolor": colour, "linewidth": 1.2, "s": 26}
            ax.scatter(places[own, 0], places[own, 1], facecolor=colour if regime else "white", **look)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(
        xticks=[], yticks=[], xlabel=f"networks in two dimensions, which keep\n{share:.0%} of their squared distances"
    )


def laid_out(distance: Array) -> tuple[Array, float]:
    """Places ``[n, 2]`` whose distances are near to ``[n, n]`` (classical scaling), and the share of them that it has.

    Source: Torgerson 1952, Multidimensional scaling.

    Example:
        >>> places, share = laid_out(np.array([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]]))
        >>> round(float(np.linalg.norm(places[1] - places[2])), 6), round(share, 6)
        (5.0, 1.0)
    """
    centring = np.eye(len(distance)) - 1 / len(distance)
    values, vectors = np.linalg.eigh(-centring @ distance**2 @ centring / 2)
    values = values.clip(min=0)
    places = (vectors * np.sqrt(values))[:, ::-1][:, :2]
    return places, float(values[::-1][:2].sum() / max(values.sum(), 1e-300))


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Clusters by distance are learning rates, and match the clusters by robustness."""
    networks = networks_of(table)
    distance = matrix_of(table, networks.network.tolist())
    rates, regimes = networks.learning_rate.to_numpy(), networks.regime.to_numpy()
    count = len(np.unique(regimes))
    of_distance = clusters(distance, count)
    return [
        nearer_within(
            distance,
            rates,
            claim="Networks of one learning rate are more alike than networks of two: difference of mean distances",
            published="positive (shown)",
        ),
        agreeing(
            networks.cluster.to_numpy(),
            rates,
            claim="Clusters of networks that are alike are learning rates",
            published="clusters are learning rates (shown)",
        ),
        nearer_within(
            distance,
            regimes,
            claim="Networks of one cluster by area under the ablation curve are more alike than networks of two: "
            "difference of mean distances",
            published="clusters match (told)",
        ),
        matching(
            regimes,
            networks.cluster.to_numpy(),
            claim="Clusters of networks that are alike match those by area: networks in the cluster by area of most "
            "networks of their cluster",
            published="clusters match (told)",
        ),
        agreeing(
            of_distance,
            regimes,
            claim=f"They are the same where networks that are alike are cut into {count} clusters too",
        ),
    ]


_CHOICES = {
    **{name: fig3.FIG3B.choices[name] for name in ("learning rates", "networks", "ablation")},
    "clusters by area": fig3.FIG3B.choices["clusters"],
    "clusters of networks that are alike": "how they were found is not said: average linkage of distances, cut into as "
    "many as there are learning rates",
    "distance": "at the eighth convolution, after its nonlinearity, feature maps averaged over space, on training "
    "images, by projection-weighted CCA, of which both directions are averaged",
    "matches": "clusters are learning rates where the adjusted Rand index reaches 0.5, and p of shuffled networks 0.05",
    "intervals": "over networks, by leaving out one at a time with all its pairs; p values are of shuffled networks",
}

CCA5 = Recipe(
    "cca5",
    "Clusters of networks by learning rate, CIFAR-10 ConvNet (Morcos, Raghu, Bengio 2018, figure 5)",
    {preset: Options(robustness) for preset, robustness in fig3.FIG3B.presets.items()},
    sweeps,
    table,
    draw,
    claims,
    _CHOICES,
    comparisons=comparisons,
)
