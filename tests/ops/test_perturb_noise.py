"""perturb's noise: every backend against the definition, bit for bit, however the work is split and the memory lies."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import pack_mask, perturb, random_stream
from tests.ops.backends import DTYPES, Backend, big, drawn
from tests.ops.perturbed import perturbed
from tests.ops.tensors import LAYOUTS, chances, integers, laid_out, numbers, threads
from tests.ops.tolerances import same_bits, same_numbers

OP = "perturb"

SHAPES = [  # of x [N, ...], the unit dimension: quads within units, across them, across their positions
    ((5, 7), 1),
    ((2, 1), 1),
    ((3, 5, 1, 1), 1),
    ((2, 6, 2, 2), 1),  # B a multiple of 4
    ((3, 13, 5, 7), 1),
    ((2, 5, 3), 2),
    ((2, 3, 5, 3), 2),
    pytest.param((3, 2053), 1, marks=big),  # more than two blocks of draws
    pytest.param((2, 60, 9, 9), 1, marks=big),  # more units than a channels-last tile
    pytest.param((2, 300, 2, 4), 1, marks=big),
    pytest.param((2, 3, 37, 29), 1, marks=big),
    pytest.param((2, 2, 3, 1030), 2, marks=big),
]


def noise(shape, unit_dim, configurations=3, dtype=torch.float32, seed=0) -> dict[str, Any]:
    """Options of noise, on the CPU; a third of the units have none."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sigma = numbers((configurations, shape[unit_dim]), wide, seed + 10).abs()
    return {
        "sigma": sigma.masked_fill(chances(sigma.shape, 0.3, seed), 0),
        "seed": 12345 + seed,
        "configurations": integers(0, 2**32, [configurations], seed),
        "examples": integers(0, 2**32, [shape[0]], seed + 1),
        "site": 77,
    }


def run(backend: Backend, x: Tensor, ablated: Tensor, value: Tensor, **options: Any) -> Tensor:
    tensors = {name: t.to(backend.device) if isinstance(t, Tensor) else t for name, t in options.items()}
    return perturb(x.to(backend.device), ablated.to(backend.device), value.to(backend.device), **tensors)


@cache
def a_case(shape, unit_dim: int, shared: bool, per_map: bool) -> tuple[tuple[Tensor, ...], dict[str, Any], Tensor]:
    """Inputs and options on the CPU, and what they become: the definition is slow."""
    x = numbers(shape if shared else (3, *shape))
    ablated, value = chances((3, shape[unit_dim]), 0.4), numbers(shape[1:], seed=1)
    options = {"per_map": per_map, "unit_dim": unit_dim, "shared": shared, **noise(shape, unit_dim)}
    return (x, ablated, value), options, perturbed(x, ablated, value, **options)


# Whether x is shared, and its layout: paths of memory, not of draws, so two are enough for the interpreter.
MEMORY = [(True, layout) for layout in LAYOUTS] + [(False, layout) for layout in LAYOUTS[:2]]


