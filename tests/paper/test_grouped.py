"""Claims about groups on data in which they are true, false or undecided."""

import numpy as np
import pytest
from scipy import stats

from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.claims.grouped import agreeing, discrete, explained, matching
from sdkernels.paper.regimes import find_regimes


def _groups(between, seed=0, each=6, count=4):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), each)
    return between * groups + rng.normal(size=len(groups)), groups


def test_share_and_interval_are_those_of_the_definitions():
    values, groups = _groups(1.0)
    found = explained(values, groups, claim="c")
    parts = [values[groups == g] for g in range(4)]
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / 20
    assert float(found.ours) == pytest.approx(1 - within / values.var(ddof=1), abs=0.005)
    ratio = stats.f_oneway(*parts).statistic
    for share, p in ((found.low, 0.975), (found.high, 0.025)):
        assert stats.ncf.cdf(ratio, 3, 20, 24 * share / (1 - share)) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize(("between", "verdict"), [(5.0, HOLDS), (-0.1, FAILS), (0.85, FAILS)])
def test_most_variance_between_groups(between, verdict):
    found = explained(*_groups(between, each=20), claim="c")
    assert found.verdict == verdict
    assert ("undecided" in found.reason) == (between == 0.85)


def test_interval_holds_the_true_share():
    true = 1.25 / (1.25 + 1)  # the variance of 0, 1, 2, 3, and 1
    found = [explained(*_groups(1.0, seed=seed), claim="c") for seed in range(60)]
    assert 53 <= sum(one.low <= true <= one.high for one in found) <= 60


def test_groups_far_apart_have_an_interval_below_one():
    found = explained(*_groups(1e4), claim="c")
    assert 0.999999 < found.low < found.high < 1


@pytest.mark.parametrize(
    ("values", "groups", "words"),
    [
        ([1.0, 2.0, 3.0], "aaa", "two groups"),
        ([1.0, 2.0, 3.0], "abc", "here 3 of 3"),
        ([1.0, 1.0, 2.0, 2.0], "aabb", "do not differ"),
        ([0.1, 0.1, 0.1, 0.1], "aabb", "do not differ"),
    ],
)
def test_shares_that_cannot_be_tested(values, groups, words):
    found = explained(values, groups, claim="c")
    assert found.verdict == UNTESTABLE
    assert words in found.reason


def test_clusters_that_go_by_groups():
    found = matching([0] * 8 + [1] * 8, np.repeat(list("abcd"), 4), claim="c")
    assert (found.ours, found.verdict) == ("1.00", HOLDS)
    low, high = stats.binomtest(16, 16).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))


def test_clusters_that_cut_across_groups():
    found = matching([0, 1] * 8, np.repeat(list("abcd"), 4), claim="c")
    assert (float(found.ours), found.verdict) == (0.5, FAILS)


def test_share_and_p_by_hand():
    clusters, groups = [0, 0, 1, 1, 1, 1], list("aabbba")
    found = matching(clusters, groups, claim="c")
    assert "5 of 6 networks" in found.reason  # a: two in 0, one in 1; b: three in 1
    # The two of cluster 0 lie in one group, which gives 2 + 3, in 6 of 15 draws, else 2 + 2.
    assert found.reason.endswith("p = 0.4")
    assert f"shuffled groups {(6 * 5 + 9 * 4) / 15 / 6:.2f}" in found.reason
    assert found.verdict == FAILS


@pytest.mark.parametrize(("clusters", "groups"), [([0] * 4, "aabb"), ([0, 1, 0, 1], "aaaa")])
def test_a_single_cluster_or_group_is_no_test(clusters, groups):
    assert matching(clusters, groups, claim="c").verdict == UNTESTABLE


def test_sides_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="4 networks and 3 groups"):
        explained([1.0, 2.0, 3.0, 4.0], "abc", claim="c")
    with pytest.raises(ValueError, match="give one for each"):
        matching([0, 1], "abc", claim="c")


def test_regimes_are_discrete_or_not():
    rng = np.random.default_rng(0)
    apart = discrete(find_regimes([*rng.normal(0, 1, 8), *rng.normal(9, 1, 8)]), claim="c")
    assert (apart.ours, apart.verdict, apart.low) == ("2", HOLDS, None)
    one = discrete(find_regimes(rng.normal(0, 1, 16)), claim="c")
    assert one.verdict == FAILS


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, HOLDS), (0.2, HOLDS), (0.45, FAILS), (1.0, FAILS)])
def test_adjusted_rand_index(noise, verdict):
    """As the counts of pairs on which both agree give it."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), 12)
    clusters = np.where(rng.random(48) < noise, rng.integers(0, 3, 48), groups)
    rows, columns = np.triu_indices(48, 1)
    together, same = clusters[rows] == clusters[columns], groups[rows] == groups[columns]
    a, b, c, d = (together & same).sum(), (together & ~same).sum(), (~together & same).sum(), (~together & ~same).sum()
    expected = 2 * (a * d - b * c) / ((a + b) * (b + d) + (a + c) * (c + d))
    found = agreeing(clusters, groups, claim="c")
    assert (float(found.ours), found.verdict) == (pytest.approx(expected, abs=0.0051), verdict)
    assert (found.low, found.high) == (None, None)
    p = float(found.reason.split("p = ")[1].split(";")[0])
    assert (p <= 0.05) == (noise < 1)
    assert f"it {'reaches' if expected >= 0.5 else 'is below'} 0.5" in found.reason
    assert agreeing(clusters, groups, least=0.01, claim="c").verdict == (HOLDS if noise < 1 else FAILS)


def test_clusters_of_several_groups_agree_less_than_they_match():
    groups = np.repeat(np.arange(4), 6)
    assert matching(groups // 2, groups, claim="c").ours == "1.00"
    assert float(agreeing(groups // 2, groups, claim="c").ours) < 0.7


def test_agreement_by_chance_is_rare():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(3), 5)
    holds = [agreeing(rng.permutation(groups), groups, claim="c").verdict == HOLDS for _ in range(40)]
    assert sum(holds) <= 6


def test_partitions_that_cannot_agree():
    for clusters in ([0] * 6, range(6)):
        assert agreeing(clusters, "aaabbb", claim="c").verdict == UNTESTABLE
    with pytest.raises(ValueError, match="give one for each"):
        agreeing([0, 1], "aaabbb", claim="c")
