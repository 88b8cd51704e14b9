"""Claims that two numbers rise together, one falls as the other rises, or neither."""

from collections.abc import Sequence
from math import isfinite
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sdkernels.analysis.spearman import Spearman
from sdkernels.paper.claims.claim import Claim, untestable
from sdkernels.paper.claims.intervals import Interval, Numbers, mean_interval, numbers, permutation_p, rank_interval
from sdkernels.paper.claims.verdicts import about_none, beside_published, on_side, published_text

LARGEST_RHO = 0.999  # as which a rho of 1 enters a mean: Fisher's z of 1 is infinite


def correlated(
    x: Numbers,
    y: Numbers,
    *,
    sign: int,
    claim: str,
    published: str = "",
    published_value: float | None = None,
    of: str = "networks",
    seed: int = 0,
) -> Claim:
    """That y rises with x (``sign`` 1) or falls (-1): Spearman's rho lies, interval and all, on that side of 0.

    Args:
        x, y: ``[n]``, one number a network.
        sign: 1 or -1.
        claim: what the paper says.
        published: its number in its words; by default ``published_value``.
        published_value: its rho; the reason then says whether it lies within our interval.
        of: what there are n of.
        seed: of the permutations behind the p value, which is told and decides nothing.

    Returns:
        The claim; not testable with fewer than four pairs or where one side is constant.

    Raises:
        ValueError: x and y differ in length, hold a number that is not finite, or ``sign`` is neither 1 nor -1.

    Example:
        >>> found = correlated(range(8), [9, 7, 8, 6, 5, 3, 4, 1], sign=-1, claim="It falls.", published_value=-0.7)
        >>> found.found_text, found.verdict
        ('-0.95 (-0.99 to -0.66)', 'holds')
        >>> found.reason.split("; ")[1:]
        ['the interval lies wholly below 0', 'the published -0.7 lies within our interval']
    """
    _check_sign(sign, claim)
    published = published_text(published, published_value)
    left, right, why_not = _pairs(x, y, claim, of)
    if why_not:
        return untestable(claim, why_not, published)
    interval, how = _ranked(left, right, of, seed)
    verdict, words = on_side(interval, 0, sign)
    reason = f"{how}; {words}{beside_published(interval, published_value)}"
    return Claim.found(claim, published, *interval, verdict, reason)


def uncorrelated(
    x: Numbers,
    y: Numbers,
    *,
    margin: float = 0.3,
    claim: str,
    published: str = "",
    published_value: float | None = None,
    of: str = "networks",
    seed: int = 0,
) -> Claim:
    """That x and y have little to do with each other: the whole interval of Spearman's rho lies within ``± margin``.

    An interval that includes 0 does not suffice: with few networks, every one does. ``margin`` 0.3 takes 44 pairs at
    least. The arguments, but for ``margin``, are those of ``correlated``, and so are Returns and Raises.

    Example:
        >>> uncorrelated(range(6), [3, 1, 4, 2, 6, 5], claim="No relation.").verdict
        'does not hold'
    """
    _check_margin(margin, claim)
    published = published_text(published, published_value)
    left, right, why_not = _pairs(x, y, claim, of)
    if why_not:
        return untestable(claim, why_not, published)
    interval, how = _ranked(left, right, of, seed)
    verdict, words = about_none(interval, margin)
    reason = f"{how}; {words}{beside_published(interval, published_value)}"
    return Claim.found(claim, published, *interval, verdict, reason)


