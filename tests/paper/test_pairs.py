"""Claims about pairs of networks: the jackknife against intervals that it must equal, and against simulated truth."""

import numpy as np
import pytest
from scipy import stats

from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.claims.intervals import Interval
from sdkernels.paper.claims.pairs import (
    Contrast,
    jackknife,
    pair_contrast,
    pairs_agree,
    pairs_alike,
    pairs_on_side,
)


def test_of_a_mean_it_is_students_interval_and_of_two_welchs():
    values = np.array([0.3, 0.7, 0.4, 0.9, 0.2, 0.25, 0.8])
    found = jackknife(lambda there: values[list(there)].mean(), [range(7)])
    assert found[1:] == pytest.approx(stats.t.interval(0.95, 6, values.mean(), stats.sem(values)))

    def difference(there):
        return np.mean([values[i] for i in there if i < 3]) - np.mean([values[i] for i in there if i >= 3])

    welch = stats.ttest_ind(values[:3], values[3:], equal_var=False).confidence_interval(0.95)
    assert jackknife(difference, [range(3), range(3, 7)])[1:] == pytest.approx((welch.low, welch.high))


def test_equal_networks_have_an_interval_of_one_number():
    assert jackknife(lambda there: 0.5, [range(4)]) == (0.5, 0.5, 0.5)


def drawn(rng, counts, of_network, of_pair):
    total = sum(counts)
    own = rng.normal(0, of_network, total)
    noise = np.triu(rng.normal(0, of_pair, (total, total)), 1)
    return 1 + own[:, None] + own + noise + noise.T


@pytest.mark.parametrize(("of_network", "of_pair"), [(0.1, 0.0), (0.1, 0.05), (0.0, 0.1)])
def test_intervals_cover_the_mean_distance(of_network, of_pair):
    rng = np.random.default_rng(0)
    kinds = {("a", "a"): 1.0, ("b", "b"): -1.0}
    within = mixed = naive = 0
    for _ in range(200):
        distance = drawn(rng, (5, 5), of_network, of_pair)
        within += _covers(pair_contrast(distance, "aaaaabbbbb", kinds).interval, 0)
        mixed += _covers(pair_contrast(distance, "aaaaabbbbb", {("a", "b"): 1.0, ("b", "b"): -1.0}).interval, 0)
        pairs = distance[:5, :5][np.triu_indices(5, 1)]
        low, high = stats.t.interval(0.95, 9, pairs.mean(), stats.sem(pairs))
        naive += low <= 1 <= high
    assert min(within, mixed) >= 180, "of 200, 190 are expected"
    if of_network and not of_pair:
        assert naive < 150, "pairs are not independent: as if they were, intervals would be far too narrow"


def _covers(interval, value):
    return interval.low <= value <= interval.high


def test_a_contrast_adds_up_mean_distances():
    distance = drawn(np.random.default_rng(1), (3, 4), 0.1, 0.1)
    np.fill_diagonal(distance, np.nan)
    groups = [1, 0, 0, 1, 0, 1, 0]
    a, b = np.flatnonzero(np.array(groups) == 0), np.flatnonzero(np.array(groups) == 1)
    one = np.mean([distance[i, j] for i in a for j in a if i < j])
    other = np.mean([distance[i, j] for i in a for j in b])
    found = pair_contrast(distance, groups, {(0, 0): 2.0, (0, 1): -0.5})
    assert found.interval.value == pytest.approx(2 * one - 0.5 * other)
    assert found.how == f"jackknife over 4 and 3 networks (0 {one:.3g}, 0 to 1 {other:.3g})"


@pytest.mark.parametrize(
    ("groups", "kinds", "says"),
    [
        ("aabbb", {("a", "a"): 1}, "takes 3 of a kind at least, here there are 2 a"),
        ("abbb", {("b", "b"): 1, ("a", "b"): 1}, "takes 2 of a kind at least, here there are 1 a"),
        ("bbbb", {("a", "a"): 1}, "here there are 0 a"),
    ],
)
def test_too_few_networks_test_nothing(groups, kinds, says):
    found = pair_contrast(np.ones((len(groups), len(groups))), groups, kinds)
    assert found.interval is None
    assert says in found.how
    for claim in (
        pairs_on_side(found, 0, 1, claim="c"),
        pairs_alike(found, 0.1, claim="c"),
        pairs_agree(found, 0, 1, claim="c", published="p"),
    ):
        assert (claim.verdict, claim.reason) == (UNTESTABLE, found.how)


def of(value, low, high):
    return Contrast(Interval(value, low, high), "how")


def test_sides():
    assert pairs_on_side(of(0.2, 0.1, 0.3), 0, 1, claim="c").verdict == HOLDS
    assert pairs_on_side(of(0.2, 0.1, 0.3), 0.15, 1, claim="c").verdict == FAILS
    assert pairs_on_side(of(0.2, 0.1, 0.3), 0.4, -1, claim="c").verdict == HOLDS
    assert "the opposite" in pairs_on_side(of(0.2, 0.1, 0.3), 0, -1, claim="c").reason


def test_alike_takes_the_whole_interval():
    assert pairs_alike(of(0.0, -0.04, 0.04), 0.05, claim="c").verdict == HOLDS
    for low, high, words in ((-0.06, 0.04, "undecided"), (-0.04, 0.06, "undecided"), (0.06, 0.08, "wholly outside")):
        found = pairs_alike(of((low + high) / 2, low, high), 0.05, claim="c")
        assert found.verdict == FAILS
        assert words in found.reason
    assert "wholly outside" in pairs_alike(of(-0.07, -0.08, -0.06), 0.05, claim="c").reason


def test_agreement_is_with_a_range():
    for low, high, verdict in ((0.3, 0.41, FAILS), (0.3, 0.42, HOLDS), (0.43, 0.44, HOLDS), (0.46, 0.5, FAILS)):
        found = pairs_agree(of((low + high) / 2, low, high), 0.42, 0.45, claim="c", published="0.42 to 0.45")
        assert found.verdict == verdict
        assert found.published == "0.42 to 0.45"
