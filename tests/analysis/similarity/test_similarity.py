"""Similarity of two layers: against QR of all activations, invariances, planted and null distributions, refusals."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA

from sdkernels.analysis.similarity import similarity as module
from sdkernels.analysis.similarity.similarity import similarity
from sdkernels.engine.checks import SdkernelsWarning
from tests.analysis.similarity.oracle import array, cca, principal, pwcca, related

SHAPES = [(1, 1), (1, 5), (6, 6), (12, 4)]
CORRELATED = ("cca", "svcca", "pwcca")


def invertible(seed, units, span=4.0):
    """A map of condition 10**span at most, and a shift."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((units, units)))[0] for _ in range(2))
    mixing = left * 10 ** generator.uniform(0, span, units) @ right
    return torch.from_numpy(mixing), torch.from_numpy(generator.uniform(-100, 100, units))


def rotation(seed, units):
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).standard_normal((units, units)))[0])


# Against the definition.


@pytest.mark.parametrize("solver", ["auto", "cholesky", "eigh", "svd"])
@pytest.mark.parametrize(("units_a", "units_b"), SHAPES)
def test_cca(units_a, units_b, solver):
    a, b = related(units_a, 400, units_a, units_b)
    found = similarity(a, b, solver=solver)
    expected = cca(a, b)
    np.testing.assert_allclose(found.correlations, expected, rtol=0, atol=1e-12)
    assert found.distance == pytest.approx(1 - expected.mean(), abs=1e-12)
    assert found.similarity == 1 - found.distance
    assert (found.rank_a, found.rank_b, found.units_a, found.units_b) == (units_a, units_b) * 2
    assert found.solver_a == found.solver_b == ("cholesky" if solver == "auto" else solver)
    assert found.weights is found.side is None


@pytest.mark.parametrize("solver", ["auto", "eigh", "svd"])
@pytest.mark.parametrize("variance", [0.6, 0.9, 0.99, 1.0])
def test_svcca(variance, solver):
    a, b = related(1, 400, 12, 8)
    found = similarity(a, b, method="svcca", variance=variance, solver=solver)
    reduced = principal(a, variance), principal(b, variance)
    np.testing.assert_allclose(found.correlations, cca(*reduced), rtol=0, atol=1e-10)
    assert (found.rank_a, found.rank_b) == tuple(x.shape[1] for x in reduced)
    assert found.distance == pytest.approx(1 - cca(*reduced).mean(), abs=1e-10)


@pytest.mark.parametrize("side", ["first", "second", "smaller"])
@pytest.mark.parametrize(("units_a", "units_b"), SHAPES)
def test_pwcca(units_a, units_b, side):
    a, b = related(units_b, 400, units_a, units_b)
    found = similarity(a, b, method="pwcca", side=side)
    chosen = side if side != "smaller" else "first" if units_a <= units_b else "second"
    expected, weights = pwcca(a, b, ("first", "second").index(chosen))
    assert found.side == chosen
    assert found.distance == pytest.approx(1 - expected, abs=1e-12)
    np.testing.assert_allclose(found.weights, weights, rtol=0, atol=1e-10)


def test_the_smaller_side_is_by_live_units():
    a, b = related(2, 400, 5, 6)
    b = torch.cat([b[:, :4], torch.ones(400, 2)], 1)
    found = similarity(a, b, method="pwcca")
    assert found.side == "second"
    assert found.distance == pytest.approx(1 - pwcca(a, b, 1)[0], abs=1e-12)


@pytest.mark.parametrize("method", CORRELATED)
def test_reduce(method):
    a, b = related(3, 400, 12, 8)
    found = similarity(a, b, method=method, reduce=3, variance=0.9999 if method == "svcca" else 0.99)
    bases = [(lambda x: np.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :3])(array(x)) for x in (a, b)]
    np.testing.assert_allclose(found.correlations, cca(*bases), rtol=0, atol=1e-10)
    assert (found.rank_a, found.rank_b) == (3, 3)


@pytest.mark.parametrize("sizes", [(2, 1), (3, 3), (5, 2)])
def test_scikit_learn(sizes):
    a, b = related(4, 200, *sizes, noise=1.0)
    count = min(sizes)
    x, y = CCA(n_components=count, max_iter=100_000, tol=1e-12).fit_transform(a.numpy(), b.numpy())
    expected = [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(count)]
    np.testing.assert_allclose(similarity(a, b).correlations, expected, rtol=0, atol=1e-5)


def test_cka_by_its_kernels():
    a, b = related(5, 100, 6, 4)
    kernels = [(x - x.mean(0)) @ (x - x.mean(0)).t() for x in (a, b)]
    expected = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    found = similarity(a, b, method="cka")
    assert found.similarity == pytest.approx(float(expected), abs=1e-12)
    assert found.correlations is found.rank_a is found.condition_a is found.solver_b is None
    assert similarity(a, b, method="cka", debiased=True).similarity < found.similarity


