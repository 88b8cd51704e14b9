"""Figure 3: how alike networks are that generalise, networks that memorise the same labels, and one of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.analysis.similarity.pairwise_result import PairwiseSimilarity
from sdkernels.lab.sweep import Comparison, Sweep
from sdkernels.lab.sweep.comparison import device_called
from sdkernels.lab.sweep.data import for_analysis, measured_data
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, Claim, at_least, greater, untestable
from sdkernels.paper.claims.pairs import Contrast, pair_contrast, pairs_agree, pairs_alike, pairs_on_side
from sdkernels.paper.drawing import draw_curves, legend_beside, new_figure, shades
from sdkernels.paper.frames import network_frame, trained
from sdkernels.paper.measures import named
from sdkernels.paper.recipe import Done, Family, Recipe
from sdkernels.paper.representations.methods import METHODS
from sdkernels.paper.representations.pairs import matrix_of

PART = "labels"
COMPARED = "all pairs"
SOFTMAX = "softmax"

TRUE, RANDOM, INTER = "generalising", "memorising", "inter"

# By kind of pair: the published distances of deep layers, and of the softmax.
PUBLISHED = {TRUE: ((0.42, 0.45), 0.0), RANDOM: ((0.60, 0.61), 0.0), INTER: ((0.59, 0.63), 0.36)}

_KINDS = {TRUE: (TRUE, TRUE), RANDOM: (RANDOM, RANDOM), INTER: (TRUE, RANDOM)}


@dataclass(frozen=True)
class Options:
    """Networks of true labels and of random ones, and how they are compared.

    Attributes:
        networks: as many of each kind as it has repeats.
        layers: from the bottom to the top; class probabilities are added to them.
        deep: those that are called deep; early: those that are called early.
        method: the paper's, or another.
        examples: of the training data, the first so many, or all.
        corruption_seed: of the random labels, which all networks that memorise share.
        margin: differences of distances up to it are about none.
        near: distances up to it are near 0.
        numbers: whether the paper's numbers themselves are tested, as of its networks.
        seed: of the networks.
    """

    networks: Family
    layers: tuple[str, ...] = named("conv", range(1, 12))
    deep: tuple[str, ...] = named("conv", (9, 10, 11))
    early: tuple[str, ...] = named("conv", (1, 2))
    method: Literal["pwcca", "cca", "svcca", "cka"] = "pwcca"
    examples: int | None = None
    corruption_seed: int = 0
    margin: float = 0.05
    near: float = 0.05
    numbers: bool = False
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """Networks of true labels, then as many of random ones, each of an initialisation and a shuffling of its own."""
    family, count = options.networks, options.networks.repeats
    true = [family.network(options.seed, repeat) for repeat in range(count)]
    wrong = {"corruption": 1.0, "corruption_seed": options.corruption_seed}
    random = [family.network(options.seed, count + repeat, **wrong) for repeat in range(count)]
    return {PART: family.sweep([*true, *random])}


def comparisons(options: Options) -> Mapping[str, Sequence[Comparison]]:
    """All pairs, at each layer, on the training images."""
    everyone = range(2 * options.networks.repeats)
    how = {"method": options.method}
    return {
        PART: [
            Comparison(
                COMPARED, "pairwise_similarity", everyone, options.layers, "train", options.examples, arguments=how
            )
        ]
    }


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a layer and pair of networks: which kind of pair, and the mean of both directions' distances."""
    found = done.compared[COMPARED]
    if not isinstance(found, PairwiseSimilarity):
        raise TypeError(f"{COMPARED}: a {type(found).__name__} has no pairs")
    top = of_softmax(done)
    names = [*done.options.layers, SOFTMAX]
    rows = []
    for depth, (layer, distance) in enumerate(zip(names, [*found.symmetrised, *top.symmetrised], strict=True), 1):
        for i, first in enumerate(found.names):
            for j, second in enumerate(found.names[:i]):
                pair = {"first": int(second), "second": int(first)}
                kind = _kind(done.options, int(second), int(first))
                rows.append({"layer": layer, "depth": depth, **pair, "kind": kind, "distance": float(distance[i, j])})
    return pd.DataFrame(rows)


