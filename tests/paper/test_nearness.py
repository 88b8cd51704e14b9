"""Claims on how near networks of a group are: against formulas written out, and where they are true and false."""

import itertools

import numpy as np
import pytest
from scipy import stats

from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE, nearness
from sdkernels.paper.claims.nearness import goes_with_nearness, nearer_within, trend


@pytest.fixture(autouse=True)
def few_shuffles(monkeypatch):
    monkeypatch.setattr(nearness, "RESAMPLES", 499)


def distances(count, level, seed, own=0.02, pair=0.02):
    """Distances that networks make larger or smaller, and pairs beside."""
    rng = np.random.default_rng(seed)
    of_network = own * rng.normal(size=count)
    found = level + of_network[:, None] + of_network + np.triu(pair * rng.normal(size=(count, count)), 1)
    return np.triu(found, 1) + np.triu(found, 1).T


def mean(distance, there):
    return np.mean([distance[pair] for pair in itertools.combinations(there, 2)])


def test_trend_is_the_slope_of_means_and_its_interval_that_of_networks_left_out():
    sizes, at = [3, 5, 4], np.array([0.0, 1.0, 3.0])
    groups = [distances(size, 0.8 - 0.1 * place, place) for place, (size, _) in enumerate(zip(sizes, at, strict=True))]

    def slope(left_out=(None, None)):
        there = [[i for i in range(size) if (group, i) != left_out] for group, size in enumerate(sizes)]
        return stats.linregress(at, [mean(one, own) for one, own in zip(groups, there, strict=True)]).slope

    found = trend(groups, at, sign=-1, claim="it falls")
    parts = []
    for group, size in enumerate(sizes):
        without = np.array([slope((group, i)) for i in range(size)])
        parts.append((size - 1) / size * ((without - without.mean()) ** 2).sum())
    degrees = sum(parts) ** 2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    reach = stats.t.ppf(0.975, degrees) * np.sqrt(sum(parts))
    assert (found.low, found.high) == pytest.approx((slope() - reach, slope() + reach))
    assert (found.verdict, "12 networks in 3 groups" in found.reason) == (HOLDS, True)
    assert trend(groups, at, sign=1, claim="it rises").verdict == FAILS
    flat = [distances(5, 0.5, seed) for seed in range(3)]
    assert "undecided" in trend(flat, at, sign=-1, claim="it falls").reason
    upside_down = [np.where(np.eye(len(one)), 99.0, one) for one in groups]
    assert trend(upside_down, at, sign=-1, claim="it falls") == found, "diagonals are not read"


def test_nearness_of_a_network_is_its_mean_distance_from_the_others():
    groups = [distances(5, level, seed) for seed, level in enumerate((0.8, 0.6, 0.4))]
    values = [[0.3, 0.32, 0.31, 0.35, 0.33], [0.4, 0.41, 0.45, 0.42, 0.44], [0.5, 0.51, 0.55, 0.52, 0.54]]
    found = goes_with_nearness(groups, values, sign=-1, claim="nearer is better", published_value=-0.96)
    means = [np.delete(one[i], i).mean() for one in groups for i in range(5)]
    rho = stats.spearmanr(means, np.concatenate(values)).statistic
    assert float(found.ours) == pytest.approx(rho, abs=0.006)
    assert (found.verdict, found.published) == (HOLDS, "-0.96")
    assert "15 networks" in found.reason
    assert "the published -0.96 lies" in found.reason
    assert goes_with_nearness(groups, values[::-1], sign=-1, claim="nearer is better").verdict == FAILS
    shuffled = np.random.default_rng(0).permutation(np.concatenate(values)).reshape(3, 5)
    assert "undecided" in goes_with_nearness(groups, shuffled, sign=-1, claim="nearer is better").reason


def test_interval_is_the_hull_of_two():
    """Of groups of different sizes, as an outlier's pairs spoil the ranks of all: here the jackknife's is wider."""
    sizes = [6, 4, 5]
    groups = [distances(size, 0.5, seed, own=0.0, pair=0.05) for seed, size in enumerate(sizes)]
    values = [np.random.default_rng(seed).normal(size=size) + seed for seed, size in enumerate(sizes)]

    def z(left_out=(None, None)):
        means, own = [], []
        for group, size in enumerate(sizes):
            there = [i for i in range(size) if (group, i) != left_out]
            means += [np.mean([groups[group][i, j] for j in there if j != i]) for i in there]
            own += [values[group][i] for i in there]
        return np.arctanh(stats.spearmanr(means, own).statistic), len(own)

    parts = []
    for group, size in enumerate(sizes):
        parts.append((size - 1) * np.var([z((group, i))[0] for i in range(size)]))
    degrees = sum(parts) ** 2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    reach = stats.t.ppf(0.975, degrees) * np.sqrt(sum(parts))
    plain = stats.norm.ppf(0.975) * np.sqrt((1 + np.tanh(z()[0]) ** 2 / 2) / 12)
    found = goes_with_nearness(groups, values, sign=-1, claim="c")
    assert reach > plain
    assert (found.low, found.high) == pytest.approx((np.tanh(z()[0] - reach), np.tanh(z()[0] + reach)))