# What does not change them, and what does.


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.sampled_from(["auto", "eigh", "svd"]))
def test_cca_does_not_change_with_invertible_maps(seed, units_a, units_b, solver):
    a, b = related(seed, 80, units_a, units_b)
    (map_a, shift_a), (map_b, shift_b) = invertible(seed, units_a), invertible(seed + 1, units_b)
    plain = similarity(a, b, solver=solver).correlations
    assert ((plain >= 0) & (plain <= 1)).all()
    assert (plain.diff() <= 0).all()
    moved = similarity(a @ map_a + shift_a, b @ map_b + shift_b, solver=solver).correlations
    torch.testing.assert_close(plain, moved, rtol=0, atol=1e-6)
    torch.testing.assert_close(plain, similarity(b, a, solver=solver).correlations, rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(("cca", "svcca", "pwcca", "cka")))
def test_a_layer_is_like_itself(seed, method):
    a, _ = related(seed, 80, 7, 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(7))
    for other in (a, a[:, order], 3 * a - 1):
        assert similarity(a, other, method=method).distance == pytest.approx(0, abs=1e-12)
        assert similarity(a, other, method=method).distance >= 0 or method == "cka"


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(("cca", "svcca", "pwcca", "cka")))
def test_the_order_of_units_and_examples_does_not_count(seed, method):
    a, b = related(seed, 80, 5, 6)
    generator = np.random.default_rng(seed)
    units, examples = torch.from_numpy(generator.permutation(5)), torch.from_numpy(generator.permutation(80))
    found = similarity(a, b, method=method).distance
    assert similarity(a[examples][:, units], b[examples], method=method).distance == pytest.approx(found, abs=1e-10)
    assert similarity(a, b[examples], method=method).distance > found + 1e-3 or found > 0.5


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_what_pwcca_does_not_change_with(seed):
    """Any invertible map of the other side; of the side that weighs signs, order, common scale and shift."""
    a, b = related(seed, 80, 4, 6)
    map_b, shift_b = invertible(seed, 6, 2.0)
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], 4))
    found = similarity(a, b, method="pwcca", side="first").distance
    for one, other in ((a, b @ map_b + shift_b), (a * signs * 100 + 7, b)):
        assert similarity(one, other, method="pwcca", side="first").distance == pytest.approx(found, abs=1e-8)


def test_what_pwcca_changes_with():
    """Rotations and scales of the side that weighs, and the side."""
    a, b = related(0, 80, 4, 6)
    found = similarity(a, b, method="pwcca", side="first").distance
    for one in (a @ rotation(0, 4), a * torch.tensor([1.0, 10.0, 100.0, 1.0])):
        assert abs(similarity(one, b, method="pwcca", side="first").distance - found) > 1e-4
    assert abs(similarity(a, b, method="pwcca", side="second").distance - found) > 1e-4
    turned = similarity(b, a, method="pwcca", side="second").distance
    assert turned == pytest.approx(found, abs=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(("svcca", "cka")))
def test_what_does_not_change_with_rotations(seed, method):
    a, b = related(seed, 80, 5, 4)
    turned = 3 * a @ rotation(seed, 5) + 2, b @ rotation(seed + 1, 4) - 1
    expected = similarity(a, b, method=method).distance
    assert similarity(*turned, method=method).distance == pytest.approx(expected, abs=1e-9)


# Known distributions.


def test_planted_correlations():
    """The population's are known; sample ones are off by about (1 - rho**2) / sqrt(N)."""
    generator = np.random.default_rng(0)
    count, rhos = 100_000, np.array([0.95, 0.7, 0.4, 0.0])
    x, rest = generator.standard_normal((2, count, 4))
    y = x * rhos + rest * np.sqrt(1 - rhos**2)
    found = similarity(x @ generator.standard_normal((4, 4)), y @ generator.standard_normal((4, 4)) + 3)
    np.testing.assert_allclose(found.correlations[:3], rhos[:3], rtol=0, atol=4 / np.sqrt(count))
    assert found.correlations[3] < 5 / np.sqrt(count)
    assert found.significant().count == 3


@pytest.mark.parametrize(("units", "count"), [(1, 10), (3, 20), (8, 60)])
def test_one_unit_against_noise(units, count):
    """Its squared multiple correlation has the distribution Beta(q / 2, (n - 1 - q) / 2)."""
    generator = np.random.default_rng(0)
    squares = []
    for _ in range(200):
        a, b = generator.standard_normal((count, 1)), generator.standard_normal((count, units))
        squares.append(float(similarity(a, b).correlations[0]) ** 2)
    null = scipy.stats.beta(units / 2, (count - 1 - units) / 2)
    assert scipy.stats.kstest(squares, null.cdf).pvalue > 0.01
    assert np.mean(squares) == pytest.approx(units / (count - 1), abs=4 * null.std() / np.sqrt(200))


