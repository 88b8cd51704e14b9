"""Scores: a program takes tiles of examples of one configuration and walks over the classes, a tile at a time.

Every lane of a tile keeps what it has seen (best logit, running log-sum-exp, ...), so lanes meet once an example, not
once a step. Few classes, or examples that lie side by side in memory, get a lane an example; else lanes share one.
Counts are added by integer atomics, losses leave as one float64 a program and are summed in order. Tile sizes are not
yet measured.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.score import MASKED, empty_sums
from sdkernels.ops.triton.random_stream import wide_dtype

# Lanes of a program as examples by classes, and how many such tiles a step reads at once.
LANE_AN_EXAMPLE = (128, 1, 4)
FEW_CLASSES = 16  # up to here
SHARED_TILE = 1024  # half of it for float64
SHARED_CLASSES = 256  # the most
PROGRAMS = 4096  # enough to fill a GPU: beyond, a program takes several tiles of examples
NUM_WARPS = 4

_MASKED = tl.constexpr(MASKED)


def score(
    logits: Tensor,
    labels: Tensor,
    prediction: Tensor | None,
    loss: bool,
    top: int,
    per_class: bool,
    margin: float,
) -> tuple[Tensor, ...]:
    """The sums of ``sdkernels::score``."""
    configurations, examples, classes = logits.shape
    sums = empty_sums(logits, configurations, classes, prediction is not None, (loss, top, per_class, margin))
    correct, in_top, losses, class_correct, agreement, ambiguous = sums
    if classes <= FEW_CLASSES or logits.stride(1) == 1:
        tile_examples, tile_classes, unroll = LANE_AN_EXAMPLE
    else:
        tile_classes = min(SHARED_CLASSES, triton.next_power_of_2(classes))
        tile_examples, unroll = SHARED_TILE // (2 if logits.dtype == torch.float64 else 1) // tile_classes, 1
    tiles = triton.cdiv(examples, tile_examples)
    share = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, configurations)))  # tiles of a program
    programs = triton.cdiv(tiles, share)  # of a configuration
    partials = logits.new_empty((configurations if loss else 0, programs), dtype=torch.float64)
    score_kernel[(configurations * programs,)](
        logits,
        labels.contiguous(),
        None if prediction is None else prediction.contiguous(),
        correct,
        in_top,
        partials,
        class_correct,
        agreement,
        ambiguous,
        examples,
        classes,
        programs,
        share,
        top,
        float64_bits(margin),
        *logits.stride(),
        WIDE=wide_dtype(logits),
        LOSS=loss,
        TOP=top > 0,
        PER_CLASS=per_class,
        AGREE=prediction is not None,
        MARGIN=margin >= 0,
        EXAMPLES=tile_examples,
        CLASSES=tile_classes,
        UNROLL=unroll,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,  # the margin's bound is rounded as in the reference
    )
    if loss:
        losses += partials.sum(1)
    return tuple(sums)


def float64_bits(number: float) -> int:
    """A float64 as the int64 of its bits: Triton would pass a float as float32."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