def of_softmax(done: Done[Options]) -> PairwiseSimilarity:
    """The same pairs by their class probabilities, a layer that the networks do not have: they end in logits."""
    found, options = done.networks[PART], done.options
    device = device_called(done.device)
    models = {
        str(place): nn.Sequential(found.model(place), _Probabilities()).eval().to(device) for place in trained(found)
    }
    data = measured_data(found.sweep.networks[0], "train", options.examples, found.data_dir)
    return sd.pairwise_similarity(models, ["1"], for_analysis(data, 256), method=options.method, store=found.store)


class _Probabilities(nn.Module):
    """Of logits, in float64: in float32 they add up to 1 but for rounding, which would be a direction of its own."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.double().softmax(dim=1)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Distance by layer, a line a kind of pair, with a band of a standard deviation over pairs."""
    figure, ((ax,),) = new_figure(width=5.2, height=3.2)
    dark, middle, light = shades(3)
    words = {TRUE: "both generalise", INTER: "one of each", RANDOM: "both memorise"}  # as sorted by their names
    draw_curves(
        *(ax, table),
        by="kind",
        across="depth",
        up="distance",
        labels=list(words.values()),
        colours=(dark, light, middle),
    )
    layers = table.drop_duplicates("depth").sort_values("depth")
    ax.set_xticks(layers.depth, layers.layer, rotation=60, fontsize=8)
    ax.set(ylabel=f"{METHODS[done.options.method]} distance", ylim=(0, None))
    legend_beside(figure, ax, "networks")
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """What each kind of network is; then the paper's claims on early layers, deep ones, and the softmax."""
    return [*_premises(done), *distance_claims(table, done.options)]


def distance_claims(table: pd.DataFrame, options: Options) -> list[Claim]:
    """The paper's claims on distances.

    Args:
        table: as :func:`table` gives it.
        options: which layers are deep, and what is near.
    """

    def found(layers: Sequence[str], **kinds: float) -> Contrast:
        distance, groups = _matrix(table, layers, options)
        return pair_contrast(distance, groups, {_KINDS[kind]: times for kind, times in kinds.items()})

    early, deep, top = options.early, options.deep, (SOFTMAX,)
    where = f"deep layers ({', '.join(deep)})"
    return [
        pairs_alike(
            found(early, memorising=1, generalising=-1),
            options.margin,
            claim=f"In early layers ({', '.join(early)}) memorising networks are as alike as generalising ones: "
            "difference of their mean distances",
            published="about none (curves shown)",
        ),
        pairs_on_side(
            found(deep, memorising=1, generalising=-1),
            *(0, 1),
            claim=f"In {where} generalising networks are more alike than memorising ones: difference of their mean "
            "distances",
            published="about 0.17",
        ),
        _by_layer(
            pairs_alike(
                found(deep, inter=1, memorising=-1),
                options.margin,
                claim=f"In {where} memorising networks are as far from one another as from generalising ones: "
                "difference of mean distances",
                published="about 0.01",
            ),
            {layer: found((layer,), inter=1, memorising=-1) for layer in deep},
        ),
        *(
            pairs_on_side(
                found(top, **{kind: 1}),
                *(options.near, -1),
                claim=f"At the softmax {kind} networks are alike: their mean distance is below {options.near:g}",
                published="about 0",
            )
            for kind in (TRUE, RANDOM)
        ),
        pairs_on_side(
            found(top, inter=1, generalising=-0.5, memorising=-0.5),
            *(0, 1),
            claim="At the softmax generalising and memorising networks are further from each other than networks of "
            "one kind: difference of mean distances",
            published="about 0.36",
        ),
        *(
            one
            for kind in PUBLISHED
            for one in _numbers(kind, found(deep, **{kind: 1}), found(top, **{kind: 1}), options)
        ),
    ]


def _by_layer(claim: Claim, layers: Mapping[str, Contrast]) -> Claim:
    """A claim that does not hold, and how it is at each of the layers."""
    if claim.verdict != FAILS:
        return claim
    own = [f"{layer} {found.interval.value:.3f}" for layer, found in layers.items() if found.interval is not None]
    return replace(claim, reason=f"{claim.reason}; by layer: {', '.join(own)}")


