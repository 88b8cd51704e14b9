"""Intervals against their formulas written out, and how often they cover what they are of."""

from itertools import permutations
from math import atanh, sqrt, tanh

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit

from sdkernels.paper.claims.intervals import (
    difference_interval,
    mean_interval,
    numbers,
    permutation_p,
    rank_interval,
)

REPEATS = 300
LEAST, MOST = 0.912, 0.988  # 95 % of 300 draws, and three standard errors to either side


def as_array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def average_ranks(values):
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def pearson(a, b):
    a, b = np.array(a) - np.mean(a), np.array(b) - np.mean(b)
    return float((a * b).sum() / sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize(
    "given_numbers",
    [
        [1, 2.5, 3],
        (1, 2.5, 3),
        np.array([1, 2.5, 3], dtype=np.float32),
        torch.tensor([1, 2.5, 3], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), torch.tensor(2.5), 3],
    ],
    ids=["list", "tuple", "numpy", "torch", "scalars"],
)
def test_numbers_are_taken_as_they_come(given_numbers):
    found = numbers(given_numbers, "c")
    assert found.dtype == np.float64
    assert found.tolist() == [1, 2.5, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, float("nan"), 1, float("inf")], r"'c': numbers \[1, 3\] of 4 are not finite"),
        ([[1.0, 2.0]], r"'c': numbers have shape \[1, 2\]; give one a network, as \[n\]"),
        (0.5, r"'c': numbers have shape \[\]"),
        (["x"], r"'c': no numbers \[n\]"),
        ([[1.0], [1.0, 2.0]], r"'c': no numbers \[n\]"),
    ],
)
def test_other_numbers_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        numbers(values, "c")


@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_interval_is_student_t(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    middle = sum(values) / n
    reach = stdtrit(n - 1, 0.975) * sqrt(sum((values - middle) ** 2) / (n - 1) / n)
    assert mean_interval(values) == pytest.approx((middle, middle - reach, middle + reach))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 7), (12, 5)])
def test_difference_interval_is_welch_t(n, m):
    draw = np.random.default_rng(n + m)
    first, second = draw.normal(3, 2, n), draw.normal(1, 0.5, m)
    parts = [sum((v - v.mean()) ** 2) / (len(v) - 1) / len(v) for v in (first, second)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
    middle = sum(first) / n - sum(second) / m
    reach = stdtrit(freedom, 0.975) * sqrt(sum(parts))
    assert difference_interval(first, second) == pytest.approx((middle, middle - reach, middle + reach))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 0.7, -1e-200, 1e9])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_numbers_are_their_own_interval(value, n):
    same = np.full(n, value)
    assert mean_interval(same) == (value, value, value)
    assert difference_interval(same, np.full(3, value)) == (0, 0, 0)
    assert difference_interval(same, np.zeros(2)) == (value, value, value)


def test_numbers_whose_variance_is_lost_still_have_an_interval():
    tiny = as_array(1e-200, 2e-200, 3e-200)
    assert all(np.isfinite(mean_interval(tiny)))
    assert all(np.isfinite(difference_interval(tiny, tiny)))


def test_one_constant_side_leaves_the_other_side_its_interval():
    values, constant = as_array(0.5, 0.7, 0.8), np.full(5, 0.1)
    alone = mean_interval(values)
    assert difference_interval(values, constant) == pytest.approx([end - 0.1 for end in alone])
    value, low, high = difference_interval(constant, values)
    assert (value, low, high) == pytest.approx((0.1 - alone.value, 0.1 - alone.high, 0.1 - alone.low))


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=30).filter(
    lambda found: len({x for x, _ in found}) > 1 and len({y for _, y in found}) > 1
)