def pooled_correlation(
    rhos: Spearman | Sequence[Spearman] | Numbers,
    *,
    sign: int | None = None,
    margin: float | None = None,
    claim: str,
    published: str = "",
    published_value: float | None = None,
    of: str = "networks",
) -> Claim:
    r"""What correlations within each of several networks say together, or that of a single one by itself.

    Of several, :math:`\tanh` of the mean of Fisher's :math:`z = \operatorname{artanh} \rho`, with the t interval of
    that mean: over networks, not over units. Of a single ``Spearman``, its rho and its own interval, over its units.

    Args:
        rhos: a rho a network, as ``Spearman`` (``rank_correlation(...).pooled``) or as numbers ``[n]``; or the
            ``Spearman`` of the only network there is.
        sign: 1 or -1, where a relation is claimed.
        margin: where none is claimed: the whole interval is to lie within ``± margin``. Give one of the two.
        claim, published, published_value, of: as in ``correlated``.

    Returns:
        The claim; not testable with one plain number, without an interval, or where a ``Spearman`` has no rho.

    Raises:
        ValueError: both or neither of ``sign`` and ``margin``, or a number that is no correlation.

    Example:
        >>> pooled_correlation([-0.42, -0.51, -0.38, -0.47], sign=-1, claim="Selective units matter less.").found_text
        '-0.45 (-0.53 to -0.35)'
        >>> one = Spearman(rho=0.09, low=-0.08, high=0.27, units=128)
        >>> pooled_correlation(one, margin=0.3, claim="No relation.").reason
        "Spearman's rho over 128 units of a single network, bootstrap interval; the interval lies wholly within ±0.3"
    """
    if (sign is None) == (margin is None):
        raise ValueError(f"{claim!r}: give sign, where a relation is claimed, or margin, where none is")
    if sign is not None:
        _check_sign(sign, claim)
    if margin is not None:
        _check_margin(margin, claim)
    published = published_text(published, published_value)
    given = [rhos] if isinstance(rhos, Spearman) else rhos
    if isinstance(given, Sequence) and given and all(isinstance(one, Spearman) for one in given):
        found = cast(Sequence[Spearman], given)
        missing = sum(not isfinite(one.rho) for one in found)
        if missing:
            why_not = f"{missing} of {len(found)} {of} have no rho: fewer than two units, or all with equal scores"
            return untestable(claim, why_not, published)
        values = numbers([one.rho for one in found], claim)
        single = found[0] if len(found) == 1 else None
    else:
        values, single = numbers(cast(Numbers, given), claim), None
    if (abs(values) > 1).any():
        raise ValueError(f"{claim!r}: correlations lie in -1..1, and one is {values[abs(values) > 1][0]:g}")

    if single is not None:
        if not (isfinite(single.low) and isfinite(single.high)):
            return untestable(claim, f"a single network with rho {single.rho:.2f} and no interval", published)
        interval = Interval(single.rho, single.low, single.high)
        how = f"Spearman's rho over {single.units} units of a single network, bootstrap interval"
    elif len(values) < 2:
        return untestable(claim, f"a t interval over {of} takes 2 at least, here {len(values)}", published)
    else:
        interval = mean_rho(values)
        how = f"mean of Fisher's z of each rho, t interval over {len(values)} {of}"
    verdict, words = on_side(interval, 0, sign) if sign is not None else about_none(interval, cast(float, margin))
    reason = f"{how}; {words}{beside_published(interval, published_value)}"
    return Claim.found(claim, published, *interval, verdict, reason)


def mean_rho(rhos: NDArray[np.float64]) -> Interval:
    r"""The mean of two or more correlations ``[n]``: :math:`\tanh` of the mean of
    :math:`z = \operatorname{artanh} \rho`, and of the ends of its t interval.

    Example:
        >>> [round(end, 2) for end in mean_rho(np.array([-0.42, -0.51, -0.38, -0.47]))]
        [-0.45, -0.53, -0.35]
    """
    z = mean_interval(np.arctanh(np.clip(rhos, -LARGEST_RHO, LARGEST_RHO)))
    return Interval(*np.tanh(z).tolist())


def _pairs(x: Numbers, y: Numbers, claim: str, of: str) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Both sides ``[n]``, and why they have no correlation with an interval, or ``""``."""
    left, right = numbers(x, claim), numbers(y, claim)
    if len(left) != len(right):
        raise ValueError(f"{claim!r}: x has {len(left)} numbers and y {len(right)}; give one each for each of {of}")
    if len(left) < 4:
        return left, right, f"Spearman's rho and its interval over {of} take 4 at least, here {len(left)}"
    for name, values in (("x", left), ("y", right)):
        if np.ptp(values) == 0:
            return left, right, f"no rank correlation: {name} is {values[0]:g} for all {len(values)} {of}"
    return left, right, ""


def _ranked(x: NDArray[np.float64], y: NDArray[np.float64], of: str, seed: int) -> tuple[Interval, str]:
    p = permutation_p(x, y, seed)
    how = f"Spearman's rho over {len(x)} {of}, Bonett and Wright's interval, permutation p = {p:.2g}"
    return rank_interval(x, y), how


def _check_sign(sign: int, claim: str) -> None:
    if sign not in (-1, 1):
        raise ValueError(f"{claim!r}: sign is {sign!r}; give 1 (rises) or -1 (falls)")


def _check_margin(margin: float, claim: str) -> None:
    if not 0 < margin < 1:
        raise ValueError(f"{claim!r}: margin is {margin!r}; give a correlation between 0 and 1")
