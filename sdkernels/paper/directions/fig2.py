"""Figure 2: networks that memorised more or less corrupted labels, while noise is added to all of their units."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim
from sdkernels.paper.directions.corruption import (
    CHOICES,
    CONVNET_CHOICES,
    LEVELS,
    claim_more_corrupted_is_worse,
    corrupted_networks,
    draw_levels,
)
from sdkernels.paper.frames import area_frame, network_frame, result_frame
from sdkernels.paper.measures import Noise, named
from sdkernels.paper.recipe import Done, Family, Recipe


@dataclass(frozen=True)
class Options:
    """Networks by levels of corruption, and the noise."""

    networks: Family
    noise: Noise
    levels: tuple[float, ...] = LEVELS
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """The networks of figure 1, under noise."""
    kinds = corrupted_networks(options.networks, options.levels, options.seed)
    return {"corruption": options.networks.sweep(kinds, options.noise.condition(options.seed))}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a network, run and scale."""
    return result_frame(done.networks["corruption"], "noise", "corruption", "seed")


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Accuracy against the scale of the noise, a line a level."""
    figure, ax = draw_levels(table, done, up="accuracy", across="scale")
    of = {"std": "standard deviation", "var": "variance"}[done.options.noise.scale_kind]
    ax.set(xscale="log", xlabel=f"noise, as a multiple of each unit's {of}")
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Memorising networks are more sensitive."""
    found = done.networks["corruption"]
    areas, outcomes = area_frame(found, "noise", "corruption"), network_frame(found, "corruption")
    return claim_more_corrupted_is_worse(areas, "noise", outcomes)[:2]


def _recipe(
    name: str, title: str, presets: Mapping[str, Options], more: Mapping[str, str] | None = None
) -> Recipe[Options]:
    title = f"Noise on all units at once by label corruption, {title} (Morcos et al. 2018, figure {name[3:]})"
    choices = {
        **CHOICES,
        "scales": "unpublished: 20, log-spaced from 10^-1.5 to 10, as in a co-author's replication",
        "what a scale multiplies": "the paper says variance and draws deviations: the standard deviation; "
        "scale_kind=var is the other reading",
        "convolutions": "unpublished: a draw for each element of a map; per_map=true is the other reading",
        "layers": "all hidden layers",
        **(more or {}),
    }
    return Recipe(name, title, presets, sweeps, table, draw, claims, choices)


FIG2A = _recipe(
    "fig2a",
    "MLP",
    {preset: Options(family, Noise(("hidden1", "hidden2"))) for preset, family in networks.CORRUPTED_MLPS.items()},
)
FIG2B = _recipe(
    "fig2b",
    "CIFAR-10 ConvNet",
    {
        preset: Options(family, Noise(named("conv", range(1, 12)), measured=measured))
        for (preset, family), measured in zip(networks.CORRUPTED_CONVNETS.items(), (200, 200, None), strict=True)
    },
    CONVNET_CHOICES,
)
