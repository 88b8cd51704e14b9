"""Every registered op as torch sees it: torch.library.opcheck, and graphs that hold it whole."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sdkernels import ops
from tests.ops import clamped, nested
from tests.ops.backends import Backend, backends_of, on_cuda
from tests.ops.tensors import chances, integers, laid_out, numbers
from tests.ops.tolerances import same_bits

# torch's own, while it compiles
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def perturb_arguments(kind: str = "plain", shared: bool = True) -> list[Any]:
    """x and all that follows it in the schema."""
    x = numbers((4, 5, 3, 2) if shared else (3, 4, 5, 3, 2))
    mask, value = chances((3, 5), 0.4), numbers((5, 3, 2), seed=1)
    if kind == "plain":
        return [x, mask, value, None, None, False, None, None, None, None, 0, False, 1, shared]
    noise = [numbers((3, 5), seed=4).abs(), torch.tensor(7), torch.arange(3), torch.arange(4), 2, False]
    return [x, ops.pack_mask(mask), value, numbers([5], seed=2), numbers([5], seed=3), True, *noise, 1, shared]


def nested_arguments(head: bool, *more: Any) -> list[Any]:
    case = nested.random_case((7, 6, 5, 4 if head else 0, 3), per_point=True)
    order = ("a", "units", "weight", "bias", "head", "head_bias", "living_in", "living_out")
    return [*(case.get(name) for name in order), True, *more]


def rank_one_arguments(affine: bool) -> list[Any]:
    case = clamped.random_case((5, 7, 4, (3,), 6), value=affine, affine=affine)
    return [case.get(name) for name in ("z", "weight", "a", "units", "value", "scale", "shift", "relu")]


def rank_one_head_arguments(everything: bool) -> list[Any]:
    case = clamped.random_case((5, 7, 4, (), 6), value=everything, affine=everything)
    order = ("z", "weight", "a", "units", "value", "scale", "shift", "relu")
    last = [numbers([3], seed=7), numbers((5, 3), seed=8)] if everything else [None, None]
    return [*(case.get(name) for name in order), numbers((3, 4), seed=6), *last]


def moments_arguments() -> list[Any]:
    return [numbers((6, 5, 3, 2)), integers(0, 2, [6]), *ops.ClassMoments.empty(2, 5).tensors(), 1]


def means_arguments() -> list[Any]:
    return [numbers((6, 5, 3, 2)), integers(0, 2, [6]), 3, 1]


def histogram_arguments() -> list[Any]:
    edges = numbers((5, 3), torch.float64).sort(1).values
    return [numbers((6, 5, 3, 2)), integers(0, 2, [6]), edges, torch.zeros(2, 5, 5, dtype=torch.int64), 1]


def winograd_output_arguments(everything: bool) -> list[Any]:
    bias, add = (numbers([3], seed=1), numbers((2, 3, 5, 7), seed=2)) if everything else (None, None)
    return [numbers((36, 8, 3)), bias, 5, 7, everything, add]


LOGITS, LABELS, PREDICTION = numbers((2, 7, 4)), integers(0, 4, [7]), integers(0, 4, [7], 1)

# An op's name: where it is, and its cases by name; a case's floats before ``accumulators`` may lie in any layout.
CASES: dict[str, dict[str, Callable[[], list[Any]]]] = {
    "perturb": {
        "plain": perturb_arguments,
        "everything": lambda: perturb_arguments("everything"),
        "own": lambda: perturb_arguments("plain", False),
        "own-everything": lambda: perturb_arguments("everything", False),
    },
    "perturb_into": {
        "plain": lambda: [torch.zeros(3, 4, 5, 3, 2), *perturb_arguments()],
        "everything": lambda: [torch.zeros(3, 4, 5, 3, 2), *perturb_arguments("everything")],
    },
    "random_stream": {
        kind: lambda kind=i: [torch.arange(3), torch.arange(2), torch.tensor(5), kind, 7, 1]
        for i, kind in enumerate(("bits", "uniform", "normal"))
    },
    "class_moments": {"maps": moments_arguments},
    "class_histogram": {"maps": histogram_arguments},
    "class_means": {"maps": means_arguments},
    "score": {
        "counts": lambda: [LOGITS, LABELS, None, False, 0, False, -1.0],
        "everything": lambda: [LOGITS, LABELS, PREDICTION, True, 2, True, 0.1],
    },
    "nested_linear": {"outputs": lambda: nested_arguments(False), "head": lambda: nested_arguments(True)},
    "nested_linear_score": {
        "counts": lambda: nested_arguments(True, LABELS, None, False, 0, False, -1.0),
        "everything": lambda: nested_arguments(True, LABELS, PREDICTION, True, 2, True, 0.1),
    },
    "rank_one": {"plain": lambda: rank_one_arguments(False), "everything": lambda: rank_one_arguments(True)},
    "rank_one_head": {
        "plain": lambda: rank_one_head_arguments(False),
        "everything": lambda: rank_one_head_arguments(True),
    },
    "winograd_input": {"plain": lambda: [numbers((2, 3, 5, 7)), False], "relu": lambda: [numbers((2, 3, 5, 7)), True]},
    "winograd_output": {
        "plain": lambda: winograd_output_arguments(False),
        "everything": lambda: winograd_output_arguments(True),
    },
}
IMPLEMENTED_WITH = {
    "perturb_into": "perturb",
    "nested_linear_score": "nested_linear",
    "class_means": "class_moments",
}
CONTIGUOUS_FROM = {"class_moments": 2, "class_histogram": 3}  # accumulators


def every_case() -> Iterator[Any]:
    for op, cases in CASES.items():
        for backend, case in product(backends_of(IMPLEMENTED_WITH.get(op, op)), cases):
            yield pytest.param(backend, op, case, id=f"{op}-{case}-{backend}")


def arranged(backend: Backend, op: str, arguments: list[Any], layout: str) -> list[Any]:
    """Arguments where and as they should lie; nested_linear's counts stay on the CPU."""
    result = []
    for i, argument in enumerate(arguments):
        if not isinstance(argument, Tensor) or (op.startswith("nested_linear") and i in (6, 7)):
            result.append(argument)
            continue
        argument = argument.to(backend.device)
        movable = argument.is_floating_point() and argument.ndim > 1 and i < CONTIGUOUS_FROM.get(op, 99)
        if movable and op.startswith("perturb") and argument.ndim > 3:
            # maps whose positions have one stride, so that out= may lie so too
            unit_dim = 2 if argument.ndim == 5 else 1
            result.append(laid_out(argument, "channels-last" if layout == "transposed" else layout, unit_dim))
        else:
            result.append(laid_out(argument, layout) if movable else argument)
    return result


