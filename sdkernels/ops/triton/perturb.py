"""Clamps and noise: a program takes a tile of one example's elements, or of several small examples, and walks over a
block of configurations, so that x comes from memory once and from the cache afterwards.

Two kernels: :func:`perturb_kernel` takes elements in their logical order, in groups that fill a vector access and hold
whole quads of the random stream; :func:`perturb_units_kernel` takes tiles of units by positions, for channels-last
memory (neighbouring threads take neighbouring units, each the four positions of a quad) and for one draw a map.
Tile sizes are not yet measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.layout import by_units
from sdkernels.ops.triton.random_stream import four, index_dtype, normals_of, philox, signed_word, wide_dtype

TILE = 1024  # elements of a program, one configuration
QUAD_TILE = 512  # quads of a program that draws in channels-last memory: four times as many elements
UNITS = 128  # the most units of a channels-last tile
POSITIONS = 256  # the most positions of a contiguous tile
PROGRAMS = 4096  # enough to fill a GPU: with fewer tiles, the configurations are divided too
NUM_WARPS = 4


def perturb(
    out: Tensor,
    x: Tensor,
    ablated: Tensor,
    value: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sigma: Tensor | None,
    seed: Tensor | None,
    configurations: Tensor | None,
    examples: Tensor | None,
    site: int,
    per_map: bool,
    unit_dim: int,
    shared: bool,
) -> None:
    """Write y [K, N, ...] into ``out``."""
    y = by_units(out, unit_dim, 2)  # [K, N, A, C, B]
    x = by_units(x, unit_dim, 1) if shared else by_units(x, unit_dim, 2)
    x = x.expand(y.shape)
    value = by_units(value.expand(out.shape[2:])[None], unit_dim)[0]  # [A, C, B]
    _, _, A, C, B = y.shape
    per_map = per_map and sigma is not None and A * B > 1
    if per_map and B == 1:  # positions are alike to such noise, so those before the units may stand behind them
        y, x, value, A, B = y.transpose(2, 4), x.transpose(2, 4), value.transpose(0, 2), 1, A
    small = (ablated.view(torch.uint8), scale, shift, sigma, seed, configurations, examples)
    tensors = [y, x, value, *(t if t is None else t.contiguous() for t in small), signed_word(site)]
    options: dict[str, Any] = {
        "PACKED": ablated.dtype == torch.uint8,
        "AFFINE": scale is not None,
        "RELU": relu,
        "WIDE": wide_dtype(x),
        "INDEX": index_dtype(max(A * C * B, *(_extent(t.stride()[-3:], (A, C, B)) for t in (y, x, value)))),
        "MANY": A > 1,
        "VALUE_POSITIONS": value.stride(0) * (A > 1) + value.stride(2) * (B > 1) > 0,
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": False,
    }
    units_last = y.stride(3) == 1 and B > 1 and C > 1
    if units_last or per_map:
        noise = "none" if sigma is None else "map" if per_map else "element"
        _launch_units(tensors, options, units_last, noise)
    else:
        _launch(tensors, options, noise=sigma is not None)


def _launch(tensors: list[Any], options: dict[str, Any], noise: bool) -> None:
    y, x, value = tensors[:3]
    K, N, A, C, B = y.shape
    vector = 4 if y.element_size() > 2 else 8
    groups = triton.cdiv(A * C * B, vector)
    tiles = triton.cdiv(N * groups, TILE // vector)
    k_block = _share_of(K, tiles)
    perturb_kernel[(tiles, triton.cdiv(K, k_block))](
        *tensors,
        *(K, N, A * C * B, C, B, groups, k_block),
        *y.stride(),
        *x.stride(),
        *value.stride(),
        NOISE=noise,
        # how the elements of a group lie: in one unit, in successive units, or anyhow
        GROUP="unit" if B % vector == 0 else "units" if B == 1 and C % vector == 0 else "mixed",
        Y_LINEAR=_is_linear(y),
        X_LINEAR=_is_linear(x),
        BASE=index_dtype(N * groups),
        V=vector,
        GROUPS=TILE // vector,
        **options,
    )


def _launch_units(tensors: list[Any], options: dict[str, Any], units_last: bool, noise: str) -> None:
    y, x, value = tensors[:3]
    K, N, A, C, B = y.shape
    aligned = B % 4 == 0
    rows = triton.cdiv(B if aligned else B + 3, 4) if noise == "element" else B
    if units_last:
        units = min(UNITS, max(4, triton.next_power_of_2(C)))
        tile_rows = (QUAD_TILE if noise == "element" else TILE) // units
    else:
        tile_rows = min(POSITIONS, triton.next_power_of_2(B))
        units = TILE // tile_rows
    unit_tiles, row_tiles = triton.cdiv(C, units), triton.cdiv(rows, tile_rows)
    tiles = N * A * unit_tiles * row_tiles
    k_block = _share_of(K, tiles)
    perturb_units_kernel[(tiles, triton.cdiv(K, k_block))](
        *tensors,
        *(K, A, C, B, unit_tiles, row_tiles, k_block),
        *y.stride(),
        *x.stride(),
        *value.stride(),
        NOISE=noise,
        UNITS_LAST=units_last,
        ALIGNED=aligned or noise != "element",
        U=units,
        R=tile_rows,
        **options,
    )


def _share_of(configurations: int, tiles: int) -> int:
    """How many configurations a program takes."""
    blocks = min(configurations, -(-PROGRAMS // tiles))
    return -(-configurations // blocks)


def _extent(strides: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _is_linear(t: Tensor) -> bool:
    """Whether an example's elements lie in their logical order, one after the other."""
    return t[0, 0].is_contiguous()


