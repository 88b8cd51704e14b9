"""Triton's kernels where a program takes more than one share of the work, which small cases never ask for.

The constants that divide the work are made small: what a big case does on a GPU, a small one does here.
"""

import importlib

import pytest
import torch

from sdkernels.ops import ClassMoments, class_histogram, nested_linear, nested_linear_score, perturb, rank_one, score
from tests.ops import clamped, nested
from tests.ops.backends import backends_of
from tests.ops.counted import ascending, counted
from tests.ops.headed import assert_logits, head_case
from tests.ops.moments import assert_equal, assert_means, exact_moments, of_batches
from tests.ops.perturbed import perturbed
from tests.ops.scored import assert_scores, scored
from tests.ops.tensors import chances, integers, laid_out, numbers
from tests.ops.tolerances import MOMENTS, same_bits


def on_triton(op: str):
    triton = [backend for backend in backends_of(op) if backend.name == "triton"]
    return pytest.mark.parametrize("backend", triton, ids=str, indirect=True)


@pytest.fixture
def divided(monkeypatch):
    """A function (op, CONSTANT=value, ...) that changes how an op's Triton version divides its work."""

    def divide(op: str, **constants: int) -> None:
        module = importlib.import_module(f"sdkernels.ops.triton.{op}")
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)

    return divide


@pytest.mark.parametrize("programs", [1, 2, 5])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("noise", ["none", "element", "map"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@on_triton("perturb")
def test_perturb_of_several_configurations(backend, divided, shared, noise, layout, programs):
    divided("perturb", PROGRAMS=programs)
    x = numbers((2, 5, 3, 3) if shared else (5, 2, 5, 3, 3))
    ablated, value = chances((5, 5), 0.4), numbers((5, 1, 1), seed=1)
    options = {"shared": shared, "relu": True, "per_map": noise == "map"}
    if noise != "none":
        options |= {"sigma": numbers((5, 5), seed=2).abs(), "configurations": torch.arange(5) + 3}
        options |= {"examples": torch.arange(2), "seed": 1}
    moved = {n: t.to(backend.device) if isinstance(t, torch.Tensor) else t for n, t in options.items()}
    strided = laid_out(x.to(backend.device), layout, 1 if shared else 2)
    y = perturb(strided, ablated.to(backend.device), value.to(backend.device), **moved)
    assert same_bits(y, perturbed(x, ablated, value, **options))


@pytest.mark.parametrize("programs", [1, 2, 3])
@on_triton("rank_one")
def test_rank_one_of_several_units(backend, divided, programs):
    divided("rank_one", PROGRAMS=programs)
    case = clamped.random_case((3, 6, 5, (7,), 7))
    assert same_bits(rank_one(**clamped.on(backend, case)), clamped.clamped(**case))


@pytest.mark.parametrize("classes", [3, 40])
@on_triton("rank_one_head")
def test_rank_one_head_of_several_shares(backend, divided, classes):
    """Of examples, rows, outputs and classes."""
    divided("rank_one_head", EXAMPLES=32, ROWS=16, OUTPUTS=16, CLASSES=16)
    case = head_case((45, 3, 20, classes, 3))
    assert_logits(rank_one(**clamped.on(backend, case)), case)


@pytest.mark.parametrize("programs", [1, 4])  # of two configurations
@pytest.mark.parametrize("classes", [3, 40])
@on_triton("score")
def test_score_of_several_tiles(backend, divided, classes, programs):
    divided("score", PROGRAMS=programs, SHARED_TILE=128)
    logits, labels = numbers((2, 300 if classes == 3 else 11, classes)), integers(0, classes, [300])
    labels = labels[: logits.shape[1]]
    options = {"top": 2, "per_class": True, "prediction": labels.flip(0)}
    moved = {n: t.to(backend.device) if isinstance(t, torch.Tensor) else t for n, t in options.items()}
    found = score(logits.to(backend.device), labels.to(backend.device), **moved)
    assert_scores(found, scored(logits, labels, **options), 1e-5 * len(labels))


@pytest.mark.parametrize(("programs", "tile", "segments"), [(1, 16, 2), (4, 64, 1)], ids=["chunks", "tiles"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@on_triton("class_moments")
def test_class_moments_of_several_examples(backend, divided, layout, tile, segments, programs):
    divided("class_moments", PROGRAMS=programs, TILE=tile, MERGED_SEGMENTS=segments, MERGED_UNITS=2)
    x, labels = numbers((13, 3, 3, 7)), integers(0, 3, [13])
    strided = laid_out(x, layout)
    exact = exact_moments(x, labels, 4)
    assert_equal(of_batches(strided, labels, 4, [5], backend.device), exact, MOMENTS)
    means = torch.full((13, 3), torch.nan, dtype=torch.float64, device=backend.device)
    ClassMoments.empty(4, 3, backend.device).update(strided.to(backend.device), labels.to(backend.device), means=means)
    assert_means(means, exact, MOMENTS)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@on_triton("class_histogram")
def test_class_histogram_of_several_steps(backend, divided, layout):
    divided("class_histogram", TILE=16)
    x, labels, edges = numbers((13, 5, 3, 7)), integers(0, 4, [13]), ascending(5, 3)
    counts = torch.zeros(4, 5, 5, dtype=torch.int64, device=backend.device)
    class_histogram(laid_out(x.to(backend.device), layout), labels.to(backend.device), edges.to(backend.device), counts)
    assert torch.equal(counts.cpu(), counted(x, labels, edges, 4))


@pytest.mark.parametrize("classes", [0, 10], ids=["outputs", "head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@on_triton("nested_linear")
def test_nested_linear_of_several_tiles(backend, divided, dtype, classes):
    divided("nested_linear", OUTPUTS=32, EXAMPLES=32, HEAD_SUMS=1024)
    case = nested.random_case((67, 13, 37, classes, 4), dtype, per_point=True, whole=True)
    result = nested_linear(**nested.on(backend, case))
    assert same_bits(result + 0.0, nested.nested(**case).to(dtype) + 0.0)


@pytest.mark.parametrize("hidden", [1, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@on_triton("nested_linear")
def test_nested_linear_of_more_outputs_than_a_program_holds(backend, divided, dtype, hidden):
    """They go through memory, a run of examples at a time."""
    divided("nested_linear", MOST_OUTPUTS=16, HIDDEN_ELEMENTS=hidden)
    case = nested.random_case((7 if hidden == 1 else 37, 13, 17, 10, 4), dtype, per_point=True, whole=True)
    logits = nested.nested(**case)
    assert same_bits(nested_linear(**nested.on(backend, case)) + 0.0, logits.to(dtype) + 0.0)
    labels = integers(0, 10, [len(case["a"])])
    options = {"top": 2, "per_class": True, "prediction": labels.flip(0), "margin": 2.0**-4}
    expected = scored(logits.transpose(1, 2), labels, **options)
    moved = {n: t.to(backend.device) if isinstance(t, torch.Tensor) else t for n, t in options.items()}
    found = nested_linear_score(**nested.on(backend, case), labels=labels.to(backend.device), **moved)
    assert_scores(found, expected, 1e-3)
