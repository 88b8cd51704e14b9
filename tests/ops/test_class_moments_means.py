"""class_moments hands out each example's means: by their definition, and the numbers that its sums are of."""

import pytest
import torch
from torch import Tensor

from sdkernels.ops import ClassMoments
from tests.ops.backends import DTYPES, big, on_cuda
from tests.ops.moments import all_equal, assert_equal, assert_means, exact_moments
from tests.ops.tensors import LAYOUTS, integers, laid_out, numbers, threads
from tests.ops.tolerances import MOMENTS, same_bits, same_numbers

OP = "class_moments"

SHAPES = [  # of x [N, ...], the unit dimension
    ((5, 7), 1),  # [N, C]
    ((1, 1), 1),
    ((6, 3, 1, 1), 1),
    ((4, 3, 5, 2), 1),
    ((4, 3, 5, 2), 2),
    ((4, 3, 5, 2), 3),
    ((3, 67, 2, 2), 1),  # more than a tile of units
    ((7, 11, 17), 2),  # [N, T, F]
    pytest.param((1025, 130), 1, marks=big),
    pytest.param((2, 3, 2500), 1, marks=big),  # rows of several pieces
    pytest.param((2, 41, 53, 3), 3, marks=big),
    pytest.param((2, 3, 2, 1100), 2, marks=big),
]


def written(
    backend, x: Tensor, labels: Tensor, classes: int, unit_dim: int = 1, moments: ClassMoments | None = None
) -> tuple[ClassMoments, Tensor]:
    """The moments, new ones if none are given, with this batch; and its means, nan where none was written."""
    moments = moments or ClassMoments.empty(classes, x.shape[unit_dim], backend.device)
    means = torch.full((len(x), x.shape[unit_dim]), torch.nan, dtype=torch.float64, device=backend.device)
    moments.update(x.to(backend.device), labels.to(backend.device), unit_dim=unit_dim, means=means)
    return moments, means


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_equal_the_definition(backend, shape, unit_dim, layout):
    x, labels = numbers(shape), integers(0, 3, [shape[0]])
    exact = exact_moments(x, labels, 3, unit_dim)
    moments, means = written(backend, laid_out(x.to(backend.device), layout, unit_dim), labels, 3, unit_dim)
    assert_means(means, exact, MOMENTS)
    assert_equal(moments, exact, MOMENTS)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(9, 5), (9, 5, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_every_dtype_are_float64(backend, dtype, shape, layout):
    x, labels = numbers(shape, dtype), integers(0, 4, [9])
    _, means = written(backend, laid_out(x.to(backend.device), layout), labels, 4)
    assert_means(means, exact_moments(x, labels, 4), MOMENTS)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "window"])
@pytest.mark.parametrize("positions", [(), (3, 5)], ids=["features", "maps"])
def test_are_the_very_numbers_that_are_summed(backend, positions, layout):
    """A class of one example has its mean, bit for bit, whatever the order of classes."""
    x = laid_out(numbers((12, 5, *positions)), layout)
    labels = torch.tensor([7, 3, 11, 0, 5, 9, 1, 10, 2, 8, 4, 6])
    moments, means = written(backend, x, labels, 12)
    assert same_bits(moments.mean[labels.to(backend.device)], means)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("positions", [(), (3, 5)], ids=["features", "maps"])
def test_change_no_bit_of_the_moments(backend, positions, layout):
    x, labels = numbers((13, 5, *positions)), integers(0, 3, [13])
    strided, there = laid_out(x.to(backend.device), layout), labels.to(backend.device)
    without = ClassMoments.empty(3, 5, backend.device)
    moments = None
    for _ in range(2):
        without.update(strided, there)
        moments, _ = written(backend, strided, labels, 3, moments=moments)
    assert all_equal(moments, without)


