"""What figures 7 and A2 to A4 share: whether two numbers a unit go together, in each network of a part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sdkernels.analysis.correlation import RankCorrelation, rank_correlation
from sdkernels.analysis.spearman import Spearman
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.paper.claims import Claim, pooled_correlation
from sdkernels.paper.claims.correlations import mean_rho
from sdkernels.paper.claims.intervals import Interval
from sdkernels.paper.drawing import shades

MARGIN = 0.3  # within which a correlation counts as none


@dataclass(frozen=True)
class Relation:
    """Rank correlations of two columns of a part's units: one a network, pooled and by layer.

    Attributes:
        layers: from the first to the last.
        networks: by network, in the table's order.
    """

    layers: tuple[str, ...]
    networks: tuple[RankCorrelation, ...]

    @property
    def pooled(self) -> list[Spearman]:
        """Over all live units of each network."""
        return [one.pooled for one in self.networks]

    @property
    def with_dead(self) -> list[Spearman]:
        """Over all units of each network, the score of a dead one counted as 0."""
        return [one.pooled if one.with_dead is None else one.with_dead.pooled for one in self.networks]

    @property
    def dead(self) -> int:
        """How many units are dead, in all networks."""
        return sum(int(one.dead.sum()) for one in self.networks if one.dead is not None)

    def of(self, layer: str) -> list[Spearman]:
        """Over each network's live units of a layer."""
        return [one.by_layer[layer] for one in self.networks]

    def within(self) -> NDArray[np.float64]:
        """By network, the mean over layers of the correlations within them; nan where no layer has one."""
        return np.array([_mean([found.rho for found in one.by_layer.values()]) for one in self.networks])


def relate(rows: pd.DataFrame, x: str, y: str) -> Relation:
    """Correlate two columns of one part's table, which has units layer after layer.

    Of a single network, intervals come from its units, by the bootstrap; of several, from the networks.
    """
    names = [name for name, _ in rows.groupby("network", sort=False)]
    found = []
    for name in names:
        own = rows[rows.network == name]
        counts = own.groupby("layer", sort=False).size()
        pooled = {"layers": tuple(counts.index), "unit_counts": tuple(int(count) for count in counts)}
        dead = torch.tensor(own.dead.to_numpy())
        first, second = (
            UnitScore(name=column, values=torch.tensor(own[column].to_numpy()), **pooled, dead=dead)
            for column in (x, y)
        )
        found.append(rank_correlation(first, second, resamples=1000 if len(names) == 1 else 0))
    return Relation(tuple(rows.layer.unique()), tuple(found))


def claim_relation(
    found: Relation,
    *,
    claim: str,
    sign: int | None = None,
    margin: float | None = None,
    published: str = "",
    published_value: float | None = None,
) -> Claim:
    """That the columns are related over the pooled units of each network, or are not; the reason says what they are
    within layers, and with dead units counted."""
    how: dict[str, Any] = {"sign": sign, "margin": margin, "claim": claim}
    tested = pooled_correlation(found.pooled, **how, published=published, published_value=published_value)
    reason = tested.reason
    within = found.within()
    within = within[np.isfinite(within)]
    if len(found.layers) > 1 and len(within):
        text = pooled_correlation(within, **how).found_text or f"{within[0]:.2f}"
        reason += f"; within single layers, {text} on average"
    if found.dead:
        units = sum(len(one.x) for one in found.networks)
        other = pooled_correlation(found.with_dead, **how)
        reason += f"; with {found.dead} dead of {units} units counted, {other.found_text}"
    return replace(tested, reason=reason)


def interval_of(rhos: Sequence[Spearman]) -> Interval:
    """The mean of those that there are, and its interval: over networks, or of a single one over its units."""
    defined = [one for one in rhos if np.isfinite(one.rho)]
    if len(defined) > 1:
        return mean_rho(np.array([one.rho for one in defined]))
    return Interval(defined[0].rho, defined[0].low, defined[0].high) if defined else Interval(np.nan, np.nan, np.nan)


def draw_units(ax: Axes, rows: pd.DataFrame, across: str, up: str) -> None:
    """A point a unit, dark in the first layer and light in the last."""
    colours = shades(int(rows.depth.max()))
    size = float(np.clip(6000 / max(len(rows), 1), 2, 12))
    mixed = rows.sample(frac=1, random_state=0)  # so that no layer covers the others
    of_layer = [colours[depth - 1] for depth in mixed.depth]
    ax.scatter(mixed[across], mixed[up], s=size, c=of_layer, alpha=0.7, linewidths=0, rasterized=True)


def draw_by_layer(ax: Axes, found: Relation) -> None:
    """Each layer's correlation with its interval, in the layer's colour, and that of all units pooled as a band."""
    low, high = 0.4, len(found.layers) + 0.6
    ax.axhline(0, color="0.6", linewidth=0.8)
    value, least, most = interval_of(found.pooled)
    ax.fill_between([low, high], least, most, color="0.5", alpha=0.25, linewidth=0)
    text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
    ax.plot([low, high], [value, value], color="0.35", linestyle="--", label=f"all layers pooled: {text}")
    for place, (layer, colour) in enumerate(zip(found.layers, shades(len(found.layers)), strict=True), 1):
        rho, least, most = interval_of(found.of(layer))
        ends = [[max(rho - least, 0)], [max(most - rho, 0)]]  # a bootstrap interval may lie beside the rho of few units
        ax.errorbar([place], [rho], ends, color=colour, marker="o", markersize=4, capsize=2)
    ax.set(xlim=(low, high), ylim=(-1.05, 1.05), ylabel=r"Spearman's $\rho$")
    name_layers(ax, found.layers)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.99), borderaxespad=0, frameon=False)


def name_layers(ax: Axes, layers: Sequence[str]) -> None:
    """Layers by their numbers below the axes, and what they are numbers of."""
    (prefix, *others) = {layer.rstrip("0123456789.") for layer in layers}
    prefix = "" if others else prefix
    words = {"conv": "convolution", "hidden": "hidden layer", "block": "block"}
    ax.set_xticks(range(1, len(layers) + 1), [layer.removeprefix(prefix) for layer in layers])
    ax.set_xlabel(words.get(prefix, "layer"))
    if len(layers) > 12:
        ax.tick_params(axis="x", labelrotation=90, labelsize=7)


def _mean(rhos: Sequence[float] | NDArray[np.float64]) -> float:
    """By Fisher's z, of those that are numbers."""
    known = np.array([rho for rho in rhos if np.isfinite(rho)])
    if len(known) < 2:
        return float(known[0]) if len(known) else float("nan")
    return mean_rho(known).value
