"""Claims about rank correlations: verdicts, reasons, edges, and wrong claims that must fail."""

from math import atanh, nan, sqrt, tanh

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import stdtrit

from sdkernels.analysis.spearman import Spearman
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE, correlated, pooled_correlation, uncorrelated

LEVELS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] * 2
AREAS = [0.8, 0.7, 0.72, 0.5, 0.4, 0.2, 0.82, 0.75, 0.6, 0.55, 0.3, 0.35]


def test_a_fall_is_a_fall_and_no_rise():
    found = correlated(torch.tensor(LEVELS), pd.Series(AREAS), sign=-1, claim="c", published="falls")
    assert (found.claim, found.published, found.verdict) == ("c", "falls", HOLDS)
    assert found.low < float(found.ours) < found.high < 0
    how, words = found.reason.split("; ")
    assert how.startswith("Spearman's rho over 12 networks, Bonett and Wright's interval, permutation p = 0.000")
    assert words == "the interval lies wholly below 0"
    wrong = correlated(LEVELS, AREAS, sign=1, claim="c")
    assert wrong.verdict == FAILS
    assert wrong.reason.endswith("the opposite is found: the interval lies wholly below 0")
    rise = correlated(LEVELS, [-area for area in AREAS], sign=1, claim="c")
    assert (rise.verdict, rise.low, rise.high) == (HOLDS, pytest.approx(-found.high), pytest.approx(-found.low))


def test_what_is_undecided_holds_neither_way():
    for sign in (-1, 1):
        found = correlated(range(6), [3, 1, 4, 2, 6, 5], sign=sign, claim="c", of="settings")
        assert found.verdict == FAILS
        assert "over 6 settings" in found.reason
        assert found.reason.endswith("undecided: the interval includes 0")


@pytest.mark.parametrize(("value", "place"), [(-0.9, "within"), (-0.5, "outside"), (-0.999, "outside")])
def test_a_published_value_is_told_and_decides_nothing(value, place):
    found = correlated(LEVELS, AREAS, sign=-1, claim="c", published_value=value)
    assert (found.verdict, found.published) == (HOLDS, f"{value:g}")
    assert found.reason.endswith(f"; the published {value:g} lies {place} our interval")
    assert correlated(LEVELS, AREAS, sign=-1, claim="c", published_value=value, published="p").published == "p"
    assert correlated([1], [2], sign=-1, claim="c", published_value=value).published == f"{value:g}"


@pytest.mark.parametrize(
    "test", [lambda x, y: correlated(x, y, sign=1, claim="c"), lambda x, y: uncorrelated(x, y, claim="c")]
)
def test_too_few_constant_unequal_or_no_numbers(test):
    for n in range(4):
        found = test(range(n), range(n))
        assert (found.verdict, found.ours) == (UNTESTABLE, "")
        assert found.reason == f"Spearman's rho and its interval over networks take 4 at least, here {n}"
    assert test(range(4), range(4)).verdict == FAILS, "four in order are no proof"
    assert test([1, 2, 3, 4], [5, 5, 5, 5]).reason == "no rank correlation: y is 5 for all 4 networks"
    assert test([0.1] * 4, [5, 5, 5, 6]).verdict == UNTESTABLE
    with pytest.raises(ValueError, match="'c': x has 4 numbers and y 3; give one each for each of networks"):
        test(range(4), range(3))
    with pytest.raises(ValueError, match=r"'c': numbers \[2\] of 4 are not finite"):
        test(range(4), [1, 2, nan, 3])


def test_ties_share_their_ranks():
    found = correlated([1, 1, 2, 2, 3, 3, 4, 4], [1, 2, 2, 3, 4, 4, 5, 6], sign=1, claim="c")
    # ranks 1.5 1.5 3.5 3.5 5.5 5.5 7.5 7.5 and 1 2.5 2.5 4 5.5 5.5 7 8, each less 4.5
    expected = 39 / sqrt(40 * 41)
    assert float(found.ours) == pytest.approx(expected, abs=0.005)


def test_the_seed_is_of_the_p_value_alone():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 20))
    one, other = (correlated(x, y, sign=1, claim="c", seed=seed) for seed in (0, 1))
    assert one == correlated(x, y, sign=1, claim="c")
    assert one.reason != other.reason
    assert (one.low, one.high, one.verdict) == (other.low, other.high, other.verdict)


def test_no_relation_takes_an_interval_within_the_margin():
    balanced = [0] * 11 + [1] * 22 + [0] * 11
    found = uncorrelated(range(44), balanced, claim="c")
    assert (found.verdict, found.ours) == (HOLDS, "0.00")
    assert found.reason.endswith("the interval lies wholly within ±0.3")
    few = uncorrelated(range(43), [0] * 11 + [1] * 21 + [0] * 11, claim="c")
    assert few.verdict == FAILS
    assert few.reason.endswith("undecided: the interval includes 0 and reaches beyond ±0.3")
    assert uncorrelated(range(44), balanced, margin=0.2, claim="c").verdict == FAILS
    for sign in (1, -1):
        related = uncorrelated([sign * level for level in LEVELS], AREAS, claim="c", published_value=0.1)
        assert related.verdict == FAILS
        assert "; related: the interval reaches beyond ±0.3 and excludes 0; the published 0.1" in related.reason


