"""Whether numbers fall into discrete regimes, and which: mixtures of normal distributions on a line."""

from dataclasses import dataclass
from math import log, pi

import numpy as np
from numpy.typing import NDArray

from sdkernels.paper.claims.intervals import Numbers, numbers

Array = NDArray[np.float64]

ROUNDS = 100  # of expectation and maximisation
LEAST_VARIANCE = 1e-4  # of a regime, as a share of all variance: ties do not make a regime of their own
DRAWN = 99  # sets of numbers without regimes, of each of two shapes


@dataclass(frozen=True)
class Regimes:
    """What numbers look like as a mixture of normal distributions that share their variance.

    Attributes:
        labels: int64 ``[n]``, the regime of each number; 0 holds the smallest.
        borders: between neighbouring regimes, half-way between the numbers on either side.
        count: how many regimes the Bayesian information criterion (BIC) prefers.
        gain: by how much the BIC of the best mixture of two or more is below that of one normal distribution.
        p: how often numbers without regimes gain as much: the larger share of those drawn from one normal and from
            one uniform distribution.
    """

    labels: NDArray[np.int64]
    borders: tuple[float, ...]
    count: int
    gain: float
    p: float


def find_regimes(values: Numbers, *, count: int = 2, most: int = 4, seed: int = 0) -> Regimes:
    r"""Split numbers into regimes, and see whether there are any.

    For k components, with :math:`L_k` the likelihood that expectation and maximisation find,

    .. math:: \mathrm{BIC}_k = 2 k \log n - 2 \log L_k

    (k means, k - 1 weights, one variance).

    Args:
        values: ``[n]``, more than ``most`` of them.
        count: into how many regimes to split, whatever BIC prefers.
        most: so many components are tried at most.
        seed: of the numbers without regimes that ``p`` is found by.

    Raises:
        ValueError: too few numbers, all of them equal, or one that is not finite.

    Source:
        Schwarz 1978, Estimating the dimension of a model; McLachlan 1987, On bootstrapping the likelihood ratio test
        statistic for the number of components in a normal mixture.

    Example:
        >>> found = find_regimes([0.1, 0.11, 0.12, 0.13, 0.5, 0.51, 0.53, 0.54])
        >>> found.labels.tolist(), [round(border, 3) for border in found.borders], found.p
        ([0, 0, 0, 0, 1, 1, 1, 1], [0.315], 0.01)
    """
    given = numbers(values, "regimes")
    if not 2 <= count <= most:
        raise ValueError(f"count={count} and most={most}: give 2 <= count <= most")
    if len(given) <= most or np.ptp(given) == 0:
        raise ValueError(f"{len(given)} numbers from {given.min(initial=1):g} to {given.max(initial=1):g} have no "
                         f"regimes to find: give more than {most}, not all of them equal")  # fmt: skip
    criteria = np.stack([_mixture(given[None], k)[0] for k in range(1, most + 1)])[:, 0]
    labels, borders = _split(given, count)
    gain = float(criteria[0] - criteria[1:].min())
    rng = np.random.default_rng(seed)
    shape = (DRAWN, len(given))
    chances = [np.mean(_gain(drawn, most) >= gain) for drawn in (rng.normal(size=shape), rng.random(shape))]
    p = (round(float(max(chances)) * DRAWN) + 1) / (DRAWN + 1)
    return Regimes(labels, borders, int(criteria.argmin()) + 1, gain, p)


def _split(values: Array, count: int) -> tuple[NDArray[np.int64], tuple[float, ...]]:
    """The regime of each number, and the borders between those that have any."""
    _, shares = _mixture(values[None], count)
    found = shares[0].argmax(axis=1)
    labels = np.unique(found, return_inverse=True)[1].astype(np.int64)
    borders = [
        float(values[labels == low].max() + values[labels == low + 1].min()) / 2 for low in range(int(labels.max()))
    ]
    return labels, tuple(borders)


def _gain(values: Array, most: int) -> Array:
    criteria = np.stack([_mixture(values, k)[0] for k in range(1, most + 1)])
    gained: Array = criteria[0] - criteria[1:].min(axis=0)
    return gained


def _mixture(values: Array, k: int) -> tuple[Array, Array]:
    """BIC ``[S]`` of k components on each of S sets of numbers ``[S, n]``, and who belongs where ``[S, n, k]``.

    The best of three starts: means at quantiles, evenly spaced over the range, and of what the k - 1 widest gaps part.
    """
    n = values.shape[1]
    spread = values.std(axis=1, keepdims=True)
    scaled = np.sort((values - values.mean(axis=1, keepdims=True)) / spread, axis=1)
    places = (np.arange(k) + 0.5) / k
    low, high = scaled[:, :1], scaled[:, -1:]
    starts = [np.quantile(scaled, places, axis=1).T, low + (high - low) * places, _between_gaps(scaled, k)]
    fitted = [_fit(scaled, means) for means in starts]
    likelihoods = np.stack([likelihood for likelihood, _ in fitted])
    best = likelihoods.argmax(axis=0)
    each = np.arange(len(values))
    shares = np.stack([own for _, own in fitted])[best, each]
    in_place = np.empty_like(shares)
    np.put_along_axis(in_place, values.argsort(axis=1)[:, :, None], shares, axis=1)
    likelihood = likelihoods[best, each] - n * np.log(spread[:, 0])
    return 2 * k * log(n) - 2 * likelihood, in_place


def _between_gaps(values: Array, k: int) -> Array:
    """Means ``[S, k]`` of the parts of sorted numbers ``[S, n]`` that the k - 1 widest gaps leave."""
    gaps = np.diff(values, axis=1)
    is_cut = gaps.argsort(axis=1).argsort(axis=1) >= gaps.shape[1] - (k - 1)
    part = np.concatenate([np.zeros((len(values), 1), int), is_cut.cumsum(axis=1)], axis=1)
    own = part[:, :, None] == np.arange(k)
    means: Array = (own * values[:, :, None]).sum(axis=1) / own.sum(axis=1)
    return means


def _fit(values: Array, means: Array) -> tuple[Array, Array]:
    """Log-likelihoods ``[S]`` and shares ``[S, n, k]`` after expectation and maximisation from means ``[S, k]``."""
    n, k = values.shape[1], means.shape[1]
    weights, variance = np.full_like(means, 1 / k), np.full(len(values), 1 / k**2)
    for _ in range(ROUNDS):
        _, shares = _expect(values, means, weights, variance)
        sizes = shares.sum(axis=1) + 1e-12
        means = np.einsum("snk,sn->sk", shares, values) / sizes
        squares = (values[:, :, None] - means[:, None]) ** 2
        variance = np.maximum((shares * squares).sum(axis=(1, 2)) / n, LEAST_VARIANCE)
        weights = sizes / n
    return _expect(values, means, weights, variance)


def _expect(values: Array, means: Array, weights: Array, variance: Array) -> tuple[Array, Array]:
    scale = variance[:, None, None]
    logs = np.log(weights)[:, None] - ((values[:, :, None] - means[:, None]) ** 2 / scale + np.log(2 * pi * scale)) / 2
    top = logs.max(axis=2, keepdims=True)
    parts = np.exp(logs - top)
    total = parts.sum(axis=2, keepdims=True)
    return (np.log(total) + top).sum(axis=(1, 2)), parts / total
