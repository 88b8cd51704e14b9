"""Figure A1: feature maps clamped to zero or to their mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, paired_greater
from sdkernels.paper.directions import compared, units
from sdkernels.paper.directions.compared import draw_two
from sdkernels.paper.directions.units import convnets
from sdkernels.paper.frames import area_frame, result_frame
from sdkernels.paper.measures import Ablation
from sdkernels.paper.recipe import Done, Family, Recipe

PART = "clamps"

CLAMPS = {"zero": "clamped to zero", "mean": "clamped to their mean"}


@dataclass(frozen=True)
class Options:
    """Networks, and how they are ablated.

    Attributes:
        mean: over the data that is ablated: of each element of a map, or of the whole map.
        batch_norm: whether the networks have it.
    """

    networks: Family
    ablation: Ablation
    mean: Literal["element_mean", "mean"] = "element_mean"
    batch_norm: bool = True
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """Each network ablated twice, in the same orders."""
    zero = options.ablation.condition(options.seed, "zero")
    mean = options.ablation.condition(options.seed, "mean", value=options.mean)
    kinds = convnets(options.networks, options.seed, (options.batch_norm,))
    return {PART: options.networks.sweep(kinds, zero, mean)}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a clamp, network, order and point."""
    found = done.networks[PART]
    return pd.concat([result_frame(found, clamp, "seed").assign(clamp=clamp) for clamp in CLAMPS], ignore_index=True)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Accuracy against the fraction of feature maps clamped."""
    return draw_two(table, done.networks[PART], done.options.ablation, by="clamp", words=CLAMPS)


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """The mean does more damage than zero."""
    areas = {
        clamp: area_frame(done.networks[PART], clamp, metric=done.options.ablation.metrics[0]).groupby("network").auc
        for clamp in CLAMPS
    }
    return [
        paired_greater(
            areas["zero"].mean(),
            areas["mean"].mean(),
            claim="Clamping to the mean is more damaging than clamping to zero: area under the curve at zero less that "
            "at the mean",
            published="positive (curves shown)",
            names=("zero", "mean"),
        )
    ]


FIGA1 = Recipe(
    "figA1",
    "Clamping to zero against clamping to the mean, CIFAR-10 ConvNet (Morcos et al. 2018, figure A1)",
    {preset: Options(family, compared.ABLATIONS[preset]) for preset, family in networks.CONVNETS.items()},
    sweeps,
    table,
    draw,
    claims,
    {
        **units.CHOICES,
        **compared.CHOICES,
        "mean": "of every element of a map, over the examples that are ablated: all training examples, unless measured "
        "says otherwise; mean=mean is one number a map",
        "networks": "how many is unpublished: the four with batch norm of figure 5b; each is clamped both ways, in the "
        "same orders",
    },
)