def _numbers(kind: str, deep: Contrast, top: Contrast, options: Options) -> list[Claim]:
    """The published numbers of one kind of pair; that of the softmax is read off as one of two decimals."""
    (low, high), softmax = PUBLISHED[kind]
    of = "a generalising and a memorising network" if kind == INTER else f"two {kind} networks"
    made = [
        (deep, low, high, f"Mean distance of {of} in deep layers", f"{low:.2f} to {high:.2f}"),
        (top, softmax - 0.005, softmax + 0.005, f"Mean distance of {of} at the softmax", f"{softmax:.2f}"),
    ]
    if options.numbers:
        return [pairs_agree(found, *ends, claim=claim, published=text) for found, *ends, claim, text in made]
    tested = []
    for found, _, _, claim, text in made:
        ours = f"; here it is {found.interval.value:.2f}" if found.interval is not None else ""
        tested.append(untestable(claim, f"the number is of full width and all training images{ours}", text))
    return tested


def _premises(done: Done[Options]) -> list[Claim]:
    ends = network_frame(done.networks[PART], "corruption")
    of = {level: ends[ends.corruption == level] for level in (0.0, 1.0)}
    found = [
        at_least(own.train_accuracy, 0.95, claim=f"Networks of {labels} labels fit them", published="memorised")
        for labels, own in (("true", of[0.0]), ("random", of[1.0]))
    ]
    if ends.test_accuracy.isna().any():
        return found
    claim = "Networks of true labels generalise better: difference of test accuracies"
    return [*found, greater(of[0.0].test_accuracy, of[1.0].test_accuracy, claim=claim, names=("true", "random"))]


def _matrix(table: pd.DataFrame, layers: Sequence[str], options: Options) -> tuple[NDArray[np.float64], list[str]]:
    """The mean distance over some layers ``[M, M]``, and each network's kind.

    Raises:
        ValueError: there is no such layer.
    """
    if unknown := [layer for layer in layers if layer not in set(table.layer)]:
        raise ValueError(f"there are the layers {list(table.layer.unique())}; {unknown} are not among them")
    means = table[table.layer.isin(layers)].groupby(["first", "second"])[["distance"]].mean().reset_index()
    there = sorted({*means["first"], *means["second"]})
    kinds = [RANDOM if network >= options.networks.repeats else TRUE for network in there]
    return matrix_of(means, there), kinds


def _kind(options: Options, first: int, second: int) -> str:
    memorise = (first >= options.networks.repeats) + (second >= options.networks.repeats)
    return (TRUE, INTER, RANDOM)[memorise]


CCA3 = Recipe(
    "cca3",
    "Generalising and memorising networks, all pairs, CIFAR-10 ConvNet (Morcos, Raghu, Bengio 2018, figure 3)",
    {preset: Options(family, numbers=preset == "paper") for preset, family in networks.MEMORISING_CONVNETS.items()},
    sweeps,
    table,
    draw,
    claims,
    {
        "networks": "five of each kind, no two of the same initialisation; all that memorise have the same random "
        "labels, and all see the same images. Those of true labels are figure 1b's of the other paper, and more "
        "(not at preset small)",
        "preset small": "2,000 images. With figure 1b's 3,000, a network of true labels still had 2 % wrong after 80 "
        "epochs",
        "end of training": "published for this ConvNet: 100 epochs (preset paper); else the first epoch that leaves "
        "every example memorised, or the last",
        "examples": "all training images; feature maps after the nonlinearity, averaged over space",
        "deep layers": "conv9 to conv11, of the most feature maps, and conv1 and conv2 as early ones; of which layers "
        "the paper's numbers are is read off its figure",
        "softmax": "class probabilities, which add up to 1: nine directions of ten. Those of networks that fit two "
        "unrelated labellings outright are uncorrelated, and their distance is about 1 - 3 / sqrt(images): 0.36 does "
        "not follow from the definition",
        "distance of a pair": "of two layers as wide, projection-weighted CCA is not symmetric: the mean of both ways",
        "about the same": "a difference whose whole interval lies within 0.05; the published ones are 0.17 and 0.01",
        "intervals": "over networks, each left out once (jackknife), since pairs that share one are not independent",
        "band": "one standard deviation over pairs",
    },
    comparisons=comparisons,
)