@settings(max_examples=60)
@given(pairs)
def test_rank_interval_is_bonett_and_wright_with_average_ranks(found):
    x, y = (np.array(side, dtype=np.float64) for side in zip(*found, strict=True))
    n, rho = len(x), pearson(average_ranks(x), average_ranks(y))
    got = rank_interval(x, y)
    assert got.value == pytest.approx(rho, abs=1e-12)
    assert -1 <= got.low <= got.value <= got.high <= 1
    if abs(rho) < 1 - 6 / (n**3 - n):
        reach = 1.959963985 * sqrt((1 + rho**2 / 2) / (n - 3))
        assert got[1:] == pytest.approx((tanh(atanh(rho) - reach), tanh(atanh(rho) + reach)), abs=1e-8)
    mirrored = rank_interval(x, -y)
    assert mirrored == pytest.approx((-got.value, -got.high, -got.low), abs=1e-12)


def test_a_perfect_order_has_an_interval_that_narrows():
    lows = []
    for n in (4, 5, 6, 10, 40):
        value, low, high = rank_interval(np.arange(n) * 1.0, np.arange(n) ** 3.0)
        assert value == high == pytest.approx(1)
        lows.append(low)
    assert lows == sorted(lows)
    assert lows[0] < 0 < lows[1], "four in order may be chance: one order of 24 is"
    inner = 1 - 6 / 210
    assert lows[2] == pytest.approx(tanh(atanh(inner) - 1.959963985 * sqrt((1 + inner**2 / 2) / 3)))


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2, 3, 4, 5], [2, 1, 3, 5, 4]), ([1, 1, 2, 3, 4], [5, 4, 4, 1, 2]), ([1, 2, 3, 4], [4, 3, 2, 1])]
)
def test_permutation_p_of_few_counts_all_orders(x, y):
    ranks = average_ranks(x)
    sums = [pearson(order, average_ranks(y)) for order in permutations(ranks)]
    observed = pearson(ranks, average_ranks(y))
    tails = [np.mean([s >= observed - 1e-9 for s in sums]), np.mean([s <= observed + 1e-9 for s in sums])]
    assert permutation_p(as_array(*x), as_array(*y), 0) == pytest.approx(min(1, 2 * min(tails)))


def test_permutation_p_of_many_is_drawn_by_its_seed():
    draw = np.random.default_rng(5)
    x = draw.normal(size=30)
    y = x + 2 * draw.normal(size=30)
    before = np.random.get_state()[1].tolist()
    found = permutation_p(x, y, 0)
    assert found == permutation_p(x, y, 0) != permutation_p(x, y, 1)
    assert np.random.get_state()[1].tolist() == before
    assert permutation_p(x, y, 1) == pytest.approx(found, abs=0.01)
    assert permutation_p(x, x, 0) <= 2e-4


def covered(intervals, true):
    return np.mean([low <= true <= high for _, low, high in intervals])


@pytest.mark.parametrize("n", [2, 5, 20])
def test_mean_intervals_cover_the_mean(n):
    draws = np.random.default_rng(n).normal(0.7, 0.1, (REPEATS, n))
    assert LEAST <= covered(map(mean_interval, draws), 0.7) <= MOST


@pytest.mark.parametrize(("n", "m", "spread"), [(4, 4, 0.1), (10, 5, 0.5)])
def test_difference_intervals_cover_the_difference(n, m, spread):
    draw = np.random.default_rng(n)
    found = [difference_interval(draw.normal(0.8, 0.1, n), draw.normal(0.5, spread, m)) for _ in range(REPEATS)]
    assert LEAST <= covered(found, 0.3) <= MOST


@pytest.mark.parametrize("n", [4, 8, 40])
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_rank_intervals_cover_rho_with_few_pairs_too(n, correlation):
    draw = np.random.default_rng(n)
    found = []
    for _ in range(REPEATS):
        x, noise = draw.normal(size=(2, n))
        found.append(rank_interval(x, correlation * x + sqrt(1 - correlation**2) * noise))
    true = 6 / np.pi * np.arcsin(correlation / 2)  # of bivariate normal data
    share = covered(found, true)
    assert share >= LEAST - 0.01, "of strong correlations among few it is a little below 95 %"
    assert share <= (MOST if n > 6 else 1)
