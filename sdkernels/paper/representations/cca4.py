"""Figure 4: how alike networks of one width are, and how well they generalise, as networks get wider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdkernels.analysis.scatter import MARKERS
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Comparison, NetworkSettings, Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, correlated
from sdkernels.paper.claims.nearness import Array, from_others, goes_with_nearness, mean_of_pairs, trend
from sdkernels.paper.drawing import legend_beside, new_figure, shades
from sdkernels.paper.frames import network_frame
from sdkernels.paper.recipe import Done, Family, Recipe
from sdkernels.paper.representations.methods import METHODS
from sdkernels.paper.representations.pairs import matrix_of, networks_of, pair_frame

PART = "widths"
PUBLISHED = -0.96  # correlation of test accuracy and distance


@dataclass(frozen=True)
class Options:
    """Networks by width, and how those of one width are compared with each other.

    Attributes:
        networks: as many of each width as it has repeats.
        widths: factors of all numbers of feature maps.
        filters: so many feature maps of the layer, drawn at random, are compared, in networks of any width.
        layer: whose.
        method: the paper's, or another.
        on: ``"train"`` or ``"test"``; measured: the first so many of these examples, or all.
        seed: of networks and draws.
    """

    networks: Family
    widths: tuple[float, ...]
    filters: int = 128
    layer: str = "conv11"
    method: Literal["pwcca", "cca", "svcca", "cka"] = "pwcca"
    on: Literal["train", "test"] = "train"
    measured: int | None = None
    seed: int = 0


def networks_by_width(options: Options) -> tuple[NetworkSettings, ...]:
    """``repeats`` networks a width, each of an initialisation and a shuffling of its own."""
    family = options.networks
    return tuple(
        family.network(options.seed, place * family.repeats + repeat, width=width)
        for place, width in enumerate(options.widths)
        for repeat in range(family.repeats)
    )


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """The networks, which are compared and not measured otherwise."""
    if len({*options.widths}) < len(options.widths):
        raise ValueError(f"widths={list(options.widths)}: give each once")
    return {PART: options.networks.sweep(networks_by_width(options))}


def comparisons(options: Options) -> Mapping[str, Sequence[Comparison]]:
    """Of each width all pairs, in as many feature maps."""
    count = options.networks.repeats
    how = {"method": options.method, "units": options.filters, "seed": seed_for("filters", options.seed)}
    return {
        PART: [
            Comparison(
                name_of(width),
                "pairwise_similarity",
                *(range(place * count, (place + 1) * count), (options.layer,)),
                *(options.on, options.measured),
                arguments=how,
            )
            for place, width in enumerate(options.widths)
        ]
    }


def name_of(width: float) -> str:
    """The comparison of a width's networks."""
    return f"width {width:g}"


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a pair of networks of a width: distance, and both networks' training and test accuracy."""
    found = network_frame(done.networks[PART])[["network", "train_accuracy", "test_accuracy"]]
    parts = []
    for width in done.options.widths:
        own = pair_frame(done.compared[name_of(width)], found)
        own.insert(0, "width", width)
        parts.append(own)
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Group:
    """The networks of one width.

    Attributes:
        width: of them.
        distance: ``[n, n]``.
        networks: one row each, with ``distance``, the mean from the others.
    """

    width: float
    distance: Array
    networks: pd.DataFrame

    @property
    def mean(self) -> float:
        """The mean distance of its pairs."""
        return mean_of_pairs(self.distance)


