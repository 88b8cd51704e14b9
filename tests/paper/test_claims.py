"""A claim, its number as it is written, its record, and tables of claims."""

import json
from math import inf, nan
from pathlib import Path

import pytest

from sdkernels.paper import claims
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE, Claim, claims_table, claims_text, untestable

HELD = Claim.found("More labels, less area", "-0.7", -0.93, -0.98, -0.75, HOLDS, "Spearman's rho over 12 networks")
MISSED = Claim.found("A | B\nor C", "", 0.05, -0.1, 0.2, FAILS, "undecided")


@pytest.mark.parametrize(
    ("value", "low", "high", "ours", "interval"),
    [
        (-0.6123, -0.82, -0.25, "-0.61", "-0.82 to -0.25"),
        (0.98314, 0.97213, 0.99412, "0.983", "0.972 to 0.994"),
        (0.1, -0.9, 1.0, "0.10", "-0.90 to 1.00"),
        (120.4, 88.3, 152.5, "120", "88 to 152"),
        (12.34, 11.9, 12.8, "12.34", "11.90 to 12.80"),
        (-0.001, -0.4, 0.4, "0.00", "-0.40 to 0.40"),
        (1.0, 1.0, 1.0, "1", "1 to 1"),
        (3.2e-9, 3.1e-9, 3.3e-9, "3.2e-09", "3.1e-09 to 3.3e-09"),
        (0.00004, 0.00003, 0.00005, "0.000040", "0.000030 to 0.000050"),
    ],
)
def test_numbers_are_written_to_the_second_figure_of_the_interval(value, low, high, ours, interval):
    claim = Claim.found("c", "", value, low, high, HOLDS, "r")
    assert (claim.ours, claim.interval) == (ours, interval)
    assert (claim.low, claim.high) == (low, high)
    assert claim.found_text == f"{ours} ({interval})"


def test_a_record_is_json_without_nan_and_makes_the_claim_again():
    assert Claim(**json.loads(json.dumps(HELD.record(), allow_nan=False))) == HELD
    endless = Claim("c", "", "1", -inf, nan, FAILS, "r").record()
    assert endless == {**endless, "low": None, "high": None, "ours": "1"}
    none = untestable("c", "needs ImageNet", "0.5")
    assert none.record() == {
        "claim": "c",
        "published": "0.5",
        "ours": "",
        "low": None,
        "high": None,
        "verdict": "not testable at this preset",
        "reason": "needs ImageNet",
    }
    assert (none.interval, none.found_text) == ("", "")


def test_a_verdict_is_one_of_three():
    with pytest.raises(ValueError, match="'c' has the verdict 'maybe'; give one of holds, does not hold, not testable"):
        Claim("c", "", "", None, None, "maybe", "")


def test_the_table_has_a_row_a_claim_whatever_is_in_it():
    table = claims_table([HELD, MISSED, untestable("C", "why")])
    assert table.splitlines() == [
        "| claim | published | ours (95 % interval) | verdict | how |",
        "|---|---|---|---|---|",
        "| More labels, less area | -0.7 | -0.93 (-0.98 to -0.75) | holds | Spearman's rho over 12 networks |",
        r"| A \| B or C |  | 0.05 (-0.10 to 0.20) | does not hold | undecided |",
        "| C |  |  | not testable at this preset | why |",
    ]
    assert claims_table([]).count("\n") == 1


def test_the_text_puts_the_verdict_first():
    assert claims_text([HELD, MISSED, untestable("C", "why", "0.9")], 100).splitlines() == [
        "holds          More labels, less area",
        "               -0.93 (-0.98 to -0.75), published: -0.7",
        "               Spearman's rho over 12 networks",
        "does not hold  A | B or C",
        "               0.05 (-0.10 to 0.20)",
        "               undecided",
        "not testable   C",
        "               published: 0.9",
        "               why",
    ]
    assert claims_text([]) == ""


@pytest.mark.parametrize("width", [1, 40, 60, 100])
def test_the_text_keeps_to_its_width_and_loses_no_word(width):
    long = Claim.found("many words " * 20, "a-b " * 9, 0.5, 0.25, 0.75, FAILS, "for-and-against " * 12)
    text = claims_text([long], width)
    lines = text.splitlines()
    assert all(len(line) <= width or len(line.split()) == 1 or line.startswith(FAILS) for line in lines)
    assert all(line.startswith(" " * 15) and not line[15:].startswith(" ") for line in lines[1:])
    words = f"{FAILS} {long.claim} {long.found_text}, published: {long.published} {long.reason}".split()
    assert text.split() == words


def test_the_verdicts_are_as_documented_and_everything_is_exported():
    assert (HOLDS, FAILS, UNTESTABLE) == ("holds", "does not hold", "not testable at this preset")
    assert all(hasattr(claims, name) for name in claims.__all__)
    modules = {path.stem for path in Path(claims.__file__).parent.glob("*.py")}
    public = {name for name in vars(claims) if name.isidentifier() and not name.startswith("_")}  # pytest adds "@..."
    assert set(claims.__all__) == public - modules