@pytest.mark.parametrize("margin", [0, 1, -0.3, nan])
def test_margins_are_correlations(margin):
    for call in (
        lambda: uncorrelated(LEVELS, AREAS, margin=margin, claim="c"),
        lambda: pooled_correlation([0.1, 0.2], margin=margin, claim="c"),
    ):
        with pytest.raises(ValueError, match=r"'c': margin is .*; give a correlation between 0 and 1"):
            call()


@pytest.mark.parametrize("sign", [0, 2, -0.5])
def test_signs_are_signs(sign):
    for call in (
        lambda: correlated(LEVELS, AREAS, sign=sign, claim="c"),
        lambda: pooled_correlation([0.1, 0.2], sign=sign, claim="c"),
    ):
        with pytest.raises(ValueError, match=r"'c': sign is .*; give 1"):
            call()


def test_several_networks_are_pooled_by_fisher_s_z():
    rhos = [-0.42, -0.51, -0.38, -0.47]
    z = [atanh(rho) for rho in rhos]
    middle = sum(z) / 4
    reach = stdtrit(3, 0.975) * sqrt(sum((one - middle) ** 2 for one in z) / 3 / 4)
    for given in (rhos, torch.tensor(rhos).double(), [Spearman(rho, nan, nan, 9) for rho in rhos]):
        found = pooled_correlation(given, sign=-1, claim="c", published_value=-0.428)
        assert found.verdict == HOLDS
        assert (found.low, found.high) == pytest.approx((tanh(middle - reach), tanh(middle + reach)))
        assert found.ours == f"{tanh(middle):.2f}"
        assert found.reason == (
            "mean of Fisher's z of each rho, t interval over 4 networks; the interval lies wholly below 0; "
            "the published -0.428 lies within our interval"
        )
    assert "the opposite is found" in pooled_correlation(rhos, sign=1, claim="c").reason
    assert "related" in pooled_correlation(rhos, margin=0.2, claim="c").reason
    assert pooled_correlation([0.05, 0.1, -0.02, 0.01], margin=0.3, claim="c").verdict == HOLDS
    assert "undecided" in pooled_correlation([-0.4, 0.4], margin=0.3, claim="c").reason
    same = pooled_correlation([0.25] * 3, sign=1, claim="c")
    assert (same.verdict, same.low) == (HOLDS, pytest.approx(0.25))


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [one]])
def test_a_single_network_has_the_interval_over_its_units(wrap):
    found = pooled_correlation(wrap(Spearman(-0.4, -0.5, -0.3, 512)), sign=-1, claim="c")
    assert (found.ours, found.low, found.high, found.verdict) == ("-0.40", -0.5, -0.3, HOLDS)
    assert found.reason.startswith("Spearman's rho over 512 units of a single network, bootstrap interval; ")
    assert pooled_correlation(wrap(Spearman(0.1, -0.1, 0.35, 512)), margin=0.3, claim="c").verdict == FAILS
    none = pooled_correlation(wrap(Spearman(0.1, nan, nan, 512)), sign=1, claim="c")
    assert (none.verdict, none.reason) == (UNTESTABLE, "a single network with rho 0.10 and no interval")


def test_what_has_no_rho_is_not_testable_and_said():
    found = pooled_correlation([Spearman(nan, nan, nan, 1), Spearman(0.1, 0, 0.2, 9)], sign=1, claim="c")
    assert found.verdict == UNTESTABLE
    assert found.reason.startswith("1 of 2 networks have no rho")
    for few in ([], [0.5]):
        assert pooled_correlation(few, sign=1, claim="c").reason.endswith(f"takes 2 at least, here {len(few)}")


def test_rhos_of_one_are_pooled_and_others_refused():
    found = pooled_correlation([1, 1, 0.95], sign=1, claim="c")
    assert np.isfinite([found.low, found.high]).all()
    assert found.high <= 1
    with pytest.raises(ValueError, match=r"'c': correlations lie in -1\.\.1, and one is 1\.5"):
        pooled_correlation([0.5, 1.5], sign=1, claim="c")
    with pytest.raises(ValueError, match=r"'c': numbers \[1\] of 2 are not finite"):
        pooled_correlation([0.5, nan], sign=1, claim="c")
    for both in ({}, {"sign": 1, "margin": 0.3}):
        with pytest.raises(ValueError, match="'c': give sign, where a relation is claimed, or margin"):
            pooled_correlation([0.5, 0.6], claim="c", **both)


def test_pooled_intervals_cover_the_mean():
    z = np.random.default_rng(2).normal(atanh(0.4), 0.2, (400, 5))
    found = [pooled_correlation(np.tanh(row), sign=1, claim="c") for row in z]
    assert 0.92 <= np.mean([one.low <= 0.4 <= one.high for one in found]) <= 0.98
