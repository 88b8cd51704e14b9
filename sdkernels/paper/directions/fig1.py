"""Figure 1: networks that memorised more or less corrupted labels, while more and more of their units are ablated."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, at_least, near
from sdkernels.paper.directions.corruption import (
    CHOICES,
    CONVNET_CHOICES,
    LEVELS,
    chance_of,
    claim_more_corrupted_is_worse,
    corrupted_networks,
    draw_levels,
)
from sdkernels.paper.frames import area_frame, network_frame, result_frame
from sdkernels.paper.measures import Ablation, named
from sdkernels.paper.recipe import Done, Family, Recipe


@dataclass(frozen=True)
class Options:
    """Networks by levels of corruption, and how they are ablated."""

    networks: Family
    ablation: Ablation
    levels: tuple[float, ...] = LEVELS
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """One network a level and repeat, ablated."""
    kinds = corrupted_networks(options.networks, options.levels, options.seed)
    return {"corruption": options.networks.sweep(kinds, options.ablation.condition(options.seed))}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a network, order and point."""
    return result_frame(done.networks["corruption"], "ablation", "corruption", "seed")


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Accuracy against the fraction of units ablated, a line a level."""
    figure, ax = draw_levels(table, done, up=done.options.ablation.metrics[0])
    layers = done.options.ablation.layers
    units = "feature maps" if "conv" in layers[0] or "block" in layers[0] else "units"
    ax.set(xlabel=f"fraction of {units} ablated ({', '.join(layers)})", xlim=(0, 1))
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Memorising networks fall sooner; curves start near 1 and end at chance; levels are not always in order."""
    found, metric = done.networks["corruption"], done.options.ablation.metrics[0]
    chance = chance_of(found, metric)
    ends = [table[table.ablated == count].groupby("network")[metric].mean() for count in (0, table.ablated.max())]
    return [
        *claim_more_corrupted_is_worse(
            area_frame(found, "ablation", "corruption", metric=metric), "ablation", network_frame(found, "corruption")
        ),
        at_least(ends[0], 0.95, claim="Intact networks start near 1", published="near 1"),
        near(ends[1], chance, 0.05, claim="With all units ablated, accuracy is at chance", published=f"{chance:.2f}"),
    ]


def _recipe(
    name: str, title: str, presets: Mapping[str, Options], more: Mapping[str, str] | None = None, **needs: str
) -> Recipe[Options]:
    title = f"Cumulative ablation by label corruption, {title} (Morcos et al. 2018, figure {name[3:]})"
    points = "unpublished; evenly spaced counts of ablated units (preset paper, MLP: all)"
    choices = {**CHOICES, "points": points, **(more or {})}
    return Recipe(name, title, presets, sweeps, table, draw, claims, choices, needs)


_HIDDEN, _LAST = ("hidden1", "hidden2"), named("conv", (9, 10, 11))

FIG1A = _recipe(
    "fig1a",
    "MLP",
    {
        "quick": Options(networks.CORRUPTED_MLPS["quick"], Ablation(_HIDDEN)),
        "small": Options(networks.CORRUPTED_MLPS["small"], Ablation(_HIDDEN)),
        "paper": Options(networks.CORRUPTED_MLPS["paper"], Ablation(_HIDDEN, points="all")),
    },
)
FIG1B = _recipe(
    "fig1b",
    "CIFAR-10 ConvNet",
    {preset: Options(family, Ablation(_LAST)) for preset, family in networks.CORRUPTED_CONVNETS.items()},
    CONVNET_CHOICES,
)
FIG1C = _recipe(
    "fig1c",
    "ImageNet ResNet-50",
    {
        preset: Options(
            networks.CORRUPTED_RESNETS[preset],
            Ablation(named("block4.", (1, 2, 3)), metrics=("top5", "accuracy", "loss"), measured=measured),
        )
        for preset, measured in {"quick": None, "small": 5000, "paper": 50_000}.items()
    },
    corruption="ImageNet",
)
