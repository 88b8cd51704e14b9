"""Figure 5a: networks trained with dropout, on true and on random labels, while more and more units are ablated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sdkernels.lab.sweep import Sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import Claim, at_most, correlated, paired_greater, untestable
from sdkernels.paper.directions.corruption import chance_of
from sdkernels.paper.drawing import draw_chance, draw_curves, legend_beside, new_figure, shades
from sdkernels.paper.frames import network_frame, result_frame
from sdkernels.paper.measures import Ablation
from sdkernels.paper.recipe import Done, Family, Recipe

PART = "dropout"
LABELS = {0.0: "true labels", 1.0: "random labels"}  # by the level of corruption


@dataclass(frozen=True)
class Options:
    """Networks by dropout and labels, how they are ablated, and what counts as little.

    Attributes:
        networks, ablation: as in the other figures.
        dropouts: fractions of units dropped in training; 0 is the network that the others are compared with.
        beyond: so much more than the dropout fraction is ablated where protection is to have ended.
        little: of accuracy, what ablation up to the dropout fraction may cost.
        alike: areas under the curves that differ by no more are alike.
        seed: of networks and orders.
    """

    networks: Family
    ablation: Ablation
    dropouts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    beyond: float = 0.2
    little: float = 0.1
    alike: float = 0.05
    seed: int = 0


def sweeps(options: Options) -> Mapping[str, Sweep]:
    """One network a kind of labels, dropout and repeat, ablated.

    Raises:
        ValueError: a dropout fraction beyond which no units are left to ablate.
    """
    if max(options.dropouts) + options.beyond > 1:
        raise ValueError(
            f"dropouts={options.dropouts} and beyond={options.beyond}: {max(options.dropouts)} + {options.beyond} of "
            "the units cannot be ablated; lower one of them"
        )
    kinds = tuple(
        options.networks.network(options.seed, repeat, corruption=level, **({"dropout": dropout} if dropout else {}))
        for level in LABELS
        for dropout in options.dropouts
        for repeat in range(options.networks.repeats)
    )
    return {PART: Sweep(kinds, (options.ablation.condition(options.seed),))}


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a network, order and point, with the epochs and the training accuracy of the network."""
    curves = result_frame(done.networks[PART], "ablation", "corruption", "dropout", "seed")
    curves["dropout"] = curves.dropout.astype(float).fillna(0.0)
    ends = network_frame(done.networks[PART])[["network", "epochs", "train_accuracy"]]
    return curves.merge(ends, on="network")


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Accuracy against the fraction ablated: true labels, random labels; a line a dropout, dashed where it ends."""
    metric, dropouts = done.options.ablation.metrics[0], sorted(table.dropout.unique())
    figure, (axes,) = new_figure(2, width=3.5)
    colours = shades(len(dropouts))
    for ax, (level, title) in zip(axes, LABELS.items(), strict=True):
        labels = [f"{dropout:g}" if dropout else "none" for dropout in dropouts]
        draw_curves(ax, table[table.corruption == level], by="dropout", up=metric, labels=labels, colours=colours)
        for dropout, colour in zip(dropouts, colours, strict=True):
            if dropout:
                ax.axvline(dropout, color=colour, linestyle=(0, (4, 3)), linewidth=1)
        draw_chance(ax, chance_of(done.networks[PART], metric))
        ax.set(title=title, xlabel="fraction of units ablated", ylabel="training accuracy", xlim=(0, 1), ylim=(0, 1.02))
    legend_beside(figure, axes[0], "dropout")
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """Dropout protects up to its fraction and no further."""
    options = done.options
    found = at_fractions(table, options.beyond, options.ablation.metrics[0])
    random = found[found.corruption == 1]
    return [
        *_protected(found, options.little),
        _true_against_random(found, options.beyond),
        paired_greater(
            (random.at_dropout - random.beyond) / options.beyond,
            (random.intact - random.at_dropout) / random.dropout,
            claim=f"Past its fraction f, dropout protects no more: from f to f + {options.beyond:g}, networks with "
            "random labels lose accuracy faster than from 0 to f (accuracy lost by fraction ablated)",
            published="positive (curves shown)",
            names=("past f", "up to f"),
        ),
        *_convergence(table[table.corruption == 1], options.networks.training.stop_when_memorised),
        _alike(table[(table.corruption == 0) & (table.dropout > 0)], options),
    ]


def at_fractions(table: pd.DataFrame, beyond: float, metric: str = "accuracy") -> pd.DataFrame:
    """One row a network with dropout: accuracy at 0, at the dropout fraction f and at f + beyond, means over orders.

    Between points that were measured, lines are drawn. ``without`` is the accuracy at f of the network of the same
    labels and seed that was trained without dropout, nan if there is none.
    """
    kinds = ["corruption", "dropout", "seed"]
    curves = table.pivot_table(index=kinds, columns="fraction", values=metric)
    rows = []
    for level, dropout, seed in table[table.dropout > 0][kinds].drop_duplicates().to_numpy().tolist():
        own, without = (level, dropout, seed), (level, 0.0, seed)
        row = dict(zip(kinds, own, strict=True))
        for name, fraction in (("intact", 0.0), ("at_dropout", dropout), ("beyond", dropout + beyond)):
            row[name] = _between(curves.xs(own), fraction)
        row["without"] = _between(curves.xs(without), dropout) if without in curves.index else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _between(curve: "pd.Series[float] | pd.DataFrame", fraction: float) -> float:
    return float(np.interp(fraction, curve.index.to_numpy(), curve.to_numpy()))


def _protected(found: pd.DataFrame, little: float) -> Iterator[Claim]:
    for level, labels in LABELS.items():
        own = found[found.corruption == level]
        yield at_most(
            own.intact - own.at_dropout,
            little,
            claim=f"With as many units ablated as dropout took in training, networks with {labels} have lost little "
            f"accuracy: at most {little:g}",
            published="minimal (curves shown)",
        )
        paired = own.dropna()
        yield paired_greater(
            paired.at_dropout,
            paired.without,
            claim=f"There, networks with {labels} are more accurate than those trained without dropout",
            names=("with", "without"),
        )


def _true_against_random(found: pd.DataFrame, beyond: float) -> Claim:
    both = found.pivot_table(index=["dropout", "seed"], columns="corruption", values="beyond").dropna()
    return paired_greater(
        both[0.0],
        both[1.0],
        claim=f"With {beyond:g} more units ablated than the dropout fraction, networks with random labels have fallen "
        "below those with true ones",
        published="positive (curves shown)",
        of="pairs of networks",
        names=("true", "random"),
    )


def _convergence(random: pd.DataFrame, stops: bool) -> Iterator[Claim]:
    ends = random.groupby("network")[["dropout", "epochs", "train_accuracy"]].first()
    yield correlated(
        ends.dropout,
        ends.epochs,
        sign=1,
        claim="On random labels, more dropout takes more epochs to converge",
        published="positive (in words)",
    )
    claim = "On random labels, networks with more dropout converge to worse solutions: training accuracy"
    published, memorised = "negative (in words)", int((ends.train_accuracy == 1).sum())
    if stops and memorised > len(ends) / 2:
        why_not = f"training stops when all is memorised, and {memorised} of {len(ends)} networks came so far"
        yield untestable(claim, why_not, published)
    else:
        yield correlated(ends.dropout, ends.train_accuracy, sign=-1, claim=claim, published=published)


def _alike(true: pd.DataFrame, options: Options) -> Claim:
    claim = "On true labels, networks are similarly robust whatever their dropout: areas under curves differ by at "
    claim, published = f"{claim}most {options.alike:g} within a repeat", "similar (curves shown)"
    areas = {
        key: np.trapezoid(curve, curve.index)
        for key, own in true.groupby(["dropout", "seed"])
        for curve in [own.groupby("fraction")[options.ablation.metrics[0]].mean()]
    }
    by_seed = pd.Series(areas).unstack(0).dropna()
    if by_seed.shape[1] < 2:
        return untestable(claim, f"dropouts={options.dropouts}: it takes two above 0", published)
    return at_most(by_seed.max(axis=1) - by_seed.min(axis=1), options.alike, claim=claim, published=published,
                   of="repeats")  # fmt: skip


_HIDDEN = ("hidden1", "hidden2")

FIG5A = Recipe(
    "fig5a",
    "Cumulative ablation by dropout, true and random labels, MLP (Morcos et al. 2018, figure 5a)",
    {preset: Options(family, Ablation(_HIDDEN, points=41)) for preset, family in networks.DROPOUT_MLPS.items()},
    sweeps,
    table,
    draw,
    claims,
    {
        "optimiser, learning rate, batch size": "unpublished: Adam, 1e-3, 128",
        "end of training": "published: 5000 epochs (preset paper); else the first epoch that leaves every example "
        "memorised, measured without dropout, or the last",
        "dropout": "after each hidden layer's ReLU, none on the input; the rest is scaled up in training, and nothing "
        "is dropped or scaled where a network is measured",
        "no dropout": "not in the paper's figure; here to compare with",
        "random labels": "all permuted among themselves, of each repeat in a way of its own",
        "units": "of both layers, pooled in one random order",
        "points": "unpublished: 41 evenly spaced counts, the dropout fractions and those 0.2 beyond among them, up to "
        "rounding to whole units; lines are drawn between",
        "little": "up to the dropout fraction, ablation may cost 0.1 of accuracy (little=)",
        "no further": "where 0.2 more of the units are ablated (beyond=); losses up to f and past it are compared by "
        "fraction ablated, since f is not 0.2",
        "similarly robust": "areas differ by at most 0.05 (alike=)",
        "band": "one standard deviation over networks and orders",
    },
)
