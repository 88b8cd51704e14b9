"""Claims about means and proportions: that one is greater than another, or reaches, stays below or is near a number."""

from math import isfinite

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sdkernels.paper.claims.claim import FAILS, HOLDS, Claim, untestable
from sdkernels.paper.claims.intervals import (
    CONFIDENCE,
    Interval,
    Numbers,
    difference_interval,
    mean,
    mean_interval,
    numbers,
)
from sdkernels.paper.claims.verdicts import beside_published, on_side, published_text


def greater(
    first: Numbers,
    second: Numbers,
    *,
    claim: str,
    published: str = "",
    of: str = "networks",
    names: tuple[str, str] = ("first", "second"),
) -> Claim:
    """That one mean is greater than another: Welch's t interval of the difference lies above 0.

    Args:
        first: ``[n]``, one number a network, the mean over its orders; with one network a side, one an order, and
            ``of="orders of one network each"``.
        second: ``[m]``, those that are claimed to be smaller.
        claim: what the paper says.
        published: its number, if it gives one.
        of: what there are n and m of.
        names: what the two are, for the reason.

    Returns:
        The claim, ``ours`` being the difference; not testable with fewer than two numbers on a side.

    Raises:
        ValueError: a number is not finite, or a side is not ``[n]``.

    Example:
        >>> found = greater([0.81, 0.84, 0.83], [0.52, 0.47, 0.55], claim="True labels last.", names=("true", "random"))
        >>> found.found_text, found.verdict
        ('0.31 (0.23 to 0.40)', 'holds')
        >>> found.reason
        "Welch's t interval over 3 and 3 networks (true 0.827, random 0.513); the interval lies wholly above 0"
    """
    one, other = numbers(first, claim), numbers(second, claim)
    if min(len(one), len(other)) < 2:
        why_not = f"Welch's t interval over {of} takes 2 a side at least, here {len(one)} and {len(other)}"
        return untestable(claim, why_not + _means(names, one, other), published)
    interval = difference_interval(one, other)
    how = f"Welch's t interval over {len(one)} and {len(other)} {of}{_means(names, one, other)}"
    verdict, words = on_side(interval, 0, 1)
    return Claim.found(claim, published, *interval, verdict, f"{how}; {words}")


def paired_greater(
    first: Numbers,
    second: Numbers,
    *,
    claim: str,
    published: str = "",
    of: str = "networks",
    names: tuple[str, str] = ("first", "second"),
) -> Claim:
    """That one number is greater than another on the same networks: the t interval of the differences lies above 0.

    Args:
        first, second: ``[n]``, of the same n networks in the same order; the rest is as in ``greater``.

    Raises:
        ValueError: a number is not finite, or the sides differ in length.

    Example:
        >>> paired_greater([0.9, 0.7, 0.8], [0.8, 0.6, 0.68], claim="Zero is kinder than the mean.").found_text
        '0.107 (0.078 to 0.135)'
    """
    one, other = numbers(first, claim), numbers(second, claim)
    if len(one) != len(other):
        raise ValueError(f"{claim!r}: {len(one)} numbers against {len(other)}; give both for each of {of}")
    if len(one) < 2:
        why_not = f"a t interval of differences over {of} takes 2 at least, here {len(one)}"
        return untestable(claim, why_not + _means(names, one, other), published)
    interval = mean_interval(one - other)
    how = f"t interval of the differences within {len(one)} {of}{_means(names, one, other)}"
    verdict, words = on_side(interval, 0, 1)
    return Claim.found(claim, published, *interval, verdict, f"{how}; {words}")


def at_least(values: Numbers, bound: float, *, claim: str, published: str = "", of: str = "networks") -> Claim:
    """That a mean reaches a bound: its t interval lies at or above it.

    Args:
        values: ``[n]``, one number a network.
        bound: what is to be reached.
        claim, published, of: as in ``greater``.

    Returns:
        The claim; not testable with fewer than two numbers.

    Example:
        >>> at_least([1.0, 1.0, 1.0], 1, claim="They memorise every example.").verdict
        'holds'
    """
    return _bounded(values, bound, 1, claim, published, of)


def at_most(values: Numbers, bound: float, *, claim: str, published: str = "", of: str = "networks") -> Claim:
    """That a mean stays at or below a bound, as ``at_least`` has it.

    Example:
        >>> at_most([0.11, 0.09, 0.10], 0.15, claim="They end at chance.").found_text
        '0.100 (0.075 to 0.125)'
    """
    return _bounded(values, bound, -1, claim, published, of)


def near(
    values: Numbers, target: float, margin: float, *, claim: str, published: str = "", of: str = "networks"
) -> Claim:
    """That a mean is about a number: it lies within ``target ± margin``.

    The mean decides, since the interval of two accuracies of 0.97 and 0.99 goes from 0.85 to beyond 1; the reason says
    whether the whole interval lies within as well.

    Args:
        values: ``[n]``, one number a network.
        target, margin: what the mean is to be near to, and how near.
        claim, published, of: as in ``greater``.

    Returns:
        The claim; not testable with fewer than two numbers.

    Example:
        >>> near([0.97, 0.98, 0.99], 1, 0.05, claim="Curves start near 1.").reason
        't interval of the mean over 3 networks; mean and interval lie within 1 ± 0.05'
    """
    if not margin > 0:
        raise ValueError(f"{claim!r}: margin is {margin!r}; give a positive number")
    array = numbers(values, claim)
    if len(array) < 2:
        return _too_few(array, claim, published, of)
    interval = mean_interval(array)
    least, most = target - margin, target + margin
    place = f"{target:g} ± {margin:g}"
    if least <= interval.value <= most:
        verdict = HOLDS
        is_inside = least <= interval.low and interval.high <= most
        words = (
            f"mean and interval lie within {place}"
            if is_inside
            else (f"the mean lies within {place}, the interval reaches beyond")
        )
    else:
        verdict = FAILS
        is_apart = interval.high < least or interval.low > most
        words = (
            f"mean and interval lie outside {place}"
            if is_apart
            else (f"undecided: the mean lies outside {place}, the interval reaches in")
        )
    reason = f"t interval of the mean over {len(array)} {of}; {words}"
    return Claim.found(claim, published, *interval, verdict, reason)


