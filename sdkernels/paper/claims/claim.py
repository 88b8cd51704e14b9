"""A published claim held against our numbers, and many of them as a table."""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import floor, isfinite, log10
from typing import Any

HOLDS = "holds"
FAILS = "does not hold"
UNTESTABLE = "not testable at this preset"
VERDICTS = (HOLDS, FAILS, UNTESTABLE)

_COLUMNS = ("claim", "published", "ours (95 % interval)", "verdict", "how")
_IN_TERMINALS = {UNTESTABLE: "not testable"}
_MARGIN = len(FAILS) + 2


@dataclass(frozen=True)
class Claim:
    """What a paper says, what we found, and whether the one holds by the other.

    Attributes:
        claim: what the paper says, in one sentence.
        published: its number, ``""`` if it gives none.
        ours: our number as it is to be read; ``""`` if the claim is not testable.
        low, high: its 95 % interval; None if there is none.
        verdict: ``HOLDS``, ``FAILS`` or ``UNTESTABLE``.
        reason: the test, on how many of what, and what decided; or why nothing could be tested.

    Raises:
        ValueError: the verdict is none of the three.

    Example:
        >>> claim = Claim.found("Accuracy falls.", "-0.7", -0.61, -0.82, -0.25, HOLDS, "12 networks")
        >>> claim.ours, claim.interval, claim.record()["low"]
        ('-0.61', '-0.82 to -0.25', -0.82)
    """

    claim: str
    published: str
    ours: str
    low: float | None
    high: float | None
    verdict: str
    reason: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.claim!r} has the verdict {self.verdict!r}; give one of {', '.join(VERDICTS)}")

    @classmethod
    def found(
        cls, claim: str, published: str, value: float, low: float, high: float, verdict: str, reason: str
    ) -> "Claim":
        """A claim with our number, written with as many decimals as its interval justifies."""
        return cls(claim, published, _written(value, low, high), low, high, verdict, reason)

    @property
    def interval(self) -> str:
        """``"-0.82 to -0.25"``, with the decimals of ``ours``; ``""`` if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{_written(self.low, self.low, self.high)} to {_written(self.high, self.low, self.high)}"

    @property
    def found_text(self) -> str:
        """``"-0.61 (-0.82 to -0.25)"``, or as much of it as there is."""
        return f"{self.ours} ({self.interval})" if self.interval else self.ours

    def record(self) -> dict[str, Any]:
        """The fields for JSON; a bound that is not finite is None."""
        fields = asdict(self)
        for name in ("low", "high"):
            bound = fields[name]
            fields[name] = float(bound) if bound is not None and isfinite(bound) else None
        return fields


def untestable(claim: str, reason: str, published: str = "") -> Claim:
    """A claim that this run cannot decide, and why.

    Example:
        >>> untestable("ResNet-50 does so too.", "needs ImageNet").verdict
        'not testable at this preset'
    """
    return Claim(claim, published, "", None, None, UNTESTABLE, reason)


def claims_table(claims: Iterable[Claim]) -> str:
    """The claims as a table of GitHub's Markdown, one row each.

    Example:
        >>> print(claims_table([Claim.found("A > B", "", 0.2, 0.125, 0.275, HOLDS, "t test")]))
        | claim | published | ours (95 % interval) | verdict | how |
        |---|---|---|---|---|
        | A > B |  | 0.20 (0.12 to 0.28) | holds | t test |
    """
    rows = [(c.claim, c.published, c.found_text, c.verdict, c.reason) for c in claims]
    return "\n".join(
        [
            f"| {' | '.join(_COLUMNS)} |",
            "|" + "---|" * len(_COLUMNS),
            *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
        ]
    )


def claims_text(claims: Iterable[Claim], width: int = 100) -> str:
    """The claims for a terminal: verdict and claim, below it the numbers, below them how it was tested.

    Args:
        claims: what to write, in this order.
        width: the longest line, in characters, unless a single word is longer.

    Example:
        >>> print(claims_text([Claim.found("A > B", "twice", 0.2, 0.125, 0.275, HOLDS, "t test")]))
        holds          A > B
                       0.20 (0.12 to 0.28), published: twice
                       t test
    """
    lines = []
    for claim in claims:
        numbers = ", ".join(
            part for part in (claim.found_text, claim.published and f"published: {claim.published}") if part
        )
        first = f"{_IN_TERMINALS.get(claim.verdict, claim.verdict):<{_MARGIN}}"
        for text in filter(None, (claim.claim, numbers, claim.reason)):
            lines += textwrap.wrap(
                text,
                max(width, _MARGIN + 1),
                initial_indent=first,
                subsequent_indent=" " * _MARGIN,
                break_long_words=False,
                break_on_hyphens=False,
            )
            first = " " * _MARGIN
    return "\n".join(lines)


def _written(value: float, low: float, high: float) -> str:
    """A number to the second figure of its interval's width; small numbers to two decimals at least."""
    width = high - low
    if not isfinite(width) or width < 1e-6:
        return f"{value:.4g}"
    decimals = 1 - floor(log10(width))
    least = 2 if max(abs(low), abs(high)) < 10 else 0
    text = f"{value:.{min(max(decimals, least), 6)}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def markdown(text: str) -> str:
    """Text in Markdown: on one line, and with no HTML in it.

    Example:
        >>> markdown("p < 0.05 in <script>")
        'p < 0.05 in \\\\<script>'
    """
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", " ".join(text.split()))


def _cell(text: str) -> str:
    """Text in a Markdown table: its pipes no borders."""
    return markdown(text).replace("|", r"\|")