@pytest.mark.parametrize(
    ("shared", "layout"),
    [*MEMORY[:2], *(pytest.param(*memory, marks=big) for memory in MEMORY[2:])],
    ids=lambda v: v if isinstance(v, str) else "shared" if v else "own",
)
@pytest.mark.parametrize("per_map", [False, True], ids=["element", "map"])
@pytest.mark.parametrize(("shape", "unit_dim"), SHAPES, ids=str)
def test_equals_the_definition(backend, shape, unit_dim, shared, per_map, layout):
    (x, *small), options, expected = a_case(shape, unit_dim, shared, per_map)
    strided = laid_out(x.to(backend.device), layout, unit_dim if shared else unit_dim + 1)
    assert same_bits(run(backend, strided, *small, **options), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("per_map", [False, True], ids=["element", "map"])
@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "affine-relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_rounded_once(backend, dtype, mapped, per_map, layout):
    x, ablated, value = numbers((4, 9, 3, 3), dtype), chances((3, 9), 0.4), numbers((9, 1, 1), dtype, seed=1)
    x[:, ::2, 0, 0], x[:, 1, 0, 1], x[:, 1, 1, 1] = -0.0, torch.nan, torch.inf
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    options = {"relu": mapped, "per_map": per_map, **noise(x.shape, 1, dtype=dtype)}
    if mapped:
        options |= {"scale": numbers([9], wide, seed=2), "shift": numbers([9], wide, seed=3)}
    y = run(backend, laid_out(x.to(backend.device), layout), ablated, value, **options)
    assert same_numbers(y, perturbed(x, ablated, value, **options))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_units_without_noise_keep_every_bit(backend, dtype, layout):
    x, ablated = numbers((3, 6, 2, 3), dtype), chances((2, 6), 0.4)
    x[:, :, 0, 0], x[:, :, 1, 1], value = -0.0, torch.nan, torch.tensor(-0.0, dtype=dtype)
    options = noise(x.shape, 1, configurations=2, dtype=dtype)
    options["sigma"][:, ::2] = 0
    y = run(backend, laid_out(x.to(backend.device), layout), ablated, value, **options)
    assert same_bits(y[:, :, ::2], perturbed(x, ablated, value)[:, :, ::2])
    options["sigma"].zero_()
    y = run(backend, laid_out(x.to(backend.device), layout), ablated, value, **options)
    assert same_bits(y, perturbed(x, ablated, value))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_clamped_units_get_the_stream_s_draws(backend, layout):
    """On a clamp of 0 and with sigma 1, y is what random_stream draws, element by element."""
    x = laid_out(torch.full((3, 5, 2, 3), torch.nan, device=backend.device), layout)
    ids = {"configurations": torch.tensor([4, 9]), "examples": torch.tensor([0, 7, 2**31])}
    options = {**ids, "sigma": torch.ones(2, 5), "seed": 5, "site": 1}
    every = torch.ones(2, 5, dtype=torch.bool)
    moved = {name: t.to(backend.device) for name, t in ids.items()}
    y = run(backend, x, every, torch.tensor(0.0), **options)
    assert same_bits(y, random_stream("normal", 5, *moved.values(), 30, site=1).view(2, 3, 5, 2, 3))
    y = run(backend, x, every, torch.tensor(0.0), per_map=True, **options)
    draws = random_stream("normal", 5, *moved.values(), 5, site=1)
    assert same_bits(y, draws[..., None, None].expand(2, 3, 5, 2, 3))


def test_noise_is_not_rectified(backend):
    x, options = torch.full((50, 4), -1.0), noise((50, 4), 1, configurations=1)
    y = run(backend, x, torch.zeros(1, 4, dtype=torch.bool), torch.tensor(0.0), relu=True, **options)
    assert (y < 0).any()


@drawn(120)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    *(st.integers(1, n) for n in (5, 4)),
    *(st.booleans() for _ in range(5)),
    *(st.sampled_from(choices) for choices in (LAYOUTS, DTYPES)),
    st.data(),
)
def test_any_split_of_the_work_is_the_same(
    backend, example, examples, configurations, shared, per_map, affine, relu, packed, layout, dtype, data
):
    unit_dim = data.draw(st.integers(1, len(example)), label="unit_dim")
    seed = data.draw(st.integers(0, 1000), label="seed")
    shape = (examples, *example)
    x = numbers(shape if shared else (configurations, *shape), dtype, seed)
    ablated = chances((configurations, shape[unit_dim]), 0.4, seed)
    value = numbers(shape[1:], dtype, seed + 1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    options = noise(shape, unit_dim, configurations, dtype, seed)
    options |= {"per_map": per_map, "relu": relu, "unit_dim": unit_dim, "shared": shared}
    if affine:
        options |= {n: numbers([shape[unit_dim]], wide, seed + i) for i, n in enumerate(("scale", "shift"))}
    whole = perturbed(x, ablated, value, **options)
    k = data.draw(st.integers(0, configurations - 1), label="first configuration of the second part")
    n = data.draw(st.integers(0, examples - 1), label="first example of the second part")
    for some in (slice(0, k), slice(k, None)):
        for others in (slice(0, n), slice(n, None)):
            part = x[others] if shared else x[some, others]
            ids = {"configurations": options["configurations"][some], "examples": options["examples"][others]}
            if part.numel() == 0 or 0 in map(len, ids.values()):
                continue
            strided = laid_out(part.to(backend.device), layout, unit_dim if shared else unit_dim + 1)
            mask = pack_mask(ablated[some]) if packed else ablated[some]
            y = run(backend, strided, mask, value, **{**options, **ids, "sigma": options["sigma"][some]})
            assert same_numbers(y, whole[some, others])


@pytest.mark.parametrize("per_map", [False, True], ids=["element", "map"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_threads_and_levels_do_not_matter(cpu_level, layout, per_map, dtype):
    x, ablated = numbers((16, 53, 5, 5), dtype), chances((4, 53), 0.3)
    value, options = numbers((53, 1, 1), dtype, seed=1), {"per_map": per_map, **noise(x.shape, 1, 4, dtype)}
    wide = options["sigma"].dtype
    options |= {"relu": True, "scale": numbers([53], wide, seed=2), "shift": numbers([53], wide, seed=3)}
    expected = perturbed(x, ablated, value, **options)
    for count in (1, 2, 5):
        with threads(count):
            assert same_bits(perturb(laid_out(x, layout), ablated, value, **options), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other-unit", "every-other-position"])
@pytest.mark.parametrize("per_map", [False, True], ids=["element", "map"])
def test_out_of_any_layout_gets_the_same(backend, layout, per_map):
    """The draws of an element follow its place in x, not in memory."""
    x, ablated = numbers((2, 6, 3, 5)), chances((3, 6), 0.4)
    options = {"per_map": per_map, **noise(x.shape, 1)}
    for poison in (torch.nan, 1.0):
        out = laid_out(torch.full((3, *x.shape), poison, device=backend.device), layout, 2)
        assert run(backend, x, ablated, torch.tensor(0.5), out=out, **options) is out
        assert same_bits(out, perturbed(x, ablated, torch.tensor(0.5), **options))
