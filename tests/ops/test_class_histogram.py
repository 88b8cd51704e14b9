"""class_histogram: exact counts, every backend against counting one by one."""

from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import class_histogram
from tests.ops.backends import DTYPES, Backend, big, drawn, on_cuda
from tests.ops.counted import ascending, counted
from tests.ops.tensors import LAYOUTS, integers, laid_out, numbers, threads

OP = "class_histogram"

SHAPES = [  # of x [N, ...], the unit dimension
    ((5, 7), 1),
    ((1, 1), 1),
    ((6, 3, 1, 1), 1),
    ((9, 13, 5, 7), 1),
    ((3, 67, 2, 2), 1),  # more than a tile of units
    ((7, 11, 17), 2),
    ((4, 3, 5, 2), 2),
    pytest.param((400, 70), 1, marks=big),
    pytest.param((2, 3, 41, 53), 1, marks=big),
    pytest.param((2, 1500, 3), 2, marks=big),
]


def histogram(backend: Backend, x: Tensor, labels: Tensor, edges: Tensor, classes: int, unit_dim: int = 1) -> Tensor:
    counts = torch.zeros(classes, len(edges), edges.shape[1] + 2, dtype=torch.int64, device=backend.device)
    class_histogram(
        x.to(backend.device), labels.to(backend.device), edges.to(backend.device), counts, unit_dim=unit_dim
    )
    return counts.cpu()


