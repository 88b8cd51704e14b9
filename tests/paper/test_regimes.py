"""Regimes against scikit-learn's mixtures, and on numbers that have regimes or none."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from sdkernels.paper.regimes import _mixture, find_regimes


def _three(seed, sizes=(12, 9, 5), middles=(0.0, 0.5, 1.4)):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(middle, 0.1, size) for middle, size in zip(middles, sizes, strict=True)])


@pytest.mark.parametrize("components", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 40.0])
def test_criterion_is_that_of_scikit_learn(components, scale):
    values = _three(0) * scale + 7 * scale
    mixture = GaussianMixture(components, covariance_type="tied", n_init=10, random_state=0, tol=1e-9, max_iter=2000,
                              reg_covar=1e-9 * scale**2)  # fmt: skip
    expected = mixture.fit(values[:, None]).bic(values[:, None])
    (found,), shares = _mixture(values[None], components)
    assert found == pytest.approx(expected, abs=0.02 if components < 4 else 2), "of four, which heap is cut is open"
    assert shares.sum(axis=2) == pytest.approx(1)


def test_sets_of_numbers_do_not_see_each_other():
    one, other = _three(1), _three(2, middles=(0.0, 0.0, 3.0))
    for k in (2, 3):
        both, _ = _mixture(np.stack([one, other]), k)
        assert both.tolist() == pytest.approx([_mixture(one[None], k)[0][0], _mixture(other[None], k)[0][0]])


def test_numbers_in_three_heaps():
    values = _three(0, middles=(0.0, 0.8, 2.0))
    order = np.random.default_rng(0).permutation(len(values))
    found = find_regimes(values[order], count=3)
    assert found.labels.tolist() == np.repeat([0, 1, 2], (12, 9, 5))[order].tolist()
    first, second = found.borders
    assert first == pytest.approx((values[:12].max() + values[12:21].min()) / 2)
    assert second == pytest.approx((values[12:21].max() + values[21:].min()) / 2)
    assert found.count == 3
    assert found.p == 1 / 100
    halves = find_regimes(values[order], count=2)
    assert (np.unique(halves.labels).tolist(), len(halves.borders)) == ([0, 1], 1)
    assert halves.gain == found.gain > 10


@pytest.mark.parametrize("shape", ["normal", "uniform"])
def test_numbers_without_regimes_seldom_have_any(shape):
    rng = np.random.default_rng(4)
    draw = {"normal": lambda: rng.normal(size=12), "uniform": lambda: rng.random(12)}[shape]
    assert sum(find_regimes(draw(), seed=seed).p <= 0.05 for seed in range(5)) <= 1


def test_two_regimes_on_a_few_numbers():
    found = find_regimes([0.9, 0.1, 0.12, 0.88, 0.11, 0.91])
    assert found.labels.tolist() == [1, 0, 0, 1, 0, 1]
    assert found.borders == (pytest.approx(0.5),)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], [0.5] * 10])
def test_too_few_or_equal_numbers_are_refused(values):
    with pytest.raises(ValueError, match="give more than 4, not all of them equal"):
        find_regimes(values)


@pytest.mark.parametrize("count", [1, 5])
def test_a_count_that_is_not_tried_is_refused(count):
    with pytest.raises(ValueError, match="2 <= count <= most"):
        find_regimes(range(10), count=count)


def test_numbers_all_over_a_range_are_no_regimes():
    values = np.random.default_rng(2).beta(0.8, 0.8, size=60)  # flatter than a normal distribution ever is
    assert find_regimes(values).p > 0.5
