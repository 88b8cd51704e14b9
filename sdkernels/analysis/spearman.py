r"""Spearman's rank correlation, with average ranks, and its bootstrap interval.

Of n pairs with average ranks :math:`r, s` (equal values share the mean of the ranks they take up),

.. math:: \rho = \frac{\sum_i (r_i - \bar r)(s_i - \bar s)}
                      {\sqrt{\sum_i (r_i - \bar r)^2 \sum_i (s_i - \bar s)^2}},
    \qquad \bar r = \bar s = \frac{n + 1}{2}.

Twice a rank less its mean is an integer, so that up to some two million pairs all sums are exact.
"""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

# How many drawn pairs are ranked at once; each takes some 100 bytes.
DRAWN_AT_ONCE = 2**20


@dataclass(frozen=True)
class Spearman:
    """A rank correlation and its interval.

    Attributes:
        rho: -1..1; nan for fewer than two units, or where one side is the same for all.
        low, high: the bootstrap percentile interval; nan where rho is, or where no resamples were asked for.
        units: how many were ranked.
    """

    rho: float
    low: float
    high: float
    units: int


def spearman(
    x: NDArray[np.float64], y: NDArray[np.float64], *, resamples: int, confidence: float, seed: int
) -> Spearman:
    """The rank correlation of x and y ``[n]``, without nan, and the interval that ``resamples`` of the pairs give.

    Pairs are drawn with replacement and ranked anew; draws in which one side is constant have no correlation and are
    left out.
    """
    units = len(x)
    # Ranks depend on which values are equal and on their order alone, so pairs are drawn by the values' places.
    x_places, y_places = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    rho = float(_correlations(x_places[None], y_places[None])[0])
    if resamples == 0 or np.isnan(rho):
        return Spearman(rho, nan, nan, units)
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // units)
    found = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, units, size=(min(rows, resamples - start), units))
        found[start : start + rows] = _correlations(x_places[drawn], y_places[drawn])
    found = found[~np.isnan(found)]
    if not len(found):
        return Spearman(rho, nan, nan, units)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Spearman(rho, float(low), float(high), units)


def _correlations(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """By row of places ``[B, n]``, the rank correlation ``[B]``; nan where a row is constant."""
    x_ranks, y_ranks = _doubled_ranks(x), _doubled_ranks(y)
    product = (x_ranks * y_ranks).sum(1).astype(float)
    # Converted before they are multiplied: the product of two sums does not fit an integer.
    squares = (x_ranks * x_ranks).sum(1).astype(float) * (y_ranks * y_ranks).sum(1).astype(float)
    rho = np.full(len(x), nan)
    np.divide(product, np.sqrt(squares), out=rho, where=squares > 0)
    return rho


def _doubled_ranks(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """By row of places ``[B, n]``, twice each average rank less twice their mean: by counting, without a sort.

    After ``before`` smaller ones, m equals take up the ranks before + 1 .. before + m, whose mean is
    before + (m + 1) / 2.
    """
    rows, units = places.shape
    values = int(places.max(initial=-1)) + 1
    cells = places + values * np.arange(rows)[:, None]
    equals = np.bincount(cells.ravel(), minlength=rows * values).reshape(rows, values)
    before = equals.cumsum(1) - equals
    doubled: NDArray[np.int64] = (2 * before + equals - units).ravel()[cells]
    return doubled