def test_two_units_against_noise():
    """Wilks' Lambda with p = 2: (1 - sqrt(L)) / sqrt(L) * (n - q - 2) / q is F with 2 q and 2 (n - q - 2) degrees."""
    generator = np.random.default_rng(0)
    count, units = 30, 4
    values = []
    for _ in range(200):
        a, b = generator.standard_normal((count, 2)), generator.standard_normal((count, units))
        root = np.sqrt(np.prod(1 - similarity(a, b).correlations.numpy() ** 2))
        values.append((1 - root) / root * (count - units - 2) / units)
    assert scipy.stats.kstest(values, scipy.stats.f(2 * units, 2 * (count - units - 2)).cdf).pvalue > 0.01


def test_the_mean_square_of_chance_is_what_the_warning_says():
    generator = np.random.default_rng(0)
    squares = []
    for _ in range(50):
        with pytest.warns(SdkernelsWarning, match=r"60 examples are few for the 10 and 20 directions.*about 0\.58 "):
            found = similarity(generator.standard_normal((60, 10)), generator.standard_normal((60, 20)))
        squares.append(float(found.correlations.square().mean()))
    assert np.sqrt(np.mean(squares)) == pytest.approx(0.58, abs=0.01)


# Units that are none, offsets, dtypes, many rows.


@pytest.mark.parametrize("solver", ["auto", "eigh", "svd"])
@pytest.mark.parametrize("method", ["cca", "pwcca"])
def test_dead_duplicate_and_dependent_units(method, solver):
    """Against an oracle that finds the rank for itself; dead units change nothing, nor do copies of correlations."""
    a, b = related(6, 300, 5, 7)
    side = "second" if method == "pwcca" else "smaller"
    plain = similarity(a, b, method=method, side=side)
    dead = torch.full((300, 2), 0.1)
    more = torch.cat([dead, a, a[:, :2] * 5, a[:, :1] - a[:, 3:4]], 1)
    found = similarity(more, torch.cat([b, dead], 1), method=method, side=side, solver=solver)
    assert (found.rank_a, found.rank_b) == (5, 7)
    assert found.dead_a.tolist() == [True] * 2 + [False] * 8
    assert found.dead_b.tolist() == [False] * 7 + [True] * 2
    np.testing.assert_allclose(found.correlations, cca(more, b), rtol=0, atol=1e-11)
    assert found.distance == pytest.approx(plain.distance, abs=1e-11)
    assert found.solver_a == ("eigh" if solver == "auto" else solver)


@pytest.mark.parametrize("method", ["cca", "svcca", "pwcca", "cka"])
def test_an_offset_of_a_million_spreads(method, monkeypatch):
    """In pieces, and sorted: nothing cancels but the digits that the offset takes of each number."""
    monkeypatch.setattr(module, "_AT_ONCE", 11 * 64)
    a, b = related(7, 500, 5, 6)
    a, b = a / a.std(0), b / b.std(0)
    order = a[:, 0].argsort()
    expected = similarity(a, b, method=method).distance
    assert similarity(a[order] + 1e6, b[order] - 1e6, method=method).distance == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)], ids=str
)
@pytest.mark.parametrize("method", ["cca", "svcca", "pwcca", "cka"])
def test_dtypes(method, dtype, within):
    """Only the activations are rounded: the same as of the rounded ones in float64, bit for bit."""
    a, b = (x.to(dtype) for x in related(8, 400, 5, 6))
    found = similarity(a, b, method=method)
    assert found.distance == similarity(a.double(), b.double(), method=method).distance
    assert found.distance == pytest.approx(similarity(*related(8, 400, 5, 6), method=method).distance, abs=within)


def test_gradients_are_not_followed():
    a, b = related(10, 200, 4, 5)
    found = similarity(a.requires_grad_(), b)
    assert not found.correlations.requires_grad


def test_ill_conditioned_activations_are_decomposed_themselves():
    a, b = related(11, 300, 5, 6)
    scales = torch.tensor([1.0, 1.0, 1.0, 1.0, 2e-5]).double()
    ill = (a - a.mean(0)) / a.std(0) @ rotation(0, 5) * scales @ rotation(1, 5)
    found, plain = similarity(ill, b), similarity(a, b)
    assert found.solver_a == found.solver_b == "svd"
    assert plain.solver_a == "cholesky"
    assert found.condition_a > 3e4 > plain.condition_a
    torch.testing.assert_close(found.correlations, plain.correlations, rtol=0, atol=1e-10)
    assert similarity(ill, b, solver="eigh").solver_a == "eigh"


def test_tolerance():
    a, b = related(12, 300, 5, 6)
    a = torch.cat([a, a[:, :1] + 1e-3 * a[:, 1:2].roll(1, 0)], 1)
    assert similarity(a, b).rank_a == 6
    assert similarity(a, b, tolerance=1e-4).rank_a == 5