@triton.jit(do_not_specialize=["site", "K", "N", "k_block"])
def perturb_kernel(
    y_ptr,  # [K, N, A, C, B]
    x_ptr,  # [K, N, A, C, B]
    value_ptr,  # [A, C, B]
    ablated_ptr,  # [K, C] or [K, ceil(C / 8)]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    sigma_ptr,  # [K, C]
    seed_ptr,  # []
    configurations_ptr,  # [K]
    examples_ptr,  # [N]
    site,
    K,
    N,
    E,  # A * C * B
    C,
    B,
    groups,  # of an example
    k_block,
    y_k,
    y_n,
    y_a,
    y_c,
    y_b,
    x_k,
    x_n,
    x_a,
    x_c,
    x_b,
    value_a,
    value_c,
    value_b,
    PACKED: tl.constexpr,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    NOISE: tl.constexpr,
    WIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BASE: tl.constexpr,
    MANY: tl.constexpr,
    VALUE_POSITIONS: tl.constexpr,
    GROUP: tl.constexpr,
    Y_LINEAR: tl.constexpr,
    X_LINEAR: tl.constexpr,
    V: tl.constexpr,
    GROUPS: tl.constexpr,
):
    base = tl.program_id(0).to(BASE) * GROUPS
    at = (base % groups).to(INDEX) + tl.arange(0, GROUPS)[:, None]  # groups since the start of the first example
    n = base // groups + at // groups  # [GROUPS, 1]
    start = (at % groups) * V  # first element of the group
    element = start + tl.arange(0, V)[None, :]  # [GROUPS, V]
    inside = n < N
    if GROUP == "mixed":
        inside = inside & (element < E)
        row = element // B  # a * C + c
        b = element - row * B
    else:
        row = start // B
        b = element - row * B
    a = row // C if MANY else row * 0
    c = row - a * C
    if GROUP == "units":
        c = c + tl.arange(0, V)[None, :]
        b = start * 0
    n = n.to(tl.int64)
    y_at = n * y_n + (element if Y_LINEAR else a * y_a + c * y_c + b * y_b)
    x_at = n * x_n + (element if X_LINEAR else a * x_a + c * x_c + b * x_b)
    value_at = a * value_a + c * value_c + b * value_b if VALUE_POSITIONS else c * value_c
    unit_inside = inside & (c < C)
    scale = tl.load(scale_ptr + c, unit_inside, other=0.0) if AFFINE else 0.0
    shift = tl.load(shift_ptr + c, unit_inside, other=0.0) if AFFINE else 0.0
    if NOISE:
        seed = tl.load(seed_ptr)
        example = tl.load(examples_ptr + n, n < N, other=0)
        quad = start // 4 + tl.arange(0, V // 4)[None, :]

    k = tl.program_id(1).to(tl.int64) * k_block
    last = tl.minimum(k + k_block, K)
    while k < last:
        ablated = is_ablated(ablated_ptr, k, c, C, unit_inside, PACKED)
        value = tl.load(value_ptr + value_at, ablated, other=0.0)
        # a clamped map is not read; units that change within a group would take the vector access apart
        raw = tl.load(x_ptr + k * x_k + x_at, inside & (ablated == 0) if GROUP == "unit" else inside, other=0.0)
        sigma = 0.0
        noise = 0.0
        if NOISE:
            sigma = tl.load(sigma_ptr + k * C + c, unit_inside, other=0.0)
            r0, r1, r2, r3 = philox(seed, quad, example, tl.load(configurations_ptr + k), site)
            n0, n1 = normals_of(r0, r1)
            n2, n3 = normals_of(r2, r3)
            noise = tl.reshape(four(n0, n1, n2, n3), element.shape)
        y = settle(raw, value, ablated, scale, shift, sigma, noise, AFFINE, RELU, NOISE, WIDE)
        tl.store(y_ptr + k * y_k + y_at, y, inside)
        k += 1


