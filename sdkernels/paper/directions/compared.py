"""What figures 5b, 6 and A1 share: two kinds, drawn against each other."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Networks
from sdkernels.paper.directions.corruption import chance_of
from sdkernels.paper.drawing import draw_chance, draw_curves, new_figure, shades
from sdkernels.paper.measures import Ablation, named

_LAST = named("conv", (9, 10, 11))

CHOICES = {
    "points": "unpublished; evenly spaced counts of ablated maps",
    "examples": "published: all training examples; preset small ablates on the first 1000 of them",
    "band": "one standard deviation over networks and orders",
}

# How the networks of either figure are ablated.
ABLATIONS = {
    "quick": Ablation(_LAST),
    "small": Ablation(_LAST, points=17, measured=1000),
    "paper": Ablation(_LAST),
}

TWO = shades(3)[:2]  # dark and middling: apart on paper, in grey too


def draw_two(
    table: pd.DataFrame, networks: Networks, ablation: Ablation, *, by: str, words: Mapping[Any, str]
) -> Figure:
    """Accuracy against the fraction of feature maps ablated, a line a kind.

    Args:
        table: one row a kind, network, order and point.
        networks: for where chance is.
        ablation: how they were ablated.
        by: the column that tells the two kinds apart.
        words: what its values are called; those that come last in the alphabet are drawn dark.
    """
    figure, ((ax,),) = new_figure()
    kinds = sorted(table[by].unique())
    draw_curves(ax, table, by=by, up=ablation.metrics[0], labels=[words[kind] for kind in kinds], colours=TWO[::-1])
    draw_chance(ax, chance_of(networks, ablation.metrics[0]))
    ax.set(xlabel=f"fraction of feature maps ablated ({', '.join(ablation.layers)})", xlim=(0, 1))
    ax.set(ylabel="training accuracy", ylim=(0, 1.02))
    legend_above(figure, ax, reverse=True)
    return figure


def legend_above(figure: Figure, ax: Axes, *, reverse: bool = False) -> None:
    """The legend above the axes, beside each other, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    step = -1 if reverse else 1
    small: dict[str, Any] = {"frameon": False, "fontsize": 8}
    figure.legend(handles[::step], labels[::step], loc="outside upper center", ncols=2, **small)
