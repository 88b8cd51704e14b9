"""What is given to similarity(): positions, arrays, and every refusal."""

import numpy as np
import pytest
import torch

from sdkernels.analysis.similarity import similarity as module
from sdkernels.analysis.similarity.similarity import similarity
from sdkernels.engine.checks import SdkernelsWarning
from tests.analysis.similarity.oracle import related


def test_arrays_and_integers():
    a, b = related(9, 200, 4, 5)
    a, b = (a * 10).round(), (b * 10).round()
    expected = similarity(a, b).distance
    frozen = b.numpy().astype(">f4")
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(a.numpy()[::-1])[::-1]
    for one, other in ((a.int(), b.long()), (a.numpy(), frozen), (strided.astype(np.int16), b.float()), (strided, b)):
        assert similarity(one, other).distance == expected
    assert similarity(a > 0, b.numpy() > 0).distance == similarity((a > 0).float(), (b > 0).float()).distance


# Positions.


@pytest.mark.parametrize("method", ["cca", "pwcca", "cka"])
def test_positions(method, monkeypatch):
    generator = np.random.default_rng(0)
    a = torch.from_numpy(generator.standard_normal((60, 3, 4, 4)))
    b = torch.from_numpy(generator.standard_normal((60, 5, 4, 4)))
    b[:, :2] += a[:, :2]
    monkeypatch.setattr(module, "_AT_ONCE", 128 * 7)
    mean = similarity(a, b, method=method)
    assert mean.distance == pytest.approx(similarity(a.mean((2, 3)), b.mean((2, 3)), method=method).distance)
    each = similarity(a, b, method=method, positions="each")
    rows = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in (a, b)]
    assert each.distance == pytest.approx(similarity(*rows, method=method).distance)
    assert (mean.examples, each.examples) == (60, 960)
    some = similarity(a, b, method=method, positions="each", subsample=5, seed=1)
    assert some.examples == 300
    assert some.settings["subsample"] == 5
    monkeypatch.setattr(module, "_AT_ONCE", 2**24)  # whole, the same positions are drawn
    whole = similarity(a, b, method=method, positions="each", subsample=5, seed=1)
    assert some.distance == pytest.approx(whole.distance, abs=1e-12)
    assert some.distance != similarity(a, b, method=method, positions="each", subsample=5, seed=2).distance
    small = similarity(a, b[:, :, ::2, ::2], method=method, positions="resample")
    assert small.examples == 240


def test_sequences_say_which_dimension_holds_units():
    a, b = related(13, 240, 3, 4)
    a, b = a.view(60, 4, 3), b.view(60, 4, 4)
    expected = similarity(a.mean(1), b.mean(1)).distance
    for unit_dim in (2, -1):
        assert similarity(a, b, unit_dim=unit_dim).distance == pytest.approx(expected)
    assert similarity(a.mT, b.mT, unit_dim=1).distance == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"a \[60, 4, 3\]: are its units dimension 1, as \[N, C, L\], or 2"):
        similarity(a, b)
    with pytest.raises(ValueError, match=r"unit_dim=3 must be within 1\.\.2 for a"):
        similarity(a, b, unit_dim=3)
    with pytest.raises(ValueError, match=r"unit_dim=-3 must be within 1\.\.2 for a"):
        similarity(a, b, unit_dim=-3)
    with pytest.raises(TypeError, match="unit_dim is a float; give an int"):
        similarity(a, b, unit_dim=1.0)


# Refusals.


def test_few_examples():
    generator = np.random.default_rng(0)

    def noise(count, units):
        return generator.standard_normal((count, units))

    with pytest.raises(ValueError, match=r"a varies in 9 directions and b in 3, of only 9 that 10 examples leave"):
        similarity(noise(10, 20), noise(10, 3))
    with pytest.raises(
        ValueError, match=r"b in 12, of only 19 .* at least 4 of 11 .* Give more than 24 .*reduce=K.*cka"
    ):
        similarity(noise(20, 11), noise(20, 12))
    for method in ("cca", "pwcca"):
        with pytest.raises(ValueError, match="canonical correlations are 1 whatever"):
            similarity(noise(20, 10), noise(20, 10), method=method)
    with pytest.raises(ValueError, match="canonical correlations are 1 whatever"):
        similarity(noise(10, 9), noise(10, 1))
    with pytest.raises(ValueError, match="canonical correlations are 1 whatever"):
        similarity(noise(20, 40), noise(20, 40), method="svcca")
    with pytest.warns(SdkernelsWarning, match="20 examples are few for the 9 and 10 directions"):
        assert similarity(noise(20, 9), noise(20, 10)).correlations[0] < 1 - 1e-6
    assert similarity(noise(20, 40), noise(20, 40), reduce=4).rank_a == 4
    assert similarity(noise(20, 40), noise(20, 40), method="cka").examples == 20


def test_one_warning_names_the_callers_line():
    with pytest.warns(SdkernelsWarning) as caught:
        similarity(torch.eye(8)[:, :2], torch.eye(8)[:, 2:4])
    assert [warning.filename for warning in caught] == [__file__]


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (X, X[:19], r"a \[20, 3\], b \[19, 3\]: 20 and 19 examples; give activations of the same examples"),
        (X.t(), torch.ones(2, 20), "rows are examples and columns units, so give a.T and b.T"),
        (X[:1], X[:1], r"a \[1, 3\], b \[1, 3\]: 1 examples; similarity needs at least 2"),
        (X[:, 0], X, r"a \[20\] must be \[N, C\].*a\[:, None\]"),
        (X, X[:, :0], r"b \[20, 0\] is empty"),
        (X, torch.zeros(20, 3), r"b \[N, 3\]: all units are dead"),
        (X, X[:, :, None, None].expand(-1, -1, 0, 2), r"b \[20, 3, 0, 2\] is empty"),
    ],
)
@pytest.mark.parametrize("method", ["cca", "cka"])
def test_refuses_shapes(a, b, message, method):
    with pytest.raises(ValueError, match=message):
        similarity(a, b, method=method)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite(value, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 6 * 7)
    spoilt = X.clone()
    spoilt[16, 2] = value
    with pytest.raises(ValueError, match=rf"b \[N, 3\] holds {value} in row 16, column 2"):
        similarity(X, spoilt)
    maps = torch.ones(20, 3, 2, 2)
    maps[9, 1, 0, 1] = value
    with pytest.raises(ValueError, match=rf"a \[N, 3, 2, 2\] holds {value} in row 9, column \[1, 0, 1\]"):
        similarity(maps, X)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ([[1.0]], "a is a list; give activations"),
        (X.cfloat(), "a .* is torch.complex64; give real numbers"),
        (np.ones((20, 3), complex), "a .* is an array of complex128"),
        (np.full((20, 3), "x"), "a .* is an array of <U1"),
    ],
    ids=str,
)
def test_refuses_types(given_, message):
    with pytest.raises(TypeError, match=message):
        similarity(given_, X)


def test_activations_are_left_as_they_are():
    a, b = related(14, 100, 4, 5)
    copies = a.clone(), b.clone()
    for solver in ("cholesky", "svd"):
        similarity(a, b.numpy(), solver=solver)
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])