@triton.jit(do_not_specialize=["N", "programs", "share", "top", "margin_bits"])
def score_kernel(
    logits_ptr,  # [K, N, L]
    labels_ptr,  # [N]
    prediction_ptr,  # [N]
    correct_ptr,  # [K]
    in_top_ptr,  # [K]
    loss_ptr,  # [K, programs]
    class_correct_ptr,  # [K, L]
    agreement_ptr,  # [K]
    ambiguous_ptr,  # [K]
    N,
    L,
    programs,
    share,
    top,
    margin_bits,
    stride_k,
    stride_n,
    stride_l,
    WIDE: tl.constexpr,
    LOSS: tl.constexpr,
    TOP: tl.constexpr,
    PER_CLASS: tl.constexpr,
    AGREE: tl.constexpr,
    MARGIN: tl.constexpr,
    EXAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    k = (tl.program_id(0) // programs).to(tl.int64)
    program = (tl.program_id(0) % programs).to(tl.int64)
    margin = tl.cast(tl.cast(margin_bits, tl.int64), tl.float64, bitcast=True).to(WIDE)
    right_count = tl.zeros([EXAMPLES], tl.int32)
    top_count = tl.zeros([EXAMPLES], tl.int32)
    agree_count = tl.zeros([EXAMPLES], tl.int32)
    ambiguous_count = tl.zeros([EXAMPLES], tl.int32)
    losses = tl.zeros([EXAMPLES], tl.float64)
    start = program * share * EXAMPLES
    end = tl.minimum(start + tl.cast(share, tl.int64) * EXAMPLES, N)
    while start < end:
        n = start + tl.arange(0, EXAMPLES)
        inside = n < end
        label = tl.load(labels_ptr + n, inside, other=0)
        row_ptr = logits_ptr + k * stride_k + n * stride_n
        at_label = tl.load(row_ptr + label * stride_l, inside, other=0.0).to(WIDE)
        label_key = sortable(at_label)[:, None]
        best, place, second, least, most, total = nothing_seen([EXAMPLES, CLASSES], WIDE)
        before = tl.zeros([EXAMPLES, CLASSES], tl.int32)
        first = tl.cast(0, tl.int64)
        while first < L:
            for step in tl.static_range(UNROLL):
                which = first + step * CLASSES + tl.arange(0, CLASSES)[None, :]
                z = tl.load(row_ptr[:, None] + which * stride_l, inside[:, None] & (which < L), other=float("-inf")).to(
                    WIDE
                )
                key = tl.where(which < L, sortable(z), lowest_key(WIDE))
                best, place, second, least, most, total = see(
                    key, z, which.to(tl.int32), best, place, second, least, most, total, LOSS, MARGIN
                )
                if TOP:
                    first_come = (key > label_key) | ((key == label_key) & (which < label[:, None]))
                    before += (first_come & (which < L)).to(tl.int32)
            first += UNROLL * CLASSES

        best_key = tl.max(best, 1)
        winner = tl.min(tl.where(best == best_key[:, None], place, 2147483647), 1)
        right = inside & (winner == label)
        right_count += right.to(tl.int32)
        if TOP:
            top_count += (inside & (tl.sum(before, 1) < top)).to(tl.int32)
        if AGREE:
            agree_count += (inside & (winner == tl.load(prediction_ptr + n, inside, other=-1))).to(tl.int32)
        if LOSS:
            most_of_all = tl.max(most, 1)
            same = most == most_of_all[:, None]  # also where both are infinite
            total_of_all = tl.sum(total * tl.where(same, 1.0, tl.exp(most - most_of_all[:, None])), 1)
            losses += tl.where(inside, (tl.log(total_of_all) + (most_of_all - at_label)).to(tl.float64), 0.0)
        if MARGIN:
            # the second of all is the best lane's own second, or the best of another lane
            best_lane = (best == best_key[:, None]) & (place == winner[:, None])
            second_key = tl.max(tl.where(best_lane, second, best), 1)
            close = is_close(best_key, second_key, tl.min(least, 1), margin, WIDE)
            ambiguous_count += (inside & close).to(tl.int32)
        if PER_CLASS:
            one = tl.full([EXAMPLES], 1, tl.int64)
            tl.atomic_add(class_correct_ptr + k * L + label, one, right, sem="relaxed")
        start += EXAMPLES

    add_count(correct_ptr + k, right_count)
    if TOP:
        add_count(in_top_ptr + k, top_count)
    if AGREE:
        add_count(agreement_ptr + k, agree_count)
    if MARGIN:
        add_count(ambiguous_ptr + k, ambiguous_count)
    if LOSS:
        tl.store(loss_ptr + k * programs + program, tl.sum(losses, 0))


@triton.jit
def sortable(z):
    """Floats -> integers of the same order: equal zeros are equal, nan is above all."""
    if z.dtype == tl.float64:
        bits = (z + 0.0).to(tl.int64, bitcast=True)  # -0 + 0 is +0
        key = tl.where(z != z, 0x7FFFFFFFFFFFFFFF, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF))
    else:
        bits = (z + 0.0).to(tl.int32, bitcast=True)
        key = tl.where(z != z, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return key


@triton.jit
def sorted_back(key):
    """The float of :func:`sortable`'s integer."""
    if key.dtype == tl.int64:
        z = (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
    else:
        z = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return z


@triton.jit
def lowest_key(WIDE: tl.constexpr):
    """Below every float's."""
    if tl.constexpr(WIDE.primitive_bitwidth) == 64:
        key = tl.cast(-0x8000000000000000, tl.int64)
    else:
        key = tl.cast(-0x80000000, tl.int32)
    return key


@triton.jit
def nothing_seen(SHAPE: tl.constexpr, WIDE: tl.constexpr):
    """What a lane keeps: the key of its best logit and its class, the key of its second, the least unmasked logit,
    the greatest logit that is a number, and the sum of exp(logit - greatest)."""
    none = tl.zeros(SHAPE, lowest_key(WIDE).dtype) + lowest_key(WIDE)
    infinite = tl.full(SHAPE, float("inf"), WIDE)
    return none, tl.zeros(SHAPE, tl.int32), none, infinite, -infinite, tl.zeros(SHAPE, WIDE)


@triton.jit
def see(key, z, place_of_z, best, place, second, least, most, total, LOSS: tl.constexpr, MARGIN: tl.constexpr):
    """One more logit a lane, of a later class than those before."""
    better = key > best
    if MARGIN:
        second = tl.maximum(second, tl.minimum(key, best))
        least = tl.where(z > _MASKED, tl.minimum(least, z), least)
    best = tl.where(better, key, best)
    place = tl.where(better, place_of_z, place)
    if LOSS:
        # rescaled only where the greatest changes; equal infinities differ by 0, not by nan
        apart = tl.where(z == most, 1.0, tl.exp(-tl.abs(z - most)))
        greater = z > most
        total = tl.where(greater, total * apart + 1.0, total + apart)
        most = tl.where(greater, z, most)
    return best, place, second, least, most, total


@triton.jit
def is_close(best_key, second_key, least, margin, WIDE: tl.constexpr):
    """Whether rounding may exchange the first two logits; of one class never, nor where the first is nan."""
    first = sorted_back(best_key)
    least = tl.where(least < first, least, first)
    bound = first - margin * tl.maximum(tl.abs(first), tl.abs(least))
    return (second_key > lowest_key(WIDE)) & (sorted_back(second_key) >= bound)


@triton.jit
def add_count(ptr, lanes):
    """Add a program's count to its configuration's."""
    tl.atomic_add(ptr, tl.sum(lanes, 0).to(tl.int64), sem="relaxed")
