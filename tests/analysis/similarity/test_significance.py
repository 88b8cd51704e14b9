"""Bartlett's test against scipy's chi-square tail, a textbook, and simulated activations."""

import math
from decimal import Decimal

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.analysis.similarity.significance import bartlett


def by_definition(rho, n, p, q):
    """Statistics, degrees and p-values, one k after another."""
    rows = []
    for k in range(len(rho)):
        statistic = -(n - 1 - (p + q + 1) / 2) * sum(math.log1p(-(r * r)) for r in rho[k:])
        degrees = (p - k) * (q - k)
        rows.append((statistic, degrees, scipy.stats.chi2.sf(statistic, degrees)))
    return rows


def correlations_of(x, y):
    """Canonical correlations of stacks of centred data ``[R, n, p]`` and ``[R, n, q]``, by QR and SVD: ``[R, c]``."""
    bases = [np.linalg.qr(z - z.mean(1, keepdims=True))[0] for z in (x, y)]
    return np.linalg.svd(bases[0].swapaxes(1, 2) @ bases[1], compute_uv=False).clip(0, 1)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 500), st.data())
def test_as_scipy_has_it(p, q, more, data):
    rho = sorted(data.draw(st.lists(st.floats(0, 0.999), min_size=min(p, q), max_size=min(p, q))), reverse=True)
    n, level = p + q + more, data.draw(st.sampled_from([0.01, 0.05, 0.5]))
    found = bartlett(torch.tensor(rho, dtype=torch.float64), n, p, q, level)
    statistics, degrees, p_values = zip(*by_definition(rho, n, p, q), strict=True)
    np.testing.assert_allclose(found.statistics, statistics, rtol=1e-9, atol=1e-12 * n)
    assert found.degrees.tolist() == list(degrees)
    np.testing.assert_allclose(found.p_values, p_values, rtol=1e-8, atol=1e-11)
    assert found.count == next((k for k, value in enumerate(p_values) if value > level), len(rho))
    assert found.level == level
    assert (found.statistics.dtype, found.degrees.dtype, found.p_values.dtype) == (
        torch.float64,
        torch.int64,
        torch.float64,
    )


@pytest.mark.parametrize(("p", "q"), [(512, 512), (1000, 30)])
@pytest.mark.parametrize("deviations", [-3, 0, 1.645, 5])
def test_tails_of_many_degrees(p, q, deviations):
    """Wide layers, correlations that put the first statistic so many standard deviations from its mean."""
    n, c = 20_000, min(p, q)
    statistic = p * q + deviations * math.sqrt(2 * p * q)
    rho = math.sqrt(-math.expm1(-statistic / (n - 1 - (p + q + 1) / 2) / c))
    found = bartlett(np.full(c, rho), n, p, q)
    assert found.p_values[0].item() == pytest.approx(scipy.stats.chi2.sf(statistic, p * q), rel=1e-7)


def test_head_lengths_of_brothers():
    """Mardia, Kent, Bibby 1979, section 10.2: 20.96 with 4 degrees of freedom, then 0.06 with 1."""
    found = bartlett([0.7885, 0.0537], 25, 2, 2)
    assert found.statistics.tolist() == pytest.approx([20.96, 0.062], abs=0.005)
    assert found.degrees.tolist() == [4, 1]
    assert found.p_values[0] < 0.001
    assert found.p_values[1] > 0.75
    assert found.count == 1


def test_one_variable_on_one_side_is_the_test_of_a_regression():
    """With q = 1 the correlation is the multiple one, and the statistic nearly that of the regression's F test."""
    n, p, squared = 4000, 3, 0.0025
    found = bartlett([math.sqrt(squared)], n, p, 1)
    f = squared / p / ((1 - squared) / (n - p - 1))
    assert found.p_values[0].item() == pytest.approx(scipy.stats.f.sf(f, p, n - p - 1), rel=2e-3)


def test_a_correlation_of_one_counts():
    found = bartlett([1.0, 1.0, 0.01], 100, 3, 5)
    assert found.statistics[:2].tolist() == [math.inf, math.inf]
    assert found.p_values[:2].tolist() == [0, 0]
    assert 0 < found.statistics[2] < 1
    assert found.count == 2
    assert bartlett(torch.ones(4), 100, 4, 4).count == 4