def test_perfect_order_still_has_an_interval():
    groups = [np.full((4, 4), level) + 0.001 * np.add.outer(range(4), range(4)) for level in (0.8, 0.4)]
    values = [-np.array([np.delete(one[i], i).mean() for i in range(4)]) for one in groups]
    found = goes_with_nearness(groups, values, sign=-1, claim="nearer is better")
    assert float(found.ours) == pytest.approx(-1, abs=0.01)
    assert found.high > found.low + 0.05


def test_shared_pairs_are_no_evidence():
    """Without any relation, about one in twenty intervals may exclude 0; of plain ones it is one in five."""
    rng, excluded = np.random.default_rng(0), 0
    for seed in range(100):
        groups = [distances(5, 0.5, 10 * seed + place) for place in range(5)]
        values = [0.1 * place + 0.05 * rng.normal(size=5) for place in range(5)]
        found = goes_with_nearness(groups, values, sign=-1, claim="none")
        excluded += not found.low <= 0 <= found.high
    assert excluded <= 12


def test_groups_that_are_apart():
    labels = np.array(list("aaabbbbccc"))
    same = labels[:, None] == labels
    distance = distances(10, 0.6, 0) - 0.1 * same
    found = nearer_within(distance, labels, claim="apart")
    rows, columns = np.triu_indices(10, 1)
    pairs, within = distance[rows, columns], same[rows, columns]
    assert (found.low + found.high) / 2 == pytest.approx(pairs[~within].mean() - pairs[within].mean())
    assert found.verdict == HOLDS
    assert "permutation of networks p = 0.002" in found.reason
    without = []
    for i in range(10):
        there = (rows != i) & (columns != i)
        without.append(pairs[there & ~within].mean() - pairs[there & within].mean())
    parts = [
        (count - 1) * np.var([without[i] for i in np.flatnonzero(labels == label)])
        for label, count in zip("abc", (3, 4, 3), strict=True)
    ]
    degrees = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, (3, 4, 3), strict=True))
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, degrees) * np.sqrt(sum(parts)))


def test_groups_that_are_not_apart():
    found = nearer_within(distances(10, 0.6, 1), "aaabbbbccc", claim="apart")
    assert found.verdict == FAILS
    together = distances(10, 0.6, 1) + 0.2 * (np.array(list("aaabbbbccc"))[:, None] == np.array(list("aaabbbbccc")))
    assert "the opposite" in nearer_within(together, "aaabbbbccc", claim="apart").reason
    assert "p = 1;" in nearer_within(together, "aaabbbbccc", claim="apart").reason


def test_what_cannot_be_tested_is_told():
    few, enough = distances(2, 0.5, 0), distances(3, 0.5, 0)
    assert trend([few, enough], [0, 1], sign=-1, claim="c").verdict == UNTESTABLE
    assert trend([enough], [0], sign=-1, claim="c").verdict == UNTESTABLE
    assert goes_with_nearness([few, enough], [[1, 2], [3, 4, 5]], sign=-1, claim="c").verdict == UNTESTABLE
    assert goes_with_nearness([enough, enough], [[1] * 3] * 2, sign=-1, claim="c").verdict == UNTESTABLE
    for groups in ("aaa", "aab", "abc"):
        assert nearer_within(enough, groups, claim="c").verdict == UNTESTABLE
    with pytest.raises(ValueError, match=r"'c': distances \[3, 3\] and 2 groups"):
        nearer_within(enough, "ab", claim="c")
    with pytest.raises(ValueError, match="'c': distances of 1 groups, and 2 places"):
        trend([enough], [0, 1], sign=-1, claim="c")
    with pytest.raises(ValueError, match=r"'c': groups of \[3\] networks and \[2\] numbers"):
        goes_with_nearness([enough], [[1, 2]], sign=-1, claim="c")
