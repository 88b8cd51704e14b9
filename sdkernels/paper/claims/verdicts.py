"""What an interval decides."""

from sdkernels.paper.claims.claim import FAILS, HOLDS
from sdkernels.paper.claims.intervals import Interval


def on_side(interval: Interval, bound: float, sign: int, *, or_at: bool = False) -> tuple[str, str]:
    """Whether the interval lies wholly above (``sign`` 1) or below (-1) a bound, as verdict and words.

    Args:
        interval: what was found.
        bound: what it is held against.
        sign: the side that is claimed.
        or_at: an interval that ends at the bound is on the claimed side too.

    Example:
        >>> on_side(Interval(0.3, -0.1, 0.7), 0, 1)
        ('does not hold', 'undecided: the interval includes 0')
    """
    near, far = (interval.low, interval.high) if sign > 0 else (interval.high, interval.low)
    side, other = ("above", "below") if sign > 0 else ("below", "above")
    if (near - bound) * sign > 0 or (or_at and near == bound):
        return (
            HOLDS,
            f"the interval lies wholly {side} {bound:g}" if near != bound else f"the interval ends at {bound:g}",
        )
    if (far - bound) * sign < 0:
        return FAILS, f"the opposite is found: the interval lies wholly {other} {bound:g}"
    return FAILS, f"undecided: the interval includes {bound:g}"


def about_none(interval: Interval, margin: float) -> tuple[str, str]:
    """Whether a correlation's interval lies wholly within ``± margin``, as verdict and words.

    Example:
        >>> about_none(Interval(0.05, -0.1, 0.2), 0.3)
        ('holds', 'the interval lies wholly within ±0.3')
    """
    if -margin <= interval.low and interval.high <= margin:
        return HOLDS, f"the interval lies wholly within ±{margin:g}"
    if interval.low > 0 or interval.high < 0:
        return FAILS, f"related: the interval reaches beyond ±{margin:g} and excludes 0"
    return FAILS, f"undecided: the interval includes 0 and reaches beyond ±{margin:g}"


def beside_published(interval: Interval, published_value: float | None) -> str:
    """Whether a published number lies within our interval, as words that follow others; ``""`` without one."""
    if published_value is None:
        return ""
    place = "within" if interval.low <= published_value <= interval.high else "outside"
    return f"; the published {published_value:g} lies {place} our interval"


def published_text(published: str, published_value: float | None) -> str:
    """What stands as published: the words that are given, else the number."""
    return f"{published_value:g}" if not published and published_value is not None else published
