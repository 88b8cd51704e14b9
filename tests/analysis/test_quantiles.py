"""Edges of equal mass: exact while all values are held, within a stated error after that."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.analysis.quantiles import QuantileSketch


def sketch_of(values: torch.Tensor, blocks: int = 100, block: int = 8, batch: int = 7) -> QuantileSketch:
    sketch = QuantileSketch(values.shape[1], blocks=blocks, block=block)
    for part in values.split(batch):
        sketch.add(part)
    return sketch


def normal(examples: int, units: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(examples, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def below(values: torch.Tensor, edges: torch.Tensor) -> np.ndarray:
    """How many non-zero values of each unit lie below each edge, [C, E], one by one."""
    rows = [[v for v in column if v != 0] for column in values.t().tolist()]
    return np.array([[sum(v < edge for v in row) for edge in of] for row, of in zip(rows, edges.tolist(), strict=True)])


@pytest.mark.parametrize("cells", [1, 2, 7, 240])
@pytest.mark.parametrize("examples", [1, 2, 3, 50, 97])
def test_all_values_held_cells_have_equal_mass(examples, cells):
    values = normal(examples, 3)
    sketch = sketch_of(values)
    edges = sketch.edges(cells)
    assert edges.shape == (3, cells - 1)
    assert (edges.diff(dim=1) >= 0).all()
    assert sketch.is_exact
    assert sketch.rank_error == 0
    wanted = np.minimum(np.floor(examples * np.arange(1, cells) / cells + 0.5), examples - 1)
    np.testing.assert_array_equal(below(values, edges), np.broadcast_to(wanted, (3, cells - 1)))


def test_edges_lie_half_way_between_values():
    sketch = QuantileSketch(1, blocks=2)
    sketch.add(torch.tensor([[4.0], [1.0], [3.0], [2.0]], dtype=torch.float64))
    assert sketch.edges(4).tolist() == [[1.5, 2.5, 3.5]]
    sketch.add(torch.tensor([[1.0], [1.0], [1.0], [0.0]], dtype=torch.float64))  # 1 1 1 1 2 3 4: 1.75, 3.5, 5.25
    assert sketch.edges(4).tolist() == [[1.0, 1.5, 2.5]]


def test_neighbours_in_floating_point_are_told_apart():
    low = 1.0
    high = float(np.nextafter(low, 2.0))
    sketch = QuantileSketch(1, blocks=2)
    sketch.add(torch.tensor([[low], [high]], dtype=torch.float64))
    assert low < sketch.edges(2).item() <= high


def test_units_of_zeros_alone_have_edges_of_zero():
    values = torch.stack([torch.zeros(20), torch.arange(20.0) - 10], 1).double()
    edges = sketch_of(values).edges(4)
    assert edges[0].tolist() == [0, 0, 0]
    assert below(values, edges)[1].tolist() == [5, 10, 14]  # of 19


@given(
    st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.0, 1.0, 1.5, 3.0]), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_repeated_values_stay_in_one_cell(values, cells, batch):
    column = torch.tensor(values, dtype=torch.float64)[:, None]
    edges = sketch_of(column, batch=batch).edges(cells)
    nonzero = sorted(v for v in values if v != 0)
    for j, edge in enumerate(edges[0].tolist(), start=1):
        if not nonzero:
            assert edge == 0
            continue
        rank = min(int(np.floor(len(nonzero) * j / cells + 0.5)), len(nonzero) - 1)
        less, not_more = sum(v < edge for v in nonzero), sum(v <= edge for v in nonzero)
        assert less <= rank <= not_more  # the rank that was wanted, or inside of a run of equals


ORDERS = {
    "random": lambda values: values,
    "ascending": lambda values: values.sort(0).values,
    "descending": lambda values: values.sort(0, descending=True).values,
    "outside in": lambda values: values.sort(0).values[torch.arange(len(values)).sub(len(values) // 2).abs().argsort()],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blocks", [2, 5, 16])
def test_summaries_keep_to_their_stated_error(order, blocks):
    values = ORDERS[order](normal(5000, 4))
    values[:, 3] = values[:, 3].where(torch.arange(5000) % 3 > 0, torch.zeros(()))
    sketch = sketch_of(values, blocks=blocks, block=64, batch=33)
    assert not sketch.is_exact
    assert 0 < sketch.rank_error < {2: 0.025, 5: 0.02, 16: 0.011}[blocks]
    assert sum(len(held) for held in sketch.held()) <= 64 * max(blocks + 1, 2 + np.log2(5000 / 64))
    edges = sketch.edges(16)
    nonzero = (values != 0).sum(0, keepdim=True).t().numpy()
    missed = np.abs(below(values, edges) - nonzero * np.arange(1, 16) / 16)
    # An edge's place among what is held is a whole value's weight off at most, beside the error of ranks; and where
    # zeros are left out, two ranks are off.
    heaviest = 2 ** np.ceil(np.log2(5000 / 64))
    assert (missed[:3] <= sketch.rank_error * 5000 + heaviest).all()
    assert (missed[3] <= 2 * sketch.rank_error * 5000 + heaviest).all()


@pytest.mark.parametrize("direction", ["too few", "too many"])
def test_the_error_of_every_rank_is_bounded_and_nearly_reached(direction):
    values = normal(4096, 1)
    sketch = sketch_of(values, blocks=2, block=32, batch=100)
    held = [(rows[:, 0], 2**level) for rows, level in sketch._levels()]
    found = [sum(float((rows <= t).sum()) * weight for rows, weight in held) for t in values[:, 0]]
    true = [float((values[:, 0] <= t).sum()) for t in values[:, 0]]
    off = (np.array(found) - np.array(true)) * (1 if direction == "too many" else -1)
    assert sum(len(rows) * weight for rows, weight in held) == 4096
    assert 0.02 * sketch.rank_error * 4096 < off.max() <= sketch.rank_error * 4096


@pytest.mark.parametrize("blocks", [3, 1000])
def test_nothing_depends_on_batches(blocks):
    values = normal(1000, 2)
    first, *others = (sketch_of(values, blocks=blocks, block=16, batch=batch) for batch in (1000, 1, 16, 33))
    for other in others:
        assert torch.equal(first.edges(10), other.edges(10))
        assert first.rank_error == other.rank_error


def test_held_values_come_in_order_while_all_are():
    values = normal(50, 3)
    assert torch.equal(torch.cat(list(sketch_of(values).held())), values)


@pytest.mark.parametrize("blocks", [4, 1000])
def test_merged_sketches_know_what_both_saw(blocks):
    values = normal(2000, 3)
    first, second = (sketch_of(part, blocks=blocks, block=32) for part in values.split([700, 1300]))
    second_error = second.rank_error * 1300
    first.merge(second)
    assert first.count == 2000
    if blocks == 1000:
        assert torch.equal(first.edges(9), sketch_of(values, blocks=1000).edges(9))
    assert first.rank_error * 2000 >= second_error
    missed = np.abs(below(values, first.edges(8)) - 2000 * np.arange(1, 8) / 8)
    assert missed.max() <= first.rank_error * 2000 + 128
    with pytest.raises(ValueError, match=r"a sketch of 3 units in blocks of 32 .* does not go into one of 2 units"):
        QuantileSketch(2, blocks=4).merge(second)


def test_refuses_sizes_that_cannot_be():
    for blocks, block in ((1, 8), (2, 7), (2, 0)):
        with pytest.raises(ValueError, match="must be at least 2, and block even"):
            QuantileSketch(1, blocks=blocks, block=block)
