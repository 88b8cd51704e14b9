"""Figures 4a and 4b: how robust networks are to ablation while they are trained, and where they begin to overfit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, Claim, at_most, correlated, paired_greater, pooled_correlation, untestable
from sdkernels.paper.directions.corruption import chance_of
from sdkernels.paper.directions.fig5_batch_norm import above_chance
from sdkernels.paper.drawing import draw_curves, new_figure, shades
from sdkernels.paper.frames import area_frame, network_frame, result_frame
from sdkernels.paper.measures import Ablation, named
from sdkernels.paper.recipe import Done, Family, Recipe

PART = "training"

_DARK, _MIDDLE, _LIGHT = shades(3)  # test loss, area, training loss

_HIDDEN, _LAST = ("hidden1", "hidden2"), named("conv", (9, 10, 11))


@dataclass(frozen=True)
class Options:
    """Networks, when in their training they are looked at, and how they are ablated.

    Attributes:
        networks, ablation: as in the other figures.
        every: epochs between looks.
        early: further epochs at which networks are looked at; those beyond the training's last are left out.
        levels: of label corruption; the paper's networks have true labels.
        relative: areas above chance are divided by the intact network's accuracy above chance, so that what it learns
            does not count as robustness.
        settled: networks count from this training accuracy on: where little is learned, little can be lost, and areas
            relative to it say nothing.
        margin: of all epochs, how far from the least test loss the greatest area may lie to be near.
        seed: of networks and orders.
    """

    networks: Family
    ablation: Ablation
    every: int
    early: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    levels: tuple[float, ...] = (0.0,)
    relative: bool = True
    settled: float = 0.3
    margin: float = 0.2
    seed: int = 0


def looks(options: Options) -> list[int]:
    """After which epochs networks are looked at, the last among them.

    Raises:
        ValueError: the training's length is given in steps, or ``every`` is no number of epochs.
    """
    epochs = options.networks.training.epochs
    if epochs is None:
        raise ValueError(
            f"networks are looked at after epochs, and steps={options.networks.training.steps}: give epochs"
        )
    if options.every < 1:
        raise ValueError(f"every={options.every} must be a number of epochs, at least 1")
    return sorted({*range(options.every, epochs, options.every), *(e for e in options.early if e < epochs), epochs})


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """One training a level and repeat, its network after each of the epochs, ablated."""
    kinds = tuple(
        options.networks.network(options.seed, repeat, corruption=level, until=epoch)
        for level in options.levels
        for repeat in range(options.networks.repeats)
        for epoch in looks(options)
    )
    return {PART: Sweep(kinds, (options.ablation.condition(options.seed),))}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a network, epoch and order: the area under its curve, accuracies and losses.

    ``relative_auc`` is nan before the network has settled.
    """
    found, metric = done.networks[PART], done.options.ablation.metrics[0]
    areas = area_frame(found, "ablation", "corruption", "seed", metric=metric)
    curves, chance = result_frame(found, "ablation"), chance_of(found, metric)
    intact = areas.network.map(curves[curves.ablated == 0].groupby("network")[metric].first())
    areas["relative_auc"] = above_chance(areas, curves, chance, metric).auc.where(intact >= done.options.settled)
    ends = network_frame(found).drop(columns="memorised").rename(columns={"epochs": "epoch"})
    return areas.merge(ends, on="network")


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """By level of corruption: areas, below them losses over epochs, below those the ones against the other."""
    area, levels = _area(done.options), sorted(table.corruption.unique())
    figure, axes = new_figure(len(levels), 3, height=2.0, width=3.6)
    for level, (above, middle, below) in zip(levels, axes.T, strict=True):
        own = table[table.corruption == level]
        draw_curves(above, own, by=None, across="epoch", up=area, colours=[_MIDDLE])
        above.set(title="true labels" if not level else f"{level:.0%} of labels corrupted")
        above.set(ylabel="area under the\nablation curve" + (", relative" if done.options.relative else ""))
        _draw_losses(middle, own)
        _mark(above, middle, own, area)
        _draw_against(figure, below, own, area)
        below.set(xlabel="test loss", ylabel=above.get_ylabel())
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(levels) * 2, frameon=False, fontsize=8)
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Areas and test loss are inversely related, and areas begin to fall where the losses diverge."""
    found, options = [], done.options
    for level in sorted(table.corruption.unique()):
        own = table[table.corruption == level].dropna(subset=_area(options))
        means = own.assign(area=own[_area(options)]).groupby(["seed", "epoch"], as_index=False)
        also = f"With {level:.0%} of the labels corrupted, as the paper does not have it: " if level else ""
        training = means[["area", "test_loss", "test_accuracy"]].mean()
        found += [*_related(training, also, None if level else -0.728), *_dropping(training, also, options.margin)]
    return found


def turning_points(training: pd.DataFrame) -> pd.DataFrame:
    """By seed: the epochs of least test loss, of the greatest area and the last one; what stands at first and last.

    Args:
        training: one row a seed and epoch, with ``area``, ``test_loss`` and ``test_accuracy``.
    """
    rows = []
    for seed, own in training.sort_values("epoch").groupby("seed"):
        epochs, areas, accuracy = (own[name].to_numpy() for name in ("epoch", "area", "test_accuracy"))
        least, greatest = own.test_loss.to_numpy().argmin(), areas.argmax()
        places = {"least": epochs[least], "greatest": epochs[greatest], "last": epochs[-1]}
        places |= {"area_at_least": areas[least], "area_at_last": areas[-1]}
        rows.append({"seed": seed, **places, "accuracy_at_least": accuracy[least], "accuracy_at_last": accuracy[-1]})
    return pd.DataFrame(rows).set_index("seed")


def _related(training: pd.DataFrame, also: str, published_value: float | None) -> list[Claim]:
    claim, of = f"{also}AUC and test loss are negatively correlated over training", "epochs of one network"
    if training.seed.nunique() == 1:
        x, y = training.area.to_numpy(), training.test_loss.to_numpy()
        return [correlated(x, y, sign=-1, claim=claim, published_value=published_value, of=of)]
    least = training.seed.map(turning_points(training).least)
    return [
        pooled_correlation(_rhos(training), sign=-1, claim=claim, published_value=published_value),
        pooled_correlation(
            _rhos(training[training.epoch >= least]),
            sign=-1,
            claim=f"{also}So they are from the epoch of least test loss on: as test loss rises again, AUC falls",
            of="networks with four looks or more from there on",
        ),
    ]


def _rhos(training: pd.DataFrame) -> list[float]:
    """A rank correlation a network, of those that have one: four looks or more, at which neither side is constant."""
    rhos = [own.area.corr(own.test_loss, method="spearman") for _, own in training.groupby("seed") if len(own) >= 4]
    return [rho for rho in rhos if rho == rho]


def _dropping(training: pd.DataFrame, also: str, margin: float) -> list[Claim]:
    turning = turning_points(training)
    overfitted = turning[turning.least < turning["last"]]
    words = (
        f"{also}AUC drops once train and test loss diverge: it is greater at the epoch of least test loss than at the "
        "end of training",
        f"{also}AUC begins to drop where they diverge: the epochs of greatest AUC and of least test loss lie at most "
        f"{margin:.0%} of all epochs apart",
    )
    shown = "" if also else "curves shown"
    if len(overfitted) < 2:
        why_not = f"test loss has its minimum before the end in {len(overfitted)} of {len(turning)} networks: "
        return [untestable(claim, f"{why_not}a t interval takes two", shown) for claim in words]
    of = f"of {len(turning)} networks, those whose test loss rose in the end"
    apart = (overfitted.greatest - overfitted.least).abs() / overfitted["last"]
    dropped = paired_greater(
        overfitted.area_at_least,
        overfitted.area_at_last,
        claim=words[0],
        published=shown,
        of=of,
        names=("there", "at the end"),
    )
    if dropped.verdict == FAILS:
        there, end = overfitted.accuracy_at_least.mean(), overfitted.accuracy_at_last.mean()
        why = f"; test accuracy is {there:.3f} there and {end:.3f} at the end"
        if end >= there:
            why += ": test loss rises without more errors"
        dropped = replace(dropped, reason=dropped.reason + why)
    return [
        dropped,
        at_most(apart, margin, claim=words[1], published=shown, of=of),
    ]


def _area(options: Options) -> str:
    return "relative_auc" if options.relative else "auc"


def _draw_losses(ax: Axes, own: pd.DataFrame) -> None:
    losses = own.groupby(["seed", "epoch"], as_index=False)[["train_loss", "test_loss"]].mean()
    long = losses.melt(["seed", "epoch"], value_name="loss", var_name="of")  # test_loss sorts before train_loss
    labels = ("test loss", "training loss")
    draw_curves(ax, long, by="of", across="epoch", up="loss", labels=labels, colours=(_DARK, _LIGHT))
    ax.set(xlabel="epoch", ylabel="loss", yscale="log")


def _ticks(epochs: NDArray[np.int64]) -> list[int]:
    """Round epochs between the first and the last, of a logarithmic axis."""
    steps = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    return [step for step in steps if epochs.min() <= step <= epochs.max()]


def _draw_against(figure: Figure, ax: Axes, own: pd.DataFrame, area: str) -> None:
    """A path a network, a point an epoch."""
    means = own.groupby(["seed", "epoch"], as_index=False)[["test_loss", area]].mean()
    for _, network in means.groupby("seed"):
        ax.plot(network.test_loss, network[area], color="0.75", linewidth=0.7, zorder=1)
    epochs = means.epoch.to_numpy()
    norm = LogNorm(epochs.min(), epochs.max())
    points = ax.scatter(means.test_loss, means[area], c=epochs, norm=norm, s=9, cmap="viridis", zorder=2)
    bar = figure.colorbar(points, ax=ax, label="epoch")
    bar.set_ticks(_ticks(epochs), labels=[f"{epoch}" for epoch in _ticks(epochs)])
    bar.minorticks_off()


def _mark(above: Axes, middle: Axes, own: pd.DataFrame, area: str) -> None:
    """Where the mean test loss is least, and where the mean area is greatest."""
    means = own.groupby("epoch")[["test_loss", area]].mean()
    epochs = means.index.to_numpy()
    least, greatest = epochs[means.test_loss.to_numpy().argmin()], epochs[np.nanargmax(means[area].to_numpy())]
    for ax in (above, middle):
        ax.axvline(greatest, color=_MIDDLE, linestyle=(0, (6, 2)), linewidth=1.2, label="greatest area")
        ax.axvline(least, color=_DARK, linestyle=":", linewidth=1.6, label="least test loss")
        ax.set(xscale="log", xlim=(epochs[0] / 1.1, epochs[-1] * 1.1))
        ax.set_xticks(_ticks(epochs), [f"{epoch}" for epoch in _ticks(epochs)])
        ax.minorticks_off()


def _recipe(name: str, title: str, presets: Mapping[str, Options], **choices: str) -> Recipe[Options]:
    return Recipe(
        name,
        f"Ablation areas and losses over training, {title} (Morcos et al. 2018, figure {name[3:]})",
        presets,
        sweeps,
        table,
        draw,
        claims,
        {
            **choices,
            "data set": "the correlation is of MNIST by the text and of CIFAR-10 by the caption: tested on both",
            "AUC": "the caption says normalised, and not by what: here by the intact network's accuracy, both above "
            "chance, so that it is not greater only because more is learned; relative=false leaves it out (data.csv "
            "has both)",
            "epochs looked at": "unpublished: dense at first, then evenly spaced (every=, early=)",
            "networks": "how many is unpublished; a correlation a network, whose Fisher z are averaged",
            "first epochs": "left out until 0.3 of the training examples are classified as labelled (settled=)",
            "near": "at most 0.2 of all epochs (margin=)",
            "corrupted labels": "the paper speaks of none; presets quick and small run a second set of networks whose "
            "labels are corrupted in part: so few examples with true labels leave little to memorise that does harm",
            "band": "one standard deviation over networks and orders",
        },
    )


FIG4A = _recipe(
    "fig4a",
    "MLP",
    {
        "quick": Options(networks.OVERFITTING_MLPS["quick"], Ablation(_HIDDEN, 5, 17), 10, levels=(0.0, 0.2)),
        "small": Options(networks.OVERFITTING_MLPS["small"], Ablation(_HIDDEN, 5, 17, 1000), 10, levels=(0.0, 0.2)),
        "paper": Options(networks.OVERFITTING_MLPS["paper"], Ablation(_HIDDEN), 20),
    },
    optimiser="learning rate and batch size are unpublished too: Adam, 1e-3, 128",
)
FIG4B = _recipe(
    "fig4b",
    "CIFAR-10 ConvNet",
    {
        "quick": Options(networks.OVERFITTING_CONVNETS["quick"], Ablation(_LAST, 5, 17, 400), 5, levels=(0.0, 0.4)),
        "small": Options(networks.OVERFITTING_CONVNETS["small"], Ablation(_LAST, 5, 17, 1000), 3),
        "paper": Options(networks.OVERFITTING_CONVNETS["paper"], Ablation(_LAST), 2),
    },
)
