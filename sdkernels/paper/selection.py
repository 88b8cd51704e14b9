"""How good a setting is that was selected by a score instead of by what it is to be good at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdkernels.paper.claims.intervals import Numbers, numbers


@dataclass(frozen=True)
class Selection:
    """What was selected from random subsets.

    Attributes:
        size: settings in each of the D subsets.
        ranks: int64 ``[D]``, of the selected setting by outcome among its subset; 1 is the best.
        gaps: float64 ``[D]``, the best outcome of the subset less that of the selected setting.
        random_gaps: float64 ``[D]``, the best outcome less the mean one: what a setting picked at random lies behind.
    """

    size: int
    ranks: NDArray[np.int64]
    gaps: NDArray[np.float64]
    random_gaps: NDArray[np.float64]

    def top(self, k: int) -> float:
        """The share of subsets whose selected setting is among their k best."""
        return float(np.mean(self.ranks <= k))

    def chance(self, k: int) -> float:
        """The same for a setting that is picked at random."""
        return min(k / self.size, 1.0)


def select(scores: Numbers, outcomes: Numbers, *, size: int, draws: int = 1000, seed: int = 0) -> Selection:
    r"""Select the setting with the largest score from random subsets of settings, and see how good it is.

    For a subset :math:`S` drawn without replacement, with :math:`c = \arg\max_{i \in S} s_i`, the rank is
    :math:`1 + |\{i \in S : o_i > o_c\}|` and the gap :math:`\max_{i \in S} o_i - o_c`. Of equal scores the one that was
    drawn first is selected; equal outcomes share the better rank.

    Args:
        scores: ``[n]``, by which is selected: larger is better.
        outcomes: ``[n]``, of the same settings: larger is better.
        size: settings in a subset, 1 to n.
        draws: D, how many subsets.
        seed: of the draws.

    Raises:
        ValueError: numbers that do not match or are not finite, ``size`` out of range, or no draws.

    Source:
        Morcos et al. 2018, "On the importance of single directions for generalization", section 3.2.

    Example:
        >>> found = select([0.3, 0.5, 0.1, 0.4], [0.70, 0.80, 0.60, 0.85], size=2)
        >>> found.top(1) > found.chance(1), found.top(2), round(float(found.gaps.max()), 2)
        (True, 1.0, 0.05)
    """
    score, outcome = numbers(scores, "scores"), numbers(outcomes, "outcomes")
    if len(score) != len(outcome):
        raise ValueError(f"{len(score)} scores against {len(outcome)} outcomes; give both for each setting")
    if not 1 <= size <= len(score) or draws < 1:
        raise ValueError(f"size={size}, draws={draws}: give 1 <= size <= {len(score)} settings, and one draw at least")
    rng = np.random.default_rng(seed)
    subsets = rng.permuted(np.tile(np.arange(len(score)), (draws, 1)), axis=1)[:, :size]  # [D, size]
    selected = subsets[np.arange(draws), score[subsets].argmax(axis=1)]
    beside = outcome[subsets] - outcome[selected][:, None]
    best = beside.max(axis=1)
    return Selection(size, 1 + (beside > 0).sum(axis=1), best, best - beside.mean(axis=1))


def selection_intervals(
    scores: Numbers,
    outcomes: Numbers,
    *,
    size: int,
    tops: Sequence[int],
    draws: int = 1000,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """95 % intervals of ``top(k)`` for each k, and of the mean gap: percentiles of a bootstrap over settings.

    Subsets are of one population of settings, so that their number says nothing of how sure the shares are. A setting
    that is drawn twice is its own equal, and shares its rank. Simulated with normal scores that correlate with outcomes
    by 0.91, intervals of top 1, top 5 and the gap hold their means in 98, 95 and 90 % of 60 sets of 96 settings, and in
    100, 78 and 97 % of sets of 24.

    Args:
        scores, outcomes, size, seed: as in :func:`select`.
        tops: each k.
        draws: subsets of each resample.
        resamples: of the settings, with replacement.

    Example:
        >>> scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
        >>> selection_intervals(scores, scores, size=3, tops=[1])
        ([(1.0, 1.0)], (0.0, 0.0))
    """
    score, outcome = numbers(scores, "scores"), numbers(outcomes, "outcomes")
    rng = np.random.default_rng([seed, 1])
    rows = []
    for _ in range(resamples):
        own = rng.integers(len(score), size=len(score))
        found = select(score[own], outcome[own], size=size, draws=draws, seed=int(rng.integers(2**31)))
        rows.append([*(found.top(k) for k in tops), float(found.gaps.mean())])
    low, high = np.percentile(np.array(rows), [2.5, 97.5], axis=0)
    ends = list(zip(low.tolist(), high.tolist(), strict=True))
    return ends[:-1], ends[-1]
