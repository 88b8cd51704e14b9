"""Rows of activations: against loops over examples and positions, written out."""

import math

import pytest
import torch
from torch import Tensor

from sdkernels.analysis.similarity.activations import Positions, paired_rows, places_of, rows_of


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "unit_dim"), [((4, 3, 2, 5), 1), ((4, 2, 5, 3), 3), ((4, 6, 3), 2), ((4, 3, 6), 1)])
def test_means_are_over_positions_in_float64(shape, unit_dim, dtype):
    output = numbers(*shape, dtype=dtype)
    rows = rows_of(output, unit_dim)
    assert rows.dtype == torch.float64
    assert rows.shape == (4, 3)
    for n in range(4):
        for c in range(3):
            values = output.select(unit_dim, c)[n].flatten().tolist()
            assert float(rows[n, c]) == pytest.approx(math.fsum(values) / len(values), abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "unit_dim"), [((4, 3, 2, 5), 1), ((4, 2, 5, 3), 3), ((4, 10, 3), 2), ((4, 3, 10), 1)]
)
def test_each_position_is_a_row_example_after_example(shape, unit_dim):
    output = numbers(*shape)
    rows = rows_of(output, unit_dim, "each")
    assert rows.dtype == output.dtype
    expected = [[output.select(unit_dim, c)[n].flatten()[s] for c in range(3)] for n in range(4) for s in range(10)]
    assert torch.equal(rows, torch.tensor(expected))


