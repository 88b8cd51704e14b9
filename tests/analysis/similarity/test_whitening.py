"""Whitening: orthonormal variates, rank, dead units, solvers and how well they do, by the activations themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdkernels.analysis.similarity.canonical import canonical
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.similarity.whitening import ILL_CONDITIONED, Whitening, kept, whiten, whiten_rows
from tests.analysis.similarity.oracle import related

SOLVERS = ("cholesky", "eigh", "svd")


def by(solver, x, **options):
    moments = Moments([x.shape[1]])
    moments.add([x])
    options = {"rounding": moments.rounding(0), **options}
    if solver == "svd":
        return whiten_rows(x.double() - moments.mean(0), **options)
    return whiten(moments.scatter(0), len(x), solver=solver, **options)


def check(white: Whitening, x, rank, tolerance=1e-10):
    """By the activations: variates are orthonormal, and parts are their products with units."""
    centred = x.double() - x.double().mean(0)
    variates = centred @ white.basis
    assert white.rank == rank
    assert white.examples == len(x)
    assert (variates.t() @ variates - torch.eye(rank).double()).abs().max() < tolerance
    expected = centred.t() @ variates
    expected[white.dead] = 0
    assert ((white.parts - expected).abs() <= tolerance * centred.norm(dim=0)[:, None] + 1e-300).all()
    if white.variates is not None:
        assert (white.variates - variates).abs().max() < tolerance


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("units", [1, 2, 7, 40])
def test_variates_are_orthonormal(solver, units):
    x = related(0, 200, units, 1)[0]
    white = by(solver, x)
    check(white, x, units)
    assert white.solver == solver
    assert (white.units, white.live) == (units, units)
    torch.testing.assert_close(white.scale, x.std(0, unbiased=False), rtol=1e-12, atol=0)
    deviations = np.linalg.svd((x - x.mean(0)).numpy() / x.std(0).numpy(), compute_uv=False)
    assert white.condition == pytest.approx(deviations[0] / deviations[-1], rel=0.1 if solver == "cholesky" else 1e-9)


@pytest.mark.parametrize("solver", ["eigh", "svd"])
def test_dependent_units_leave_their_rank(solver):
    """Duplicates, sums, scaled and shifted copies, of any scale."""
    x = related(1, 300, 6, 1)[0]
    more = torch.stack([x[:, 0], x[:, 1] * -1e5 + 3, x[:, 2] + x[:, 3], x[:, 4] * 1e-6], 1)
    white = by(solver, torch.cat([x, more], 1))
    check(white, torch.cat([x, more], 1), 6)
    assert not white.dead.any()
    assert white.condition < 1e3  # of what is kept


def test_float32_copies_are_dependent_too():
    x = related(2, 300, 6, 1)[0].float()
    x = torch.cat([x, (x[:, :1] + x[:, 1:2]) * 1.7], 1)
    assert by("eigh", x).rank == by("svd", x).rank == 6


@pytest.mark.parametrize("solver", ["eigh", "svd", "auto"])
def test_dead_units_are_left_out(solver):
    """Constants, and large ones with rounding; but no unit of small variance."""
    generator = torch.Generator().manual_seed(0)
    x = related(3, 100, 3, 1)[0].float()
    rounding = torch.randint(0, 3, (100,), generator=generator)
    constants = torch.full((100, 3), 1234.5)
    constants[:, 1] = 0
    constants[:, 2] = 1000 + rounding * (constants[0, 0].nextafter(torch.tensor(2e3)) - constants[0, 0])
    tiny = x[:, :1].roll(1, 0) * 1e-18
    x = torch.cat([constants, x, tiny], 1)
    white = by(solver, x)
    assert white.dead.tolist() == [True, True, True, False, False, False, False]
    assert white.live == 4
    assert (white.basis[:3] == 0).all()
    assert (white.parts[:3] == 0).all()
    assert (white.scale[:3] == 0).all()
    check(white, x, 4)


def test_an_offset_of_a_million_spreads_is_alive():
    for x in (related(4, 100, 3, 1)[0] * 0.2 + 1e6, related(4, 100, 3, 1)[0].float() + 1e6):
        assert not by("eigh", x).dead.any()


def test_without_rounding_only_a_variance_of_zero_is_dead():
    scatter = torch.diag(torch.tensor([1.0, 1e-200, 0.0], dtype=torch.float64))
    assert whiten(scatter, 5).dead.tolist() == [False, False, True]


@settings(max_examples=50)
@given(st.integers(0, 1000), st.sampled_from(SOLVERS))
def test_scales_of_units_do_not_count(seed, solver):
    """Nor do they cost digits: variates of units scaled by powers of two are the same bits but for the sum's order."""
    x = related(seed, 60, 4, 1)[0]
    scales = torch.tensor([2.0**-300, 1.0, 2.0**40, 2.0**200], dtype=torch.float64)
    one, other = by(solver, x), by(solver, x * scales)
    assert one.rank == other.rank == 4
    variates = [(y - y.mean(0)) @ white.basis for y, white in ((x, one), (x * scales, other))]
    difference = variates[0] @ variates[0].t() - variates[1] @ variates[1].t()  # signs are free
    assert difference.abs().max() < 1e-9
    assert one.condition == pytest.approx(other.condition, rel=1e-6)


