"""Claims about means and proportions: verdicts, reasons, edges, and wrong claims that must fail."""

from math import comb, sqrt

import numpy as np
import pandas as pd
import pytest
import torch

from sdkernels.paper.claims import (
    FAILS,
    HOLDS,
    UNTESTABLE,
    agrees,
    at_least,
    at_most,
    counted,
    greater,
    near,
    paired_greater,
)

HIGH, LOW = [0.81, 0.84, 0.83], [0.52, 0.47, 0.55]


@pytest.mark.parametrize("test", [greater, paired_greater])
def test_greater_holds_one_way_and_fails_the_other(test):
    held = test(HIGH, torch.tensor(LOW), claim="c", published="p", of="nets", names=("true", "random"))
    assert (held.claim, held.published, held.verdict) == ("c", "p", HOLDS)
    assert held.low > 0
    assert held.reason.endswith("nets (true 0.827, random 0.513); the interval lies wholly above 0")
    turned = test(pd.Series(LOW), np.array(HIGH), claim="c")
    assert turned.verdict == FAILS
    assert turned.reason.endswith("the opposite is found: the interval lies wholly below 0")
    assert (turned.low, turned.high) == pytest.approx((-held.high, -held.low))
    undecided = test([0.5, 0.9, 0.7], [0.6, 0.4, 0.8], claim="c")
    assert undecided.verdict == FAILS
    assert undecided.reason.endswith("undecided: the interval includes 0")
    assert undecided.low < 0 < undecided.high


def test_pairs_show_what_their_sides_do_not():
    first = [0.2, 0.5, 0.9, 0.4]
    second = [0.19, 0.48, 0.88, 0.39]
    assert paired_greater(first, second, claim="c").verdict == HOLDS
    assert greater(first, second, claim="c").verdict == FAILS


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([0.9], [0.5, 0.6], "here 1 and 2 (first 0.9, second 0.55)"),
        ([0.9, 0.8], [], "here 2 and 0 (first 0.85)"),
        ([], [], "here 0 and 0"),
    ],
)
def test_one_network_a_side_cannot_be_tested(first, second, words):
    found = greater(first, second, claim="c", published="p")
    assert (found.verdict, found.ours, found.low, found.high) == (UNTESTABLE, "", None, None)
    assert found.published == "p"
    assert found.reason == f"Welch's t interval over networks takes 2 a side at least, {words}"


def test_one_pair_cannot_be_tested():
    found = paired_greater([0.9], [0.5], claim="c")
    assert (found.verdict, found.ours) == (UNTESTABLE, "")
    assert found.reason.endswith("takes 2 at least, here 1 (first 0.9, second 0.5)")


@pytest.mark.parametrize("test", [greater, paired_greater])
@pytest.mark.parametrize(("first", "verdict"), [(0.1, FAILS), (0.3, HOLDS), (0.05, FAILS)])
def test_no_variance_at_all_is_decided(test, first, verdict):
    found = test([first] * 3, [0.1] * 3, claim="c")
    assert (found.verdict, found.low, found.high) == (verdict, first - 0.1, first - 0.1)
    assert ("includes 0" in found.reason) == (first == 0.1)


def test_bounds_are_reached_from_their_side_only():
    values = [0.95, 0.97, 0.96]
    assert at_least(values, 0.9, claim="c").verdict == HOLDS
    assert at_most(values, 0.9, claim="c").verdict == FAILS
    assert "the opposite is found: the interval lies wholly above 0.9" in at_most(values, 0.9, claim="c").reason
    assert at_most(values, 0.99, claim="c").verdict == HOLDS
    assert "the opposite is found: the interval lies wholly below 0.99" in at_least(values, 0.99, claim="c").reason
    for test in (at_least, at_most):
        found = test(values, 0.955, claim="c", published="p", of="orders")
        assert (found.verdict, found.published) == (FAILS, "p")
        assert found.reason == "t interval of the mean over 3 orders; undecided: the interval includes 0.955"
        assert test([0.1] * 3, 0.1, claim="c").verdict == HOLDS, "what is at the bound reaches it"
        assert test([0.1] * 3, 0.1, claim="c").reason.endswith("the interval ends at 0.1")
        one = test([0.5], 0.1, claim="c")
        assert one.verdict == UNTESTABLE
        assert one.reason == "a t interval over networks takes 2 at least, here 1 (0.5)"
    assert at_least([], 0.1, claim="c").reason.endswith("here 0")


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        ([1.0, 1.0, 1.0], HOLDS, "mean and interval lie within 1 ± 0.05"),
        ([0.99, 0.98, 0.985], HOLDS, "mean and interval lie within 1 ± 0.05"),
        ([0.97, 0.99], HOLDS, "the mean lies within 1 ± 0.05, the interval reaches beyond"),
        ([0.8, 1.0], FAILS, "undecided: the mean lies outside 1 ± 0.05, the interval reaches in"),
        ([1.1, 1.0, 1.1], FAILS, "undecided: the mean lies outside 1 ± 0.05, the interval reaches in"),
        ([0.8, 0.81, 0.8], FAILS, "mean and interval lie outside 1 ± 0.05"),
        ([1.2, 1.21, 1.2], FAILS, "mean and interval lie outside 1 ± 0.05"),
        ([0.9, 0.9], FAILS, "mean and interval lie outside 1 ± 0.05"),
    ],
)
def test_near_goes_by_the_mean_and_tells_of_the_interval(values, verdict, words):
    found = near(values, 1, 0.05, claim="c")
    assert found.verdict == verdict
    assert found.reason == f"t interval of the mean over {len(values)} networks; {words}"


