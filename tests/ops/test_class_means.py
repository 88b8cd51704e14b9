"""class_means and its gradients: every backend against the definition, unit by unit, in float64."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sdkernels.ops import class_means
from tests.ops.backends import DTYPES, Backend, big
from tests.ops.tensors import LAYOUTS, integers, laid_out, numbers
from tests.ops.tolerances import same_bits

OP = "class_moments"  # which computes it

SHAPES = [  # of x [N, ...], the unit dimension
    ((5, 7), 1),  # [N, C]
    ((1, 1), 1),
    ((6, 3, 1, 1), 1),
    ((4, 5, 3, 2), 1),  # [N, C, H, W]
    ((5, 3, 7), 2),  # [N, T, F]
    ((4, 3, 5, 2), 2),  # units in the middle
    pytest.param((9, 67, 5, 7), 1, marks=big),
    pytest.param((300, 130), 1, marks=big),
]


def by_definition(x: Tensor, labels: Tensor, classes: int, unit_dim: int) -> tuple[Tensor, Tensor]:
    """Of x [N, ...] in float64, with torch's own gradient: the elements of a class and unit, one list at a time."""
    means, count = [], []
    for label in range(classes):
        own = [example for example, given in zip(x.unbind(0), labels.tolist(), strict=True) if given == label]
        units = [torch.stack([e.select(unit_dim - 1, c).sum() for e in own]) for c in range(x.shape[unit_dim]) if own]
        positions = x[0].numel() // x.shape[unit_dim]
        means.append(torch.stack([u.sum() / (len(own) * positions) for u in units]) if own else x.new_zeros(()))
        count.append(len(own))
    return torch.stack([m.expand(x.shape[unit_dim]) for m in means]), torch.tensor(count)


@cache
def a_case(shape, unit_dim: int, classes: int, dtype=torch.float32) -> tuple[Tensor, ...]:
    """x, labels; means, count and the gradient of ``towards``, exactly."""
    x, labels = numbers(shape, dtype), integers(0, classes, [shape[0]])
    exact = x.double().requires_grad_()
    means, count = by_definition(exact, labels, classes, unit_dim)
    towards = numbers(means.shape, torch.float64, seed=1)
    gradient = torch.autograd.grad(means, exact, towards)[0] if means.requires_grad else torch.zeros_like(exact)
    return x, labels, means.detach(), count, towards, gradient


def error(found: Tensor, exact: Tensor) -> float:
    """Relative to the greatest."""
    assert found.shape == exact.shape
    return float((found.detach().cpu().double() - exact).abs().max() / exact.abs().max())


def check(backend: Backend, x: Tensor, unit_dim: int, layout: str, case: tuple[Tensor, ...]) -> None:
    _, labels, means, count, towards, gradient = case
    leaf = laid_out(x.to(backend.device), layout, unit_dim).requires_grad_()
    found = class_means(leaf, labels.to(backend.device), len(count), unit_dim=unit_dim)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert found[0].dtype == wide
    assert torch.equal(found[1].cpu(), count)
    assert not found[1].requires_grad
    # taken in float64 and rounded once; float64 sums of some hundred
    assert error(found[0], means) <= (1e-14 if wide == torch.float64 else 2**-24)
    (back,) = torch.autograd.grad(found[0], leaf, towards.to(found[0]))
    assert back.dtype == x.dtype
    # towards, the quotient and its dtype are rounded, each by half a unit of its last digit
    assert error(back, gradient) <= 2 * torch.finfo(x.dtype).eps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_equals_the_definition(backend, shape, unit_dim, layout):
    case = a_case(shape, unit_dim, 3)
    check(backend, case[0], unit_dim, layout, case)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(backend, dtype, shape, layout):
    case = a_case(shape, 1, 4, dtype)
    check(backend, case[0], 1, layout, case)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2)], ids=str)
def test_one_class_is_the_mean_over_the_batch(backend, shape):
    x = numbers(shape).to(backend.device).requires_grad_()
    means, count = class_means(x, torch.zeros(6, dtype=torch.int64, device=backend.device), 1)
    assert count.tolist() == [6]
    assert error(means[0], x.detach().cpu().double().movedim(1, 0).flatten(1).mean(1)) <= 2**-24
    means.sum().backward()
    assert error(x.grad, torch.full(shape, 3 / x.numel(), dtype=torch.float64)) <= 2**-23