def groups_of(table: pd.DataFrame) -> list[Group]:
    """The widths' networks, from the narrowest to the widest."""
    found = []
    for width, pairs in table.groupby("width"):
        own = networks_of(pairs.drop(columns=["width", "distance"]))
        distance = matrix_of(pairs, own.network.tolist())
        found.append(Group(float(str(width)), distance, own.assign(distance=from_others(distance))))
    return found


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Distance by width, a point a pair; and test accuracy by mean distance, a point a network."""
    figure, ((left, right),) = new_figure(2, height=3.2, width=3.7)
    groups = groups_of(table)
    distance = f"{METHODS[done.options.method]} distance"
    colours = shades(len(groups))
    for place, (group, colour) in enumerate(zip(groups, colours, strict=True)):
        look: dict[str, Any] = {"color": colour, "marker": MARKERS[place % len(MARKERS)]}
        pairs = table.distance[table.width == group.width]
        left.scatter([group.width] * len(pairs), pairs, s=14, alpha=0.6, linewidths=0, **look)
        _draw_networks(right, group, look)
    left.plot([group.width for group in groups], [group.mean for group in groups], color="0.3", zorder=0, label="mean")
    left.set_xscale("log", base=2)
    left.set_xticks([group.width for group in groups], [f"{group.width:.3g}" for group in groups], rotation=45)
    left.minorticks_off()
    filters = f"{done.options.filters} filters of {done.options.layer}"
    left.set(xlabel="width factor", ylabel=f"{distance}\n({filters})")
    left.legend(loc="best", frameon=False, fontsize=8)
    right.set(xlabel=f"mean {distance} from the others", ylabel="test accuracy")
    legend_beside(figure, right, "width factor")
    return figure


def _draw_networks(ax: Axes, group: Group, look: Mapping[str, Any]) -> None:
    own = group.networks
    ax.scatter(own.distance, own.test_accuracy, s=14, alpha=0.6, linewidths=0, **look)
    edge: dict[str, Any] = {"s": 60, "edgecolor": "black", "linewidth": 0.8, "zorder": 3}
    ax.scatter([group.mean], [own.test_accuracy.mean()], label=f"{group.width:.3g}", **edge, **look)


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Distance falls with width, and networks that are nearer generalise better."""
    groups = groups_of(table)
    distances = [group.distance for group in groups]
    means = [group.mean for group in groups]
    accuracies = [group.networks.test_accuracy.mean() for group in groups]
    falls = "Wider networks converge to more similar solutions"
    better = "Networks that converge to more similar solutions generalise better"
    return [
        trend(
            distances,
            np.log2([group.width for group in groups]),
            sign=-1,
            claim=f"{falls}: change of the mean distance by doubling the width",
            published="negative (shown)",
        ),
        correlated(
            [group.width for group in groups],
            means,
            sign=-1,
            of="widths",
            claim=f"{falls}: correlation of width and mean distance, a point a width",
            published="negative (shown)",
        ),
        goes_with_nearness(
            distances,
            [group.networks.test_accuracy for group in groups],
            sign=-1,
            claim=f"{better}: correlation of test accuracy and mean distance, a point a network",
            published_value=PUBLISHED,
        ),
        correlated(
            accuracies,
            means,
            sign=-1,
            of="widths",
            claim=f"{better}: correlation of mean test accuracy and mean distance, a point a width",
            published_value=PUBLISHED,
        ),
    ]


_CHOICES = {
    "widths": "from .25 to 7 published, which ones between is not: 1 to 7 by whole numbers, and halves below (preset "
    "paper); else five from 1/16 to 1/4 (small) or 3/8 (quick)",
    "filters": "128 of the last layer at random, as published: as many as the narrowest network has; 32 in the smaller "
    "presets, for the same reason. Networks of one width give the same places, which of independent initialisations "
    "are as random as draws of their own. The last layer is the last convolution, after its nonlinearity",
    "training": "every width for as many epochs at one learning rate, as published; in preset small until every "
    "example is memorised, or for 60 epochs, so that narrow networks are trained to the end too. This was chosen after "
    "15 epochs on 2000 examples left the narrowest at a training accuracy of 0.83 to 0.86",
    "distance of a pair": "projection-weighted CCA is not symmetric where both layers are as wide: the mean of both",
    "examples": "unpublished: training images, feature maps averaged over space",
    "correlation": "whether the published one is over networks or over widths, and of ranks or not, is not said: "
    "Spearman's, both ways",
    "intervals": "over networks: distances of pairs that share one are not independent; or over widths, which are",
}
_SMALL = (1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4)

CCA4 = Recipe(
    "cca4",
    "Networks by width, CIFAR-10 ConvNet (Morcos, Raghu, Bengio 2018, figure 4)",
    {
        "quick": Options(networks.WIDE_CONVNETS["quick"], (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8), 32),
        "small": Options(networks.WIDE_CONVNETS["small"], _SMALL, 32),
        "paper": Options(networks.WIDE_CONVNETS["paper"], (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)),
    },
    sweeps,
    table,
    draw,
    claims,
    _CHOICES,
    comparisons=comparisons,
)