@triton.jit(do_not_specialize=["site", "K", "k_block", "unit_tiles", "row_tiles"])
def perturb_units_kernel(
    y_ptr,  # [K, N, A, C, B]
    x_ptr,  # [K, N, A, C, B]
    value_ptr,  # [A, C, B]
    ablated_ptr,  # [K, C] or [K, ceil(C / 8)]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    sigma_ptr,  # [K, C]
    seed_ptr,  # []
    configurations_ptr,  # [K]
    examples_ptr,  # [N]
    site,
    K,
    A,
    C,
    B,
    unit_tiles,
    row_tiles,
    k_block,
    y_k,
    y_n,
    y_a,
    y_c,
    y_b,
    x_k,
    x_n,
    x_a,
    x_c,
    x_b,
    value_a,
    value_c,
    value_b,
    PACKED: tl.constexpr,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    NOISE: tl.constexpr,
    WIDE: tl.constexpr,
    INDEX: tl.constexpr,
    MANY: tl.constexpr,
    VALUE_POSITIONS: tl.constexpr,
    UNITS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    U: tl.constexpr,
    R: tl.constexpr,
):
    pid = tl.program_id(0)
    if UNITS_LAST:
        unit_tile = pid % unit_tiles
        row_tile = pid // unit_tiles % row_tiles
    else:
        row_tile = pid % row_tiles
        unit_tile = pid // row_tiles % unit_tiles
    n = (pid // unit_tiles // row_tiles).to(tl.int64)
    a = (n % A).to(INDEX) if MANY else tl.cast(0, INDEX)
    n = n // A if MANY else n
    units = unit_tile.to(INDEX) * U + tl.arange(0, U)
    rows = row_tile.to(INDEX) * R + tl.arange(0, R)
    c = units[None, :] if UNITS_LAST else units[:, None]
    row = rows[:, None] if UNITS_LAST else rows[None, :]
    unit_inside = c < C
    scale = tl.load(scale_ptr + c, unit_inside, other=0.0) if AFFINE else 0.0
    shift = tl.load(shift_ptr + c, unit_inside, other=0.0) if AFFINE else 0.0
    STEPS: tl.constexpr = 4 if NOISE == "element" else 1
    skip = 0 if ALIGNED else (a * C + c) * B % 4  # elements of the unit's first quad that the unit before owns
    if NOISE != "none":
        seed = tl.load(seed_ptr)
        example = tl.load(examples_ptr + n)
    if NOISE == "element":
        quad = (a * C + c) * B // 4 + row
    elif NOISE == "map":
        quad = unit_tile * (U // 4) + tl.arange(0, U // 4)

    k = tl.program_id(1).to(tl.int64) * k_block
    last = tl.minimum(k + k_block, K)
    while k < last:
        ablated = is_ablated(ablated_ptr, k, c, C, unit_inside, PACKED)
        sigma = 0.0
        noise = 0.0
        if NOISE != "none":
            sigma = tl.load(sigma_ptr + k * C + c, unit_inside, other=0.0)
            r0, r1, r2, r3 = philox(seed, quad, example, tl.load(configurations_ptr + k), site)
            n0, n1 = normals_of(r0, r1)
            n2, n3 = normals_of(r2, r3)
            if NOISE == "map":
                numbers = tl.reshape(four(n0, n1, n2, n3), [U])
                noise = numbers[None, :] if UNITS_LAST else numbers[:, None]
        for word in tl.static_range(STEPS):
            b = row * STEPS + word - skip
            inside = unit_inside & (b >= 0) & (b < B)
            value_at = a * value_a + c * value_c + b * value_b if VALUE_POSITIONS else c * value_c
            value = tl.load(value_ptr + value_at, inside & ablated if VALUE_POSITIONS else ablated, other=0.0)
            x_at = k * x_k + n * x_n + (a * x_a + c * x_c + b * x_b)
            raw = tl.load(x_ptr + x_at, inside if UNITS_LAST else inside & (ablated == 0), other=0.0)
            if NOISE == "element":
                noise = n0 if word == 0 else n1 if word == 1 else n2 if word == 2 else n3
            y = settle(raw, value, ablated, scale, shift, sigma, noise, AFFINE, RELU, NOISE != "none", WIDE)
            tl.store(y_ptr + k * y_k + n * y_n + (a * y_a + c * y_c + b * y_b), y, inside)
        k += 1


@triton.jit
def is_ablated(ablated_ptr, k, c, C, inside, PACKED: tl.constexpr):
    """Whether units c are clamped in configuration k."""
    if PACKED:
        byte = tl.load(ablated_ptr + k * ((C + 7) // 8) + c // 8, inside, other=0).to(tl.int32)
        ablated = (byte >> (c % 8).to(tl.int32)) & 1
    else:
        ablated = tl.load(ablated_ptr + k * C + c, inside, other=0)
    return ablated != 0


@triton.jit
def settle(
    raw,
    value,
    ablated,
    scale,
    shift,
    sigma,
    noise,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    NOISE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile's arithmetic, step by step as in the reference: what need not be computed keeps its bits."""
    y = raw
    if AFFINE or RELU:
        y = y.to(WIDE)
    if AFFINE:
        y = y * scale + shift
    if RELU:
        y = tl.where(y < 0, 0.0, y)
    y = tl.where(ablated, value.to(y.dtype), y)
    if NOISE:
        noisy = y.to(WIDE) + sigma * noise.to(WIDE)
        y = tl.where(sigma == 0, y, noisy.to(y.dtype))
    return y.to(raw.dtype)
