"""Numbers by unit and class as a heat map, layer below layer."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL

UNDEFINED = "0.6"  # grey, which neither colour map has


def draw_heat_map(
    ax: Any, values: Tensor, layers: Sequence[str], unit_counts: Sequence[int], *, label: str, diverging: bool
) -> Any:
    """Draw a number for each unit and class: units downwards, with lines between layers; classes across.

    What is nan is grey. Cells are drawn at least about a pixel of the figure high and wide: where there are more,
    neighbours within a layer share a cell, and it shows the one farthest from 0, so that the few that matter are seen.

    Args:
        ax: matplotlib axes; the colour bar takes its room from them.
        values: ``[U, L]``.
        layers, unit_counts: the sites' names and numbers of units, U in all.
        label: what the numbers are, beside the colour bar.
        diverging: colours that are white at 0 and as strong on either side of it, for differences; otherwise ones that
            go from dark to light, from the least number to the largest.

    Returns:
        matplotlib's image.

    Raises:
        ValueError: ``values`` is not of that many units.
    """
    units = sum(unit_counts)
    if values.ndim != 2 or len(values) != units:
        raise ValueError(f"values {list(values.shape)} must be [{units}, L], a row for each unit of {list(layers)}")
    numbers = values.detach().double().cpu().numpy()
    classes = numbers.shape[1]
    finite = numbers[np.isfinite(numbers)]
    if diverging:
        high = float(np.abs(finite).max(initial=0)) or 1.0
        low, colours = -high, "RdBu_r"
    else:
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        colours = "viridis"
    colour_map = require("matplotlib", "a heat map").colormaps[colours].with_extremes(bad=UNDEFINED)
    box = ax.get_window_extent()
    shown = _strongest(numbers, unit_counts, ceil(units / max(box.height, 1)))
    shown = _strongest(shown.T, (classes,), ceil(classes / max(box.width, 1))).T
    # By default matplotlib would smooth what is shrunk in one way in both.
    image = ax.imshow(shown, aspect="auto", cmap=colour_map, vmin=low, vmax=high, interpolation="nearest")
    ends = np.cumsum(unit_counts)
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black" if diverging else "white", linewidth=0.8)
    _name_layers(ax, layers, ends - np.asarray(unit_counts) / 2 - 0.5, units, box.height * 72 / ax.figure.dpi)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("class")
    ax.figure.colorbar(image, ax=ax).set_label(label, **LITERAL)
    return image


def _strongest(numbers: NDArray[np.float64], counts: Sequence[int], size: int) -> NDArray[np.float64]:
    """Of ``[U, L]``, each row by column as that of its ``size`` neighbours that is farthest from 0; nan if all are."""
    if size < 2:
        return numbers
    shown = np.empty_like(numbers)
    for start, end in pairwise([0, *np.cumsum(counts)]):
        for first in range(start, end, size):
            block = numbers[first : min(first + size, end)]
            far = np.where(np.isnan(block), -1, np.abs(block)).argmax(0)
            shown[first : min(first + size, end)] = np.take_along_axis(block, far[None], 0)
    return shown


def _name_layers(ax: Any, layers: Sequence[str], middles: NDArray[np.float64], units: int, height: float) -> None:
    """Name each layer beside its middle, names of thin layers moved apart, with a line from each name to its middle.

    Args:
        height: of the axes, in points.
    """
    size = 8 if len(layers) < 9 else 6
    gap = units * min(1.25 * size / max(height, 1), 1 / len(layers))
    places = _apart(middles, gap, units)
    ax.set_yticks(places, layers, fontsize=size, **LITERAL)
    ax.tick_params(axis="y", length=0, pad=11)
    across = np.array([0, -0.01, -0.05, -0.06])
    for middle, place in zip(middles, places, strict=True):
        down = [middle, middle, place, place]
        ax.plot(across, down, color="0.4", linewidth=0.6, transform=ax.get_yaxis_transform(), clip_on=False)
    ax.set_ylim(units - 0.5, -0.5)
    ax.set_ylabel("units")


def _apart(middles: NDArray[np.float64], gap: float, units: int) -> NDArray[np.float64]:
    """Places as close as may be to ascending ``middles``, in squares, at least ``gap`` from one another.

    Less the gaps before it, a place must only not descend: that is isotonic regression, by joining neighbours that do.
    """
    steps = gap * np.arange(len(middles))
    joined: list[tuple[float, int]] = []
    for middle in middles - steps:
        mean, count = float(middle), 1
        while joined and joined[-1][0] > mean:
            other, others = joined.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        joined.append((mean, count))
    level = np.repeat([mean for mean, _ in joined], [count for _, count in joined])
    return np.asarray(np.clip(level, gap / 2 - 0.5, units - 0.5 - gap / 2 - steps[-1]) + steps)
