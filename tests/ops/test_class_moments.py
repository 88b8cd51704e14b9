"""class_moments: every backend against two passes in long double, in any batching, order and memory layout."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import ClassMoments
from tests.ops.backends import DTYPES, big, drawn
from tests.ops.moments import Exact, all_equal, assert_equal, exact_moments, of_batches
from tests.ops.tensors import LAYOUTS, integers, laid_out, numbers, threads
from tests.ops.tolerances import MERGED_MOMENTS, MOMENTS, SMALL_VARIANCE

OP = "class_moments"

SHAPES = [  # of x [N, ...], the unit dimension
    ((5, 7), 1),  # [N, C]
    ((1, 1), 1),
    ((6, 3, 1, 1), 1),
    ((9, 13, 5, 7), 1),  # [N, C, H, W]
    ((3, 67, 2, 2), 1),  # more than a tile of units
    ((7, 11, 17), 2),  # [N, T, F]
    ((4, 3, 5, 2), 2),  # units in the middle
    pytest.param((1025, 130), 1, marks=big),
    pytest.param((2, 3, 41, 53), 1, marks=big),  # more positions than a piece
    pytest.param((2, 1500, 3), 2, marks=big),
    pytest.param((2, 3, 2, 1100), 2, marks=big),
]


@cache
def a_case(shape, unit_dim: int, classes: int, dtype=torch.float32) -> tuple[Tensor, Tensor, Exact]:
    x, labels = numbers(shape, dtype), integers(0, classes, [shape[0]])
    return x, labels, exact_moments(x, labels, classes, unit_dim)


def updated(backend, x: Tensor, labels: Tensor, classes: int, unit_dim: int = 1) -> ClassMoments:
    moments = ClassMoments.empty(classes, x.shape[unit_dim], backend.device)
    moments.update(x, labels.to(backend.device), unit_dim=unit_dim)
    return moments


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_equals_the_definition(backend, shape, unit_dim, layout):
    x, labels, exact = a_case(shape, unit_dim, 3)
    strided = laid_out(x.to(backend.device), layout, unit_dim)
    assert_equal(updated(backend, strided, labels, 3, unit_dim), exact, MOMENTS)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(9, 5), (9, 5, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_summed_in_float64(backend, dtype, shape, layout):
    x, labels, exact = a_case(shape, 1, 4, dtype)
    assert_equal(updated(backend, laid_out(x.to(backend.device), layout), labels, 4), exact, MOMENTS)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_float64_sums_keep_what_float32_ones_would_lose(backend, layout):
    """A million and one beside 2**-20: in float32 the small ones would be gone."""
    x = torch.full((4, 2, 4, 4), 2.0**-20)
    x[:, :, 0, 0] = 2.0**20
    labels = torch.tensor([0, 0, 0, 0])
    moments = updated(backend, laid_out(x.to(backend.device), layout), labels, 1)
    assert moments.mean.flatten().tolist() == [(2.0**20 + 15 * 2.0**-20) / 16] * 2


@drawn(80)
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([(), (3,), (2, 3)]),
    st.integers(1, 6),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_any_batching_in_order(backend, examples, units, positions, classes, dtype, data):
    seed = data.draw(st.integers(0, 1000), label="seed")
    x, labels = numbers((examples, units, *positions), dtype, seed), integers(0, classes, [examples], seed)
    ends = sorted(data.draw(st.lists(st.integers(0, examples), max_size=6), label="ends of batches"))
    moments = of_batches(x, labels, classes, ends, backend.device)
    assert_equal(moments, exact_moments(x, labels, classes), MOMENTS)


@drawn(80)
@given(st.integers(2, 40), st.integers(1, 5), st.sampled_from([(), (2, 3)]), st.integers(1, 6), st.data())
def test_any_order_of_batches_and_merges(backend, examples, units, positions, classes, data):
    seed = data.draw(st.integers(0, 1000), label="seed")
    x, labels = numbers((examples, units, *positions), seed=seed) + 3, integers(0, classes, [examples], seed)
    order = torch.tensor(data.draw(st.permutations(range(examples)), label="order"))
    ends = sorted(data.draw(st.lists(st.integers(0, examples), max_size=4), label="ends of batches"))
    exact = exact_moments(x, labels, classes)
    assert_equal(of_batches(x[order], labels[order], classes, ends, backend.device), exact, MERGED_MOMENTS)
    cut = data.draw(st.integers(0, examples), label="where another takes over")
    first, second = (
        of_batches(x[order[part]], labels[order[part]], classes, [], backend.device)
        for part in (slice(0, cut), slice(cut, None))
    )
    for one, other in ((first, second), (second, first)):
        total = ClassMoments.empty(classes, units, backend.device)
        total.merge(one)
        total.merge(other)
        assert_equal(total, exact, MERGED_MOMENTS)


@pytest.mark.parametrize("shape", [(4000, 3), pytest.param((300, 3, 5, 5), marks=big)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_a_variance_small_beside_the_mean_keeps_seven_digits(backend, shape, layout):
    x, labels = (numbers(shape, torch.float64) + 1e4).float(), integers(0, 2, [shape[0]])
    exact = exact_moments(x, labels, 2)
    for ends in ([], [shape[0] // 3, shape[0] // 2]):
        strided = laid_out(x, layout)
        found = of_batches(strided, labels, 2, ends, backend.device)
        for ours, truth in ((found.m2, exact.m2), (found.element_m2, exact.element_m2)):
            assert (abs(ours.cpu().numpy() / truth - 1) < SMALL_VARIANCE).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_constant_units_have_no_variance(backend, layout):
    """But for the squares of what rounds the mean: nothing of the size of the numbers is left."""
    values = torch.tensor([0.1, -3.7, 1e4])
    x = values[None, :, None, None].expand(11, 3, 3, 5)
    moments = updated(backend, laid_out(x.to(backend.device), layout), integers(0, 2, [11]), 2)
    rounding = (1e-14 * values.double()) ** 2
    assert (moments.m2.cpu() <= 11 * rounding).all()
    assert (moments.element_m2.cpu() <= 11 * 15 * rounding).all()


def test_any_strides_of_labels_are_read_right(backend):
    x, labels, exact = a_case((9, 13, 5, 7), 1, 3)
    sparse = torch.stack([labels, labels + 10**6], 1).to(backend.device)
    assert_equal(updated(backend, x.to(backend.device), sparse[:, 0], 3), exact, MOMENTS)


def test_absent_classes_stay_empty(backend):
    x, labels = numbers((5, 3)), torch.tensor([4, 1, 1, 4, 4])
    moments = updated(backend, x.to(backend.device), labels, 6)
    assert moments.count.tolist() == [0, 2, 0, 0, 3, 0]
    for label in (0, 2, 3, 5):
        assert not moments.mean[label].any()
        assert not moments.m2[label].any()
    assert moments.variance()[[0, 2, 3, 5]].isnan().all()
    assert not moments.variance()[[1, 4]].isnan().any()


def test_very_unequal_classes(backend):
    x = numbers((200, 2)) * 100
    labels = torch.zeros(200, dtype=torch.int64)
    labels[150] = 1
    moments = updated(backend, x.to(backend.device), labels, 2)
    assert_equal(moments, exact_moments(x, labels, 2), MOMENTS)
    assert moments.m2[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("positions", [(), (3, 5)], ids=["features", "maps"])
def test_nan_and_inf_stay_in_their_unit_and_class(backend, special, positions, layout):
    x, labels = numbers((9, 6, *positions)), integers(0, 3, [9])
    labels[4] = 1
    x[(4, 2, *(1 for _ in positions))] = special
    moments = updated(backend, laid_out(x.to(backend.device), layout), labels, 3)
    moments.update(numbers((4, 6, *positions), seed=1).to(backend.device), integers(0, 3, [4]).to(backend.device))
    others = [c for c in range(6) if c != 2]
    for name in ("mean", "m2", "element_mean", "element_m2", "minimum", "maximum"):
        assert getattr(moments, name)[..., others].isfinite().all(), name
    assert not moments.mean[1, 2].isfinite()
    assert moments.m2[1, 2].isnan()
    assert moments.mean[[0, 2], 2].isfinite().all()
    assert moments.m2[[0, 2], 2].isfinite().all()
    assert moments.element_m2[2].isnan()
    if special != special:
        assert moments.mean[1, 2].isnan()
        assert moments.element_mean[2].isnan()
        assert moments.minimum[2].isnan()
        assert moments.maximum[2].isnan()
    else:
        assert (moments.maximum if special > 0 else moments.minimum)[2] == special
        assert (moments.minimum if special > 0 else moments.maximum)[2].isfinite()


def test_batches_without_a_class_leave_it_alone(backend):
    """Even where its mean is infinite."""
    moments = updated(backend, torch.tensor([[torch.inf, 1.0]], device=backend.device), torch.tensor([0]), 2)
    moments.update(torch.tensor([[3.0, 5.0]], device=backend.device), torch.tensor([1], device=backend.device))
    assert moments.mean.tolist() == [[torch.inf, 1.0], [3.0, 5.0]]
    assert moments.count.tolist() == [1, 1]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_firing_is_being_positive_anywhere(backend, layout):
    x = torch.zeros(4, 6, 2, 3)
    x[:, 1] = -1
    x[0, 2, 1, 2] = 1e-30
    x[1:3, 3] = 2
    x[0, 4, 0, 0], x[1, 4, 0, 0] = torch.nan, torch.inf
    x[:, 5] = -0.0
    moments = updated(backend, laid_out(x.to(backend.device), layout), torch.zeros(4, dtype=torch.int64), 1)
    assert moments.fired.tolist() == [0, 0, 1, 2, 1, 0]
    assert moments.fired_elements.tolist() == [0, 0, 1, 12, 1, 0]
    assert moments.dead().tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize("shape", [(500, 200), (20, 130, 5, 7)], ids=str)
def test_threads_give_the_same_bits(cpu_level, shape, layout):
    x, labels = laid_out(numbers(shape), layout), integers(0, 7, [shape[0]])
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(of_batches(x, labels, 7, [shape[0] // 3], "cpu"))
    assert all(all_equal(results[0], other) for other in results[1:])
    assert_equal(results[0], exact_moments(x, labels, 7), MOMENTS)


def test_runs_give_the_same_bits(backend):
    x, labels = numbers((60, 9, 3, 3)).to(backend.device), integers(0, 4, [60])
    assert all_equal(updated(backend, x, labels, 4), updated(backend, x, labels, 4))
