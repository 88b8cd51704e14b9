"""Linear CKA against n x n kernels written out: U-centred, or by Song's three terms; invariances; chance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.analysis.similarity.kernel_alignment import linear_cka
from sdkernels.analysis.similarity.moments import Moments


def cka(x, y, debiased=False, batch=None):
    """Of two matrices, through moments."""
    moments = Moments([x.shape[1], y.shape[1]], [(0, 1)], row_norms=debiased)
    for blocks in zip(
        torch.as_tensor(x).split(batch or len(x)), torch.as_tensor(y).split(batch or len(y)), strict=True
    ):
        moments.add(blocks)
    return float(linear_cka(moments, 0, 1, debiased=debiased))


def u_centred(kernel):
    """Without the diagonal, and with rows and columns that add up to zero: Szekely and Rizzo 2014."""
    n = len(kernel)
    hollow = kernel - np.diag(np.diag(kernel))
    sums = hollow.sum(0)
    centred = hollow - sums / (n - 2) - sums[:, None] / (n - 2) + hollow.sum() / ((n - 1) * (n - 2))
    return centred - np.diag(np.diag(centred))


def song(k, l):  # noqa: E741 - the paper's letters
    """The unbiased estimator of HSIC, in three terms."""
    n, one = len(k), np.ones(len(k))
    k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
    terms = np.trace(k @ l), (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)), 2 / (n - 2) * (one @ k @ l @ one)
    return (terms[0] + terms[1] - terms[2]) / (n * (n - 3))


def by_kernels(x, y, way):
    """CKA of two matrices by their kernels [n, n]."""
    k, l = (z @ z.T for z in (np.asarray(x, float), np.asarray(y, float)))  # noqa: E741
    if way == "song":
        return song(k, l) / math.sqrt(song(k, k) * song(l, l))
    if way == "u-centred":
        k, l = u_centred(k), u_centred(l)  # noqa: E741
    else:
        centring = np.eye(len(k)) - 1 / len(k)
        k, l = centring @ k @ centring, centring @ l @ centring  # noqa: E741
    return (k * l).sum() / (np.linalg.norm(k) * np.linalg.norm(l))


def draw(n, p, q, seed=0, related=0.5):
    """Two matrices that go together somewhat, of unequal variances."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * rng.uniform(0.2, 2, p)
    return x, related * x @ rng.normal(size=(p, q)) + rng.normal(size=(n, q)) + rng.normal(size=q)


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


sizes = st.tuples(st.integers(4, 25), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32))


@given(sizes, st.sampled_from([0.0, 0.3, 2.0]))
def test_as_kernels_have_it(size, related):
    x, y = draw(*size, related)
    assert cka(x, y) == pytest.approx(by_kernels(x, y, "centred"), abs=1e-10)
    for way in ("song", "u-centred"):
        assert cka(x, y, debiased=True) == pytest.approx(by_kernels(x, y, way), abs=1e-8)


@pytest.mark.parametrize("debiased", [False, True])
def test_shifts_and_shapes(debiased):
    """More units than examples; one unit."""
    for n, p, q in [(10, 200, 30), (4, 50, 50), (50, 1, 1), (7, 1, 90)]:
        x, y = draw(n, p, q)
        expected = by_kernels(x, y, "song" if debiased else "centred")
        assert cka(x + 3, y - 2, debiased) == pytest.approx(expected, abs=1e-9)


@given(sizes, st.booleans(), st.floats(1e-6, 1e6), st.floats(-100, 100))
def test_does_not_change_with_rotations_scales_and_shifts(size, debiased, scale, shift):
    x, y = draw(*size)
    rng = np.random.default_rng(size[-1])
    moved = scale * (x @ rotation(rng, x.shape[1])) + scale * shift * rng.normal(size=x.shape[1])
    found = cka(x, y, debiased)
    assert cka(moved, y, debiased) == pytest.approx(found, abs=1e-8)
    assert cka(y, moved, debiased) == pytest.approx(found, abs=1e-8)


@pytest.mark.parametrize("debiased", [False, True])
def test_changes_with_invertible_maps(debiased):
    x, y = draw(200, 5, 5, related=2.0)
    stretched = x * np.array([1, 1, 1, 1, 10])
    assert abs(cka(stretched, y, debiased) - cka(x, y, debiased)) > 0.1


@given(sizes, st.booleans())
def test_is_within_bounds_and_one_of_itself(size, debiased):
    """U-centred kernels are vectors too, so that the cosine of two is never above 1, and may be below 0."""
    x, y = draw(*size, related=0)
    found = cka(x, y, debiased)
    assert -1e-8 - debiased <= found <= 1 + 1e-8 * debiased
    of_itself = cka(x, x, debiased)
    assert of_itself == pytest.approx(1, abs=1e-8)
    assert of_itself <= 1 or debiased
    moments = Moments([x.shape[1]], [], row_norms=True)
    moments.add([torch.from_numpy(x)])
    assert float(linear_cka(moments, 0, 0, debiased=debiased)) == pytest.approx(1, abs=1e-12)