@pytest.mark.parametrize("rho", [0.3, 1 - 1e-5, 1 - 2e-8, 1 - 1e-12, 1 - 2.0**-53])
def test_near_one_no_digits_are_lost(rho):
    expected = -(100 - 1 - 1.5) * float((1 - Decimal(rho) ** 2).ln())
    assert bartlett([rho], 100, 1, 1).statistics[0].item() == pytest.approx(expected, rel=1e-14)


def test_counting_stops_at_the_first_that_is_not_significant():
    """The third statistic, alone, would be significant again: of more directions by chance there is less."""
    found = bartlett([0.9, 0.179, 0.179, 0.179], 130, 12, 4, level=0.05)
    significant = (found.p_values <= 0.05).tolist()
    assert significant[0]
    assert not significant[1]
    assert found.count == 1


@pytest.mark.parametrize(("p", "q", "n"), [(3, 4, 60), (5, 2, 40)])
def test_of_unrelated_activations_as_many_as_the_level_says(p, q, n):
    rng, draws, level = np.random.default_rng(0), 4000, 0.1
    rhos = correlations_of(rng.normal(size=(draws, n, p)), rng.normal(size=(draws, n, q)))
    alarms = sum(bartlett(rho, n, p, q, level).count > 0 for rho in rhos)
    assert abs(alarms - draws * level) < 3 * math.sqrt(draws * level * (1 - level))


@pytest.mark.parametrize("planted", [0, 1, 3, 5])
def test_planted_correlations_are_found(planted):
    rng, draws, n, p, q = np.random.default_rng(planted), 400, 300, 6, 5
    x, y = rng.normal(size=(draws, n, p)), rng.normal(size=(draws, n, q))
    y[:, :, :planted] = 0.8 * x[:, :, :planted] + 0.6 * y[:, :, :planted]
    counts = np.array([bartlett(rho, n, p, q).count for rho in correlations_of(x, y)])
    assert (counts >= planted).all()
    assert (counts == planted).mean() >= (1 if planted == 5 else 0.91)


def test_to_pandas():
    table = bartlett([0.8, 0.5, 0.01], 100, 3, 4).to_pandas()
    assert table.columns.tolist() == ["beyond the first", "statistic", "degrees", "p value", "significant"]
    assert table["beyond the first"].tolist() == [0, 1, 2]
    assert table["degrees"].tolist() == [12, 6, 2]
    assert table["significant"].tolist() == [True, True, False]


FINE = {"correlations": [0.5, 0.2], "examples": 20, "rank_a": 3, "rank_b": 2, "level": 0.05}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"level": 0}, "level=0 must be above 0 and below 1"),
        ({"level": 1.0}, "level=1.0 must be"),
        ({"level": math.nan}, "level=nan must be"),
        ({"correlations": [0.5, 0.6]}, r"correlation 1, 0\.6, is above the one before it, 0\.5: sort"),
        ({"correlations": [1.1, 0.6]}, r"correlation 0 is 1\.1; correlations must be within 0\.\.1"),
        ({"correlations": [0.5, -0.6]}, r"correlation 1 is -0\.6"),
        ({"correlations": [0.5, math.nan]}, "correlation 1 is nan"),
        ({"correlations": [0.5]}, r"correlations \[1\] must be \[2\]: as many have activations of ranks 3 and 2"),
        ({"correlations": [[0.5, 0.2]]}, r"correlations \[1, 2\] must be \[2\]"),
        ({"examples": 5}, "5 examples are too few to test correlations of 3 with 2 directions: it takes at least 6"),
        ({"rank_b": 0}, "rank_b=0 must be at least 1"),
        ({"examples": 0}, "examples=0 must be at least 1"),
    ],
    ids=str,
)
def test_refusals(wrong, says):
    with pytest.raises(ValueError, match=says):
        bartlett(**{**FINE, **wrong})


@pytest.mark.parametrize("wrong", [{"examples": 20.0}, {"rank_a": True}, {"rank_b": "2"}], ids=str)
def test_other_types_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(TypeError, match=f"{name} is a .*; give an int"):
        bartlett(**{**FINE, **wrong})


def test_as_few_examples_as_there_may_be():
    assert bartlett(**{**FINE, "examples": 6}).statistics.isfinite().all()
