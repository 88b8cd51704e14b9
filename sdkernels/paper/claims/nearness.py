"""Claims about how near networks of a group are: that it goes by a number, and that groups are apart."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sdkernels.paper.claims.claim import Claim, untestable
from sdkernels.paper.claims.correlations import LARGEST_RHO
from sdkernels.paper.claims.grouped import Groups
from sdkernels.paper.claims.intervals import RESAMPLES, Interval, Numbers, numbers, rank_interval
from sdkernels.paper.claims.pairs import jackknife
from sdkernels.paper.claims.verdicts import beside_published, on_side, published_text

Array = NDArray[np.float64]


def trend(
    distances: Sequence[Array], across: Numbers, *, sign: int, claim: str, published: str = "", of: str = "networks"
) -> Claim:
    """That the mean distance of a group's networks rises (``sign`` 1) or falls (-1): slope of a line through the means.

    Args:
        distances: of each of G groups ``[n_g, n_g]``, symmetric; the diagonal is not read.
        across: ``[G]``, where each group stands.
        sign: 1 or -1.
        claim, published, of: as in :func:`~sdkernels.paper.claims.comparisons.greater`.

    Returns:
        The claim with the jackknife's interval; not testable with one group, or fewer than three networks in one.

    Example:
        >>> near, far = (np.array([[0, a, b], [a, 0, c], [b, c, 0]]) for a, b, c in ((4, 5, 5), (7, 8, 8)))
        >>> trend([far, near], [0, 1], sign=-1, claim="It falls.").ours
        '-3.00'
    """
    at, sizes = numbers(across, claim), [len(one) for one in distances]
    if len(sizes) != len(at):
        raise ValueError(f"{claim!r}: distances of {len(sizes)} groups, and {len(at)} places; give one for each")
    if len(sizes) < 2 or min(sizes) < 3 or np.ptp(at) == 0:
        return untestable(claim, f"a slope takes two groups of three {of} at least, here groups of {sizes}", published)
    members = _members(sizes)

    def slope(there: Sequence[int]) -> float:
        means = [mean_of_pairs(own) for own in _parts(distances, members, there)]
        return float(np.polyfit(at, means, 1)[0])

    interval = jackknife(slope, members)
    verdict, words = on_side(interval, 0, sign)
    reason = f"jackknife over {sum(sizes)} {of} in {len(sizes)} groups, each left out with all its pairs; {words}"
    return Claim.found(claim, published, *interval, verdict, reason)


def goes_with_nearness(
    distances: Sequence[Array],
    values: Sequence[Numbers],
    *,
    sign: int,
    claim: str,
    published: str = "",
    published_value: float | None = None,
    of: str = "networks",
) -> Claim:
    """That a number rises (``sign`` 1) or falls (-1) with a network's mean distance from the others of its group.

    Mean distances share pairs, which an interval that takes networks for independent counts as evidence: with five
    groups of five and no relation, 12 % to 24 % of Bonett and Wright's intervals exclude 0 in simulations, and of
    those that the jackknife over networks gives of Fisher's z, 2 % to 10 %. The jackknife's in turn has no width where
    leaving out a network changes no ranks, so that the hull of both is taken.

    Args:
        distances: of each of G groups ``[n_g, n_g]``, as for :func:`trend`.
        values: of each, ``[n_g]``, one number a network.
        sign, claim, published, published_value, of: as in :func:`~sdkernels.paper.claims.correlations.correlated`.

    Returns:
        The claim: Spearman's rho over all networks, with this interval. Not testable with fewer than six networks,
        fewer than three in a group, or equal values.

    Example:
        >>> distances = [level + np.diag([0.01, 0.02], 1) + np.diag([0.01, 0.02], -1) for level in (0.5, 0.4)]
        >>> found = goes_with_nearness(distances, [[1, 2, 3], [4, 5, 6]], sign=-1, claim="It falls with distance.")
        >>> found.ours, found.verdict
        ('-0.66', 'does not hold')
    """
    published = published_text(published, published_value)
    sizes = [len(one) for one in distances]
    given = [numbers(one, claim) for one in values]
    if sizes != [len(one) for one in given]:
        raise ValueError(f"{claim!r}: groups of {sizes} {of} and {[len(one) for one in given]} numbers; give one each")
    own = np.concatenate(given) if given else np.empty(0)
    if len(own) < 6 or min(sizes) < 3 or np.ptp(own) == 0:
        why_not = f"takes six {of} with different numbers at least, three in a group, here groups of {sizes}"
        return untestable(claim, f"a correlation with mean distances {why_not}", published)
    members = _members(sizes)

    def z(there: Sequence[int]) -> float:
        means = np.concatenate([from_others(one) for one in _parts(distances, members, there)])
        rho = float(stats.spearmanr(means, own[np.sort(there)]).statistic)
        return float(np.arctanh(np.clip(rho, -LARGEST_RHO, LARGEST_RHO)))

    rho, *ends = np.tanh(jackknife(z, members)).tolist()
    plain = rank_interval(np.concatenate([from_others(one) for one in distances]), own)
    interval = Interval(rho, min(ends[0], plain.low), max(ends[1], plain.high))
    verdict, words = on_side(interval, 0, sign)
    reason = (
        f"Spearman's rho over {len(own)} {of}, each with its mean distance from the others of its group, the hull of "
        f"Bonett and Wright's interval and the jackknife's over {of}; {words}"
        f"{beside_published(interval, published_value)}"
    )
    return Claim.found(claim, published, *interval, verdict, reason)


def nearer_within(
    distance: Array, groups: Groups, *, claim: str, published: str = "", of: str = "networks", seed: int = 0
) -> Claim:
    """That networks of one group are nearer to each other than networks of two: difference of mean distances.

    Args:
        distance: ``[n, n]``, symmetric; the diagonal is not read.
        groups: ``[n]``, what each belongs to.
        seed: of the 9,999 shuffles of networks behind the p value, which is told and decides nothing.
        claim, published, of: as in :func:`~sdkernels.paper.claims.comparisons.greater`.

    Returns:
        The claim, ``ours`` being the mean between groups less that within, with the jackknife's interval; not testable
        with one group, a group of one network, or none of three.

    Example:
        >>> place = np.array([0.0, 0.1, 0.3, 1.0, 1.1, 1.4])
        >>> nearer_within(abs(place[:, None] - place), "aaabbb", claim="Groups are apart.").ours
        '0.80'
    """
    place = np.unique(np.asarray(list(groups)), return_inverse=True)[1]
    if distance.shape != (len(place), len(place)):
        raise ValueError(f"{claim!r}: distances {list(distance.shape)} and {len(place)} groups; give one a network")
    sizes = np.bincount(place)
    if len(sizes) < 2 or sizes.min() < 2 or sizes.max() < 3:
        why_not = f"groups of two {of} and one of three at least are needed, here {sizes.tolist()}"
        return untestable(claim, why_not, published)
    rows, columns = np.triu_indices(len(place), 1)
    pairs = distance[rows, columns]

    def difference(there: Sequence[int]) -> float:
        is_there = np.isin(rows, there) & np.isin(columns, there)
        same = place[rows] == place[columns]
        return float(pairs[is_there & ~same].mean() - pairs[is_there & same].mean())

    interval = jackknife(difference, [np.flatnonzero(place == group).tolist() for group in range(len(sizes))])
    # Of any shuffle as many pairs are within groups, so that their sum decides.
    same = place[rows] == place[columns]
    rng = np.random.default_rng(seed)
    sums = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        shuffled = rng.permutation(place)
        sums[draw] = pairs[shuffled[rows] == shuffled[columns]].sum()
    within = float(pairs[same].sum())
    p = (int((sums <= within * (1 + 1e-12)).sum()) + 1) / (RESAMPLES + 1)
    verdict, words = on_side(interval, 0, 1)
    reason = (
        f"mean distance of {of} of two groups ({pairs[~same].mean():.3f}) less that of one ({pairs[same].mean():.3f}), "
        f"jackknife over {len(place)} {of}; permutation of {of} p = {p:.2g}; {words}"
    )
    return Claim.found(claim, published, *interval, verdict, reason)


def mean_of_pairs(distance: Array) -> float:
    """The mean of a symmetric ``[n, n]`` beside its diagonal; nan of a single network.

    Example:
        >>> mean_of_pairs(np.array([[0.0, 2.0, 4.0], [2.0, 0.0, 6.0], [4.0, 6.0, 0.0]]))
        4.0
    """
    pairs = distance[np.triu_indices(len(distance), 1)]
    return float(pairs.mean()) if len(pairs) else float("nan")


def from_others(distance: Array) -> Array:
    """Each network's mean distance from the others ``[n]``, of a symmetric ``[n, n]``.

    Example:
        >>> from_others(np.array([[0.0, 2.0, 4.0], [2.0, 0.0, 6.0], [4.0, 6.0, 0.0]])).tolist()
        [3.0, 4.0, 5.0]
    """
    found: Array = (distance.sum(axis=1) - distance.diagonal()) / (len(distance) - 1)
    return found


def _members(sizes: Sequence[int]) -> list[range]:
    """The networks of each group, all numbered one after the other."""
    ends = np.cumsum(sizes).tolist()
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _parts(distances: Sequence[Array], members: Sequence[range], there: Sequence[int]) -> list[Array]:
    """Each group's distances among those that are there."""
    found = []
    for distance, own in zip(distances, members, strict=True):
        at = [network - own.start for network in sorted(there) if network in own]
        found.append(distance[np.ix_(at, at)])
    return found
