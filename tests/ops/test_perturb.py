"""perturb: every backend against the definition, bit for bit; a select computes nothing. Noise is apart."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import pack_mask, perturb
from tests.ops.backends import DTYPES, big, drawn
from tests.ops.perturbed import perturbed
from tests.ops.tensors import LAYOUTS, chances, integers, laid_out, numbers, threads
from tests.ops.tolerances import same_bits, same_numbers

OP = "perturb"

SHAPES = [  # of x [N, ...], the unit dimension
    ((5, 7), 1),  # [N, C]
    ((1, 1), 1),
    ((3, 1, 1, 1), 1),
    ((3, 13, 5, 7), 1),  # [N, C, H, W]
    ((2, 64, 4, 4), 1),
    ((3, 11, 17), 2),  # [N, T, F]
    ((2, 3, 5, 2), 2),  # units in the middle
    pytest.param((7, 1031), 1, marks=big),
    pytest.param((2, 60, 9, 9), 1, marks=big),
    pytest.param((2, 300, 2, 4), 1, marks=big),
    pytest.param((2, 3, 37, 29), 1, marks=big),
]


def random_case(shape, unit_dim, shared, dtype=torch.float32, configurations=3, seed=0) -> tuple[Tensor, Tensor]:
    x = numbers(shape if shared else (configurations, *shape), dtype, seed)
    return x, chances((configurations, shape[unit_dim]), 0.4, seed)


def values(kind: str, shape, unit_dim: int, dtype=torch.float32) -> Tensor:
    example = list(shape[1:])
    a_unit = [n if d == unit_dim - 1 else 1 for d, n in enumerate(example)]
    return numbers({"number": [], "unit": a_unit, "element": example}[kind], dtype, seed=1)


def on(backend, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(backend.device) for t in tensors)


def unusual(dtype: torch.dtype, shape) -> Tensor:
    """Nan, infinities, both zeros, subnormals and the greatest number among others."""
    x = numbers(shape, dtype)
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    for i, special in enumerate([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, least, -least, torch.finfo(dtype).max]):
        x.flatten()[i::17] = special
    return x


@cache
def a_case(shape, unit_dim: int, shared: bool, kind: str, mapped: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs on the CPU and what they become: the definition is slow."""
    tensors = (*random_case(shape, unit_dim, shared), values(kind, shape, unit_dim))
    maps = tuple(numbers([shape[unit_dim]], seed=seed) for seed in (2, 3)) if mapped else (None, None)
    options: dict[str, Any] = {"scale": maps[0], "shift": maps[1], "relu": mapped}
    return (*tensors, *maps), perturbed(*tensors, **options, unit_dim=unit_dim, shared=shared)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_equals_the_definition(backend, shape, unit_dim, shared, layout):
    for kind in ("number", "unit", "element"):
        (x, ablated, value, *_), expected = a_case(shape, unit_dim, shared, kind, False)
        strided = laid_out(x.to(backend.device), layout, unit_dim if shared else unit_dim + 1)
        y = perturb(strided, *on(backend, ablated, value), unit_dim=unit_dim, shared=shared)
        assert same_bits(y, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_affine_and_relu_equal_the_definition(backend, shape, unit_dim, layout):
    (x, *small), expected = a_case(shape, unit_dim, True, "element", True)
    strided = laid_out(x.to(backend.device), layout, unit_dim)
    ablated, value, scale, shift = on(backend, *small)
    assert same_bits(perturb(strided, ablated, value, scale=scale, shift=shift, relu=True, unit_dim=unit_dim), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_select_keeps_every_bit(backend, dtype, layout):
    x, ablated, value = unusual(dtype, (6, 9, 3, 3)), chances((4, 9), 0.4), unusual(dtype, (9, 3, 3))
    y = perturb(laid_out(x.to(backend.device), layout), *on(backend, ablated, value))
    assert same_bits(y, perturbed(x, ablated, value))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_rounded_once(backend, dtype, affine, relu, layout):
    x, ablated, value = unusual(dtype, (6, 9, 3, 3)), chances((4, 9), 0.4), unusual(dtype, (9, 1, 1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    maps = {"scale": numbers([9], wide, seed=2), "shift": numbers([9], wide, seed=3)} if affine else {}
    moved = {name: t.to(backend.device) for name, t in maps.items()}
    y = perturb(laid_out(x.to(backend.device), layout), *on(backend, ablated, value), relu=relu, **moved)
    assert same_numbers(y, perturbed(x, ablated, value, relu=relu, **maps))


def test_relu_keeps_nan_and_negative_zero(backend):
    x = torch.tensor([[torch.nan, -0.0, 0.0, -1.0, -torch.inf, torch.inf]])
    mask, zero = torch.zeros(1, 6, dtype=torch.bool), torch.tensor(0.0)
    y = perturb(*on(backend, x, mask, zero), relu=True)
    assert same_numbers(y, torch.tensor([[[torch.nan, -0.0, 0.0, 0.0, 0.0, torch.inf]]]))


def test_what_is_clamped_is_not_computed_with(backend):
    x, mask = torch.full((2, 3), torch.nan), torch.ones(1, 3, dtype=torch.bool)
    nan = torch.full([3], torch.nan, device=backend.device)
    y = perturb(*on(backend, x, mask, torch.tensor(-1.5)), scale=nan, shift=nan, relu=True)
    assert same_bits(y, torch.full((1, 2, 3), -1.5))


@pytest.mark.parametrize("units", [1, 7, 8, 9, 16, 17, 64, 71])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_packed_masks_are_the_same(backend, units, layout):
    x, ablated = random_case((3, units, 2, 2), 1, True)
    packed = pack_mask(ablated)
    assert packed.shape == (3, -(-units // 8))
    for k, c in ablated.nonzero():
        assert packed[k, c // 8] >> c % 8 & 1
    assert sum(int(byte).bit_count() for byte in packed.flatten()) == ablated.sum()
    if units % 8:
        packed[:, -1] |= 255 << units % 8 & 255  # bits that belong to no unit
    value = torch.tensor(2.0)
    y = perturb(laid_out(x.to(backend.device), layout), *on(backend, packed, value))
    assert same_bits(y, perturbed(x, ablated, value))


def test_any_strides_of_mask_and_value_are_read_right(backend):
    x, ablated = random_case((10, 12, 3), 1, True)
    mask = laid_out(ablated.double(), "transposed").bool()
    value = laid_out(numbers((12, 3)), "every-other-unit")
    narrow = laid_out(numbers((12,)), "contiguous")[:, None].expand(12, 3)
    for v in (value, narrow, value.T.contiguous().T):
        assert same_bits(perturb(*on(backend, x), mask.to(backend.device), v.to(backend.device)), perturbed(x, mask, v))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit", "window"])
def test_the_result_lies_as_x_does(backend, layout, shared):
    x, ablated = random_case((4, 6, 3, 5), 1, shared)
    strided = laid_out(x.to(backend.device), layout, 1 if shared else 2)
    y = perturb(strided, *on(backend, ablated, torch.tensor(0.0)), shared=shared)
    assert y.is_contiguous() == (layout != "channels-last")
    assert y.movedim(2, -1).is_contiguous() == (layout == "channels-last")


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit", "every-other-position"])
@pytest.mark.parametrize("of_x", ["contiguous", "channels-last"])
def test_out_is_written_and_nothing_around_it(backend, layout, of_x):
    x, ablated = random_case((4, 6, 3, 5), 1, True)
    value = values("unit", x.shape, 1)
    out = laid_out(torch.full((3, 4, 6, 3, 5), torch.nan, device=backend.device), layout, 2)
    storage = out.new_empty(0).set_(out.untyped_storage())
    storage.fill_(torch.nan)
    result = perturb(laid_out(x.to(backend.device), of_x), *on(backend, ablated, value), out=out)
    assert result is out
    assert same_bits(out, perturbed(x, ablated, value))
    assert int(storage.isnan().sum()) == storage.numel() - out.numel()


@drawn(150)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    *(st.integers(1, n) for n in (5, 4)),
    *(st.booleans() for _ in range(4)),
    *(st.sampled_from(choices) for choices in (LAYOUTS, DTYPES, ["number", "unit", "element"])),
    st.data(),
)
def test_everything_at_random(
    backend, example, examples, configurations, shared, affine, relu, packed, layout, dtype, kind, data
):
    unit_dim = data.draw(st.integers(1, len(example)), label="unit_dim")
    seed = data.draw(st.integers(0, 1000), label="seed")
    shape = (examples, *example)
    x, ablated = random_case(shape, unit_dim, shared, dtype, configurations, seed)
    value = values(kind, shape, unit_dim, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    units = [shape[unit_dim]]
    maps = {"scale": numbers(units, wide, seed + 1), "shift": numbers(units, wide, seed + 2)} if affine else {}
    strided = laid_out(x.to(backend.device), layout, unit_dim if shared else unit_dim + 1)
    y = perturb(
        strided,
        *on(backend, pack_mask(ablated) if packed else ablated, value),
        relu=relu,
        unit_dim=unit_dim,
        shared=shared,
        **{name: t.to(backend.device) for name, t in maps.items()},
    )
    assert same_bits(y, perturbed(x, ablated, value, relu=relu, unit_dim=unit_dim, shared=shared, **maps))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_threads_and_levels_do_not_matter(cpu_level, layout):
    x, ablated = random_case((64, 50, 3, 3), 1, True, configurations=8)
    value, scale, shift = values("element", x.shape, 1), numbers([50], seed=2), numbers([50], seed=3)
    expected = perturbed(x, ablated, value, scale=scale, shift=shift, relu=True)
    for count in (1, 2, 5):
        with threads(count):
            for mask in (ablated, pack_mask(ablated)):
                y = perturb(laid_out(x, layout), mask, value, scale=scale, shift=shift, relu=True)
                assert same_bits(y, expected)


def test_many_configurations(backend):
    x, units = numbers((2, 9)), integers(0, 9, [40])
    ablated = torch.nn.functional.one_hot(units, 9).bool()
    y = perturb(*on(backend, x, ablated, torch.tensor(7.0)))
    assert same_bits(y, perturbed(x, ablated, torch.tensor(7.0)))
