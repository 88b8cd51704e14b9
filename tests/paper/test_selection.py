"""Selection against all subsets there are, gone through one by one."""

from itertools import combinations

import numpy as np
import pytest

from sdkernels.paper.selection import select, selection_intervals


def _every(scores, outcomes, size):
    """Rank, gap and mean gap in each subset, by the definition."""
    found = []
    for subset in combinations(range(len(scores)), size):
        chosen = max(subset, key=lambda i: scores[i])
        by_outcome = sorted((outcomes[i] for i in subset), reverse=True)
        gaps = [by_outcome[0] - value for value in by_outcome]
        found.append((by_outcome.index(outcomes[chosen]) + 1, by_outcome[0] - outcomes[chosen], sum(gaps) / size))
    return np.array(found)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_shares_are_those_over_all_subsets(size):
    rng = np.random.default_rng(size)
    scores = rng.normal(size=8)
    outcomes = scores + rng.normal(size=8)
    every = _every(scores, outcomes, size)
    found = select(scores, outcomes, size=size, draws=20_000)
    assert found.size == size
    assert found.ranks.shape == found.gaps.shape == (20_000,)
    assert {*found.ranks.tolist()} == {*every[:, 0].astype(int).tolist()}
    for k in (1, 2, 3):
        assert found.top(k) == pytest.approx((every[:, 0] <= k).mean(), abs=0.015)
    assert found.gaps.mean() == pytest.approx(every[:, 1].mean(), abs=0.02)
    assert found.gaps.max() == pytest.approx(every[:, 1].max())
    assert found.random_gaps.mean() == pytest.approx(every[:, 2].mean(), abs=0.02)


def test_scores_in_the_outcomes_order_select_the_best_and_reversed_ones_the_worst():
    outcomes = np.array([0.3, 0.9, 0.5, 0.7, 0.1])
    best, worst = (select(sign * outcomes, outcomes, size=3, draws=200) for sign in (1, -1))
    assert (best.top(1), best.gaps.max(), worst.top(2), worst.top(3)) == (1, 0, 0, 1)
    assert worst.gaps.min() == pytest.approx(0.4)


def test_scores_that_say_nothing_select_by_chance():
    rng = np.random.default_rng(0)
    shares = [select(rng.random(12), rng.random(12), size=6, draws=100, seed=seed).top(2) for seed in range(300)]
    assert np.mean(shares) == pytest.approx(2 / 6, abs=0.06)
    found = select(range(6), range(6), size=4)
    assert (found.chance(1), found.chance(4), found.chance(10)) == (0.25, 1, 1)


def test_equals_share_the_better_rank_and_equal_scores_are_drawn():
    assert select([1, 2, 3], [0.5, 0.5, 0.5], size=3).top(1) == 1
    assert 0.4 < select([1, 1], [0.0, 1.0], size=2).top(1) < 0.6


def test_seeds_decide_and_are_kept():
    scores, outcomes = np.random.default_rng(1).random((2, 10))
    one, same, other = (select(scores, outcomes, size=5, seed=seed) for seed in (0, 0, 1))
    assert one.ranks.tolist() == same.ranks.tolist() != other.ranks.tolist()


def test_intervals_are_of_settings_and_not_of_draws():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=20)
    outcomes = scores + rng.normal(size=20)
    found = select(scores, outcomes, size=10)
    few, many = (
        selection_intervals(scores, outcomes, size=10, tops=(1, 5), draws=draws, resamples=100) for draws in (100, 1000)
    )
    for tops, gap in (few, many):
        assert len(tops) == 2
        assert all(low <= found.top(k) <= high for k, (low, high) in zip((1, 5), tops, strict=True))
        assert gap[0] <= found.gaps.mean() <= gap[1]
    width = [gap[1] - gap[0] for _, gap in (few, many)]
    assert 0.6 < width[0] / width[1] < 1.7, "ten times as many draws do not make it a third as wide"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcomes": [1.0, 2.0]}, "3 scores against 2 outcomes"),
        ({"size": 0}, "size=0"),
        ({"size": 4}, "1 <= size <= 3"),
        ({"draws": 0}, "one draw at least"),
        ({"scores": [1.0, np.nan, 2.0]}, r"numbers \[1\] of 3 are not finite"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    given = {"scores": [1.0, 2.0, 3.0], "outcomes": [1.0, 2.0, 3.0], "size": 2, **changes}
    with pytest.raises(ValueError, match=words):
        select(**given)
