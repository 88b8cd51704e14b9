"""Logits of rank-one changes: a program takes one unit and a run of examples, puts those that are not intact first, and
sums a group of classes for one share of them after another. So a share has work in all of its rows but the last, and
intact rows cost their copy. The layer's outputs are made a few at a time and only for a product; it is IEEE float32 or
float64, not of tensor cores. Tile sizes are not yet measured.
"""

import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.triton.random_stream import wide_dtype

EXAMPLES = 128  # of a program
ROWS = 32  # summed together
OUTPUTS = 16  # made at a time
CLASSES = 32  # the most of a group; float64: half of it
NUM_WARPS = 4


def rank_one_head(
    z: Tensor,
    weight: Tensor,
    a: Tensor,
    units: Tensor,
    value: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    head: Tensor,
    head_bias: Tensor | None,
    intact: Tensor | None,
) -> Tensor:
    """Logits [K, N, L]."""
    K, (N, D), L = len(units), z.shape, len(head)
    out = z.new_empty((K, N, L))
    halved = 2 if z.element_size() == 8 else 1
    classes = max(16, min(CLASSES // halved, triton.next_power_of_2(L)))
    tiles = triton.cdiv(N, EXAMPLES)
    rank_one_head_kernel[(K * tiles,)](
        out,
        z.contiguous(),
        weight.t().contiguous(),
        a,
        *(t if t is None else t.contiguous() for t in (units, value, scale, shift, head.t(), head_bias, intact)),
        N,
        D,
        L,
        tiles,
        *a.stride(),
        VALUE=value is not None,
        AFFINE=scale is not None,
        RELU=relu,
        BIAS=head_bias is not None,
        INTACT=intact is not None,
        WIDE=wide_dtype(z),
        EXAMPLES=EXAMPLES,
        ROWS=ROWS,
        OUTPUTS=OUTPUTS,
        CLASSES=classes,
        num_warps=NUM_WARPS,
    )
    return out


@triton.jit(do_not_specialize=["N", "L", "tiles"])
def rank_one_head_kernel(
    out_ptr,  # [K, N, L]
    z_ptr,  # [N, D]
    weight_ptr,  # [C, D]
    a_ptr,  # [N, C]
    units_ptr,  # [K]
    value_ptr,  # [C]
    scale_ptr,  # [D]
    shift_ptr,  # [D]
    head_ptr,  # [D, L]
    head_bias_ptr,  # [L]
    intact_ptr,  # [N, L]
    N,
    D,
    L,
    tiles,
    a_n,
    a_c,
    VALUE: tl.constexpr,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    BIAS: tl.constexpr,
    INTACT: tl.constexpr,
    WIDE: tl.constexpr,
    EXAMPLES: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    k = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles).to(tl.int64) * EXAMPLES
    c = tl.load(units_ptr + k)
    value = tl.load(value_ptr + c).to(WIDE) if VALUE else tl.cast(0.0, WIDE)
    a_ptr += c * a_c
    out_ptr += k * N * L
    lane = tl.arange(0, EXAMPLES)
    count = tl.minimum(N - start, EXAMPLES).to(tl.int32)
    order = lane
    if INTACT:
        here = tl.load(a_ptr + (start + lane) * a_n, lane < count, other=0.0).to(WIDE)
        copied = (lane < count) & (here == value)
        row = ((start + lane) * L)[:, None]
        first = tl.cast(0, tl.int64)
        while first < L:
            which = first + tl.arange(0, CLASSES)[None, :]
            inside = copied[:, None] & (which < L)
            tl.store(out_ptr + row + which, tl.load(intact_ptr + row + which, inside), inside)
            first += CLASSES
        computed = (lane < count) & (here != value)
        order = tl.sort(tl.where(computed, lane, lane + EXAMPLES)) % EXAMPLES  # those that are computed come first
        count = tl.sum(computed.to(tl.int32), 0)

    r = 0
    while r < count:
        place = r + tl.arange(0, ROWS)
        n = start + (tl.gather(order, place, 0) if INTACT else place)
        inside = place < count
        change = value - tl.load(a_ptr + n * a_n, inside, other=0.0).to(WIDE)
        first = tl.cast(0, tl.int64)
        while first < L:
            which = first + tl.arange(0, CLASSES)
            sums = tl.zeros([ROWS, CLASSES], WIDE)
            done = tl.cast(0, tl.int64)
            while done < D:
                d = done + tl.arange(0, OUTPUTS)
                at_z = inside[:, None] & (d < D)[None, :]
                y = tl.load(z_ptr + (n * D)[:, None] + d[None, :], at_z, other=0.0).to(WIDE)
                weight = tl.load(weight_ptr + c * D + d, d < D, other=0.0).to(WIDE)
                y += weight[None, :] * change[:, None]
                if AFFINE:
                    scale = tl.load(scale_ptr + d, d < D, other=0.0)
                    shift = tl.load(shift_ptr + d, d < D, other=0.0)
                    y = scale[None, :] * y + shift[None, :]
                if RELU:
                    y = tl.where(y < 0, 0.0, y)
                y = tl.where((d < D)[None, :], y, 0.0)  # 0 * inf is nan
                at_head = (d < D)[:, None] & (which < L)[None, :]
                head = tl.load(head_ptr + d[:, None] * L + which[None, :], at_head, other=0.0).to(WIDE)
                sums = tl.dot(y, head, sums, input_precision="ieee", out_dtype=WIDE)
                done += OUTPUTS
            if BIAS:
                sums += tl.load(head_bias_ptr + which, which < L, other=0.0).to(WIDE)[None, :]
            tl.store(out_ptr + (n * L)[:, None] + which[None, :], sums, inside[:, None] & (which < L)[None, :])
            first += CLASSES
        r += ROWS
