"""Canonical correlations and weights against their definition, written out in NumPy."""

import numpy as np
import pytest
import torch

from sdkernels.analysis.similarity.canonical import canonical
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.similarity.whitening import whiten, whiten_rows
from tests.analysis.similarity.oracle import cca, pwcca, related, variant


def between(a, b, **options):
    moments = Moments([a.shape[1], b.shape[1]], [(0, 1)])
    moments.add([a, b])
    whites = [whiten(moments.scatter(i), len(a), rounding=moments.rounding(i)) for i in (0, 1)]
    return canonical(*whites, moments.scatter(0, 1), **options)


SIZES = [(1, 1), (1, 6), (6, 1), (5, 5), (4, 9), (9, 4)]


def test_correlations_far_below_1_keep_their_digits():
    """Where squares would have none, there is no squaring."""
    generator = np.random.default_rng(0)
    rows = np.linalg.qr(generator.standard_normal((400, 8)))[0]
    rows = np.linalg.qr(rows - rows.mean(0))[0]
    truth = np.array([0.9, 1e-3, 1e-6, 1e-9])
    a, b = rows[:, :4], rows[:, :4] * truth + rows[:, 4:] * np.sqrt(1 - truth**2)
    white = [whiten_rows(torch.from_numpy(x)) for x in (a, b)]
    np.testing.assert_allclose(canonical(*white).correlations, truth, rtol=0, atol=1e-14)


@pytest.mark.parametrize("weights", [None, "first", "second"])
@pytest.mark.parametrize(("units_a", "units_b"), SIZES)
def test_against_the_definition(units_a, units_b, weights):
    a, b = related(units_a, 300, units_a, units_b)
    found = between(a, b, weights=weights)
    np.testing.assert_allclose(found.correlations, cca(a, b), rtol=0, atol=1e-12)
    assert found.correlations.dtype == torch.float64
    if weights is None:
        assert found.weights is None
    else:
        similarity, expected = pwcca(a, b, ("first", "second").index(weights))
        np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-10)
        assert float(found.weights @ found.correlations) == pytest.approx(similarity, abs=1e-12)


@pytest.mark.parametrize(("units_a", "units_b"), [(1, 3), (5, 5), (4, 9)])
def test_the_widely_used_variant(units_a, units_b):
    """And that it is another than the paper's."""
    a, b = related(units_a, 300, units_a, units_b)
    found = between(a, b, weights="first", compat="svcca")
    similarity, expected = variant(a, b)
    np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-9)
    assert float(found.weights @ found.correlations) == pytest.approx(similarity, abs=1e-10)
    turned = between(b, a, weights="second", compat="svcca")
    np.testing.assert_allclose(turned.weights, expected, rtol=0, atol=1e-9)
    if units_a > 1:
        assert np.abs(pwcca(a, b, 0)[1] - expected).max() > 1e-3


def test_the_variant_is_the_formula_where_units_are_uncorrelated_and_of_one_variance():
    generator = np.random.default_rng(0)
    normals = generator.standard_normal((300, 8))
    whitened, _ = np.linalg.qr(normals - normals.mean(0))
    a = torch.from_numpy(whitened[:, :4])
    b = torch.from_numpy(whitened[:, :4] * [1, 2, 3, 4] + 2 * whitened[:, 4:])
    ours, theirs = (between(a, b, weights="first", compat=compat).weights for compat in (None, "svcca"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_weights_are_of_the_units_own_scale():
    """A unit that is scaled up pulls the weight to its variates, and leaves correlations alone."""
    a, b = related(3, 400, 3, 5)
    scaled = a * torch.tensor([1e4, 1.0, 1.0])
    plain, pulled = between(a, b, weights="first"), between(scaled, b, weights="first")
    np.testing.assert_allclose(plain.correlations, pulled.correlations, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pulled.weights, pwcca(scaled, b, 0)[1], rtol=0, atol=1e-10)
    assert (plain.weights - pulled.weights).abs().max() > 1e-2


def test_more_variates_than_the_other_side_has_do_not_weigh():
    a, b = related(4, 300, 7, 2)
    assert between(a, b, weights="first").weights.shape == (2,)
    assert between(a, b, weights="first", compat="svcca").weights.shape == (2,)


def test_variates_of_the_data_itself():
    a, b = related(5, 200, 6, 4)
    whites = [whiten_rows(x - x.mean(0)) for x in (a, b)]
    found = canonical(*whites, weights="second")
    np.testing.assert_allclose(found.correlations, cca(a, b), rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.weights, pwcca(a, b, 1)[1], rtol=0, atol=1e-11)


def test_correlations_above_one_are_refused():
    white = whiten(torch.eye(2).double(), 10)
    assert canonical(white, white, torch.eye(2).double() * (1 + 1e-9)).correlations.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"canonical correlation is 1\.00001, above 1.*solver='svd'"):
        canonical(white, white, torch.eye(2).double() * 1.00001)


def test_the_cross_scatter_must_be_there():
    white = whiten(torch.eye(2).double(), 10)
    with pytest.raises(ValueError, match=r"is missing and must be \[2, 2\]"):
        canonical(white, white)
    with pytest.raises(ValueError, match=r"is \[2, 3\] and must be \[2, 2\]"):
        canonical(white, white, torch.ones(2, 3).double())