def counted(
    successes: int,
    trials: int,
    *,
    bound: float | None = None,
    published_value: float | None = None,
    claim: str,
    published: str = "",
    of: str = "trials",
) -> Claim:
    """That something happens, as often as a bound says or as was published: by Wilson's interval of the proportion.

    Args:
        successes, trials: how many of how many; the trials are to be independent.
        bound: the interval is to lie at or above it.
        published_value: without a bound, the interval is to include it; with one, the reason says whether it does.
            With neither, the claim is that it happens at all, and one success shows that.
        claim, published: as in ``greater``; by default, ``published_value`` is what is published.
        of: what the trials are.

    Returns:
        The claim; not testable without trials.

    Raises:
        ValueError: more successes than trials, or fewer than none.

    Example:
        >>> found = counted(98, 100, published_value=0.95, claim="The best AUC finds a top-ten setting.", of="subsets")
        >>> found.found_text, found.verdict
        ('0.980 (0.930 to 0.994)', 'holds')
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{claim!r}: {successes} successes in {trials} trials; give 0 <= successes <= trials")
    published = published_text(published, published_value)
    if trials == 0:
        return untestable(claim, f"there are no {of}", published)
    low, high = stats.binomtest(int(successes), int(trials)).proportion_ci(CONFIDENCE, method="wilson")
    interval = Interval(successes / trials, float(low), float(high))
    how = f"Wilson's interval, {successes} of {trials} {of}"
    if bound is None and published_value is not None:
        return _agreeing(interval, published_value, how, claim, published)
    verdict, words = on_side(interval, bound or 0, 1, or_at=bound is not None)
    return Claim.found(
        claim, published, *interval, verdict, f"{how}; {words}{beside_published(interval, published_value)}"
    )


def agrees(
    ours: Numbers,
    published_value: float,
    *,
    interval: tuple[float, float] | None = None,
    how: str = "the interval as given",
    claim: str,
    published: str = "",
    of: str = "networks",
) -> Claim:
    """That our number is the published one: the published one lies within our interval.

    A wide interval agrees with much; read it along with the verdict.

    Args:
        ours: ``[n]``, one number a network, whose mean has a t interval; or a single number with its ``interval``.
        published_value: the number.
        interval: low and high, where ``ours`` is a single number.
        how: where that interval comes from, for the reason.
        claim, published, of: as in ``greater``; by default, ``published_value`` is what is published.

    Returns:
        The claim; not testable with fewer than two numbers and no interval.

    Raises:
        ValueError: a number is not finite, or ``interval`` does not hold ``ours``.

    Example:
        >>> agrees(-0.61, -0.728, interval=(-0.82, -0.25), claim="rho").reason
        'the interval as given; the published -0.728 lies within our interval'
    """
    published = published_text(published, published_value)
    if interval is not None:
        single = numbers(np.atleast_1d(ours), claim)
        if len(single) != 1:
            raise ValueError(f"{claim!r}: an interval is given, and {len(single)} numbers; give the one that it is of")
        value = float(single[0])
        low, high = interval
        if not (isfinite(low) and isfinite(high) and low <= value <= high):
            raise ValueError(f"{claim!r}: {value:g} lies outside its interval {low:g} to {high:g}")
        return _agreeing(Interval(value, float(low), float(high)), published_value, how, claim, published)
    array = numbers(ours, claim)
    if len(array) < 2:
        return _too_few(array, claim, published, of)
    how = f"t interval of the mean over {len(array)} {of}"
    return _agreeing(mean_interval(array), published_value, how, claim, published)


def _agreeing(interval: Interval, value: float, how: str, claim: str, published: str) -> Claim:
    verdict = HOLDS if interval.low <= value <= interval.high else FAILS
    return Claim.found(claim, published, *interval, verdict, how + beside_published(interval, value))


def _bounded(values: Numbers, bound: float, sign: int, claim: str, published: str, of: str) -> Claim:
    array = numbers(values, claim)
    if len(array) < 2:
        return _too_few(array, claim, published, of)
    interval = mean_interval(array)
    verdict, words = on_side(interval, bound, sign, or_at=True)
    return Claim.found(claim, published, *interval, verdict, f"t interval of the mean over {len(array)} {of}; {words}")


def _too_few(values: NDArray[np.float64], claim: str, published: str, of: str) -> Claim:
    found = f" ({mean(values):.3g})" if len(values) else ""
    return untestable(claim, f"a t interval over {of} takes 2 at least, here {len(values)}{found}", published)


def _means(names: tuple[str, str], first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
    """The two means in brackets, of those sides that have any numbers."""
    sides = [f"{name} {mean(values):.3g}" for name, values in zip(names, (first, second), strict=True) if len(values)]
    return f" ({', '.join(sides)})" if sides else ""