def planted(exponent, units=20, count=2000):
    """Two layers of condition about 10**exponent, whose canonical correlations are known but for float64's rounding."""
    generator = np.random.default_rng(0)
    normals = generator.standard_normal((count, 2 * units))
    orthonormal, _ = np.linalg.qr(normals - normals.mean(0))
    rhos = np.linspace(0.95, 0.05, units)
    first, rest = orthonormal[:, :units], orthonormal[:, units:]
    layers = []
    for variates in (first, first * rhos + rest * np.sqrt(1 - rhos**2)):
        left, right = (np.linalg.qr(generator.standard_normal((units, units)))[0] for _ in range(2))
        layers.append(torch.from_numpy(variates @ (left * np.logspace(0, -exponent, units)) @ right))
    return *layers, torch.from_numpy(rhos)


@pytest.mark.parametrize("exponent", [1, 3, 4.5, 5.9])
def test_digits_that_solvers_keep(exponent):
    """Why "auto" turns to the activations themselves: covariances lose twice as many digits as the condition has."""
    a, b, rhos = planted(exponent)
    cross = (a - a.mean(0)).t() @ (b - b.mean(0))
    errors = {}
    for solver in SOLVERS:
        whites = [by(solver, x, tolerance=1e-13) for x in (a, b)]
        assert all(0.3 < white.condition / 10**exponent < 3 for white in whites)
        found = canonical(*whites, None if solver == "svd" else cross).correlations
        errors[solver] = float((found - rhos).abs().max())
    condition = 10.0**exponent
    assert errors["svd"] < 1e-15 * condition
    assert max(errors["cholesky"], errors["eigh"]) < 1e-15 * condition**2
    if condition**2 > ILL_CONDITIONED:
        assert min(errors["cholesky"], errors["eigh"]) > 100 * errors["svd"]


def test_auto_takes_cholesky_where_the_rank_is_full_and_eigh_elsewhere():
    x = related(5, 100, 6, 1)[0]
    assert by("auto", x).solver == "cholesky"
    assert by("auto", torch.cat([x, x[:, :1]], 1)).solver == "eigh"
    assert by("auto", x[:5]).solver == "eigh"
    assert by("auto", x[:5]).rank == 4
    assert by("auto", x, variance=0.9).solver == "eigh"
    assert by("auto", x, tolerance=0.5).solver == "eigh"
    almost = torch.cat([x, x[:, :1] + 1e-5 * x[:, 1:2].roll(1, 0)], 1)  # condition 1e5 to 1e6: of rank 7
    assert by("auto", almost).rank == by("eigh", almost).rank == by("svd", almost).rank == 7
    beyond = torch.cat([x, x[:, :1] + 1e-8 * x[:, 1:2].roll(1, 0)], 1)
    assert by("auto", beyond).rank == by("eigh", beyond).rank == by("svd", beyond).rank == 6


@pytest.mark.parametrize("solver", ["eigh", "svd"])
def test_principal_directions_are_of_the_units_own_scale(solver):
    """By hand: three uncorrelated units of variances 90, 9 and 1 hold 90, 99 and 100 percent."""
    generator = np.random.default_rng(0)
    normals = generator.standard_normal((400, 3))
    orthonormal, _ = np.linalg.qr(normals - normals.mean(0))
    x = torch.from_numpy(orthonormal * np.sqrt([9.0, 1.0, 90.0]) * 20)
    ranks = {0.5: 1, 0.89: 1, 0.91: 2, 0.98: 2, 0.995: 3, 1.0: 3}
    for variance, rank in ranks.items():
        assert by(solver, x, variance=variance).rank == rank
    white = by(solver, x, variance=0.98)
    check(white, x, 2)
    torch.testing.assert_close(white.variances, torch.tensor([90.0, 9.0]).double(), rtol=1e-10, atol=0)
    assert white.condition == pytest.approx(10**0.5)
    assert by(solver, x, reduce=2).rank == 2
    assert by(solver, x, reduce=1).basis[:, 0].abs().argmax() == 2
    assert by(solver, x, reduce=9).rank == 3
    assert by(solver, x, reduce=2, variance=0.5).rank == 1


def test_kept():
    eigenvalues = torch.tensor([4.0, 3.0, 2.0, 1.0, 1e-9]).double()
    assert kept(eigenvalues, 1e-6, None, None) == 4
    assert kept(eigenvalues, 0.25, None, None) == 3
    assert kept(eigenvalues, 1e-6, 0.7, None) == 2
    assert kept(eigenvalues, 1e-6, 0.700001, None) == 3
    assert kept(eigenvalues, 1e-6, 1.0, None) == 4


@pytest.mark.parametrize("count", [7, 6])
def test_cholesky_of_dependent_units_is_refused(count):
    x = related(6, 40, 6, 1)[0]
    x = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)[:, :count] if count == 7 else x[:5]
    with pytest.raises(
        ValueError, match=r"solver='cholesky' cannot whiten fc.* has rank \d.*Give solver='auto' or 'eigh'"
    ):
        by("cholesky", x, name="fc")


@pytest.mark.parametrize("options", [{"variance": 0.9}, {"reduce": 2}], ids=str)
def test_cholesky_has_no_principal_directions(options):
    with pytest.raises(ValueError, match="solver='cholesky' finds no principal directions of fc"):
        by("cholesky", related(7, 40, 3, 1)[0], name="fc", **options)


def test_refusals():
    with pytest.raises(ValueError, match=r"fc \[N, 3\]: all units are dead.*Take another layer"):
        by("eigh", torch.full((10, 3), 0.1), name="fc")
    with pytest.raises(ValueError, match=r"fc \[N, 2\] overflows float64"):
        whiten(torch.full((2, 2), torch.inf).double(), 5, name="fc")
    for solver in ("svd", "lu"):
        with pytest.raises(ValueError, match=f"solver='{solver}' cannot whiten a from a scatter"):
            whiten(torch.eye(2).double(), 5, solver=solver)