def test_of_several_batches_are_written_side_by_side(backend):
    """Not added to what is there; and nothing around them is touched."""
    x, labels = numbers((11, 5, 3)), integers(0, 3, [11])
    moments = ClassMoments.empty(3, 5, backend.device)
    means = torch.full((13, 5), torch.nan, dtype=torch.float64, device=backend.device)
    for start, end in ((0, 4), (4, 5), (5, 11), (4, 5)):
        here = x[start:end].to(backend.device), labels[start:end].to(backend.device)
        moments.update(*here, means=means[1 + start : 1 + end])
    assert_means(means[1:-1], exact_moments(x, labels, 3), MOMENTS)
    assert means[[0, -1]].isnan().all()


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("positions", [(), (3, 5)], ids=["features", "maps"])
def test_that_are_not_finite_are_written_so(backend, special, positions, layout):
    x, labels = numbers((9, 6, *positions)), integers(0, 3, [9])
    x[0, 1] = special  # at every position
    x.view(9, 6, -1)[4, 2, -1] = special
    x.view(9, 6, -1)[8, 5, 0] = special
    if positions:
        x[3, 0, 0, 1], x[3, 0, 2, 3] = special, -special  # nan
    _, means = written(backend, laid_out(x.to(backend.device), layout), labels, 3)
    expected = x.double().view(9, 6, -1).mean(2)
    assert expected.isfinite().sum() == 54 - (4 if positions else 3)
    finite = expected.isfinite()
    assert same_numbers(means.cpu().masked_fill(finite, 0), expected.masked_fill(finite, 0))
    assert (means.cpu() - expected)[finite].abs().max() < MOMENTS * 10


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize("shape", [(500, 200), (20, 130, 5, 7)], ids=str)
def test_are_the_same_bits_of_any_number_of_threads(cpu_level, shape, layout):
    x, labels = numbers(shape), integers(0, 7, [shape[0]])
    results = []
    for count in (1, 2, 5):
        means = torch.full(shape[:2], torch.nan, dtype=torch.float64)
        with threads(count):
            ClassMoments.empty(7, shape[1]).update(laid_out(x, layout), labels, means=means)
        results.append(means)
    assert all(same_bits(results[0], other) for other in results[1:])
    assert_means(results[0], exact_moments(x, labels, 7), MOMENTS)


class TestRefusals:
    x, labels = torch.ones(4, 3, 2), torch.tensor([0, 1, 0, 1])
    means = torch.full((4, 3), torch.nan, dtype=torch.float64)

    @pytest.mark.parametrize(
        ("means", "error", "says"),
        [
            (means.float(), TypeError, "means are written in torch.float64; got torch.float32"),
            (means[:3], ValueError, r"with 4 examples and 3 units, means are \[4, 3\] on cpu; got \[3, 3\] on cpu"),
            (means[:, :2], ValueError, r"means are \[4, 3\] on cpu; got \[4, 2\]"),
            (means[..., None], ValueError, r"means are \[4, 3\] on cpu; got \[4, 3, 1\]"),
            (means.t().contiguous().t(), ValueError, "means must be contiguous"),
            (means[:1].expand(4, 3), ValueError, "means must be contiguous"),
        ],
        ids=["dtype", "examples", "units", "dimensions", "transposed", "expanded"],
    )
    def test_is_refused(self, means, error, says):
        moments = ClassMoments.empty(2, 3)
        with pytest.raises(error, match=f"^class_moments: .*{says}"):
            moments.update(self.x, self.labels, means=means)
        assert all_equal(moments, ClassMoments.empty(2, 3)), "what is refused changes nothing"

    def test_other_refusals_write_nothing(self):
        means = self.means.clone()
        with pytest.raises(ValueError, match="label 2 of example 1"):
            ClassMoments.empty(2, 3).update(self.x, self.labels * 2, means=means)
        assert means.isnan().all()

    def test_an_update_keeps_no_graph(self, native):
        means = self.means.clone()
        ClassMoments.empty(2, 3).update(self.x.clone().requires_grad_(), self.labels, means=means)
        assert not means.requires_grad
        assert torch.equal(means, torch.ones(4, 3, dtype=torch.float64))

    @on_cuda
    def test_devices_must_agree(self):
        with pytest.raises(ValueError, match=r"means are \[4, 3\] on cuda"):
            ClassMoments.empty(2, 3, "cuda").update(self.x.cuda(), self.labels.cuda(), means=self.means)
