"""Figure A3: each layer of a recurrent language model at every step of a sequence, against what it is at the last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from sdkernels.analysis.similarity.method import MethodWord
from sdkernels.lab.sweep import Comparison, Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, at_least, paired_greater
from sdkernels.paper.drawing import draw_curves, legend_beside, new_figure
from sdkernels.paper.recipe import Done, Family, Recipe
from sdkernels.paper.representations import language_models
from sdkernels.paper.representations.language_models import Windows, by_text, curve_frame, layers_of


@dataclass(frozen=True)
class Options:
    """Language models, and the sequences that they read.

    Attributes:
        networks: of one text.
        also: of a second one.
        windows: of text; what they read at a step are the data points of that step.
        before: so many tokens of a window are read first, so that the steps begin with a state as training has it, and
            not with zeros; what is left are the steps.
        method: of comparison.
        high: the distance at the middle step is high from this part of that at the first on.
        late: so many of the last steps are late.
        seed: of the networks.
    """

    networks: Family
    also: Family | None = None
    windows: Windows = field(default_factory=lambda: Windows(None, 40))
    before: int = 20
    method: MethodWord = "pwcca"
    high: float = 0.5
    late: int = 5
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """The networks of figure 6, at the end of their training."""
    return {
        text: family.sweep([family.network(options.seed, repeat) for repeat in range(family.repeats)])
        for text, family in by_text(options.networks, options.also).items()
    }


def comparisons(options: Options) -> Mapping[str, Sequence[Comparison]]:
    """Each network's steps against the last one.

    Raises:
        ValueError: too few steps are left of a window.
    """
    steps = options.windows.steps - options.before
    if options.before < 0 or not 1 <= options.late < steps - 1:
        raise ValueError(
            f"windows.steps={options.windows.steps} less before={options.before} leave {steps} steps, of which "
            f"late={options.late} are late: give before=0 or more, and two steps that are not late"
        )
    return {
        text: [
            options.windows.comparison(
                _name(text, repeat), "similarity_over_steps", [repeat], layers_of(family), method=options.method
            )
            for repeat in range(family.repeats)
        ]
        for text, family in by_text(options.networks, options.also).items()
    }


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a text, network, layer and step, counted from 1."""
    options = done.options
    frames = [
        curve_frame(done.compared[_name(text, repeat)], text=text, repeat=repeat)
        for text, family in by_text(options.networks, options.also).items()
        for repeat in range(family.repeats)
    ]
    whole = pd.concat(frames, ignore_index=True)
    whole["step"] = whole.pop("moment") - options.before + 1
    return whole[whole.step > 0].reset_index(drop=True)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """By text: distance from the last step over steps, a line a layer."""
    texts = list(table.text.unique())
    figure, axes = new_figure(len(texts), height=2.6, width=4.2)
    for text, ax in zip(texts, axes[0], strict=True):
        own = table[table.text == text]
        names = own.drop_duplicates("depth").sort_values("depth").layer.tolist()
        draw_curves(ax, own, by="depth", across="step", up="distance", labels=names)
        ax.set(xlabel="step of the sequence", ylabel=f"{done.options.method.upper()} distance\nfrom the last step")
        ax.set_title(text, fontsize=9)
        ax.set_ylim(-0.01, None)
        ax.set_xticks([1, *range(5, own.step.max() + 1, 5)])
    legend_beside(figure, axes[0, 0], "layer")
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """In every layer, the distance is high until late, and then falls."""
    found = []
    for (text, layer), own in table.groupby(["text", "layer"], sort=False):
        at = own.pivot_table(index="repeat", columns="step", values="distance")
        last = int(own.step.max())
        middle, turn = last // 2, last - done.options.late
        found += [
            at_least(
                at[middle] / at[1],
                done.options.high,
                claim=f"Half-way through the sequence the hidden state is still far from the last one ({text}, "
                f"{layer}): distance at step {middle} as a part of that at the first, at least {done.options.high:g}",
                published="high until late (curves shown)",
            ),
            paired_greater(
                at[turn] - at[last],
                at[1] - at[turn],
                claim=f"The distance falls late ({text}, {layer}): by how much it falls over the last "
                f"{done.options.late} of {last} steps, above what it falls over those before",
                published="positive (curves shown)",
                names=("late", "before"),
            ),
        ]
    return found


def _name(text: str, repeat: int) -> str:
    return f"{text} {repeat}"


CCAA3 = Recipe(
    "ccaA3",
    "Layers of recurrent language models over the steps of a sequence (Morcos, Raghu, Bengio 2018, figure A3)",
    {
        "quick": Options(networks.LANGUAGE_MODELS["quick"]),
        "small": Options(networks.LANGUAGE_MODELS["small"], windows=Windows(1000, 40)),
        "paper": Options(
            networks.LANGUAGE_MODELS["paper"],
            language_models.on_other_text(networks.LANGUAGE_MODELS["paper"], "ptb"),
        ),
    },
    sweeps,
    table,
    draw,
    claims,
    {
        **language_models.CHOICES,
        "sequences": "20 steps, as published: tokens by their index in the text modulo 20; a data point is a window of "
        "the test text (windows.on=)",
        "state": "unpublished: 20 tokens are read before, so that the first step begins with a state as training "
        "carries it on (before=; 0 with windows.steps=20: each sequence begins with a state of zeros)",
        "method": "PWCCA (method=)",
        "high until late": "the middle step's distance is nearer to the first step's than to 0 (high=), and more of "
        "the fall is in the last 5 steps than before (late=)",
        "band": "one standard deviation over networks",
    },
    comparisons=comparisons,
)