def test_near_one_number_cannot_be_tested():
    assert near([1.0], 1, 0.05, claim="c").verdict == UNTESTABLE
    with pytest.raises(ValueError, match="'c': margin is 0; give a positive number"):
        near([1.0, 1.0], 1, 0, claim="c")


def wilson(k, n, z=1.959963985):
    middle = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    return middle - reach, middle + reach


@pytest.mark.parametrize(("k", "n"), [(83, 100), (1, 7), (5, 5), (0, 4)])
def test_counted_has_wilson_s_interval(k, n):
    found = counted(k, n, bound=0.5, claim="c")
    assert (found.low, found.high) == pytest.approx(wilson(k, n), abs=1e-8)
    assert found.reason.startswith(f"Wilson's interval, {k} of {n} trials; ")


def test_counted_by_bound_by_published_value_or_at_all():
    assert counted(90, 100, bound=0.8, claim="c").verdict == HOLDS
    assert counted(90, 100, bound=0.85, claim="c").verdict == FAILS
    assert "the opposite" in counted(90, 100, bound=0.97, claim="c").reason
    both = counted(90, 100, bound=0.8, published_value=0.98, claim="c")
    assert (both.verdict, both.published) == (HOLDS, "0.98")
    assert both.reason.endswith("lies wholly above 0.8; the published 0.98 lies outside our interval")
    assert counted(90, 100, published_value=0.87, claim="c", published="87 %").published == "87 %"
    assert counted(90, 100, published_value=0.87, claim="c").verdict == HOLDS
    assert counted(90, 100, published_value=0.98, claim="c").verdict == FAILS
    assert counted(90, 100, published_value=0.80, claim="c").verdict == FAILS
    assert counted(1, 5, claim="c").verdict == HOLDS
    assert counted(0, 5, claim="c").verdict == FAILS
    none = counted(0, 0, claim="c", of="subsets")
    assert (none.verdict, none.reason) == (UNTESTABLE, "there are no subsets")
    for k, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"'c': {k} successes in {n} trials"):
            counted(k, n, claim="c")


def test_wilson_intervals_cover_the_proportion():
    found = [counted(k, 40, bound=0, claim="c") for k in range(41)]
    shares = [
        sum(comb(40, k) * p**k * (1 - p) ** (40 - k) for k, one in enumerate(found) if one.low <= p <= one.high)
        for p in np.linspace(0.01, 0.99, 99)
    ]
    assert np.mean(shares) == pytest.approx(0.95, abs=0.01), "over all proportions; of a single one, it goes in steps"
    assert min(shares) > 0.85


def test_agrees_where_the_published_number_lies_within():
    values = [0.9, 0.92, 0.91, 0.93]
    found = agrees(values, 0.914, claim="c")
    assert (found.verdict, found.published) == (HOLDS, "0.914")
    assert found.reason == "t interval of the mean over 4 networks; the published 0.914 lies within our interval"
    for value in (0.89, 0.94):
        off = agrees(values, value, claim="c", published="p")
        assert (off.verdict, off.published) == (FAILS, "p")
        assert off.reason.endswith(f"the published {value} lies outside our interval")
    assert agrees([0.9], 0.9, claim="c").verdict == UNTESTABLE
    assert agrees([0.9, 0.9], 0.9, claim="c").verdict == HOLDS


@pytest.mark.parametrize("ours", [0.13, [0.13], torch.tensor(0.13, dtype=torch.float64)])
def test_agrees_by_an_interval_that_is_given(ours):
    found = agrees(ours, 0.2, interval=(0.1, 0.2), how="bootstrap", claim="c")
    assert (found.ours, found.low, found.high, found.verdict) == ("0.13", 0.1, 0.2, HOLDS)
    assert found.reason == "bootstrap; the published 0.2 lies within our interval"
    assert agrees(ours, 0.21, interval=(0.1, 0.2), claim="c").verdict == FAILS


@pytest.mark.parametrize("interval", [(0.2, 0.3), (0.0, 0.1), (float("nan"), 0.3), (0.0, float("inf"))])
def test_agrees_refuses_an_interval_of_something_else(interval):
    with pytest.raises(ValueError, match=r"'c': 0\.13 lies outside its interval"):
        agrees(0.13, 0.2, interval=interval, claim="c")


def test_agrees_wants_a_single_number_with_an_interval():
    with pytest.raises(ValueError, match=r"'c': an interval is given, and 2 numbers; give the one that it is of"):
        agrees([0.1, 0.2], 0.2, interval=(0.1, 0.2), claim="c")


BAD = [0.5, float("nan"), 0.7]


@pytest.mark.parametrize(
    "call",
    [
        lambda: greater(BAD, HIGH, claim="the claim"),
        lambda: greater(HIGH, BAD, claim="the claim"),
        lambda: paired_greater(BAD, HIGH, claim="the claim"),
        lambda: at_least(BAD, 1, claim="the claim"),
        lambda: at_most(BAD, 1, claim="the claim"),
        lambda: near(BAD, 1, 0.1, claim="the claim"),
        lambda: agrees(BAD, 1, claim="the claim"),
        lambda: agrees(float("nan"), 1, interval=(0, 1), claim="the claim"),
    ],
)
def test_what_is_not_finite_is_refused_by_name(call):
    with pytest.raises(ValueError, match=r"'the claim': numbers .* are not finite"):
        call()


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="'c': 3 numbers against 2; give both for each of networks"):
        paired_greater(HIGH, LOW[:2], claim="c")


def test_no_difference_holds_seldom():
    draw = np.random.default_rng(3)
    draws = draw.normal(0.7, 0.1, (400, 2, 5))
    found = [greater(first, second, claim="c").verdict for first, second in draws]
    assert found.count(HOLDS) <= 20, "2.5 % are expected, of 400"
