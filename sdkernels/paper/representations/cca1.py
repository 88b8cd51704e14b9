"""Figure 1: how far each layer of a ConvNet is, at moments of its training, from what it is at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdkernels.analysis.similarity.similarity_curve import SimilarityCurve
from sdkernels.lab.sweep import Comparison, Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, Claim, pooled_correlation
from sdkernels.paper.drawing import DASHES, new_figure, shades
from sdkernels.paper.measures import named
from sdkernels.paper.recipe import Done, Family, Recipe
from sdkernels.paper.representations.methods import METHODS

PART = "training"

_OF = "trainings"

_LAYERS = (*named("conv", range(1, 12)), "out")


@dataclass(frozen=True)
class Options:
    """Networks, when in their training they are compared with what they become, and how.

    Attributes:
        networks: of which each is trained once.
        moments: epochs; those beyond the training's last are left out, and that one is always there.
        layers: from the bottom to the top, the logits last.
        methods: the first is the paper's.
        examples: of the training data, the first so many, or all.
        part: a layer has settled when it stays within this part of its first distance from its final state.
        seed: of the networks.
    """

    networks: Family
    moments: tuple[int, ...]
    layers: tuple[str, ...] = _LAYERS
    methods: tuple[Literal["pwcca", "cca", "svcca"], ...] = ("pwcca", "cca", "svcca")
    examples: int | None = None
    part: float = 0.5
    seed: int = 0


def moments(options: Options) -> list[int]:
    """After which epochs networks are looked at, the last among them.

    Raises:
        ValueError: the training's length is given in steps, or no moment comes before its end.
    """
    epochs = options.networks.training.epochs
    if epochs is None:
        raise ValueError(f"moments count epochs, and steps={options.networks.training.steps}: give epochs")
    early = sorted({moment for moment in options.moments if 1 <= moment < epochs})
    if not early:
        raise ValueError(f"moments={list(options.moments)}: give epochs before the last, {epochs}, from 1 on")
    return [*early, epochs]


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """One training a repeat, its network after each of the epochs."""
    kinds = tuple(
        options.networks.network(options.seed, repeat, until=epoch)
        for repeat in range(options.networks.repeats)
        for epoch in moments(options)
    )
    return {PART: Sweep(kinds)}


def comparisons(options: Options) -> Mapping[str, Sequence[Comparison]]:
    """Of each training and by each method, all moments with the last."""
    count = len(moments(options))
    return {
        PART: [
            Comparison(
                f"{method} {repeat}",
                "similarity_over_training",
                range(repeat * count, (repeat + 1) * count),
                options.layers,
                "train",
                options.examples,
                arguments={"method": method},
            )
            for method in options.methods
            for repeat in range(options.networks.repeats)
        ]
    }


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a method, training, layer and moment: the distance from the layer's final state."""
    rows = []
    for method in done.options.methods:
        for repeat in range(done.options.networks.repeats):
            curve = done.compared[f"{method} {repeat}"]
            if not isinstance(curve, SimilarityCurve):
                raise TypeError(f"{method} {repeat}: a {type(curve).__name__} has no moments")
            rows += [
                {
                    "method": method,
                    "seed": 1000 * done.options.seed + repeat,
                    "layer": layer,
                    "depth": depth,
                    "epoch": epoch,
                    "distance": float(curve.distance[depth - 1, place]),
                }
                for depth, layer in enumerate(done.options.layers, 1)
                for place, epoch in enumerate(curve.moments)
            ]
    return pd.DataFrame(rows)