def test_debiased_may_be_negative():
    values = [cka(*draw(20, 4, 4, seed, related=0), debiased=True) for seed in range(20)]
    assert min(values) < -0.02


def test_debiased_takes_chance_off():
    """Of independent draws of few examples, the debiased quotient's numerator is 0 on average; the biased is not."""
    draws, (n, p, q) = 1000, (8, 6, 5)
    debiased, biased = [], []
    for seed in range(draws):
        x, y = draw(n, p, q, seed, related=0)
        scale = math.sqrt(song(x @ x.T, x @ x.T) * song(y @ y.T, y @ y.T))
        debiased.append(cka(x, y, debiased=True) * scale)  # the estimate of HSIC
        biased.append(cka(x, y))
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / math.sqrt(draws)
    assert np.mean(biased) > 0.3


def test_debiased_of_few_examples_is_near_what_biased_is_of_many():
    many, few = draw(100_000, 10, 10, related=0.3), [draw(100_000, 10, 10, related=0.3)[k][:4000] for k in (0, 1)]
    expected = cka(*many)
    parts = [z.reshape(200, 20, 10) for z in few]
    means = {d: np.mean([cka(x, y, d) for x, y in zip(*parts, strict=True)]) for d in (False, True)}
    assert abs(means[True] - expected) < 0.03
    assert means[False] - expected > 0.07


@pytest.mark.parametrize("debiased", [False, True])
def test_batches_change_nothing(debiased):
    x, y = draw(101, 7, 4)
    expected = cka(x, y, debiased)
    for batch in (1, 2, 10, 100):
        assert cka(x, y, debiased, batch) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("debiased", [False, True])
def test_float32(debiased):
    x, y = (z.astype(np.float32) for z in draw(60, 7, 4))
    expected = by_kernels(x.astype(float), y.astype(float), "song" if debiased else "centred")
    assert cka(x, y, debiased) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_large_offset_takes_no_digits(debiased):
    x, y = (np.round(z * 2**20) / 2**20 for z in draw(60, 7, 4))  # exact beside the offset
    assert cka(x + 1e6, y - 1e6, debiased, batch=13) == pytest.approx(cka(x, y, debiased), abs=1e-8)


def test_huge_and_tiny_numbers():
    x, y = draw(30, 3, 4)
    for debiased in (False, True):
        assert cka(x * 1e35, y * 1e-35, debiased) == pytest.approx(cka(x, y, debiased), abs=1e-10)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("constant", [0.0, 0.1, -3e7])
def test_no_variance_says_which(debiased, constant):
    x, y = draw(30, 3, 4)
    x[:] = constant
    with pytest.raises(ValueError, match="a has no variance, each of its 3 units is the same at all 30 examples"):
        cka(x, y, debiased, batch=7)
    with pytest.raises(ValueError, match="b has no variance"):
        cka(y, x, debiased, batch=7)


@pytest.mark.parametrize("debiased", [False, True])
def test_dead_units_change_nothing(debiased):
    x, y = draw(30, 3, 4)
    with_dead = np.concatenate([x, np.full((30, 2), 0.1)], 1)
    assert cka(with_dead, y, debiased) == pytest.approx(cka(x, y, debiased), abs=1e-12)


def test_names_are_the_callers():
    moments = Moments([2, 2], [(0, 1)])
    moments.add([torch.eye(2), torch.zeros(2, 2)])
    with pytest.raises(ValueError, match="CKA is not defined: conv1 of the second has no variance"):
        linear_cka(moments, 0, 1, names=("conv1", "conv1 of the second"))


@pytest.mark.parametrize(
    "x", [np.eye(6), np.eye(6)[:, :1], np.diag([1.0, 2, 3, 4, 5, 6])], ids=["one-hot", "one", "far"]
)
def test_debiased_of_nothing_but_chance_is_refused(x):
    """Kernels that are zero but on their diagonals."""
    y = draw(6, 2, 3)[1]
    assert by_kernels(x, y, "centred") > 0
    assert cka(x, y) > 0
    with pytest.raises(ValueError, match="nothing in how the 6 examples of a lie to each other is more than chance"):
        cka(x + 0.3, y, debiased=True)
    with pytest.raises(ValueError, match="examples of b"):
        cka(y, x - 5, debiased=True)


@pytest.mark.parametrize(("debiased", "least"), [(False, 2), (True, 4)])
def test_too_few_examples(debiased, least):
    x, y = draw(least, 3, 2)
    assert math.isfinite(cka(x, y, debiased))
    with pytest.raises(ValueError, match=f"biased CKA takes at least {least} examples; these are {least - 1}"):
        cka(x[1:], y[1:], debiased)
