"""Nested sums: a program holds the sums of its examples and outputs in registers and walks the points from the last to
the first, adding the columns that return, so that every product is formed once a curve.

:func:`nested_linear_kernel` writes the outputs; :func:`nested_head_kernel` holds all outputs of its examples and writes
the logits of a head, or only their scores, losses as one float64 a program and point. Products are outer products on
plain arithmetic units: IEEE float32 has no tensor cores. Tile sizes are not yet measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.layout import computed_in
from sdkernels.ops.score import empty_sums
from sdkernels.ops.triton.random_stream import wide_dtype
from sdkernels.ops.triton.score import (
    add_count,
    float64_bits,
    is_close,
    nothing_seen,
    see,
    sortable,
)
from sdkernels.ops.triton.score import score as score_logits

OUTPUTS, EXAMPLES = 32, 64  # a program's sums without a head
HEAD_SUMS = 8192  # with a head: all outputs of as many examples as come to this; float64: half of it
HEAD_EXAMPLES = 64  # the most
SUMS_PER_WARP = 512  # float64: half of it
MOST_WARPS = 16
MOST_OUTPUTS = 4096  # held with a head; beyond, the outputs of some examples go through memory
HIDDEN_ELEMENTS = 2**26  # of those


def nested_linear(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor | None,
    head_bias: Tensor | None,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
) -> Tensor:
    """Outputs [T, D, N], or with a head logits [T, L, N]."""
    out = a.new_empty(len(living_in), len(weight if head is None else head), len(a))
    inputs = (torch.index_select(a.t(), 0, units), weight.t().contiguous(), bias.contiguous())
    living = (living_in.to(a.device).contiguous(), living_out.to(a.device).contiguous())
    if head is None or head_bias is None:
        _write_outputs(out, *inputs, *living, relu)
    elif len(weight) > MOST_OUTPUTS:
        for n, logits in _through_memory(*inputs, head, head_bias, *living, living_out.tolist(), relu):
            out[:, :, n : n + logits.shape[2]] = logits
    else:
        _launch_head(inputs, head, head_bias, living, relu, out=out)
    return out


def nested_linear_score(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor,
    head_bias: Tensor,
    living_in: Tensor,
    living_out: Tensor,
    relu: bool,
    labels: Tensor,
    prediction: Tensor | None,
    loss: bool,
    top: int,
    per_class: bool,
    margin: float,
) -> tuple[Tensor, ...]:
    """The sums of ``sdkernels::nested_linear_score``."""
    options = (loss, top, per_class, margin)
    inputs = (torch.index_select(a.t(), 0, units), weight.t().contiguous(), bias.contiguous())
    living = (living_in.to(a.device).contiguous(), living_out.to(a.device).contiguous())
    sums = empty_sums(a, len(living_in), len(head), prediction is not None, options)
    if len(weight) > MOST_OUTPUTS:
        for n, logits in _through_memory(*inputs, head, head_bias, *living, living_out.tolist(), relu):
            here = slice(n, n + logits.shape[2])
            part = score_logits(
                logits.transpose(1, 2), labels[here], None if prediction is None else prediction[here], *options
            )
            for total, more in zip(sums, part, strict=True):
                total += more
    else:
        scoring = (labels.contiguous(), None if prediction is None else prediction.contiguous(), sums, *options)
        _launch_head(inputs, head, head_bias, living, relu, scoring=scoring)
    return tuple(sums)


def _write_outputs(
    out: Tensor,  # [T, D, N]
    a: Tensor,  # [C, N]
    weight: Tensor,  # [C, D]
    bias: Tensor,  # [1 or T, D]
    living_in: Tensor,  # [T]
    living_out: Tensor,  # [T]
    relu: bool,
) -> None:
    T, D, N = out.shape
    output_tiles = triton.cdiv(D, OUTPUTS)
    nested_linear_kernel[(triton.cdiv(N, EXAMPLES) * output_tiles,)](
        out,
        a,
        weight,
        bias,
        living_in,
        living_out,
        T,
        N,
        D,
        output_tiles,
        0 if len(bias) == 1 else D,
        RELU=relu,
        WIDE=wide_dtype(a),
        OUTPUTS=OUTPUTS,
        EXAMPLES=EXAMPLES,
        num_warps=OUTPUTS * EXAMPLES // SUMS_PER_WARP * (2 if a.dtype == torch.float64 else 1),
    )


def _through_memory(
    a: Tensor,  # [C, N]
    weight: Tensor,  # [C, D]
    bias: Tensor,  # [1 or T, D]
    head: Tensor,  # [L, D]
    head_bias: Tensor,  # [1 or T, L]
    living_in: Tensor,  # [T]
    living_out: Tensor,  # [T]
    living: list[int],
    relu: bool,
) -> Any:
    """Runs of examples with their logits [T, L, n], not rounded: for outputs that no program can hold."""
    (D, N), T = (weight.shape[1], a.shape[1]), len(living)
    wide = computed_in(a.dtype)
    run = max(1, HIDDEN_ELEMENTS // (T * D))
    for n in range(0, N, run):
        here = a[:, n : n + run].contiguous()
        hidden = here.new_empty((T, D, here.shape[1]), dtype=wide)
        _write_outputs(hidden, here, weight, bias, living_in, living_out, relu)
        logits = [
            head[:, :o].to(wide) @ hidden[t, :o] + head_bias[t % len(head_bias), :, None].to(wide)
            for t, o in enumerate(living)
        ]
        yield n, torch.stack(logits)


def _launch_head(
    inputs: tuple[Tensor, Tensor, Tensor],
    head: Tensor,
    head_bias: Tensor,
    living: tuple[Tensor, Tensor],
    relu: bool,
    out: Tensor | None = None,
    scoring: tuple[Any, ...] | None = None,
) -> None:
    a, weight, bias = inputs
    N, D, L, T = a.shape[1], weight.shape[1], len(head), len(living[0])
    halved = 2 if a.dtype == torch.float64 else 1
    outputs = triton.next_power_of_2(D)
    examples = max(1, min(HEAD_EXAMPLES, HEAD_SUMS // halved // outputs))
    programs = triton.cdiv(N, examples)
    labels, prediction, sums, loss, top, per_class, margin = scoring or (None, None, [None] * 6, False, 0, False, -1.0)
    correct, in_top, losses, class_correct, agreement, ambiguous = sums
    partials = a.new_empty((programs, T), dtype=torch.float64) if loss else None
    nested_head_kernel[(programs,)](
        out,
        a,
        weight,
        bias,
        head.contiguous(),
        head_bias.contiguous(),
        *living,
        labels,
        prediction,
        correct,
        in_top,
        partials,
        class_correct,
        agreement,
        ambiguous,
        T,
        N,
        D,
        L,
        0 if len(bias) == 1 else D,
        0 if len(head_bias) == 1 else L,
        top,
        float64_bits(margin),
        RELU=relu,
        WIDE=wide_dtype(a),
        SCORE=scoring is not None,
        LOSS=loss,
        TOP=top > 0,
        PER_CLASS=per_class,
        AGREE=prediction is not None,
        MARGIN=margin >= 0,
        OUTPUTS=outputs,
        EXAMPLES=examples,
        num_warps=max(1, min(MOST_WARPS, outputs * examples * halved // SUMS_PER_WARP)),
    )
    if partials is not None:
        losses += partials.sum(0)


@triton.jit(do_not_specialize=["T", "output_tiles", "bias_t"])
def nested_linear_kernel(
    out_ptr,  # [T, D, N]
    a_ptr,  # [C, N]
    weight_ptr,  # [C, D]
    bias_ptr,  # [1 or T, D]
    living_in_ptr,  # [T]
    living_out_ptr,  # [T]
    T,
    N,
    D,
    output_tiles,
    bias_t,
    RELU: tl.constexpr,
    WIDE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EXAMPLES: tl.constexpr,
):
    d = tl.program_id(0) % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    n = (tl.program_id(0) // output_tiles).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)
    sums = tl.zeros([OUTPUTS, EXAMPLES], WIDE)
    c = tl.cast(0, tl.int64)
    t = tl.cast(T, tl.int64) - 1
    while t >= 0:
        sums, c = let_return(sums, c, tl.load(living_in_ptr + t), a_ptr, weight_ptr, n, d, N, D, WIDE)
        h = outputs_of(sums, bias_ptr + t * bias_t, tl.load(living_out_ptr + t), d, RELU, WIDE)
        tl.store(out_ptr + (t * D + d)[:, None] * N + n[None, :], h, (d < D)[:, None] & (n < N)[None, :])
        t -= 1


@triton.jit(do_not_specialize=["T", "L", "bias_t", "head_bias_t", "top", "margin_bits"])
def nested_head_kernel(
    out_ptr,  # [T, L, N]
    a_ptr,  # [C, N]
    weight_ptr,  # [C, D]
    bias_ptr,  # [1 or T, D]
    head_ptr,  # [L, D]
    head_bias_ptr,  # [1 or T, L]
    living_in_ptr,  # [T]
    living_out_ptr,  # [T]
    labels_ptr,  # [N]
    prediction_ptr,  # [N]
    correct_ptr,  # [T]
    in_top_ptr,  # [T]
    loss_ptr,  # [programs, T]
    class_correct_ptr,  # [T, L]
    agreement_ptr,  # [T]
    ambiguous_ptr,  # [T]
    T,
    N,
    D,
    L,
    bias_t,
    head_bias_t,
    top,
    margin_bits,
    RELU: tl.constexpr,
    WIDE: tl.constexpr,
    SCORE: tl.constexpr,
    LOSS: tl.constexpr,
    TOP: tl.constexpr,
    PER_CLASS: tl.constexpr,
    AGREE: tl.constexpr,
    MARGIN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EXAMPLES: tl.constexpr,
):
    d = tl.arange(0, OUTPUTS)
    n = tl.program_id(0).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)
    inside = n < N
    if SCORE:
        label = tl.load(labels_ptr + n, inside, other=0)
        margin = tl.cast(tl.cast(margin_bits, tl.int64), tl.float64, bitcast=True).to(WIDE)
    sums = tl.zeros([OUTPUTS, EXAMPLES], WIDE)
    c = tl.cast(0, tl.int64)
    t = tl.cast(T, tl.int64) - 1
    while t >= 0:
        living = tl.load(living_out_ptr + t)
        sums, c = let_return(sums, c, tl.load(living_in_ptr + t), a_ptr, weight_ptr, n, d, N, D, WIDE)
        h = outputs_of(sums, bias_ptr + t * bias_t, living, d, RELU, WIDE)
        head_bias_here_ptr = head_bias_ptr + t * head_bias_t
        best, place, second, least, most, total = nothing_seen([EXAMPLES], WIDE)
        at_label = tl.zeros([EXAMPLES], WIDE)
        which = tl.cast(0, tl.int64)
        while which < L:
            z = logit_of(h, head_ptr + which * D, head_bias_here_ptr + which, living, d, WIDE)
            if SCORE:
                best, place, second, least, most, total = see(
                    sortable(z), z, which.to(tl.int32), best, place, second, least, most, total, LOSS, MARGIN
                )
                at_label = tl.where(label == which, z, at_label)
            else:
                tl.store(out_ptr + (t * L + which) * N + n, z, inside)
            which += 1
        if SCORE:
            right = inside & (place == label)
            add_count(correct_ptr + t, right.to(tl.int32))
            if AGREE:
                agree = inside & (place == tl.load(prediction_ptr + n, inside, other=-1))
                add_count(agreement_ptr + t, agree.to(tl.int32))
            if LOSS:
                losses = (tl.log(total) + (most - at_label)).to(tl.float64)
                loss_at = tl.program_id(0).to(tl.int64) * T + t
                tl.store(loss_ptr + loss_at, tl.sum(tl.where(inside, losses, 0.0), 0))
            if MARGIN:
                close = inside & is_close(best, second, least, margin, WIDE)
                add_count(ambiguous_ptr + t, close.to(tl.int32))
            if PER_CLASS:
                one = tl.full([EXAMPLES], 1, tl.int64)
                tl.atomic_add(class_correct_ptr + t * L + label, one, right, sem="relaxed")
        if TOP:
            label_key = sortable(at_label)
            before = tl.zeros([EXAMPLES], tl.int32)
            which = tl.cast(0, tl.int64)
            while which < L:
                key = sortable(logit_of(h, head_ptr + which * D, head_bias_here_ptr + which, living, d, WIDE))
                first_come = (key > label_key) | ((key == label_key) & (which < label))
                before += (first_come & (which != label)).to(tl.int32)
                which += 1
            add_count(in_top_ptr + t, (inside & (before < top)).to(tl.int32))
        t -= 1


@triton.jit
def let_return(sums, c, living, a_ptr, weight_ptr, n, d, N, D, WIDE: tl.constexpr):
    """Add inputs c to living - 1 to the sums; those that are clamped are not read."""
    while c < living:
        w = tl.load(weight_ptr + c * D + d, d < D, other=0.0).to(WIDE)
        x = tl.load(a_ptr + c * N + n, n < N, other=0.0).to(WIDE)
        sums += w[:, None] * x[None, :]
        c += 1
    return sums, c


@triton.jit
def outputs_of(sums, bias_ptr, living, d, RELU: tl.constexpr, WIDE: tl.constexpr):
    """Sums [OUTPUTS, EXAMPLES] -> the layer's outputs; 0 for those that are clamped."""
    h = sums + tl.load(bias_ptr + d, d < living, other=0.0).to(WIDE)[:, None]
    if RELU:
        h = tl.where(h < 0, 0.0, h)
    return tl.where((d < living)[:, None], h, 0.0)


@triton.jit
def logit_of(h, head_ptr, head_bias_ptr, living, d, WIDE: tl.constexpr):
    """One class's logits [EXAMPLES]."""
    v = tl.load(head_ptr + d, d < living, other=0.0).to(WIDE)
    return tl.sum(h * v[:, None], 0) + tl.load(head_bias_ptr).to(WIDE)
