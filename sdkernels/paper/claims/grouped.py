"""Claims about groups: that they explain a number, and that clusters go by them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from sdkernels.paper.claims.claim import FAILS, HOLDS, Claim, untestable
from sdkernels.paper.claims.intervals import CONFIDENCE, RESAMPLES, Interval, Numbers, numbers
from sdkernels.paper.claims.verdicts import on_side
from sdkernels.paper.regimes import Regimes

LEAST = 0.05  # the largest p by which a claim holds

Groups = Sequence[Any] | NDArray[Any]


def explained(
    values: Numbers, groups: Groups, *, bound: float = 0.5, claim: str, published: str = "", of: str = "networks"
) -> Claim:
    r"""That most of a number's variance lies between groups: the interval of that share lies above a bound.

    .. math:: \epsilon^2 = 1 - \frac{\mathrm{SS}_{\text{within}} / (n - g)}{\mathrm{SS}_{\text{total}} / (n - 1)}

    with the interval of :math:`\lambda / (\lambda + n)` that inverting the noncentral F distribution gives.

    Args:
        values: ``[n]``, one number a network.
        groups: ``[n]``, what each belongs to.
        bound: what the share is to exceed.
        claim, published, of: as in :func:`~sdkernels.paper.claims.comparisons.greater`.

    Returns:
        The claim; not testable with fewer than two groups, no group of two, or values that do not vary within groups.

    Source:
        Kelley 1935, An unbiased correlation ratio measure; Steiger 2004, Beyond the F test (the interval).

    Example:
        >>> explained([0.1, 0.2, 0.15, 0.8, 0.9, 0.85], "aaabbb", claim="Groups matter.").found_text
        '0.98 (0.85 to 0.99)'
    """
    given = numbers(values, claim)
    place = _places(groups, len(given), claim)
    n, count = len(given), int(place.max(initial=-1)) + 1
    if count < 2 or n <= count:
        why_not = f"shares of variance take two groups and one of them with two {of}, here {count} of {n}"
        return untestable(claim, why_not, published)
    means = np.bincount(place, given) / np.bincount(place)
    within = float(((given - means[place]) ** 2).sum()) / (n - count)
    if within <= 1e-18 * float((given**2).mean()):
        return untestable(claim, f"the {of} of a group do not differ: shares of variance have no interval", published)
    between = float(((means[place] - given.mean()) ** 2).sum()) / (count - 1)
    share = max(0.0, 1 - within / float(given.var(ddof=1)))
    low, high = (_share_at(between / within, count - 1, n - count, p) for p in (_UPPER, 1 - _UPPER))
    interval = Interval(share, min(low, share), max(high, share))
    verdict, words = on_side(interval, bound, 1)
    how = f"share of variance between {count} groups of {n} {of} (epsilon squared, noncentral F interval)"
    return Claim.found(claim, published, *interval, verdict, f"{how}; {words}")


def matching(
    clusters: Groups, groups: Groups, *, claim: str, published: str = "", of: str = "networks", seed: int = 0
) -> Claim:
    r"""That clusters go by groups: more of a group stand in one and the same cluster than if groups were shuffled.

    .. math:: \frac{1}{n} \sum_g \max_c |\{i : g_i = g, c_i = c\}|

    is 1 where a group tells the cluster, also where several groups share one.

    Args:
        clusters, groups: ``[n]``, of the same networks.
        seed: of the 9,999 shuffles.
        claim, published, of: as in :func:`~sdkernels.paper.claims.comparisons.greater`.

    Returns:
        The claim, with Wilson's interval; it holds with p <= 0.05. Not testable with one cluster or one group.

    Raises:
        ValueError: clusters and groups differ in length.

    Example:
        >>> found = matching([0] * 6 + [1] * 6, "aaabbbcccddd", claim="Clusters are groups.")
        >>> found.ours, found.verdict
        ('1.00', 'holds')
    """
    group = _places(groups, len(groups), claim)
    cluster = _places(clusters, len(group), claim)
    n = len(group)
    if min(cluster.max(initial=0), group.max(initial=0)) == 0:
        return untestable(claim, f"all {n} {of} are in one cluster or one group", published)
    own = np.eye(group.max() + 1)[group]  # [n, G]
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(cluster, (RESAMPLES, 1)), axis=1)
    both = np.concatenate([cluster[None], shuffled])
    counts = np.stack([(both == c) @ own for c in range(cluster.max() + 1)])  # [C, 1 + S, G]
    together = counts.max(axis=0).sum(axis=1)
    found, by_chance = int(together[0]), together[1:]
    p = (int((by_chance >= found).sum()) + 1) / (RESAMPLES + 1)
    low, high = stats.binomtest(found, n).proportion_ci(CONFIDENCE, method="wilson")
    reason = (
        f"{found} of {n} {of} stand in the cluster where most of their group do, Wilson's interval; with shuffled "
        f"groups {by_chance.mean() / n:.2f}, permutation p = {p:.2g}"
    )
    return Claim.found(claim, published, found / n, float(low), float(high), HOLDS if p <= LEAST else FAILS, reason)


def agreeing(
    clusters: Groups,
    groups: Groups,
    *,
    least: float = 0.5,
    claim: str,
    published: str = "",
    of: str = "networks",
    seed: int = 0,
) -> Claim:
    r"""That clusters are groups, as far as pairs say: the adjusted Rand index is large, and larger than by chance.

    With :math:`n_{cg}` networks of group g in cluster c, and :math:`E` what the first sum is on average if groups are
    shuffled,

    .. math:: \Big(\sum_{cg} \binom{n_{cg}}{2} - E\Big) \Big/ \Big(\tfrac12 \sum_c \binom{n_c}{2}
        + \tfrac12 \sum_g \binom{n_g}{2} - E\Big), \qquad
        E = \sum_c \binom{n_c}{2} \sum_g \binom{n_g}{2} \Big/ \binom{n}{2}

    is 1 where both divide networks alike, and 0 on average where they have nothing to do with each other. Unlike
    :func:`matching`, it counts against clusters that they hold several groups.

    Args:
        clusters, groups: ``[n]``, of the same networks.
        least: what the index must reach.
        seed: of the 9,999 shuffles.
        claim, published, of: as in :func:`~sdkernels.paper.claims.comparisons.greater`.

    Returns:
        The claim, without an interval; it holds with p <= 0.05 and ``least`` reached. Not testable with one cluster or
        one group, or as many of either as networks.

    Raises:
        ValueError: clusters and groups differ in length.

    Source:
        Hubert and Arabie 1985, Comparing partitions.

    Example:
        >>> agreeing([0] * 6 + [1] * 6, "aaaaabbbbbbb", claim="Clusters are groups.").ours
        '0.66'
    """
    group = _places(groups, len(groups), claim)
    cluster = _places(clusters, len(group), claim)
    n = len(group)
    pairs_of = [_pairs(np.bincount(one)).sum() for one in (cluster, group)]
    if min(cluster.max(initial=0), group.max(initial=0)) == 0 or min(pairs_of) == 0:
        return untestable(claim, f"of {n} {of}, all or no two are in one cluster or one group", published)
    own = np.eye(group.max() + 1)[group]  # [n, G]
    rng = np.random.default_rng(seed)
    both = np.concatenate([cluster[None], rng.permuted(np.tile(cluster, (RESAMPLES, 1)), axis=1)])
    counts = np.stack([(both == c) @ own for c in range(cluster.max() + 1)])  # [C, 1 + S, G]
    expected = pairs_of[0] * pairs_of[1] / (n * (n - 1) / 2)
    index = (_pairs(counts).sum(axis=(0, 2)) - expected) / (sum(pairs_of) / 2 - expected)
    p = (int((index[1:] >= index[0] - 1e-12).sum()) + 1) / (RESAMPLES + 1)
    verdict = HOLDS if index[0] >= least and p <= LEAST else FAILS
    decided = f"it {'reaches' if index[0] >= least else 'is below'} {least:g}"
    reason = (
        f"adjusted Rand index of {cluster.max() + 1} clusters and {group.max() + 1} groups of {n} {of}: 1 if they are "
        f"the same, 0 by chance; permutation p = {p:.2g}; {decided}"
    )
    return Claim(claim, published, f"{index[0]:.2f}", None, None, verdict, reason)


def discrete(regimes: Regimes, *, claim: str, published: str = "", of: str = "networks") -> Claim:
    """That there are discrete regimes: BIC prefers several, and numbers without regimes seldom gain as much.

    Args:
        regimes: found on one number a network.
        claim, published, of: as in :func:`~sdkernels.paper.claims.comparisons.greater`.

    Returns:
        The claim, ``ours`` being how many regimes BIC prefers; it holds with two at least and p <= 0.05.

    Example:
        >>> from sdkernels.paper.regimes import find_regimes
        >>> discrete(find_regimes([0.1, 0.11, 0.12, 0.13, 0.5, 0.51, 0.53, 0.54]), claim="There are two.").ours
        '2'
    """
    verdict = HOLDS if regimes.count >= 2 and regimes.p <= LEAST else FAILS
    words = (
        f"mixtures of normal distributions of one variance, over {len(regimes.labels)} {of}: two or more lower BIC by "
        f"{regimes.gain:.1f}; numbers without regimes (normal or uniform) gain as much with p = {regimes.p:.2g}"
    )
    return Claim(claim, published, f"{regimes.count}", None, None, verdict, words)


_UPPER = (1 + CONFIDENCE) / 2


def _places(groups: Groups, count: int, claim: str) -> NDArray[np.int64]:
    """Groups as numbers from 0."""
    if len(groups) != count:
        raise ValueError(f"{claim!r}: {count} networks and {len(groups)} groups; give one for each")
    return np.unique(np.asarray(list(groups)), return_inverse=True)[1].astype(np.int64)


def _pairs(counts: NDArray[Any]) -> NDArray[Any]:
    """How many pairs so many make."""
    found: NDArray[Any] = counts * (counts - 1) / 2
    return found


def _share_at(ratio: float, above: int, below: int, p: float) -> float:
    """The share of variance between groups by which an F ratio is at or below the one found with probability p."""
    n = above + below + 1

    def excess(share: float) -> float:
        offset = n * share / (1 - share)
        if offset < 1e6:
            return float(stats.ncf.cdf(ratio, above, below, offset)) - p
        return float(stats.chi2.sf(below * offset / (above * ratio), below)) - p  # its limit; the former gives nan

    if stats.f.cdf(ratio, above, below) <= p:
        return 0.0
    top = ratio * above / (ratio * above + below)  # the plain share; the end lies below 1, however large
    while excess(top) > 0:
        top = (1 + top) / 2
    return float(brentq(excess, 1e-12, top))
