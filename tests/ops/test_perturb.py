"""perturb: every backend against the definition, bit for bit; a select computes nothing."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import perturb
from sdkernels.ops.perturb import IMPLEMENTATIONS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    ((5, 7), 1),  # [N, C]
    ((1, 1), 1),
    ((3, 1, 1, 1), 1),
    ((3, 13, 5, 7), 1),  # [N, C, H, W]
    ((2, 64, 4, 4), 1),
    ((3, 11, 17), 2),  # [N, T, F]
    ((2, 3, 5, 2), 2),  # units in the middle
    ((257, 101), 1),
]


@pytest.fixture(params=list(IMPLEMENTATIONS))
def backend(request, monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", request.param)
    return request.param


def elementwise(x: Tensor, ablated: Tensor, value: Tensor, unit_dim: int, shared: bool) -> Tensor:
    """The definition, one configuration and unit at a time; shares nothing with the op."""
    results = []
    for k, mask in enumerate(ablated):
        y = (x if shared else x[k]).clone()
        full = value.expand(y.shape[1:])
        for unit in mask.nonzero().flatten().tolist():
            y.select(unit_dim, unit).copy_(full.select(unit_dim - 1, unit))
        results.append(y)
    return torch.stack(results)


def random_case(shape, unit_dim, shared, dtype=torch.float32, configurations=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    full = shape if shared else (configurations, *shape)
    x = torch.randn(full, generator=generator).to(dtype)
    ablated = torch.rand(configurations, shape[unit_dim], generator=generator) < 0.4
    return x, ablated, generator


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(bits), b.view(bits))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=lambda v: str(v))
@pytest.mark.parametrize("kind", ["number", "unit", "element"])
def test_equals_the_definition(backend, shape, unit_dim, shared, kind):
    x, ablated, generator = random_case(shape, unit_dim, shared)
    example = list(shape[1:])
    per_unit = [n if d == unit_dim - 1 else 1 for d, n in enumerate(example)]
    value = torch.randn({"number": [], "unit": per_unit, "element": example}[kind], generator=generator)
    y = perturb(x, ablated, value, unit_dim=unit_dim, shared=shared)
    assert same_bits(y, elementwise(x, ablated, value, unit_dim, shared))
    assert y.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_bits(backend, dtype):
    x, ablated, _ = random_case((6, 9, 3, 3), 1, True, dtype)
    x.flatten()[::7] = float("nan")
    x.flatten()[1::7] = float("-inf")
    x.flatten()[2::7] = -0.0
    value = torch.tensor(0.25, dtype=dtype)
    assert same_bits(perturb(x, ablated, value), elementwise(x, ablated, value, 1, True))


def test_an_ablated_nan_becomes_the_value(backend):
    x = torch.full((2, 3), float("nan"))
    assert torch.equal(perturb(x, torch.ones(1, 3, dtype=torch.bool), torch.tensor(1.5)), torch.full((1, 2, 3), 1.5))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_channels_last_stays_channels_last(backend, shared):
    x, ablated, generator = random_case((4, 6, 3, 5), 1, shared)
    x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    value = torch.randn(6, 3, 5, generator=generator)
    y = perturb(x, ablated, value, shared=shared)
    assert same_bits(y.contiguous(), elementwise(x.contiguous(), ablated, value, 1, shared))
    assert y[0].is_contiguous(memory_format=torch.channels_last)


def test_any_strides_are_read_right(backend):
    x, ablated, _ = random_case((10, 12), 1, True)
    strided, mask = x.t().contiguous().t()[::2], ablated.t().contiguous().t()
    value = torch.arange(24.0)[::2]
    assert same_bits(perturb(strided, mask, value), elementwise(strided, mask, value, 1, True))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 4), st.data())
def test_native_equals_reference_on_random_shapes(example, examples, configurations, data):
    unit_dim = data.draw(st.integers(1, len(example)))
    shared = data.draw(st.booleans())
    seed = data.draw(st.integers(0, 1000))
    x, ablated, generator = random_case(
        (examples, *example), unit_dim, shared, configurations=configurations, seed=seed
    )
    value = torch.randn(example, generator=generator)
    arguments = (x, ablated, value, unit_dim, shared)
    assert same_bits(IMPLEMENTATIONS["native"](*arguments), IMPLEMENTATIONS["reference"](*arguments))


def test_many_threads_give_the_same(monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", "native")
    x, ablated, _ = random_case((64, 500), 1, True, configurations=8)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(perturb(x, ablated, torch.tensor(0.0)))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("gradient", [False, True], ids=["plain", "gradient"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_opcheck(backend, shared, transposed, gradient):
    x, ablated, generator = random_case((4, 5, 3, 2), 1, shared)
    value = torch.randn(5, 3, 2, generator=generator)
    if transposed:
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    x.requires_grad_(gradient)
    value.requires_grad_(gradient)
    torch.library.opcheck(torch.ops.sdkernels.perturb.default, (x, ablated, value, 1, shared))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_gradient(backend, shared):
    x, ablated, generator = random_case((2, 3, 2), 1, shared, torch.float64)
    value = torch.randn(3, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    # fast mode draws from the global random state, and gives it back
    with torch.random.fork_rng(devices=[]):
        assert torch.autograd.gradcheck(lambda x, v: perturb(x, ablated, v, shared=shared), (x, value))


def test_full_graph_compile():
    x, ablated, _ = random_case((8, 16), 1, True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: Tensor) -> Tensor:
        return perturb(x * 2, ablated, torch.tensor(0.5)).sum(1)

    assert torch.equal(function(x), elementwise(x * 2, ablated, torch.tensor(0.5), 1, True).sum(1))


class TestRefusals:
    x = torch.zeros(2, 3, 4)
    ablated = torch.zeros(5, 3, dtype=torch.bool)
    zero = torch.tensor(0.0)

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "says"),
        [
            ((x.int(), ablated, zero.int()), {}, TypeError, "torch.int32"),
            ((x, ablated.int(), zero), {}, TypeError, "ablated must be torch.bool"),
            ((x, ablated, zero.double()), {}, TypeError, "value torch.float32"),
            ((x[:0], ablated, zero), {}, ValueError, "empty"),
            ((x, ablated, zero), {"unit_dim": 3}, ValueError, "unit_dim=3"),
            ((x, ablated, zero), {"unit_dim": 0}, ValueError, "unit_dim=0"),
            ((x, ablated[:, :2], zero), {}, ValueError, r"C = 3"),
            ((x, ablated[:0], zero), {}, ValueError, r"\[K, C\]"),
            ((x[:, None], ablated[:, :1], zero), {"shared": False, "unit_dim": 2}, ValueError, "C = 4"),
            ((x[:, None], ablated, zero), {"shared": False}, ValueError, "2 configurations, ablated has 5"),
            ((x, ablated, torch.zeros(3)), {}, ValueError, r"\[3, 1\]"),
        ],
    )
    def test_is_refused(self, arguments, options, error, says):
        with pytest.raises(error, match=says):
            perturb(*arguments, **options)

    def test_the_op_itself_checks(self):
        with pytest.raises(ValueError, match="C = 3"):
            torch.ops.sdkernels.perturb(self.x, torch.zeros(5, 10**6, dtype=torch.bool), self.zero, 1, True)

    def test_unknown_backend(self, monkeypatch):
        monkeypatch.setenv("SDKERNELS_BACKEND", "cuda")
        with pytest.raises(ValueError, match="reference, native"):
            perturb(self.x, self.ablated, self.zero)

    def test_missing_native_core_is_named(self, monkeypatch):
        monkeypatch.setenv("SDKERNELS_BACKEND", "native")
        monkeypatch.setitem(sys.modules, "sdkernels._C", None)
        with pytest.raises(RuntimeError, match=r"pip install.*SDKERNELS_BACKEND=reference"):
            perturb(self.x, self.ablated, self.zero)
