"""Claims about pairs of networks, as distances are: intervals over networks, since pairs that share one go together."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sdkernels.paper.claims.claim import FAILS, HOLDS, Claim, untestable
from sdkernels.paper.claims.intervals import CONFIDENCE, Interval
from sdkernels.paper.claims.verdicts import on_side

Kind = tuple[Any, Any]  # pairs of a network of one group and another of the same, or of another one


class Contrast(NamedTuple):
    """A sum of mean distances of kinds of pairs, each times a number, and how far it can be told.

    Attributes:
        interval: the sum with its 95 % interval over networks; None where there are too few.
        how: how it was come by, with the means; or why it could not be.
    """

    interval: Interval | None
    how: str


def jackknife(statistic: Callable[[Sequence[int]], float], groups: Sequence[Sequence[int]]) -> Interval:
    r"""A statistic of networks, and its interval by leaving out one at a time.

    With T of all networks, :math:`T_{gi}` without network i of group g, and :math:`M_g` networks in that group,

    .. math:: T \pm t_\nu \sqrt{\textstyle\sum_g v_g}, \quad
        v_g = \frac{M_g - 1}{M_g} \sum_i (T_{gi} - \bar T_g)^2, \quad
        \nu = \Big(\sum_g v_g\Big)^2 \Big/ \sum_g \frac{v_g^2}{M_g - 1}

    For the mean of independent numbers this is Student's t interval, and for the difference of two such means Welch's.
    For a mean over pairs it knows that pairs which share a network vary together.

    Args:
        statistic: of the numbers of the networks that are there.
        groups: the networks' numbers, two or more in each.

    Source:
        Arvesen 1969, Jackknifing U-statistics.

    Example:
        >>> values = [1.0, 2.0, 3.0]
        >>> [round(end, 4) for end in jackknife(lambda there: sum(values[i] for i in there) / len(there), [range(3)])]
        [2.0, -0.4841, 4.4841]
    """
    everyone = [network for group in groups for network in group]
    value = statistic(everyone)
    parts = []
    for group in groups:
        without = np.array([statistic([other for other in everyone if other != network]) for network in group])
        parts.append((len(group) - 1) * float(without.var()))
    freedom = [len(group) - 1 for group in groups]
    total = sum(parts)
    if total <= 1e-30:
        return Interval(value, value, value)
    degrees = total**2 / sum(part**2 / own for part, own in zip(parts, freedom, strict=True))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * total**0.5
    return Interval(value, value - reach, value + reach)


def pair_contrast(distance: NDArray[np.float64], groups: Sequence[Any], kinds: Mapping[Kind, float]) -> Contrast:
    """A sum of mean distances over kinds of pairs, each times its number.

    Args:
        distance: ``[M, M]``, symmetric; the diagonal is not read.
        groups: ``[M]``, what each network belongs to.
        kinds: ``{("b", "b"): 1, ("a", "a"): -1}`` is how much further from one another networks of b are than those
            of a; ``("a", "b")`` are the pairs of one of each.

    Returns:
        The contrast; without an interval where leaving out a network leaves no pair of a kind.

    Example:
        >>> places = np.array([0.0, 0.1, 0.2, 1.0, 3.0, 5.0])
        >>> distance = abs(places[:, None] - places)
        >>> pair_contrast(distance, "aaabbb", {("b", "b"): 1, ("a", "a"): -1}).how
        'jackknife over 3 and 3 networks (b 2.67, a 0.133)'
    """
    members = {group: [place for place, own in enumerate(groups) if own == group] for kind in kinds for group in kind}
    for kind in kinds:
        least = 3 if kind[0] == kind[1] else 2
        if few := [group for group in kind if len(members[group]) < least]:
            counts = f"here there are {len(members[few[0]])} {few[0]}"
            return Contrast(None, f"an interval over networks takes {least} of a kind at least, {counts}")

    def mean(kind: Kind, there: Sequence[int]) -> float:
        first, second = ([place for place in members[group] if place in there] for group in kind)
        pairs = combinations(first, 2) if kind[0] == kind[1] else product(first, second)
        return float(np.mean([distance[pair] for pair in pairs]))

    everyone = range(len(groups))
    found = jackknife(
        lambda there: sum(times * mean(kind, there) for kind, times in kinds.items()), list(members.values())
    )
    means = ", ".join(
        f"{kind[0] if kind[0] == kind[1] else ' to '.join(map(str, kind))} {mean(kind, everyone):.3g}" for kind in kinds
    )
    counts = " and ".join(str(len(own)) for own in members.values())
    return Contrast(found, f"jackknife over {counts} networks ({means})")


def pairs_on_side(found: Contrast, bound: float, sign: int, *, claim: str, published: str = "") -> Claim:
    """That a contrast lies above a bound (``sign`` 1) or below it (-1), interval and all.

    Example:
        >>> found = Contrast(Interval(0.2, 0.1, 0.3), "jackknife")
        >>> pairs_on_side(found, 0, 1, claim="Memorising networks differ more.").verdict
        'holds'
    """
    if found.interval is None:
        return untestable(claim, found.how, published)
    verdict, words = on_side(found.interval, bound, sign)
    return Claim.found(claim, published, *found.interval, verdict, f"{found.how}; {words}")


def pairs_alike(found: Contrast, margin: float, *, claim: str, published: str = "") -> Claim:
    """That a contrast is about 0: its whole interval lies within ``± margin``.

    An interval that includes 0 does not suffice: with few networks, wide ones do.

    Example:
        >>> pairs_alike(Contrast(Interval(0.0, -0.2, 0.2), "jackknife"), 0.05, claim="They differ as much.").reason
        'jackknife; undecided: the interval reaches beyond ±0.05'
    """
    if found.interval is None:
        return untestable(claim, found.how, published)
    _, low, high = found.interval
    if -margin <= low and high <= margin:
        verdict, words = HOLDS, f"the interval lies wholly within ±{margin:g}"
    elif low > margin or high < -margin:
        verdict, words = FAILS, f"the interval lies wholly outside ±{margin:g}"
    else:
        verdict, words = FAILS, f"undecided: the interval reaches beyond ±{margin:g}"
    return Claim.found(claim, published, *found.interval, verdict, f"{found.how}; {words}")


def pairs_agree(found: Contrast, low: float, high: float, *, claim: str, published: str) -> Claim:
    """That a contrast is the published one: our interval and the published range have numbers in common.

    Example:
        >>> found = Contrast(Interval(0.40, 0.38, 0.42), "jackknife")
        >>> pairs_agree(found, 0.42, 0.45, claim="They are so far apart.", published="0.42 to 0.45").verdict
        'holds'
    """
    if found.interval is None:
        return untestable(claim, found.how, published)
    meets = found.interval.low <= high and low <= found.interval.high
    words = f"our interval {'meets' if meets else 'lies outside'} the published {published}"
    return Claim.found(claim, published, *found.interval, HOLDS if meets else FAILS, f"{found.how}; {words}")
