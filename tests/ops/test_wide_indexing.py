"""Offsets beyond 32 bits, in every dimension of every input: five slices that lie 2**30 elements apart.

Each stride fits 32 bits, the last offset does not. The memory is a file with holes, so almost nothing of it exists;
what a 32-bit offset would reach, also a negative one, is within it and holds other numbers.
"""

import pytest
import torch
from torch import Tensor

from sdkernels.ops import class_histogram, nested_linear, perturb, rank_one, score
from tests.ops import clamped
from tests.ops.backends import backends_of
from tests.ops.counted import ascending, counted
from tests.ops.moments import assert_equal, exact_moments, of_batches
from tests.ops.nested import nested, on, random_case
from tests.ops.perturbed import perturbed
from tests.ops.scored import assert_scores, scored
from tests.ops.tensors import chances, integers, numbers
from tests.ops.tolerances import MOMENTS, same_bits

SLICES, APART = 5, 2**30 + 1024
BEFORE = 2**31  # what offsets that wrapped round would reach


def on_backends_of(op: str):
    return pytest.mark.parametrize("backend", backends_of(op), ids=str, indirect=True)


@pytest.fixture
def far(far_memory, backend):
    """A function (x, dim) -> the float16 numbers of x with its five slices in dim APART in memory."""

    def lay(x: Tensor, dim: int) -> Tensor:
        assert x.shape[dim] == SLICES
        assert x.numel() < 1024
        memory = far_memory(torch.float16, BEFORE + SLICES * APART, backend.device)
        dense = x.movedim(dim, 0).contiguous().movedim(0, dim)
        strides = [APART if d == dim else s for d, s in enumerate(dense.stride())]
        return memory.as_strided(x.shape, strides, BEFORE).copy_(x)

    return lay


def halves(*shape: int) -> Tensor:
    return numbers(shape, torch.float16)


@pytest.mark.parametrize("dim", range(4))
@on_backends_of("perturb")
def test_perturb_reads(backend, far, dim):
    k, n, c, s = (SLICES if d == dim else 3 for d in range(4))
    x, ablated, value = halves(k, n, c, s), chances((k, c), 0.4), torch.tensor(0.5).half()
    y = perturb(far(x, dim), ablated.to(backend.device), value.to(backend.device), relu=True, shared=False)
    assert same_bits(y, perturbed(x, ablated, value, relu=True, shared=False))


@pytest.mark.parametrize("noisy", [False, True], ids=["exact", "noisy"])
@pytest.mark.parametrize("dim", range(4))
@on_backends_of("perturb")
def test_perturb_writes(backend, far, dim, noisy):
    k, n, c, s = (SLICES if d == dim else 3 for d in range(4))
    x, ablated, value = halves(n, c, s), chances((k, c), 0.4), torch.tensor(0.5).half()
    options = {"sigma": torch.ones(k, c), "configurations": torch.arange(k), "examples": torch.arange(n)}
    moved = {name: t.to(backend.device) for name, t in options.items()}
    options, moved = ({**o, "seed": 3} if noisy else {} for o in (options, moved))
    out = far(torch.full((k, n, c, s), torch.nan), dim)
    perturb(x.to(backend.device), ablated.to(backend.device), value.to(backend.device), out=out, **moved)
    assert same_bits(out, perturbed(x, ablated, value, **options))


@pytest.mark.parametrize("dim", range(3))
@on_backends_of("class_moments")
def test_class_moments_reads(backend, far, dim):
    x = halves(*(SLICES if d == dim else 3 for d in range(3)))
    labels = integers(0, 2, [len(x)])
    assert_equal(of_batches(far(x, dim), labels, 2, [], backend.device), exact_moments(x, labels, 2), MOMENTS)


@pytest.mark.parametrize("dim", range(3))
@on_backends_of("class_histogram")
def test_class_histogram_reads(backend, far, dim):
    x = halves(*(SLICES if d == dim else 3 for d in range(3)))
    labels, edges = integers(0, 2, [len(x)]), ascending(x.shape[1], 3)
    counts = torch.zeros(2, x.shape[1], 5, dtype=torch.int64, device=backend.device)
    class_histogram(far(x, dim), labels.to(backend.device), edges.to(backend.device), counts)
    assert torch.equal(counts.cpu(), counted(x, labels, edges, 2))


@pytest.mark.parametrize("dim", range(3))
@pytest.mark.parametrize("classes", [5, 40])
@on_backends_of("score")
def test_score_reads(backend, far, dim, classes):
    logits = halves(*(SLICES if d == dim else n for d, n in enumerate((3, 4, classes))))
    labels = integers(0, logits.shape[2], [logits.shape[1]])
    found = score(far(logits, dim), labels.to(backend.device), top=2, per_class=True)
    assert_scores(found, scored(logits, labels, top=2, per_class=True), 1e-4)


@pytest.mark.parametrize("dim", range(3))
@pytest.mark.parametrize("name", ["z", "a"])
@on_backends_of("rank_one")
def test_rank_one_reads(backend, far, dim, name):
    n, units, positions = (SLICES if d == dim else 3 for d in range(3))
    case = clamped.random_case((n, units, units, (positions,), 3), torch.float16)
    expected = clamped.clamped(**case)
    assert same_bits(rank_one(**{**clamped.on(backend, case), name: far(case[name], dim)}), expected)


@pytest.mark.parametrize("dim", range(2))
@on_backends_of("nested_linear")
def test_nested_linear_reads(backend, far, dim):
    n, c = (SLICES if d == dim else 9 for d in range(2))
    case = random_case((n, c, 4, 3, 2), torch.float16, whole=True)
    case["living_in"], case["living_out"] = torch.tensor([c, c - 1]), torch.tensor([4, 4])
    result = nested_linear(**{**on(backend, case), "a": far(case["a"], dim)})
    assert same_bits(result + 0.0, nested(**case).half() + 0.0)