def test_given_places_alone():
    output, places = numbers(3, 2, 2, 2), torch.tensor([[0, 3], [1, 2], [2, 3]])
    rows = rows_of(output, 1, "each", places=places)
    expected = [output[n, :, s // 2, s % 2].tolist() for n in range(3) for s in places[n].tolist()]
    assert rows.tolist() == expected


@pytest.mark.parametrize("positions", ["mean", "each", "resample"])
def test_features_stay_as_they_are(positions):
    output = numbers(5, 3)
    assert rows_of(output, 1, positions) is output


def hat(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def resampled(line: list[float], size: int) -> list[float]:
    """Linear interpolation between the centres of pixels; the outermost values go on to the edge."""
    found = []
    for i in range(size):
        x = min(max((i + 0.5) * len(line) / size - 0.5, 0.0), len(line) - 1.0)
        found.append(sum(value * hat(x - j) for j, value in enumerate(line)))
    return found


@pytest.mark.parametrize("size", [(2, 3), (5, 4), (1, 1), (4, 6), (3, 6)], ids=str)
def test_resampling_is_linear_along_each_axis(size):
    output = numbers(2, 3, 5, 6)
    rows = rows_of(output, 1, "resample", size=size).double().view(2, *size, 3)
    for n in range(2):
        for c in range(3):
            across = [resampled(line.tolist(), size[1]) for line in output[n, c].double()]
            down = [resampled(list(column), size[0]) for column in zip(*across, strict=True)]
            assert rows[n, :, :, c].tolist() == [pytest.approx(row, abs=1e-12) for row in zip(*down, strict=True)]


def test_steps_are_resampled_too():
    output = numbers(2, 6, 3)  # [N, T, F]
    rows = rows_of(output, 2, "resample", size=(4,)).view(2, 4, 3)
    assert rows[1, :, 2].tolist() == pytest.approx(resampled(output[1, :, 2].double().tolist(), 4), abs=1e-12)


def test_maps_of_the_size_already_are_not_touched():
    output = numbers(2, 3, 4, 4)
    assert torch.equal(rows_of(output, 1, "resample", size=(4, 4)), rows_of(output, 1, "each"))


def test_draws_go_by_example_and_seed_alone():
    places = places_of(0, 50, 30, 4, seed=3)
    assert places.shape == (50, 4)
    assert places.dtype == torch.int64
    assert all(len(set(row)) == 4 and sorted(row) == row and 0 <= min(row) <= max(row) < 30 for row in places.tolist())
    assert len({tuple(row) for row in places.tolist()}) > 45
    apart = torch.cat([places_of(start, 1, 30, 4, seed=3) for start in range(50)])
    assert torch.equal(places, apart)
    assert not torch.equal(places, places_of(0, 50, 30, 4, seed=4))
    assert not torch.equal(places, places_of(1, 50, 30, 4, seed=3))


def test_all_places_are_drawn_as_often():
    places = places_of(0, 4000, 10, 3, seed=0)
    counts = places.flatten().bincount(minlength=10).double()
    assert ((counts - 1200) / (1200 * 0.7) ** 0.5).abs().max() < 4


def test_as_many_as_there_are_is_all_of_them():
    assert places_of(5, 2, 3, 3, seed=0).tolist() == places_of(5, 2, 3, 9, seed=0).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("positions", [Positions("each", 3, 5), Positions("resample", 3, 5)], ids=lambda p: p.kind)
def test_rows_of_batches_are_rows_of_all(positions, batch):
    output = numbers(7, 2, 4, 4)
    size = (4, 4) if positions.kind == "each" else (3, 2)
    whole = positions.rows(output, 1, size, start=0)
    parts = [positions.rows(output[i : i + batch], 1, size, start=i) for i in range(0, 7, batch)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == (7 * positions.each(size), 2) == (21, 2)


@pytest.mark.parametrize("subsample", [None, 4])
def test_pairs_correspond(subsample):
    """A map, and the same with other units in another layout, has the same rows but for that."""
    maps = numbers(6, 3, 4, 5)
    turned = torch.cat([maps, -maps], 1).movedim(1, 3)
    for kind in ("each", "resample"):
        a, b = paired_rows(maps, turned, Positions(kind, subsample, 1), unit_dim=(1, 3))
        assert torch.equal(torch.cat([a, -a], 1), b)
        assert len(a) == 6 * (subsample or 20)


def test_the_smaller_of_each_dimension_is_resampled_to():
    positions = Positions("resample")
    assert positions.size([3, 8, 4], 1, [6, 6, 5], 3) == (6, 4)
    assert positions.size([3, 8], 1, [6, 9], 2) == (6,)
    assert positions.size([3], 1, [5], 1) == ()
    assert Positions().size([3, 8, 4], 1, [6], 1) is None
    a, b = paired_rows(numbers(2, 3, 8, 4), numbers(2, 6, 6, 5), Positions("resample"), unit_dim=(1, 3))
    assert (a.shape, b.shape) == ((2 * 6 * 4, 3), (2 * 6 * 4, 5))


def test_what_does_not_correspond_is_refused():
    message = (
        r"positions='each' needs positions that correspond: layer 'one' \[N, 3, 4, 4\] and layer 'two' "
        r"\[N, 5, 2, 2\] have 4 x 4 and 2 x 2. Give positions='resample', which interpolates the larger maps, or 'mean'"
    )
    with pytest.raises(ValueError, match=message):
        Positions("each").size([3, 4, 4], 1, [5, 2, 2], 1, ("layer 'one'", "layer 'two'"))
    with pytest.raises(ValueError, match=r"a \[N, 3, 4, 4\] and b \[N, 5\] have 4 x 4 and none. Give positions='mean'"):
        Positions("each").size([3, 4, 4], 1, [5], 1)
    with pytest.raises(ValueError, match=r"maps of as many dimensions: a \[N, 3, 4, 4\] and b \[N, 6, 5\] .* 'mean'|="):
        Positions("resample").size([3, 4, 4], 1, [6, 5], 2)
    with pytest.raises(ValueError, match=r"layer 'conv' gives \[2, 3, 5, 4\] at example 9, but gave positions 4 x 4"):
        Positions("each").rows(numbers(2, 3, 5, 4), 1, (4, 4), start=9, name="layer 'conv'")
    with pytest.raises(ValueError, match=r"positions of \[4, 4\] cannot be resampled to \[4\]"):
        rows_of(numbers(2, 3, 4, 4), 1, "resample", size=(4,))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (("all",), ValueError, "positions='all': choose one of 'mean', 'each', 'resample'"),
        (("mean", 3), ValueError, "subsample=3 says how many .* Leave out subsample, or give positions='each'"),
        (("each", 0), ValueError, r"subsample=0 must be at least 1"),
        (("each", 2.0), TypeError, "subsample is a float; give an int"),
        (("each", True), TypeError, "subsample is a bool; give an int"),
        (("each", 2, -1), ValueError, r"seed=-1 must be at least 0"),
        (("each", None, "a"), TypeError, "seed is a str"),
    ],
)
def test_slips_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        Positions(*given)


def test_an_unknown_word_is_refused_by_rows_too():
    with pytest.raises(ValueError, match="positions='some'"):
        rows_of(numbers(2, 3, 4, 4), 1, "some")
