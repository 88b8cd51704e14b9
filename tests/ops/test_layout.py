"""How ops see activations: as [A, C, B], without a copy wherever strides can say it."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdkernels.ops import ClassMoments
from sdkernels.ops.layout import by_units, empty_like_examples
from tests.ops.tensors import chances, integers, laid_out, numbers
from tests.ops.tolerances import same_bits

SHAPES = [((4, 6), 1), ((4, 6, 3, 8), 1), ((4, 5, 6), 2), ((4, 3, 6, 2), 2), ((4, 2, 3, 6), 3), ((4, 6, 1, 1), 1)]


@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
@pytest.mark.parametrize("lead", [1, 2])
def test_is_the_same_numbers_by_units(shape, unit_dim, lead):
    x = numbers((3, *shape) if lead == 2 else shape)
    y = by_units(x, unit_dim, lead)
    positions_before = torch.Size(shape[1:unit_dim]).numel()
    assert y.shape[:lead] == x.shape[:lead]
    assert y.shape[lead:] == (positions_before, shape[unit_dim], torch.Size(shape[unit_dim + 1 :]).numel())
    for c in range(shape[unit_dim]):
        assert torch.equal(y[..., c, :].flatten(lead), x.select(unit_dim + lead - 1, c).reshape(*x.shape[:lead], -1))


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels-last", "every-other-unit", "every-other-position", "every-other-example"]
)
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_is_a_view_of_anything_but_a_window(shape, unit_dim, layout):
    x = numbers(shape)
    strided = x.repeat_interleave(2, 0)[::2] if layout == "every-other-example" else laid_out(x, layout, unit_dim)
    assert by_units(strided, unit_dim).data_ptr() == strided.data_ptr()
    assert same_bits(by_units(strided, unit_dim), by_units(x, unit_dim))


def test_a_window_is_copied():
    """Rows of a map's part lie apart, so no one stride counts its positions."""
    x = numbers((4, 6, 3, 8))
    window = laid_out(x, "window")
    assert by_units(window, 1).data_ptr() != window.data_ptr()
    assert same_bits(by_units(window, 1), by_units(x, 1))
    rows = numbers((4, 6, 5, 8))[:, :, 1:3]  # of whole rows it is a view
    assert by_units(rows, 1).data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_results_lie_as_x_does(shape, unit_dim, layout):
    x = laid_out(numbers(shape), layout, unit_dim)
    y = empty_like_examples(x, [7, shape[0]], unit_dim, 1)
    assert y.shape == (7, *shape)
    units_last = layout == "channels-last" and torch.Size(shape[unit_dim + 1 :]).numel() > 1
    assert (y.movedim(1 + unit_dim, -1) if units_last else y).is_contiguous()


def test_any_dense_order_of_one_stride_is_kept():
    tokens = numbers((4, 6, 5)).transpose(1, 2)  # [N, T, F], T side by side
    assert empty_like_examples(tokens, [7, 4], 2, 1).stride() == (4 * 30, 30, 1, 5)
    turned = numbers((4, 6, 3, 8)).mT  # no one stride counts the positions
    assert empty_like_examples(turned, [7, 4], 1, 1).is_contiguous()
    assert empty_like_examples(laid_out(tokens, "every-other-unit", 2), [7, 4], 2, 1).is_contiguous()


class Allocations(TorchDispatchMode):
    """Notes the bytes of each storage that torch's operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, int] = {}
        self.kept: list[Tensor] = []  # so that no address comes twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.made[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                self.kept.append(t)
        return result


X = (64, 24, 8, 8)
LABELS = integers(0, 3, [64])


def perturb_arguments(x: Tensor) -> list[Any]:
    mask, zero, ids = chances((2, 24), 0.4), torch.tensor(0.0), torch.arange(64)
    maps = [numbers([24]), numbers([24]), True]
    out = empty_like_examples(x, [2, 64], 1, 1)
    return [out, x, mask, zero, *maps, torch.ones(2, 24), torch.tensor(1), ids[:2], ids, 0, False, 1, True]


def rank_one_arguments(x: Tensor) -> list[Any]:
    a = x[..., 0]  # [64, 24, 8], positions apart
    return [x[..., 1], numbers((24, 24)), a, torch.tensor([3]), None, None, None, True]


CASES: dict[str, Callable[[Tensor], list[Any]]] = {
    "perturb": perturb_arguments,
    "class_moments": lambda x: [x, LABELS, *ClassMoments.empty(3, 24).tensors(), None, 1],
    "class_histogram": lambda x: [x, LABELS, numbers((24, 2), torch.float64).sort(1).values, _histogram(), 1],
    "score": lambda x: [x.flatten(2).transpose(1, 2)[..., :5], integers(0, 5, [64]), None, True, 2, True, 0.1],
    "rank_one": rank_one_arguments,
}


def _histogram() -> Tensor:
    return torch.zeros(3, 24, 4, dtype=torch.int64)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit", "every-other-position"])
@pytest.mark.parametrize("op", list(CASES))
def test_no_native_op_copies_its_input(op, layout):
    arguments = CASES[op](laid_out(numbers(X), layout))
    native = importlib.import_module(f"sdkernels.ops.{op}").IMPLEMENTATIONS["native"]
    with Allocations() as allocations:
        result = native(*arguments)
    wanted = {t.untyped_storage().data_ptr() for t in tree_leaves(result) if isinstance(t, Tensor)}
    copied = sum(size for address, size in allocations.made.items() if address not in wanted)
    assert copied < 64 * 24 * 8 * 4, "at most what belongs to units, labels and weights"
