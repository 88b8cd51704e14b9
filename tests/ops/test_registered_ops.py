"""Every registered op as torch sees it: torch.library.opcheck."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sdkernels import ops
from tests.ops import clamped, nested
from tests.ops.backends import Backend, backends_of
from tests.ops.tensors import chances, integers, laid_out, numbers

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


def moments_arguments(means: bool) -> list[Any]:
    out = torch.zeros(6, 5, dtype=torch.float64) if means else None
    return [numbers((6, 5, 3, 2)), integers(0, 2, [6]), *ops.ClassMoments.empty(2, 5).tensors(), out, 1]


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
    "class_moments": {"maps": lambda: moments_arguments(False), "means": lambda: moments_arguments(True)},
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
LAYOUTS = ("contiguous", "transposed")
CONTIGUOUS_FROM = {"class_moments": 2, "class_histogram": 3}  # accumulators


def every_case() -> Iterator[Any]:
    """Every backend meets every case, and both layouts where an op has two cases or one; the other rows are slow."""
    for op, cases in CASES.items():
        backends = backends_of(IMPLEMENTED_WITH.get(op, op))
        for (i, backend), (j, case), (k, layout) in product(*map(enumerate, (backends, cases, LAYOUTS))):
            marks = [pytest.mark.slow] * (len(cases) > 1 and (i + j + k) % 2)
            yield pytest.param(backend, op, case, layout, id=f"{op}-{case}-{backend}-{layout}", marks=marks)


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


@pytest.mark.parametrize(("backend", "op", "case", "layout"), list(every_case()), indirect=["backend"])
@pytest.mark.not_interpreted
def test_opcheck(backend, op, case, layout):
    arguments = arranged(backend, op, CASES[op][case](), layout)
    torch.library.opcheck(getattr(torch.ops.sdkernels, op).default, tuple(arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["plain", "own-everything"])
@pytest.mark.parametrize("backend", backends_of("perturb"), ids=str, indirect=True)
@pytest.mark.not_interpreted
def test_opcheck_of_gradients(backend, case, layout):
    arguments = arranged(backend, "perturb", CASES["perturb"][case](), layout)
    for i in (0, 2, 3, 4):
        if arguments[i] is not None:
            arguments[i] = arguments[i].detach().requires_grad_()
    torch.library.opcheck(torch.ops.sdkernels.perturb.default, tuple(arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", backends_of("class_moments"), ids=str, indirect=True)
@pytest.mark.not_interpreted
def test_opcheck_of_gradients_of_means(backend, layout):
    x, *others = arranged(backend, "class_means", means_arguments(), layout)
    torch.library.opcheck(torch.ops.sdkernels.class_means.default, (x.detach().requires_grad_(), *others))
