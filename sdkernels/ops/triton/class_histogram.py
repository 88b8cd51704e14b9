"""Per-class histograms: a program takes a tile of examples and units, sums over positions in float64, counts the edges
at or below each mean, and adds ones by integer atomics. Tile sizes are not yet measured.
"""

import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.triton.positions import along_positions, position_offset, tile_shape
from sdkernels.ops.triton.random_stream import index_dtype

TILE = 1024  # elements of a step
NUM_WARPS = 4


def class_histogram(x: Tensor, labels: Tensor, edges: Tensor, counts: Tensor, unit_dim: int) -> None:
    """Add a batch to the counts of ``sdkernels::class_histogram``."""
    view = along_positions(x, unit_dim)  # [N, A, C, B]
    N, A, C, B = view.shape
    examples, units, positions = tile_shape(C, A * B, view.stride(2) == 1, TILE)
    unit_tiles = triton.cdiv(C, units)
    class_histogram_kernel[(triton.cdiv(N, examples) * unit_tiles,)](
        view,
        labels.contiguous(),
        edges.t().contiguous(),
        counts,
        N,
        unit_tiles,
        C,
        A * B,
        B,
        edges.shape[1],
        *view.stride(),
        MANY=A > 1,
        INDEX=index_dtype(sum((n - 1) * s for n, s in zip(view.shape[1:], view.stride()[1:], strict=True))),
        EXAMPLES=examples,
        UNITS=units,
        POSITIONS=positions,
        num_warps=NUM_WARPS,
    )


@triton.jit(do_not_specialize=["N", "unit_tiles", "E"])
def class_histogram_kernel(
    x_ptr,  # [N, A, C, B]
    labels_ptr,  # [N]
    edges_ptr,  # [E, C]
    counts_ptr,  # [L, C, E + 2]
    N,
    unit_tiles,
    C,
    S,
    B,
    E,
    stride_n,
    stride_a,
    stride_c,
    stride_b,
    MANY: tl.constexpr,
    INDEX: tl.constexpr,
    EXAMPLES: tl.constexpr,
    UNITS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    n = (tl.program_id(0) // unit_tiles).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)[:, None]
    c = tl.program_id(0) % unit_tiles * UNITS + tl.arange(0, UNITS)[None, :]
    inside = (n < N) & (c < C)  # [EXAMPLES, UNITS]
    unit_ptr = x_ptr + n * stride_n + c.to(INDEX) * stride_c
    total = tl.zeros([EXAMPLES, UNITS], tl.float64)
    s0 = tl.cast(0, INDEX)
    while s0 < S:
        s = s0 + tl.arange(0, POSITIONS)[None, None, :]
        x_at = position_offset(s, B, stride_a, stride_b, MANY)
        x = tl.load(unit_ptr[:, :, None] + x_at, inside[:, :, None] & (s < S), other=0.0)
        total += tl.sum(x.to(tl.float64), 2)
        s0 += POSITIONS
    mean = total / tl.cast(S, tl.float64)
    below = tl.zeros([EXAMPLES, UNITS], tl.int64)
    e = tl.cast(0, tl.int64)
    while e < E:
        edge = tl.load(edges_ptr + e * C + c, c < C, other=0.0)
        below += tl.where(mean < edge, 0, 1)  # nan is below none
        e += 1
    place = tl.where(mean == 0, 0, 1 + below)
    label = tl.load(labels_ptr + n, n < N, other=0)
    one = tl.full([EXAMPLES, UNITS], 1, tl.int64)
    tl.atomic_add(counts_ptr + (label * C + c) * (E + 2) + place, one, inside, sem="relaxed")