def settling(table: pd.DataFrame, part: float) -> pd.DataFrame:
    """One row a method, training and layer: when it settled, and how far from its end it was on average.

    ``settled`` is the epoch from which the layer stays within ``part`` of its first distance. ``mean_distance`` is the
    area under its curve over the logarithm of the epoch, divided by that logarithm's range.
    """
    rows = []
    for (method, seed, depth), own in table.sort_values("epoch").groupby(["method", "seed", "depth"]):
        across, distances = np.log(own.epoch.to_numpy(dtype=float)), own.distance.to_numpy()
        area = float(np.trapezoid(distances, across) / (across[-1] - across[0]))
        settled = float(np.exp(_stays(across, distances, part)))
        row = {"method": method, "seed": seed, "layer": own.layer.iloc[0], "depth": depth}
        rows.append({**row, "first_distance": distances[0], "settled": settled, "mean_distance": area})
    return pd.DataFrame(rows)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """By method: distances over training, a line a layer; below, when each layer settled."""
    methods, found = done.options.methods, settling(table, done.options.part)
    figure, axes = new_figure(len(methods), 2, height=2.6, width=3.3)
    for method, (above, below) in zip(methods, axes.T, strict=True):
        _draw_curves(above, table[table.method == method])
        above.set(title=METHODS[method], xlabel="epoch", ylabel="distance from\nthe final state", ylim=(0, None))
        _draw_settling(below, found[found.method == method])
        below.set(ylabel=f"epoch at which {done.options.part:g} of\nthe first distance is left")
    look: Any = {"loc": "outside right center", "frameon": False, "fontsize": 8, "title_fontsize": 8}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title="layer", **look)
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Lower layers settle first."""
    found, part = settling(table, done.options.part), done.options.part
    tested = []
    for method in done.options.methods:
        own = found[found.method == method]
        tested += [
            _rising(
                own,
                "settled",
                f"Lower layers settle first, by {METHODS[method]}: rank correlation of a layer's depth with the epoch "
                f"from which it stays within {part:g} of its first distance from its final state",
            ),
            _rising(
                own,
                "mean_distance",
                f"Lower layers are nearer to their final state all along, by {METHODS[method]}: rank correlation of "
                "depth with the mean distance over training",
            ),
        ]
    return tested


def _rising(own: pd.DataFrame, what: str, claim: str) -> Claim:
    """That it rises with depth; where it does not, the reason says what the data show of it."""
    found = pooled_correlation(_rhos(own, what), sign=1, claim=claim, published="positive (curves shown)", of=_OF)
    if found.verdict != FAILS or own.depth.nunique() < 5:
        return found
    last = str(own.layer[own.depth == own.depth.max()].iloc[0])
    lower = pooled_correlation(_rhos(own[own.layer != last], what), sign=1, claim=claim, of=_OF)
    starts = own.groupby("depth").first_distance.mean()
    why = (
        f"without {_name(last)} it is {lower.found_text}; at the first moment, mean distances are {starts.iloc[0]:.3f} "
        f"at the lowest layer and up to {starts.max():.3f} above"
    )
    return replace(found, reason=f"{found.reason}; {why}")


def _rhos(own: pd.DataFrame, what: str) -> list[float]:
    """A rank correlation over layers for each training, of those that have one."""
    rhos = [float(one.depth.corr(one[what], method="spearman")) for _, one in own.groupby("seed")]
    return [rho for rho in rhos if rho == rho]


def _name(layer: str) -> str:
    return "logits" if layer == "out" else layer


def _stays(across: NDArray[np.float64], distances: NDArray[np.float64], part: float) -> float:
    """From where on distances stay at or below a part of the first one, between moments by a straight line."""
    bound = part * distances[0]
    above = np.flatnonzero(distances > bound)
    if not len(above):
        return float(across[0])
    at = int(above[-1])
    if at + 1 == len(distances):
        return float(across[-1])
    share = (distances[at] - bound) / (distances[at] - distances[at + 1])
    return float(across[at] + share * (across[at + 1] - across[at]))


def _draw_curves(ax: Axes, own: pd.DataFrame) -> None:
    """Means over trainings; their spread stands in the panel below."""
    layers = own.drop_duplicates("depth").sort_values("depth")
    for place, (depth, layer) in enumerate(zip(layers.depth, layers.layer, strict=True)):
        means = own[own.depth == depth].groupby("epoch").distance.mean()
        colour = shades(len(layers))[place]
        ax.plot(means.index, means, color=colour, linestyle=DASHES[place % 3], label=_name(layer))
    _log_epochs(ax, own.epoch.to_numpy(), "x")


def _draw_settling(ax: Axes, own: pd.DataFrame) -> None:
    """A point a training and layer, and the line of their geometric means."""
    ax.plot(own.depth, own.settled, "o", color="0.65", markersize=3)
    means = np.exp(np.log(own.settled).groupby(own.depth).mean())
    ax.plot(means.index, means, color=shades(3)[1], marker="s", markersize=3.5)
    layers = own.drop_duplicates("depth").sort_values("depth")
    ax.set_xticks(layers.depth, [_name(layer) for layer in layers.layer], rotation=60, fontsize=8)
    _log_epochs(ax, own.settled.to_numpy(), "y")


def _log_epochs(ax: Axes, epochs: NDArray[np.float64], axis: Literal["x", "y"]) -> None:
    """A logarithmic axis with round epochs on it."""
    at = ax.xaxis if axis == "x" else ax.yaxis
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    ticks = [step * 10**power for power in range(6) for step in (1, 2, 3, 5, 7)]
    shown = [tick for tick in ticks if epochs.min() <= tick <= epochs.max()] or [round(float(epochs.mean()), 1)]
    at.set_ticks(shown, [f"{tick:g}" for tick in shown])
    at.set_ticks([], minor=True)


_MOMENTS = {
    "quick": (1, 2, 3, 4, 6, 8, 10, 15, 20),
    "small": (1, 2, 3, 4, 6, 8, 12),
    "paper": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80),
}

CCA1 = Recipe(
    "cca1",
    "Layers of a ConvNet over training, each against its final state (Morcos, Raghu, Bengio 2018, figure 1)",
    {preset: Options(family, _MOMENTS[preset]) for preset, family in networks.OVERFITTING_CONVNETS.items()},
    sweeps,
    table,
    draw,
    claims,
    {
        "networks": "those of figure 4b of the other paper, with true labels; how many is unpublished",
        "moments": "unpublished; about evenly spaced on a logarithmic axis from the end of the first epoch on. The "
        "network before training is not among them, nor what happens within the first epoch",
        "final state": "the network after the last epoch; "
        "the learning rate is constant, so that layers move to the end",
        "layers": "feature maps after the nonlinearity, averaged over space, and the logits",
        "examples": "of the training data, without their labels: all",
        "method": "projection-weighted CCA, weights by the earlier moment's neurons (the side with fewer live "
        "ones, if they differ); beside it the unweighted mean and SVCCA (99 % of the variance)",
        "settled": "unpublished; the epoch, between moments by a straight line over its logarithm, from which a layer "
        "stays within half of the distance that it has after the first epoch",
        "mean over training": "over the logarithm of the epoch",
    },
    comparisons=comparisons,
)