def test_absent_classes_are_zero_and_give_nothing_back(backend):
    x = numbers((4, 3)).to(backend.device).requires_grad_()
    labels = torch.tensor([3, 1, 1, 3], device=backend.device)
    means, count = class_means(x, labels, 6)
    assert count.tolist() == [0, 2, 0, 2, 0, 0]
    assert same_bits(means[[0, 2, 4, 5]], torch.zeros(4, 3))
    towards = torch.full((6, 3), torch.inf, device=backend.device)
    towards[[1, 3]] = 1.0
    means.backward(towards)
    assert same_bits(x.grad, torch.full((4, 3), 0.5))


def test_a_nan_stays_with_its_unit_and_class(backend):
    x = torch.ones(3, 2, 2)
    x[1, 1, 0] = torch.nan
    means, _ = class_means(x.to(backend.device), torch.tensor([0, 1, 1], device=backend.device), 2)
    assert means.isnan().tolist() == [[False, False], [False, True]]
    assert means[:, 0].tolist() == [1.0, 1.0]


def test_the_gradient_is_a_view_of_one_number_a_unit(backend):
    x = numbers((3, 5, 2, 4)).to(backend.device).requires_grad_()
    means, _ = class_means(x, torch.tensor([0, 1, 0], device=backend.device), 2)
    (back,) = torch.autograd.grad(means.sum(), x)
    assert back.untyped_storage().nbytes() == 3 * 5 * 4
    assert back.stride()[2:] == (0, 0)


@pytest.mark.not_interpreted
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-position"])
@pytest.mark.parametrize(
    ("shape", "unit_dim"), [((5, 3), 1), ((1, 1), 1), ((4, 3, 1, 3), 1), ((3, 2, 5), 2), ((3, 2, 3, 2), 2)], ids=str
)
def test_by_differences(backend, shape, unit_dim, layout):
    x = laid_out(numbers(shape, torch.float64).to(backend.device), layout, unit_dim).requires_grad_()
    labels = integers(0, 3, [shape[0]]).to(backend.device)

    def function(x: Tensor) -> Tensor:
        return class_means(x, labels, 4, unit_dim=unit_dim)[0]

    def squared(x: Tensor) -> Tensor:
        return function(x) ** 2

    with torch.random.fork_rng(devices=[]):  # gradcheck draws its directions there
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(squared, (x,))


def test_runs_give_the_same_bits(backend):
    x, labels = numbers((6, 5, 3)).to(backend.device), integers(0, 3, [6]).to(backend.device)
    assert same_bits(class_means(x, labels, 3)[0], class_means(x, labels, 3)[0])


def test_x_is_left_alone(backend):
    x, labels = numbers((6, 5, 3)).to(backend.device), integers(0, 3, [6]).to(backend.device)
    before = x.clone()
    class_means(x, labels, 3)
    assert same_bits(x, before)


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x-dtype": ({"x": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "class_means: x is torch.int64; use one of"),
    "empty": ({"x": torch.ones(0, 2), "labels": torch.ones(0).long()}, ValueError, r"x \[0, 2\] is empty"),
    "unit-dim": ({"unit_dim": 2}, ValueError, r"class_means: unit_dim=2, but x \[3, 2\]"),
    "unit-dim-0": ({"unit_dim": 0}, ValueError, r"class_means: unit_dim=0, but x \[3, 2\]"),
    "classes": ({"num_classes": 0}, ValueError, "class_means: 0 classes; there is at least one"),
    "labels-dtype": ({"labels": torch.ones(3)}, TypeError, "class_means: labels are torch.float32; they are int64"),
    "labels-shape": (
        {"labels": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        r"class_means: labels \[2\] on .* must be \[3\] on",
    ),
    "labels-high": (
        {"labels": torch.tensor([0, 2, 1])},
        ValueError,
        "class_means: label 2 of example 1 is out of range: with 2 classes labels are 0 to 1",
    ),
    "labels-low": ({"labels": torch.tensor([0, 1, -1])}, ValueError, "label -1 of example 2 is out of range"),
}


@pytest.mark.not_interpreted
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(backend, case):
    changes, kind, message = REFUSALS[case]
    arguments = {"x": torch.ones(3, 2), "labels": torch.tensor([0, 1, 1]), "num_classes": 2, **changes}
    moved = {name: a.to(backend.device) if isinstance(a, Tensor) else a for name, a in arguments.items()}
    with pytest.raises(kind, match=message):
        class_means(**moved)
