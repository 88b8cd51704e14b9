"""Figure 2: what three distances say of two sets of neurons that share some directions, the others being noise."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

import sdkernels as sd
from sdkernels.analysis.similarity.method import MethodWord
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Sweep
from sdkernels.paper.claims import Claim, at_most, paired_greater
from sdkernels.paper.drawing import draw_curves, legend_beside, new_figure
from sdkernels.paper.recipe import Done, Recipe

METHODS: Mapping[MethodWord, str] = {
    "cca": "mean of all\ncorrelations",
    "pwcca": "projection\nweighted",
    "svcca": "SVCCA",
}

_OF = "pairs of drawn sets"


@dataclass(frozen=True)
class Options:
    """Pairs of sets of neurons, and how they are drawn.

    Attributes:
        signals: k, how many directions the two sets share.
        repeats: pairs of sets for each k.
        neurons: of a set; neurons - k of its directions are noise.
        points: at which the neurons are measured.
        signal: standard deviation in a direction that is shared.
        noise: standard deviation in each other direction, and of each set by itself.
        rotated: every neuron has a part in all directions, by a random rotation for each set; else it is one of them.
        variance: which part of the variance SVCCA keeps.
        robust: the weighted distance is robust if it rises by at most this part of what the mean's does.
        seed: of everything.
    """

    signals: tuple[int, ...]
    repeats: int
    neurons: int = 200
    points: int = 2000
    signal: float = 1.0
    noise: float = 0.1
    rotated: bool = True
    variance: float = 0.99
    robust: float = 0.5
    seed: int = 0


def sweeps(_options: Options) -> Mapping[str, Sweep]:
    """None: there are no networks."""
    return {}


def two_sets(options: Options, shared: int, repeat: int) -> tuple[Tensor, Tensor]:
    """Two sets of neurons, float64 ``[points, neurons]``, that share so many directions.

    Raises:
        ValueError: more directions than neurons, or none.
    """
    points, neurons = options.points, options.neurons
    if not 1 <= shared <= neurons:
        raise ValueError(f"signals={options.signals} holds {shared}: {neurons} neurons share 1 to {neurons} directions")
    generator = torch.Generator().manual_seed(seed_for(f"two sets sharing {shared}", 1000 * options.seed + repeat))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    signal = options.signal * draw(points, shared)
    both = []
    for _ in range(2):
        own = torch.cat([signal, options.noise * draw(points, neurons - shared)], dim=1)
        both.append(own @ torch.linalg.qr(draw(neurons, neurons))[0] if options.rotated else own)
    return both[0], both[1]


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a pair of sets and method."""
    options, rows = done.options, []
    for shared in options.signals:
        for repeat in range(options.repeats):
            a, b = two_sets(options, shared, repeat)
            for method in METHODS:
                found = sd.similarity(a, b, method=method, variance=options.variance)
                rows.append({"signal": shared, "repeat": repeat, "method": method, "distance": found.distance})
    return pd.DataFrame(rows)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Distance against the number of shared directions."""
    figure, ((ax,),) = new_figure(width=4.8)
    draw_curves(ax, table, by="method", across="signal", up="distance", labels=list(METHODS.values()))
    ax.set(xlabel=f"directions that two sets of {done.options.neurons} neurons share", ylabel="distance")
    ax.set(ylim=(-0.01, None), xlim=(0, done.options.neurons))
    legend_beside(figure, ax, "distance by")
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """What is shared shows in weighted correlations, and is hidden by noise in their mean."""
    by_signal = table.pivot_table(index="repeat", columns=["method", "signal"], values="distance")
    means = by_signal.T.groupby("method").mean().T
    fewest, most = min(done.options.signals), max(done.options.signals)
    rise = by_signal.xs(fewest, axis=1, level="signal") - by_signal.xs(most, axis=1, level="signal")
    shown = "curves shown"
    weighted = paired_greater(
        means.svcca,
        means.pwcca,
        claim="SVCCA does less well than projection weighting: distance above that of PWCCA, mean over all k",
        published=shown,
        of=_OF,
        names=("SVCCA", "PWCCA"),
    )
    nearest = by_signal.mean().unstack("method").idxmin(axis=1)
    where = [str(signal) for signal in nearest.index[nearest == "svcca"]]
    told = f"; SVCCA is the nearest to 0 of the three at k = {', '.join(where)}" if where else ""
    return [
        paired_greater(
            means.cca,
            means.pwcca,
            claim="The mean of all correlations underestimates what is shared, projection weighting does so less: "
            "distance above that of PWCCA, mean over all k",
            published=shown,
            of=_OF,
            names=("mean CCA", "PWCCA"),
        ),
        paired_greater(
            means.cca,
            means.svcca,
            claim="SVCCA does better than the mean of all correlations: distance of mean CCA above that of SVCCA, mean "
            "over all k",
            published=shown,
            of=_OF,
            names=("mean CCA", "SVCCA"),
        ),
        replace(weighted, reason=weighted.reason + told),
        paired_greater(
            rise.cca,
            rise.pwcca,
            claim="As signal gives way to noise, the mean's distance rises more than the weighted one's: rise from "
            f"k = {most} to {fewest}, of mean CCA above that of PWCCA",
            published=shown,
            of=_OF,
            names=("mean CCA", "PWCCA"),
        ),
        at_most(
            rise.pwcca / rise.cca,
            done.options.robust,
            claim="Projection weighting remains largely robust: its rise as a part of that of mean CCA, at most "
            f"{done.options.robust:g}",
            published=shown,
            of=_OF,
        ),
    ]


CCA2 = Recipe(
    "cca2",
    "Signal and noise by mean CCA, SVCCA and PWCCA (Morcos, Raghu, Bengio 2018, figure 2)",
    {
        "quick": Options((20, 60, 100, 140, 180, 199), 5),
        "small": Options((*range(20, 200, 20), 199), 20),
        "paper": Options((*range(20, 200, 5), 199), 20),
    },
    sweeps,
    table,
    draw,
    claims,
    {
        "signal": "normal, with standard deviation 1 in each of the k shared directions, the same in both sets: its "
        "scale and distribution are unpublished (signal=)",
        "noise": "normal, 0.1 being taken for the standard deviation in each other direction, and not the variance "
        "(noise=); drawn for each set by itself, and none in the shared directions",
        "neurons": "a random rotation of signal and noise for each set, unpublished; it leaves mean CCA and SVCCA as "
        "they are, and gives every neuron a part in the signal (rotated=false makes each neuron one direction)",
        "which k": "published as 20 to 199; the steps between are unpublished (signals=)",
        "largely robust": "at most half of the rise of mean CCA (robust=)",
        "repeats": "unpublished; pairs of sets are independent of each other",
        "SVCCA": "keeps 0.99 of the variance (variance=): with this noise that leaves all of it out from about k = 100 "
        "on, and little of it where k is small",
        "PWCCA": "weighs by the first set's neurons. The k correlations of shared directions are all 1, and the "
        "definition leaves open which variates stand for them, on which its weights depend: two correct programs "
        "differ by up to 0.001 here",
        "band": "one standard deviation over repeats",
    },
)
