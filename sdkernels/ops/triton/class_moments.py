"""Class-conditional moments: a program takes some examples of one class (labels are sorted first) and a tile of units.

Every lane keeps centred sums of its own, and lanes meet when the program ends; the one thing that they share as they go
is an example's mean over its positions. Programs' sums are merged in a fixed order by :func:`merge_moments_kernel`, a
program a class and a tile of units, and one more for all classes. All in float64. Tile sizes are not yet measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.triton.positions import along_positions, position_offset, tile_shape
from sdkernels.ops.triton.random_stream import index_dtype, wide_dtype

TILE = 512  # elements of a step
PROGRAMS = 2048  # enough to fill a GPU: with more tiles, a program takes more examples
MERGED_SEGMENTS = 16  # of a step of the merge
MERGED_UNITS = 32
NUM_WARPS = 4


def class_moments(x: Tensor, labels: Tensor, *others: Any) -> None:
    """Add a batch to the accumulators of ``sdkernels::class_moments``."""
    *state, means, unit_dim = others
    view = along_positions(x, unit_dim)  # [N, A, C, B]
    N, A, C, B = view.shape
    # float64 and their means: a whole tile would not fit in registers
    tile = TILE // 2 if means is not None and x.dtype == torch.float64 else TILE
    examples, units, positions = tile_shape(C, A * B, view.stride(2) == 1, tile)
    unit_tiles = triton.cdiv(C, units)
    share = examples * triton.cdiv(N * unit_tiles, PROGRAMS * examples)  # examples of a program
    order, counts, class_segments, starts, lengths = segments_by_class(labels, len(state[0]), share)
    segments = len(starts)
    sums = x.new_empty((3, segments, C), dtype=torch.float64)
    extremes = x.new_empty((2, segments, C))
    fired = x.new_empty((2, segments, C), dtype=torch.int64)
    segment_moments_kernel[(segments * unit_tiles,)](
        view,
        order,
        starts,
        lengths,
        1 / torch.arange(1, share // examples + 1, dtype=torch.float64, device=x.device),
        sums,
        extremes,
        fired,
        means,
        segments,
        unit_tiles,
        C,
        A * B,
        B,
        *view.stride(),
        MANY=A > 1,
        WIDE=wide_dtype(x),
        INDEX=index_dtype(sum((n - 1) * s for n, s in zip(view.shape[1:], view.stride()[1:], strict=True))),
        EXAMPLES=examples,
        UNITS=units,
        POSITIONS=positions,
        CHUNKS=positions < A * B,
        ONE=A * B == 1,
        MEANS=means is not None,
        num_warps=NUM_WARPS,
    )
    merge_moments_kernel[(triton.cdiv(C, MERGED_UNITS) * (len(counts) + 1),)](
        class_segments,
        lengths,
        sums,
        extremes,
        fired,
        *state,
        segments,
        len(counts),
        C,
        A * B,
        SEGMENTS=MERGED_SEGMENTS,
        UNITS=MERGED_UNITS,
        num_warps=NUM_WARPS,
    )
    state[0] += counts
    state[3] += N * A * B


def segments_by_class(labels: Tensor, classes: int, share: int) -> tuple[Tensor, ...]:
    """Divide examples into segments of at most ``share`` of one class, without asking the device for a number.

    Returns:
        The examples in the order of their classes [N]; how many each class has [L]; its first segment [L + 1]; every
        segment's first place in that order and its length [segments], 0 for those at the end that are not needed.
    """
    in_order, order = labels.sort(stable=True)
    bounds = torch.searchsorted(in_order, torch.arange(classes + 1, device=labels.device))
    counts = bounds.diff()
    class_segments = torch.zeros_like(bounds)
    class_segments[1:] = ((counts + share - 1) // share).cumsum(0)
    most = min(classes, len(labels)) + len(labels) // share
    segment = torch.arange(most, device=labels.device)
    label = torch.searchsorted(class_segments, segment, right=True) - 1  # L for those that are not needed
    starts = bounds[label] + (segment - class_segments[label]) * share
    lengths = (bounds[(label + 1).clamp(max=classes)] - starts).clamp(min=0, max=share)
    return order, counts, class_segments, starts, lengths


@triton.jit(do_not_specialize=["segments", "unit_tiles"])
def segment_moments_kernel(
    x_ptr,  # [N, A, C, B]
    order_ptr,  # [N]
    starts_ptr,  # [segments]
    lengths_ptr,  # [segments]
    parts_ptr,  # [most steps]: 1, 1/2, 1/3, ...; divisions of float64 are long
    sums_ptr,  # [3, segments, C]: of examples' means, of their squares, of elements' squares within examples
    extremes_ptr,  # [2, segments, C]
    fired_ptr,  # [2, segments, C]
    means_ptr,  # [N, C] if MEANS
    segments,
    unit_tiles,
    C,
    S,
    B,
    stride_n,
    stride_a,
    stride_c,
    stride_b,
    MANY: tl.constexpr,
    WIDE: tl.constexpr,
    INDEX: tl.constexpr,
    EXAMPLES: tl.constexpr,
    UNITS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ONE: tl.constexpr,
    MEANS: tl.constexpr,
):
    segment = (tl.program_id(0) // unit_tiles).to(tl.int64)
    units = tl.program_id(0) % unit_tiles * UNITS + tl.arange(0, UNITS)
    e = tl.arange(0, EXAMPLES)[:, None]
    c = units[None, :]
    start = tl.load(starts_ptr + segment)
    length = tl.load(lengths_ptr + segment)
    total = tl.zeros([EXAMPLES, UNITS], tl.float64)  # of examples' means
    mean = tl.zeros([EXAMPLES, UNITS], tl.float64)
    m2 = tl.zeros([EXAMPLES, UNITS], tl.float64)
    fired = tl.zeros([EXAMPLES, UNITS], tl.int32)
    between = tl.zeros([EXAMPLES, UNITS], tl.float64)  # squares of chunks' means
    within = tl.zeros([EXAMPLES, UNITS, POSITIONS], tl.float64)  # squares within chunks
    positive = tl.zeros([EXAMPLES, UNITS, POSITIONS], tl.int32)
    least = tl.full([EXAMPLES, UNITS, POSITIONS], float("inf"), WIDE)
    most = tl.full([EXAMPLES, UNITS, POSITIONS], -float("inf"), WIDE)
    one_position = 1.0 / tl.cast(S, tl.float64)
    seen = tl.cast(0, tl.int64)
    while seen < length:
        inside = (seen + e < length) & (c < C)
        n = tl.load(order_ptr + start + seen + e, seen + e < length, other=0)
        unit_ptr = x_ptr + n * stride_n + c.to(INDEX) * stride_c
        sum_here = tl.zeros([EXAMPLES, UNITS], tl.float64)
        mean_here = tl.zeros([EXAMPLES, UNITS], tl.float64)
        fires = tl.zeros([EXAMPLES, UNITS], tl.int32)
        s0 = tl.cast(0, INDEX)
        while s0 < S:
            s = s0 + tl.arange(0, POSITIONS)[None, None, :]
            valid = inside[:, :, None] & (s < S)
            x_at = position_offset(s, B, stride_a, stride_b, MANY)
            x = tl.load(unit_ptr[:, :, None] + x_at, valid, other=0.0).to(WIDE)
            x_wide = x.to(tl.float64)
            size = tl.minimum(S - s0, POSITIONS).to(tl.float64)
            chunk_sum = tl.sum(x_wide, 2)
            if not ONE:
                chunk_mean = chunk_sum * (1.0 / size if CHUNKS else one_position)
                apart = tl.where(valid, x_wide - chunk_mean[:, :, None], 0.0)
                within += apart * apart
            if CHUNKS:
                part = size / (s0.to(tl.float64) + size)
                delta = chunk_mean - mean_here
                between += delta * delta * (part * s0.to(tl.float64))
                mean_here += delta * part
            sum_here += chunk_sum
            least = tl.where(valid, tl.minimum(least, x, propagate_nan=tl.PropagateNan.ALL), least)
            most = tl.where(valid, tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL), most)
            is_positive = (x > 0).to(tl.int32)
            positive += is_positive
            fires = tl.maximum(fires, tl.max(is_positive, 2))
            s0 += POSITIONS
        example_mean = sum_here if ONE else sum_here * one_position
        if MEANS:
            tl.store(means_ptr + n * C + c, example_mean, inside)
        # this lane's examples so far: as many as steps, since only the last step is not full
        steps = (seen // EXAMPLES).to(tl.float64)
        delta = tl.where(inside, example_mean - mean, 0.0)
        part = tl.load(parts_ptr + seen // EXAMPLES)  # 1 / (steps + 1)
        mean += delta * part
        m2 += delta * delta * (steps * part)
        total += example_mean  # 0 outside
        fired += fires
        seen += EXAMPLES

    lane_count = tl.maximum((length - e + EXAMPLES - 1) // EXAMPLES, 0).to(tl.float64)
    segment_total = tl.sum(total, 0)
    apart = mean - (segment_total / tl.maximum(length, 1).to(tl.float64))[None, :]
    segment_m2 = tl.sum(m2 + tl.where(lane_count > 0, lane_count * apart * apart, 0.0), 0)
    # tl.min and tl.max drop nan
    has_nan = tl.max(tl.max((least != least).to(tl.int32), 2), 0) > 0
    out = segment * C + units
    plane = tl.cast(segments, tl.int64) * C
    unit_inside = units < C
    tl.store(sums_ptr + out, segment_total, unit_inside)
    tl.store(sums_ptr + plane + out, segment_m2, unit_inside)
    tl.store(sums_ptr + 2 * plane + out, tl.sum(tl.sum(within, 2) + between, 0), unit_inside)
    tl.store(extremes_ptr + out, tl.where(has_nan, float("nan"), tl.min(tl.min(least, 2), 0)), unit_inside)
    tl.store(extremes_ptr + plane + out, tl.where(has_nan, float("nan"), tl.max(tl.max(most, 2), 0)), unit_inside)
    tl.store(fired_ptr + out, tl.sum(fired, 0).to(tl.int64), unit_inside)
    tl.store(fired_ptr + plane + out, tl.sum(tl.sum(positive.to(tl.int64), 2), 0), unit_inside)


@triton.jit(do_not_specialize=["segments", "classes", "S"])
def merge_moments_kernel(
    class_segments_ptr,  # [L + 1]
    lengths_ptr,  # [segments]
    sums_ptr,  # [3, segments, C]
    extremes_ptr,  # [2, segments, C]
    batch_fired_ptr,  # [2, segments, C]
    count_ptr,  # [L]
    mean_ptr,  # [L, C]
    m2_ptr,  # [L, C]
    elements_ptr,  # []
    element_mean_ptr,  # [C]
    element_m2_ptr,  # [C]
    minimum_ptr,  # [C]
    maximum_ptr,  # [C]
    fired_ptr,  # [C]
    fired_elements_ptr,  # [C]
    segments,
    classes,
    C,
    S,
    SEGMENTS: tl.constexpr,
    UNITS: tl.constexpr,
):
    label = (tl.program_id(0) % (classes + 1)).to(tl.int64)
    units = tl.program_id(0) // (classes + 1) * UNITS + tl.arange(0, UNITS)
    inside = units < C
    plane = tl.cast(segments, tl.int64) * C
    all_classes = label == classes
    first = tl.load(class_segments_ptr + tl.where(all_classes, 0, label))
    last = tl.load(class_segments_ptr + tl.where(all_classes, classes, label + 1))

    totals = tl.zeros([SEGMENTS, UNITS], tl.float64)
    counts = tl.zeros([SEGMENTS], tl.int64)
    at = first
    while at < last:
        segment = at + tl.arange(0, SEGMENTS)
        valid = (segment < last)[:, None] & inside[None, :]
        counts += tl.load(lengths_ptr + segment, segment < last, other=0)
        totals += tl.load(sums_ptr + segment[:, None] * C + units[None, :], valid, other=0.0)
        at += SEGMENTS
    count = tl.sum(counts, 0)
    mean = tl.sum(totals, 0) / tl.maximum(count, 1).to(tl.float64)

    m2s = tl.zeros([SEGMENTS, UNITS], tl.float64)
    within = tl.zeros([SEGMENTS, UNITS], tl.float64)
    at = first
    while at < last:
        segment = at + tl.arange(0, SEGMENTS)
        valid = (segment < last)[:, None] & inside[None, :]
        size = tl.load(lengths_ptr + segment, segment < last, other=1).to(tl.float64)[:, None]
        here_ptr = sums_ptr + segment[:, None] * C + units[None, :]
        apart = tl.load(here_ptr, valid, other=0.0) / size - mean[None, :]
        m2s += tl.where(valid, tl.load(here_ptr + plane, valid, other=0.0) + size * apart * apart, 0.0)
        within += tl.load(here_ptr + 2 * plane, valid & all_classes, other=0.0)
        at += SEGMENTS
    m2 = tl.sum(m2s, 0)

    if all_classes:
        wide_s = tl.cast(S, tl.int64)
        element_m2 = tl.sum(within, 0) + wide_s.to(tl.float64) * m2
        elements = tl.load(elements_ptr)
        add_moments(
            element_mean_ptr + units, element_m2_ptr + units, elements, count * wide_s, mean, element_m2, inside
        )
        least = tl.load(minimum_ptr + units, inside, other=0.0)
        most = tl.load(maximum_ptr + units, inside, other=0.0)
        fired = tl.load(fired_ptr + units, inside, other=0)
        fired_elements = tl.load(fired_elements_ptr + units, inside, other=0)
        at = first
        while at < last:
            here = at * C + units
            low = tl.load(extremes_ptr + here, inside, other=0.0).to(tl.float64)
            high = tl.load(extremes_ptr + plane + here, inside, other=0.0).to(tl.float64)
            least = tl.minimum(least, low, propagate_nan=tl.PropagateNan.ALL)
            most = tl.maximum(most, high, propagate_nan=tl.PropagateNan.ALL)
            fired += tl.load(batch_fired_ptr + here, inside, other=0)
            fired_elements += tl.load(batch_fired_ptr + plane + here, inside, other=0)
            at += 1
        tl.store(minimum_ptr + units, least, inside)
        tl.store(maximum_ptr + units, most, inside)
        tl.store(fired_ptr + units, fired, inside)
        tl.store(fired_elements_ptr + units, fired_elements, inside)
    else:
        out = label * C + units
        add_moments(mean_ptr + out, m2_ptr + out, tl.load(count_ptr + label), count, mean, m2, inside & (count > 0))


@triton.jit
def add_moments(mean_ptr, m2_ptr, count, batch_count, batch_mean, batch_m2, inside):
    """Chan's merge of a batch into accumulators."""
    old = count.to(tl.float64)
    new = batch_count.to(tl.float64)
    share = new / (old + new)
    mean = tl.load(mean_ptr, inside, other=0.0)
    m2 = tl.load(m2_ptr, inside, other=0.0)
    delta = batch_mean - mean
    tl.store(m2_ptr, m2 + (batch_m2 + delta * delta * share * old), inside)
    tl.store(mean_ptr, mean + delta * share, inside)