def test_every_registered_op_has_cases():
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    assert {op.partition(".")[0] for library, _, op in names if library == "sdkernels"} == set(CASES)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize(("backend", "op", "case"), list(every_case()), indirect=["backend"])
@pytest.mark.not_interpreted
def test_opcheck(backend, op, case, layout):
    arguments = arranged(backend, op, CASES[op][case](), layout)
    torch.library.opcheck(getattr(torch.ops.sdkernels, op).default, tuple(arguments))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("case", ["plain", "own-everything"])
@pytest.mark.parametrize("backend", backends_of("perturb"), ids=str, indirect=True)
@pytest.mark.not_interpreted
def test_opcheck_of_gradients(backend, case, layout):
    arguments = arranged(backend, "perturb", CASES["perturb"][case](), layout)
    for i in (0, 2, 3, 4):
        if arguments[i] is not None:
            arguments[i] = arguments[i].detach().requires_grad_()
    torch.library.opcheck(torch.ops.sdkernels.perturb.default, tuple(arguments))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("backend", backends_of("class_moments"), ids=str, indirect=True)
@pytest.mark.not_interpreted
def test_opcheck_of_gradients_of_means(backend, layout):
    x, *others = arranged(backend, "class_means", means_arguments(), layout)
    torch.library.opcheck(torch.ops.sdkernels.class_means.default, (x.detach().requires_grad_(), *others))


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
    return (moments.variance(), *moments.over_classes(), moments.dead())


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
    out = torch.full((3, 4, 5), torch.nan)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: Tensor) -> None:
        moments.update(x, labels)
        ops.class_histogram(x, labels, edges, counts)
        ops.perturb(x, mask, zero, out=out)

    for _ in range(2):
        function(x)
    once = ops.ClassMoments.empty(2, 5)
    for _ in range(2):
        once.update(x, labels)
    assert all(torch.equal(a, b) for a, b in zip(moments.tensors(), once.tensors(), strict=True))
    assert int(counts.sum()) == 2 * 4 * 5
    assert same_bits(out, ops.perturb(x, mask, zero))