@cache
def a_case(shape, unit_dim: int, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, labels, edges = numbers(shape, dtype), integers(0, 3, [shape[0]]), ascending(shape[unit_dim], 5)
    x.flatten()[::5] = 0
    return x, labels, edges, counted(x, labels, edges, 3, unit_dim)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_equals_the_definition(backend, shape, unit_dim, layout):
    x, labels, edges, expected = a_case(shape, unit_dim)
    strided = laid_out(x.to(backend.device), layout, unit_dim)
    assert torch.equal(histogram(backend, strided, labels, edges, 3, unit_dim), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_averaged_in_float64(backend, dtype, layout):
    x, labels, edges, expected = a_case((9, 5, 3, 4), 1, dtype)
    assert torch.equal(histogram(backend, laid_out(x.to(backend.device), layout), labels, edges, 3), expected)


@drawn(100)
@given(
    st.integers(1, 30),
    st.integers(1, 5),
    st.sampled_from([(), (3,), (2, 3)]),
    st.integers(1, 6),
    st.integers(0, 9),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.data(),
)
def test_batches_add_up(backend, examples, units, positions, classes, edge_count, dtype, layout, data):
    seed = data.draw(st.integers(0, 1000), label="seed")
    x, labels = numbers((examples, units, *positions), dtype, seed), integers(0, classes, [examples], seed)
    edges = ascending(units, edge_count, seed)
    cut = data.draw(st.integers(0, examples), label="examples of the first batch")
    counts = torch.zeros(classes, units, edge_count + 2, dtype=torch.int64, device=backend.device)
    for part in (slice(0, cut), slice(cut, None)):
        if len(x[part]):
            strided = laid_out(x[part].to(backend.device), layout)
            class_histogram(strided, labels[part].to(backend.device), edges.to(backend.device), counts)
    assert torch.equal(counts.cpu(), counted(x, labels, edges, classes))


def one_unit(backend: Backend, values: list[float], edges: list[float]) -> list[int]:
    x, labels = torch.tensor(values, dtype=torch.float64)[:, None], torch.zeros(len(values), dtype=torch.int64)
    return histogram(backend, x, labels, torch.tensor([edges], dtype=torch.float64), 1).flatten().tolist()


def test_zero_has_a_bin_of_its_own(backend):
    assert one_unit(backend, [0.0, -0.0, 5e-324, -5e-324], [-1.0, 0.0, 1.0]) == [2, 0, 1, 1, 0]


def test_a_value_on_an_edge_is_above_it(backend):
    assert one_unit(backend, [1.0, 2.0, 3.0, 0.5, 4.0, 4.5], [1.0, 2.0, 4.0]) == [0, 1, 1, 2, 2]


def test_equal_edges_leave_empty_bins(backend):
    assert one_unit(backend, [1.0, 0.5, 2.0], [1.0, 1.0, 1.0]) == [0, 1, 0, 0, 2]


@pytest.mark.parametrize("count", [7, 8, 9, 31, 40, 64, pytest.param(239, marks=big), pytest.param(1000, marks=big)])
def test_many_edges_are_searched_right(backend, count):
    values = torch.arange(-3, 2 * count + 3, dtype=torch.float64).roll(7)  # on each edge, and on both of its sides
    x = torch.cat([values, torch.tensor([float("nan"), -float("inf"), float("inf")], dtype=torch.float64)])[:, None]
    edges = torch.arange(1, 2 * count, 2, dtype=torch.float64)[None]
    labels = torch.zeros(len(x), dtype=torch.int64)
    expected = [1, 4, *[2] * (count - 1), 6]  # zero; -3 to -1 and -inf; pairs; the last edge, 4 above it, inf and nan
    assert histogram(backend, x, labels, edges, 1).flatten().tolist() == expected


def test_nan_and_inf(backend):
    inf, nan = float("inf"), float("nan")
    assert one_unit(backend, [nan, inf, -inf, 3.0], [1.0, 2.0]) == [0, 1, 0, 3]
    assert one_unit(backend, [nan, inf, -inf, 3.0], [-inf, inf]) == [0, 0, 2, 2]


def test_no_edges_tell_zero_from_the_rest(backend):
    assert one_unit(backend, [0.0, 1.0, -1.0, float("nan")], []) == [1, 3]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-position"])
@pytest.mark.parametrize("positions", [(3, 3), (5, 7), (1, 13)], ids=str)
def test_a_constant_map_s_mean_is_its_constant(backend, positions, layout):
    """So it falls on an edge exactly, whatever the number of positions."""
    values = torch.tensor([0.1, 0.7, -1.3, 3.0, 1e-3]).float()
    x = values[:, None, None, None].expand(5, 2, *positions)
    edges = values.double().sort().values.repeat(2, 1)
    counts = histogram(backend, laid_out(x.to(backend.device), layout), torch.arange(5), edges, 5)
    for rank, example in enumerate(values.argsort().tolist()):
        assert counts[example].argmax(1).tolist() == [2 + rank] * 2


def test_positions_that_cancel_are_zero(backend):
    x = torch.tensor([[[1.5, -1.5]], [[1.5, -1.0]]])
    counts = histogram(backend, x, torch.tensor([0, 0]), torch.tensor([[1.0]], dtype=torch.float64), 1)
    assert counts.flatten().tolist() == [1, 1, 0]


def test_units_have_edges_of_their_own(backend):
    x, edges = torch.ones(3, 2), torch.tensor([[0.0, 0.5], [2.0, 3.0]], dtype=torch.float64)
    counts = histogram(backend, x, torch.tensor([0, 1, 1]), edges, 2)
    assert counts.tolist() == [[[0, 0, 0, 1], [0, 1, 0, 0]], [[0, 0, 0, 2], [0, 2, 0, 0]]]


def test_any_strides_of_edges_and_labels_are_read_right(backend):
    x, labels, edges, expected = a_case((9, 13, 5, 7), 1)
    sparse = torch.stack([labels, labels + 10**6], 1).to(backend.device)
    for strided in (laid_out(edges, "transposed"), laid_out(edges, "every-other-position")):
        assert torch.equal(histogram(backend, x, sparse[:, 0], strided, 3), expected)
    one = edges[:1].to(backend.device).expand(13, 5)
    assert torch.equal(histogram(backend, x, labels, one, 3), counted(x, labels, one.cpu(), 3))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_threads_and_levels_do_not_matter(cpu_level, layout):
    x, labels, edges = numbers((300, 130, 3, 3)), integers(0, 4, [300]), ascending(130, 3)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(histogram(Backend("native", "cpu"), laid_out(x, layout), labels, edges, 4))
    means = x.double().mean((2, 3))
    bins = 1 + (means[..., None] >= edges).sum(-1)  # no mean of these is zero
    for label, c in product(range(4), range(130)):
        assert torch.equal(results[0][label, c], torch.bincount(bins[labels == label, c], minlength=5))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


class TestRefusals:
    x, labels = torch.zeros(4, 3, 2), torch.tensor([0, 1, 0, 1])
    edges = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    counts = torch.zeros(2, 3, 4, dtype=torch.int64)

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"x": x.int()}, TypeError, "x is torch.int32; use one of torch.float64"),
            ({"x": x[:0]}, ValueError, r"x \[0, 3, 2\] is empty"),
            ({"unit_dim": 0}, ValueError, "unit_dim=0"),
            ({"unit_dim": 3}, ValueError, r"unit_dim=3, but x \[4, 3, 2\] is read as"),
            ({"edges": edges.float()}, TypeError, "edges are float64 and counts int64; got torch.float32"),
            ({"counts": counts.int()}, TypeError, "edges are float64 and counts int64; got .* and torch.int32"),
            ({"edges": edges[:2]}, ValueError, r"edges \[2, 2\] must be \[C, E\] with C = 3"),
            ({"edges": edges[0]}, ValueError, r"edges \[2\] must be \[C, E\]"),
            ({"counts": counts[..., :3].contiguous()}, ValueError, r"counts \[2, 3, 3\] must be .* = \[L, 3, 4\]"),
            ({"counts": counts[:, :2].contiguous()}, ValueError, r"counts \[2, 2, 4\] must be"),
            ({"counts": counts[0]}, ValueError, r"counts \[3, 4\] must be"),
            ({"counts": counts.mT.contiguous().mT}, ValueError, r"counts \[2, 3, 4\] must be a contiguous"),
            ({"labels": labels.int()}, TypeError, "labels are torch.int32"),
            ({"labels": labels[:3]}, ValueError, r"labels \[3\] on cpu must be \[4\]"),
            ({"labels": labels - 1}, ValueError, "label -1 of example 0 is out of range: with 2 classes"),
            ({"labels": labels * 10**12}, ValueError, "label 1000000000000 of example 1 is out of range"),
            ({"edges": edges.flip(1)}, ValueError, "the edges of a unit must ascend, and none be nan"),
            ({"edges": edges * float("nan")}, ValueError, "the edges of a unit must ascend, and none be nan"),
            ({"edges": edges[:, :1] * float("nan"), "counts": torch.zeros_like(counts[..., 1:])}, ValueError, ".*nan"),
        ],
        ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
    )
    def test_is_refused(self, changes, error, says):
        case = {"x": self.x, "labels": self.labels, "edges": self.edges, "counts": self.counts, **changes}
        with pytest.raises(error, match=f"^class_histogram: {says}"):
            class_histogram(**case)
        assert not self.counts.any(), "what is refused changes nothing"

    @pytest.mark.parametrize("name", ["labels", "edges", "counts"])
    @on_cuda
    def test_devices_must_agree(self, name):
        case = {"x": self.x, "labels": self.labels, "edges": self.edges, "counts": self.counts}
        with pytest.raises(ValueError, match="class_histogram: "):
            class_histogram(**{n: t if n == name else t.cuda() for n, t in case.items()})
