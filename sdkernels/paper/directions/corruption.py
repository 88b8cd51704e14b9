"""What figures 1 and 2 share: networks by levels of label corruption, and that more of it makes them fragile."""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Networks, NetworkSettings
from sdkernels.lab.sweep.data import measured_data
from sdkernels.paper.claims import FAILS, Claim, correlated, counted, greater
from sdkernels.paper.drawing import draw_chance, draw_curves, legend_beside, new_figure
from sdkernels.paper.recipe import Done, Family

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

CHOICES = {
    "optimiser, learning rate, batch size": "unpublished for MLPs: Adam, 1e-3, 128; the ConvNet's are published",
    "end of training": "published: a number of epochs (preset paper); else the first epoch that leaves every example "
    "memorised, or the last",
    "networks": "how many a level is unpublished; the levels of one repeat share initialisation, shuffling and orders",
    "band": "one standard deviation over networks and orders",
}

CONVNET_CHOICES = {
    "preset small": "3,000 images. 2,000 were tried first: networks of true labels memorised those too (0.32 of the "
    "test images right), and in figure 1b the levels could not be told apart; nor can they be with 3,000 (0.36). A run "
    "with 4,000 was stopped for time, before any result",
}


def corrupted_networks(family: Family, levels: tuple[float, ...], seed: int) -> tuple[NetworkSettings, ...]:
    """One network a level and repeat."""
    return tuple(family.network(seed, repeat, corruption=level) for level in levels for repeat in range(family.repeats))


def chance_of(networks: Networks, metric: str) -> float:
    """What a network gets that gives every example the same scores, on average over such networks."""
    settings = networks.sweep.networks[0]
    examples = networks.sweep.conditions[0].examples
    classes = measured_data(settings, "train", examples, networks.data_dir).classes
    return (5 if metric == "top5" else 1) / classes


def draw_levels(table: pd.DataFrame, done: Done[Any], *, up: str, across: str = "fraction") -> tuple[Figure, Axes]:
    """A line a level, chance, and a legend; the axes still need a word below."""
    networks = done.networks["corruption"]
    figure, ((ax,),) = new_figure(width=4.6)
    draw_curves(ax, table, by="corruption", across=across, up=up)
    draw_chance(ax, chance_of(networks, up))
    ax.set(ylabel="top-5 training accuracy" if up == "top5" else "training accuracy", ylim=(0, 1.02))
    legend_beside(figure, ax, "labels\ncorrupted")
    return figure, ax


def claim_more_corrupted_is_worse(areas: pd.DataFrame, under: str, outcomes: pd.DataFrame | None = None) -> list[Claim]:
    """Areas under curves fall with corruption; over networks, or where there is one a level, over its orders.

    Args:
        areas: one row a network and order, with ``corruption`` and ``auc``.
        under: what the curves are of, in a word.
        outcomes: one row a network, with ``corruption`` and ``test_accuracy``: a claim that does not hold says how far
            the networks with the least corruption have memorised too.
    """
    of_network = areas.groupby(["corruption", "network"], as_index=False).auc.mean()
    least, most = of_network.corruption.min(), of_network.corruption.max()
    alone = of_network.groupby("corruption").network.count().max() == 1
    compared = areas if alone else of_network
    clean, corrupted = (compared[compared.corruption == level].auc for level in (least, most))
    by_level = of_network.groupby("corruption").auc.mean()
    inverted = int((by_level.diff().dropna() > 0).sum())
    found = [
        correlated(
            of_network.corruption,
            of_network.auc,
            sign=-1,
            claim=f"The more labels were corrupted, the sooner {under} brings a network down: correlation of the level "
            "with the area under the curve",
            published="negative (curves shown)",
        ),
        greater(
            clean,
            corrupted,
            claim=f"True labels leave a network more robust to {under} than random ones: difference of areas",
            published="positive (curves shown)",
            of="orders of one network each" if alone else "networks",
            names=(f"level {least:g}", f"level {most:g}"),
        ),
        counted(
            inverted,
            len(by_level) - 1,
            claim="Levels are not always perfectly ordered: neighbouring levels whose areas are in the wrong order",
            published="not always ordered",
        ),
    ]
    if outcomes is None or outcomes.test_accuracy.isna().all():
        return found
    tested = outcomes[outcomes.corruption == least].test_accuracy.mean()
    why = f"; networks of level {least:g} classify {tested:.2f} of the test images: what they fit beyond is memorised"
    return [replace(one, reason=one.reason + why) if one.verdict == FAILS else one for one in found[:2]] + found[2:]
