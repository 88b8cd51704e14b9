"""Figure A2: class selectivity by depth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper.claims import Claim, untestable
from sdkernels.paper.directions.parts import (
    CHOICES,
    NEEDS,
    WITHOUT,
    Part,
    cifar10_part,
    imagenet_part,
    joined,
    unit_frame,
)
from sdkernels.paper.directions.relations import claim_relation, name_layers, relate
from sdkernels.paper.directions.units import Selectivity
from sdkernels.paper.drawing import DASHES, new_figure, shades
from sdkernels.paper.recipe import PRESETS, Done, Recipe


@dataclass(frozen=True)
class Options:
    """Networks by data set, and how selectivity is taken."""

    cifar10: Part
    imagenet: Part
    selectivity: Selectivity = field(default_factory=Selectivity)
    seed: int = 0

    @property
    def parts(self) -> Mapping[str, Part]:
        """As the paper calls them."""
        return {"CIFAR-10": self.cifar10, "ImageNet": self.imagenet}


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """Networks with statistics of their units."""
    return {name: part.sweep(options.seed) for name, part in options.parts.items()}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a unit of each network of each part."""
    options = done.options
    return joined(
        {name: unit_frame(found, options.parts[name], options.selectivity) for name, found in done.networks.items()}
    )


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """How selectivity is distributed in each layer, and its mean in each network."""
    names = list(table.part.unique())
    figure, axes = new_figure(len(names))
    for ax, name in zip(axes[0], names, strict=True):
        _draw_layers(ax, table[(table.part == name) & ~table.dead])
        ax.set(title=done.options.parts[name].title, ylabel=done.options.selectivity.words, ylim=(-0.02, 1.02))
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Selectivity rises with depth."""
    parts = {str(name): rows for name, rows in table.groupby("part", sort=False)}
    return [_claim_rises(name, parts.get(name)) for name in done.options.parts]


def _claim_rises(name: str, rows: pd.DataFrame | None) -> Claim:
    claim = f"{name}: selectivity rises with depth: rank correlation of a feature map's depth and selectivity"
    published = "positive (shown)"
    if rows is None:
        return untestable(claim, WITHOUT, published)
    return claim_relation(relate(rows, "depth", "selectivity"), sign=1, claim=claim, published=published)


def _draw_layers(ax: Axes, rows: pd.DataFrame) -> None:
    layers = list(dict.fromkeys(rows.layer))
    scores = [rows[rows.layer == layer].selectivity for layer in layers]
    looks: dict[str, Any] = {
        "medianprops": {"color": "black"},
        "whiskerprops": {"color": "0.4"},
        "capprops": {"color": "0.4"},
    }
    boxes = ax.boxplot(scores, widths=0.6, whis=(5, 95), showfliers=False, patch_artist=True, **looks)
    for box, colour in zip(boxes["boxes"], shades(len(layers)), strict=True):
        box.set(facecolor=(*colour[:3], 0.55), edgecolor=colour)
    for place, (_, own) in enumerate(rows.groupby("network")):
        mean = own.groupby("layer", sort=False).selectivity.mean()
        label = "mean of each network" if place == 0 else None
        ax.plot(range(1, len(mean) + 1), mean, color="black", linestyle=DASHES[place % len(DASHES)], linewidth=0.9,
                marker=".", markersize=3, label=label)  # fmt: skip
    name_layers(ax, layers)
    ax.legend(loc="best", frameon=False)


FIGA2 = Recipe(
    "figA2",
    "Class selectivity by depth (Morcos et al. 2018, figure A2)",
    {preset: Options(cifar10_part(preset), imagenet_part(preset)) for preset in PRESETS},
    sweeps,
    table,
    draw,
    claims,
    {**CHOICES, "boxes": "quartiles of all networks' live units of a layer; whiskers are 5 % and 95 %"},
    NEEDS,
)
