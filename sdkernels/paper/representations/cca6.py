"""Figure 6: each layer of a recurrent language model, while it is trained, against what it is in the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from sdkernels.lab.sweep import Comparison, Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, at_least, paired_greater
from sdkernels.paper.drawing import draw_curves, legend_beside, new_figure
from sdkernels.paper.recipe import Done, Family, Recipe
from sdkernels.paper.representations import language_models
from sdkernels.paper.representations.language_models import Windows, by_text, curve_frame, layers_of

METHODS = {"pwcca": "PWCCA", "cca": "mean CCA"}


@dataclass(frozen=True)
class Options:
    """Language models, when in their training they are looked at, and what they then read.

    Attributes:
        networks: of one text.
        also: of a second one.
        windows: of text; every token of them is a data point.
        looks: epochs after which networks are looked at; the last is always among them, and those beyond are left out.
        seed: of the networks.
    """

    networks: Family
    also: Family | None = None
    windows: Windows = field(default_factory=lambda: Windows(100, 100))
    looks: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    seed: int = 0


def looks(options: Options, family: Family) -> list[int]:
    """After which epochs networks are looked at, the last among them.

    Raises:
        ValueError: the training's length is given in steps, or there is no look before its end.
    """
    epochs = family.training.epochs
    if epochs is None:
        raise ValueError(f"networks are looked at after epochs, and steps={family.training.steps}: give epochs")
    found = sorted({*(look for look in options.looks if 0 < look < epochs), epochs})
    if len(found) < 2:
        raise ValueError(f"looks={options.looks} are none before the last of {epochs} epochs: give one at least")
    return found


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """One training a repeat, its network after each of the epochs."""
    return {
        text: family.sweep(
            [
                family.network(options.seed, repeat, until=epoch)
                for repeat in range(family.repeats)
                for epoch in looks(options, family)
            ]
        )
        for text, family in by_text(options.networks, options.also).items()
    }


def comparisons(options: Options) -> Mapping[str, Sequence[Comparison]]:
    """Each training's networks against its last one, by both methods."""
    return {
        text: [
            options.windows.comparison(
                _name(text, repeat, method),
                "similarity_over_training",
                range(repeat * count, (repeat + 1) * count),
                layers_of(family),
                method=method,
                positions="each",
            )
            for repeat in range(family.repeats)
            for method in METHODS
        ]
        for text, family in by_text(options.networks, options.also).items()
        for count in [len(looks(options, family))]
    }


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a text, training, method, layer and epoch."""
    options = done.options
    frames = [
        curve_frame(done.compared[_name(text, repeat, method)], text=text, repeat=repeat, method=method)
        for text, family in by_text(options.networks, options.also).items()
        for repeat in range(family.repeats)
        for method in METHODS
    ]
    return pd.concat(frames, ignore_index=True).rename(columns={"moment": "epoch"})


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """By text and method: distance from the last epoch over epochs, a line a layer."""
    texts = list(table.text.unique())
    figure, axes = new_figure(len(METHODS), len(texts), height=2.5, width=3.4)
    for text, row in zip(texts, axes, strict=True):
        for (method, words), ax in zip(METHODS.items(), row, strict=True):
            own = table[(table.text == text) & (table.method == method)]
            names = own.drop_duplicates("depth").sort_values("depth").layer.tolist()
            draw_curves(ax, own, by="depth", across="epoch", up="distance", labels=names)
            epochs = sorted(own.epoch.unique())
            ax.set(xscale="log", xlabel="epoch", ylim=(-0.01, None))
            ax.set_title(f"{text}, {words}", fontsize=9)
            ax.set_xticks(epochs, [f"{epoch}" for epoch in epochs])
            ax.minorticks_off()
            ax.set_ylabel(f"{words} distance\nfrom the last epoch")
    legend_beside(figure, axes[0, 0], "layer")
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Layers settle from the bottom up, and the mean of all correlations does not show it."""
    found = []
    for text in table.text.unique():
        weighted, plain = (settling(table[(table.text == text) & (table.method == method)]) for method in METHODS)
        beside = f"; correlations of depth with the distance by mean CCA: {_listed(plain.rho)}"
        found += [
            _rising(
                weighted.rho,
                claim=f"Recurrent networks converge from the bottom up ({text}): correlation of a layer's depth with "
                "its mean distance over training from its final state, by PWCCA",
                published="positive (curves shown)",
            ),
            paired_greater(
                weighted.top,
                weighted.bottom,
                claim=f"The top layer is further from its final state than the bottom one ({text}): mean PWCCA "
                "distances over training",
                published="positive (curves shown)",
                names=("top", "bottom"),
            ),
            _hidden(weighted, plain, text, beside),
        ]
    return found


def settling(own: pd.DataFrame) -> pd.DataFrame:
    """How late layers settle, by training: one row each, of one text and method.

    A layer's number is its mean distance over the looks before the last. ``rho`` is the rank correlation with depth,
    ``bottom`` and ``top`` are those of the first and last layer, ``relative`` is top - bottom as a part of the mean of
    all layers.
    """
    before = own[own.epoch < own.epoch.max()]
    means = before.pivot_table(index="repeat", columns="depth", values="distance")
    bottom, top = means[means.columns[0]], means[means.columns[-1]]
    rho = means.apply(lambda row: float(stats.spearmanr(row.index, row).statistic), axis=1)
    relative = (top - bottom) / means.mean(axis=1)
    return pd.DataFrame({"rho": rho, "bottom": bottom, "top": top, "relative": relative})


def _rising(rhos: pd.Series, claim: str, published: str) -> Claim:
    """That rank correlations are above 0 in the mean; no interval goes beyond 1."""
    found = at_least(rhos, 0, claim=claim, published=published)
    return found if found.high is None else replace(found, high=min(found.high, 1.0))


def _hidden(weighted: pd.DataFrame, plain: pd.DataFrame, text: str, beside: str) -> Claim:
    claim = paired_greater(
        weighted.relative,
        plain.relative,
        claim=f"The mean of all correlations hides it ({text}): what the top layer is further than the bottom one, as "
        "a part of all layers' mean, by PWCCA above that by mean CCA",
        published="positive (curves shown)",
        names=("PWCCA", "mean CCA"),
    )
    return replace(claim, reason=claim.reason + beside)


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _name(text: str, repeat: int, method: str) -> str:
    return f"{text} {repeat} {method}"


CCA6 = Recipe(
    "cca6",
    "Layers of recurrent language models over training (Morcos, Raghu, Bengio 2018, figure 6)",
    {
        "quick": Options(networks.LANGUAGE_MODELS["quick"]),
        "small": Options(networks.LANGUAGE_MODELS["small"], looks=(1, 2, 3)),
        "paper": Options(
            networks.LANGUAGE_MODELS["paper"],
            language_models.on_other_text(networks.LANGUAGE_MODELS["paper"], "ptb"),
            Windows(None, 100),
            (*range(1, 13),),
        ),
    },
    sweeps,
    table,
    draw,
    claims,
    {
        **language_models.CHOICES,
        "moments": "unpublished: after whole epochs, dense at first (looks=)",
        "data points": "every token of windows of 100, each read from a state of zero: the paper does not say which "
        "text it took them from (windows.on=)",
        "mean over training": "over the looks before the last, each counting as much",
        "correlation with depth": "of three layers it takes four values, for which Fisher's z is not meant: the t "
        "interval is of the correlations as they are. Fisher's z was tried first, and left preset quick undecided",
        "band": "one standard deviation over networks",
    },
    comparisons=comparisons,
)
