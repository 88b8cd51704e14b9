"""Registered ops in torch.compile: graphs that hold each of them whole, their gradients, what they write to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdkernels import ops
from tests.ops.backends import on_cuda
from tests.ops.tensors import chances, integers, numbers
from tests.ops.tolerances import same_bits

# torch's own, while it compiles
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def perturbing(x: Tensor) -> tuple[Tensor, ...]:
    """Made and given outputs, of maps [4, 5, 3, 2]."""
    mask, zero = (torch.arange(15, device=x.device) % 3 == 0).view(3, 5), torch.zeros((), device=x.device)
    ids = {"configurations": torch.arange(3, device=x.device), "examples": torch.arange(4, device=x.device)}
    one = torch.ones(5, device=x.device)
    noisy = ops.perturb(x * 2, ops.pack_mask(mask), zero, sigma=mask.float(), seed=3, **ids)
    given = x.new_zeros(3, *x.shape)
    ops.perturb(x * 2, mask, zero, scale=one, shift=one, relu=True, out=given)
    return noisy + 1, given * 2


def streaming(x: Tensor) -> Tensor:
    ids = torch.arange(4, device=x.device)
    return ops.random_stream("normal", 3, ids[:3], ids, 30).view(3, *x.shape) * x


def summing(x: Tensor) -> tuple[Tensor, ...]:
    moments = ops.ClassMoments.empty(2, 5, x.device)
    for labels in (torch.tensor([0, 1, 1, 0], device=x.device), torch.tensor([1, 1, 1, 1], device=x.device)):
        moments.update(x * 2, labels)
    means = torch.zeros(4, 5, dtype=torch.float64, device=x.device)
    moments.update(x * 2, labels, means=means)
    return (moments.variance(), *moments.over_classes(), moments.dead(), means * 2)


def averaging(x: Tensor) -> tuple[Tensor, ...]:
    means, count = ops.class_means(x * 2, torch.tensor([0, 3, 3, 0], device=x.device), 4)
    return means * 2, count + 1


def counting(x: Tensor) -> Tensor:
    counts = torch.zeros(2, 5, 3, dtype=torch.int64, device=x.device)
    edges = torch.zeros(5, 1, dtype=torch.float64, device=x.device)
    ops.class_histogram(x * 2, torch.tensor([0, 1, 1, 0], device=x.device), edges, counts)
    return counts + 1


def scoring(x: Tensor) -> tuple[Tensor | None, ...]:
    labels = torch.tensor([0, 1, 4], device=x.device)
    return tuple(ops.score(x[..., 0].transpose(1, 2) * 2, labels, top=2, per_class=True, prediction=labels, margin=0.1))


def nesting(x: Tensor) -> tuple[Tensor | None, ...]:
    a, units = x.flatten(1) * 2, torch.arange(30, device=x.device)
    weight, head = x.view(4, 30), torch.ones(3, 4, device=x.device)
    bias, living_in, living_out = x.new_ones(1, 4), torch.tensor([30, 9, 2]), torch.tensor([4, 4, 1])
    common = (a, units, weight, bias, living_in, living_out)
    with_head = {"head": head, "head_bias": head.new_zeros(1, 3)}
    scores = ops.nested_linear_score(*common, torch.tensor([0, 1, 2, 0], device=x.device), **with_head)
    return ops.nested_linear(*common), ops.nested_linear(*common, **with_head), *scores


def changing(x: Tensor) -> Tensor:
    weight, units = x[:3, :, 0, 0] * 2, torch.arange(5, device=x.device)
    return ops.rank_one(x[:, :3].flatten(2), weight, x.flatten(2), units, relu=True) * 2


def heading(x: Tensor) -> Tensor:
    a, units = x.flatten(1)[:, :5].relu(), torch.arange(5, device=x.device)
    weight, head = x[:3, :, 0, 0] * 2, torch.ones(2, 3, device=x.device)
    intact = x.new_ones(4, 2)
    return ops.rank_one(x[:, :3, 0, 1], weight, a, units, relu=True, head=head, intact=intact) * 2


def convolving(x: Tensor) -> Tensor:
    weight = torch.ones(6, 5, 3, 3, device=x.device)
    m = ops.winograd_input(x * 2, relu=True) @ ops.winograd_weight(weight)
    return ops.winograd_output(m, x.new_ones(6), 3, 2, relu=True, add=x.new_ones(4, 6, 3, 2)) * 2


FUNCTIONS = [perturbing, streaming, summing, averaging, counting, scoring, nesting, changing, heading, convolving]


def compiles_whole(function: Callable[[Tensor], Any], device: str) -> None:
    x = numbers((4, 5, 3, 2)).to(device)
    expected = function(x)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    both = [(expected, found)] if isinstance(expected, Tensor) else list(zip(expected, found, strict=True))
    assert all(a is b is None or same_bits(a, b) for a, b in both)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_full_graph_compile(native, function):
    compiles_whole(function, "cpu")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@on_cuda
def test_full_graph_compile_on_a_gpu(function):
    compiles_whole(function, "cuda")


def test_gradients_compile_too(native):
    x, mask = numbers((4, 5)), chances((3, 5), 0.4)

    def function(x: Tensor, scale: Tensor) -> Tensor:
        return (ops.perturb(x, mask, torch.tensor(0.5), scale=scale, shift=scale, relu=True) ** 2).sum()

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, numbers([5], seed=1))]
        results.append(torch.autograd.grad(run(*leaves), leaves))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_gradients_of_means_compile_too(native, dynamic):
    labels = integers(0, 3, [6])

    def function(x: Tensor) -> Tensor:
        return (ops.class_means(x * 2, labels, 4)[0] ** 3).sum()

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
        x = numbers((6, 5, 3, 2)).requires_grad_()
        results.append(torch.autograd.grad(run(x), x)[0])
    assert same_bits(*results)


def test_compiled_functions_write_to_what_they_are_given(native):
    """Accumulators and outputs that live outside the graph."""
    x, labels = numbers((4, 5)), integers(0, 2, [4])
    mask, zero = chances((3, 5), 0.4), torch.tensor(0.0)
    moments = ops.ClassMoments.empty(2, 5)
    counts, edges = torch.zeros(2, 5, 3, dtype=torch.int64), torch.zeros(5, 1, dtype=torch.float64)
    out, means = torch.full((3, 4, 5), torch.nan), torch.full((4, 5), torch.nan, dtype=torch.float64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: Tensor) -> None:
        moments.update(x, labels, means=means)
        ops.class_histogram(x, labels, edges, counts)
        ops.perturb(x, mask, zero, out=out)

    for _ in range(2):
        function(x)
    once = ops.ClassMoments.empty(2, 5)
    for _ in range(2):
        once.update(x, labels)
    assert all(torch.equal(a, b) for a, b in zip(moments.tensors(), once.tensors(), strict=True))
    assert torch.equal(means, x.double())
    assert int(counts.sum()) == 2 * 4 * 5
    assert same_bits(out, ops.perturb(x, mask, zero))
