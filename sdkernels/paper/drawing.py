"""What the figures look like: sizes, colours, bands; readable at a column's width, in grey and to the colour-blind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN = 4.2  # inches

DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))

_LOOKS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}


def new_figure(columns: int = 1, rows: int = 1, *, height: float = 3.0, width: float = COLUMN) -> tuple[Figure, Any]:
    """A figure and its axes ``[rows, columns]``, each ``width`` by ``height`` inches."""
    with rc_context(_LOOKS):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def shades(count: int) -> list[Any]:
    """So many colours, from dark to light, that stay apart in grey."""
    return [colormaps["viridis"](place) for place in np.linspace(0, 0.88, max(count, 1))]


def draw_curves(
    ax: Axes,
    table: pd.DataFrame,
    *,
    by: str | None,
    across: str = "fraction",
    up: str = "accuracy",
    labels: Sequence[str] | None = None,
    colours: Sequence[Any] | None = None,
) -> None:
    """A line a value of ``by``: the mean over its networks and orders, and a band of one standard deviation.

    Args:
        table: one row a network, order and point.
        by: the column that tells lines apart; None: one line.
        labels, colours: of the lines, in the order of their values; by default the values, from dark to light.
    """
    values = [None] if by is None else sorted(table[by].unique())
    for place, value in enumerate(values):
        own = table if by is None else table[table[by] == value]
        points = own.groupby(across)[up]
        mean, spread = points.mean(), points.std(ddof=1).fillna(0.0)
        colour = (colours or shades(len(values)))[place]
        label = labels[place] if labels is not None else "" if value is None else f"{value:g}"
        ax.plot(mean.index, mean, color=colour, linestyle=DASHES[place % len(DASHES)], label=label or None)
        ax.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)


def draw_chance(ax: Axes, chance: float) -> None:
    """A dotted line where a network stands that knows nothing."""
    ax.axhline(chance, color="0.45", linestyle=(0, (1, 2)), linewidth=1)
    at: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "ha": "left",
        "va": "bottom",
    }
    ax.annotate("chance", (0, chance), (3, 1), color="0.35", fontsize=7, **at)  # on the left, where no curve is low


def legend_beside(figure: Figure, ax: Axes, title: str) -> None:
    """The legend to the right of all axes."""
    small: dict[str, Any] = {"frameon": False, "fontsize": 8, "title_fontsize": 8}
    figure.legend(*ax.get_legend_handles_labels(), title=title, loc="outside right center", **small)
