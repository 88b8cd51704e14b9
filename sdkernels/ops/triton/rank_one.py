"""Rank-one changes: a program takes a run of z's elements, decodes their places once, and writes them for a block of
clamped units. Compiled without fused multiply-adds, so that it rounds as the reference does. Tile sizes are not yet
measured.
"""

import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.triton.random_stream import index_dtype, wide_dtype

TILE = 1024  # elements of a program, one unit
PROGRAMS = 4096  # enough to fill a GPU: with fewer tiles, the units are divided too
NUM_WARPS = 4


def rank_one(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """y [K, N, D] or [K, N, D, S]."""
    y = z.new_empty([len(units), *z.shape])
    z, a = (t if t.ndim == 3 else t[..., None] for t in (z, a))
    K, (N, D, S) = len(units), z.shape
    tiles = triton.cdiv(N * D * S, TILE)
    k_block = triton.cdiv(K, min(K, triton.cdiv(PROGRAMS, tiles)))
    extents = (sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) for t in (z, a))
    rank_one_kernel[(tiles, triton.cdiv(K, k_block))](
        y,
        z,
        weight.t().contiguous(),
        a,
        *(t if t is None else t.contiguous() for t in (units, value, scale, shift)),
        K,
        N,
        D,
        S,
        D * S,
        k_block,
        *z.stride(),
        *a.stride(),
        LINEAR=z.is_contiguous(),
        VALUE=value is not None,
        AFFINE=scale is not None,
        RELU=relu,
        WIDE=wide_dtype(z),
        INDEX=index_dtype(max(D * S, weight.numel(), *extents)),
        BASE=index_dtype(N * D * S),
        TILE=TILE,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return y


@triton.jit(do_not_specialize=["K", "N", "k_block"])
def rank_one_kernel(
    y_ptr,  # [K, N, D, S]
    z_ptr,  # [N, D, S]
    weight_ptr,  # [C, D]
    a_ptr,  # [N, C, S]
    units_ptr,  # [K]
    value_ptr,  # [C]
    scale_ptr,  # [D]
    shift_ptr,  # [D]
    K,
    N,
    D,
    S,
    E,  # D * S
    k_block,
    z_n,
    z_d,
    z_s,
    a_n,
    a_c,
    a_s,
    LINEAR: tl.constexpr,
    VALUE: tl.constexpr,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    WIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BASE: tl.constexpr,
    TILE: tl.constexpr,
):
    base = tl.program_id(0).to(BASE) * TILE
    lane = tl.arange(0, TILE)
    at = (base % E).to(INDEX) + lane  # elements since the start of the first example
    n = (base // E + at // E).to(tl.int64)
    element = at % E
    d = element // S
    s = element - d * S
    inside = n < N
    y_at = base.to(tl.int64) + lane
    z_at = y_at if LINEAR else n * z_n + (d * z_d + s * z_s)
    z = tl.load(z_ptr + z_at, inside, other=0.0).to(WIDE)
    a_at = n * a_n + s * a_s
    scale = tl.load(scale_ptr + d, inside, other=0.0) if AFFINE else 0.0
    shift = tl.load(shift_ptr + d, inside, other=0.0) if AFFINE else 0.0

    size = tl.cast(E, tl.int64) * N
    k = tl.program_id(1).to(tl.int64) * k_block
    last = tl.minimum(k + k_block, K)
    while k < last:
        c = tl.load(units_ptr + k)
        change = tl.load(a_ptr + c * a_c + a_at, inside, other=0.0).to(WIDE)
        change = tl.load(value_ptr + c).to(WIDE) - change if VALUE else 0.0 - change
        y = z + tl.load(weight_ptr + c * D + d, inside, other=0.0).to(WIDE) * change
        if AFFINE:
            y = scale * y + shift
        if RELU:
            y = tl.where(y < 0, 0.0, y)
        tl.store(y_ptr + k * size + y_at, y, inside)
        k += 1
