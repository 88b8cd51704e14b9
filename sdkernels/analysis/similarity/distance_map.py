"""A matrix of distances in colours, with the numbers in the cells where there is room."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.analysis.heat_map import UNDEFINED
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.similarity.names import room

# Inches, of maps that make their own figure: about square when names and colour bar have taken their part.
FIGURE = (5.2, 4.4)


def draw_distances(ax: Any, distance: Tensor, *, label: str, has_own: bool = False) -> Any:
    """Draw distances ``[R, C]``: dark is near, light is far, and what is nan is grey; returns matplotlib's image.

    Args:
        label: what the distances are, beside the colour bar.
        has_own: the diagonal is 0 by definition, so that colours are of the other cells' range alone, and the diagonal
            is white.
    """
    rows, columns = distance.shape
    is_own = torch.eye(rows, columns, dtype=torch.bool) & has_own
    known = distance[distance.isfinite() & ~is_own]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if high <= low:
        low, high = 0.0, high or 1.0
    colours = require("matplotlib", "a heat map").colormaps["viridis"]
    colours = colours.with_extremes(bad=UNDEFINED, under="white")
    about = {"cmap": colours, "vmin": low, "vmax": high, "interpolation": "nearest", "origin": "upper"}
    image = ax.imshow(distance.numpy(), aspect="auto", **about)
    _write_numbers(ax, image, distance)
    is_below = has_own and low > 0
    bar = ax.figure.colorbar(image, ax=ax, extend="min" if is_below else "neither")
    bar.set_label(label, **LITERAL)
    bar.ax.tick_params(labelsize=8)
    return image


def draw_boundaries(ax: Any, before: Iterable[int], count: int) -> None:
    """Lines across and down a square map, in front of some of its ``count`` rows; seen on dark and on light cells."""
    for row in before:
        for line in (ax.axhline, ax.axvline):
            line(row - 0.5, color="white", linewidth=1.8)
            line(row - 0.5, color="black", linewidth=0.8)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))


def _write_numbers(ax: Any, image: Any, distance: Tensor) -> None:
    """Each distance in its cell, two places after the point, if all have room."""
    rows, columns = distance.shape
    texts = [[_text(number) for number in row] for row in distance.tolist()]
    width, height = room(ax)
    size = min(7.0, width / columns / (0.63 * max(len(text) for row in texts for text in row)), height / rows / 1.3)
    if size < 5:
        return
    for row, column in distance.isfinite().nonzero().tolist():
        colour = image.to_rgba(float(distance[row, column]))
        is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
        about: dict[str, Any] = {"ha": "center", "va": "center", "color": "black" if is_light else "white"}
        ax.text(column, row, texts[row][column], fontsize=size, **about)


def _text(number: float) -> str:
    text = f"{abs(number):.2f}" if abs(number) < 10 else f"{number:.3g}"
    return text[1:] if text.startswith("0.") else text
