"""Two scores of units as a scatter plot, a colour, a marker and a trend a layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL, legend_of
from sdkernels.analysis.unit_score import UnitScore

MARKERS = "osD^vP<X>*h"

# Above, a vector file would take seconds to open: the points, and they alone, go in as pixels.
MOST_VECTORS = 5000


def draw_scatter(
    ax: Any, horizontal: UnitScore, vertical: UnitScore, is_drawn: Tensor, rhos: Mapping[str, float]
) -> None:
    """Draw each layer's units, those of ``is_drawn`` bool ``[U]``, and their least-squares line.

    Colours go from dark to light by depth: they are told apart by the colour-blind and in grey, and markers help.

    Args:
        rhos: by layer, the correlation that the legend says; without any there is no legend.
    """
    colours = require("matplotlib", "a plot").colormaps["viridis"](np.linspace(0, 0.87, max(len(horizontal.layers), 2)))
    line = require("matplotlib.lines", "a plot").Line2D
    effects = require("matplotlib.patheffects", "a plot")
    halo = [effects.Stroke(linewidth=2.6, foreground="white"), effects.Normal()]
    units = int(is_drawn.sum())
    size, alpha = float(np.clip(4000 / max(units, 1), 5, 16)), float(np.clip(300 / max(units, 1), 0.4, 0.85))
    signs: list[Any] = []
    names: list[str] = []
    for place, layer in enumerate(horizontal.layers):
        colour, marker = colours[place], MARKERS[place % len(MARKERS)]
        of_layer = is_drawn & (horizontal.unit_layer == place)
        across, up = horizontal.values[of_layer].numpy(), vertical.values[of_layer].numpy()
        is_raster = units > MOST_VECTORS
        ax.scatter(across, up, s=size, alpha=alpha, color=colour, marker=marker, linewidths=0, rasterized=is_raster)
        ax.plot(*_trend(across, up), color=colour, linewidth=1.4, path_effects=halo, zorder=3)
        if layer in rhos:  # signs of one size, however small the points are
            names.append(f"{layer}: {rhos[layer]:.2f}")
            signs.append(line([], [], color=colour, marker=marker, markersize=4, linewidth=1.4))
    ax.set_xlabel(horizontal.name, **LITERAL)
    ax.set_ylabel(vertical.name, **LITERAL)
    if signs:
        small = {"fontsize": "x-small", "title_fontsize": "x-small", "handlelength": 1.6, "frameon": False}
        beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}
        legend_of(ax, signs, names, title=r"$\rho$ by layer", **small, **beside)


def _trend(across: NDArray[np.float64], up: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two ends of the least-squares line; nothing where fewer than two places across are known."""
    if len(across) < 2 or np.ptp(across) == 0:
        return np.empty(0), np.empty(0)
    centred = across - across.mean()
    slope = (centred @ up) / (centred @ centred)
    ends = np.array([across.min(), across.max()])
    return ends, up.mean() + slope * (ends - across.mean())
