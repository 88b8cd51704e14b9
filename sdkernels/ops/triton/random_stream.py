"""The random stream: a lane draws all four numbers of a Philox call; programs take runs of such quads.

Multiplications and additions stand apart and are compiled with ``enable_fp_fusion=False``, so that a GPU, Triton's
interpreter and the CPU round alike. Tile sizes are not yet measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.normal_coefficients import COS, LOG, SIN
from sdkernels.ops.random_stream import KINDS, ROOT_HALF, TWO_LN_2

QUADS = 256  # of a program
NUM_WARPS = 4

_LOG, _LOG_TERMS = tl.constexpr(LOG), tl.constexpr(len(LOG))
_SIN, _SIN_TERMS = tl.constexpr(SIN), tl.constexpr(len(SIN))
_COS, _COS_TERMS = tl.constexpr(COS), tl.constexpr(len(COS))
_ROOT_HALF_BITS = tl.constexpr(ROOT_HALF)
_TWO_LN_2_FLOAT = tl.constexpr(TWO_LN_2)


def random_stream(
    examples: Tensor, configurations: Tensor, seed: Tensor, kind: int, elements: int, site: int
) -> Tensor:
    """Draws [K, N, elements]."""
    shape = (len(configurations), len(examples), elements)
    out = examples.new_empty(shape, dtype=torch.int64 if KINDS[kind] == "bits" else torch.float32)
    row_quads = triton.cdiv(elements, 4)
    quads = shape[0] * shape[1] * row_quads
    random_stream_kernel[(triton.cdiv(quads, QUADS),)](
        out,
        examples.contiguous(),
        configurations.contiguous(),
        seed,
        signed_word(site),
        *shape,
        row_quads,
        KIND=KINDS[kind],
        INDEX=index_dtype(4 * quads),
        QUADS=QUADS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return out


def signed_word(word: int) -> int:
    """A 32-bit word as an int32 of the same bits: Triton types integers by their value."""
    return word - 2**32 if word >= 2**31 else word


def index_dtype(most: int) -> tl.dtype:
    """What counts up to ``most``, with room for a tile: 32 bits where they suffice, since 64-bit divisions are slow."""
    return tl.int32 if most < 2**31 - 2**20 else tl.int64


def wide_dtype(t: Tensor) -> tl.dtype:
    """What kernels compute in: float64 for float64, float32 for all others."""
    return tl.float64 if t.dtype == torch.float64 else tl.float32


@triton.jit(do_not_specialize=["site"])
def random_stream_kernel(
    out_ptr,  # [K, N, E]
    examples_ptr,  # [N]
    configurations_ptr,  # [K]
    seed_ptr,  # []
    site,
    K,
    N,
    E,
    row_quads,  # ceil(E / 4)
    KIND: tl.constexpr,
    INDEX: tl.constexpr,
    QUADS: tl.constexpr,
):
    at = tl.program_id(0).to(INDEX) * QUADS + tl.arange(0, QUADS)  # quads of all rows, one after the other
    row = at // row_quads
    quad = at % row_quads
    k = row // N
    n = row % N
    inside = k < K
    configuration = tl.load(configurations_ptr + k, inside, other=0)
    example = tl.load(examples_ptr + n, inside, other=0)
    r0, r1, r2, r3 = philox(tl.load(seed_ptr), quad, example, configuration, site)
    if KIND == "normal":
        n0, n1 = normals_of(r0, r1)
        n2, n3 = normals_of(r2, r3)
        numbers = four(n0, n1, n2, n3)  # [QUADS, 4]
    elif KIND == "uniform":
        numbers = four(uniform_of(r0), uniform_of(r1), uniform_of(r2), uniform_of(r3))
    else:
        numbers = four(r0.to(tl.int64), r1.to(tl.int64), r2.to(tl.int64), r3.to(tl.int64))
    element = 4 * quad[:, None] + tl.arange(0, 4)[None, :]
    tl.store(out_ptr + row.to(tl.int64)[:, None] * E + element, numbers, inside[:, None] & (element < E))


@triton.jit
def philox(seed, quad, example, configuration, site):
    """Four words for each counter; the ids may be of any integer type."""
    return tl.philox(seed, quad.to(tl.uint32), example.to(tl.uint32), configuration.to(tl.uint32), site.to(tl.uint32))


@triton.jit
def uniform_of(word):
    """A word -> float32 in [0, 1)."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2**-24


@triton.jit
def normals_of(r0, r1):
    """Two words -> two independent normals, float32; the steps are those of the reference."""
    bits = (16777216 - (r0 >> 8).to(tl.int32)).to(tl.float32).to(tl.int32, bitcast=True) - _ROOT_HALF_BITS
    exponent = bits >> 23
    t = ((bits & 0x7FFFFF) + _ROOT_HALF_BITS).to(tl.float32, bitcast=True) - 1
    square = (24 - exponent).to(tl.float32) * _TWO_LN_2_FLOAT + t * polynomial(_LOG, _LOG_TERMS, t)
    radius = tl.sqrt_rn(square)
    v = (r1 >> 8).to(tl.int32)
    quarter = (v + 2097152) >> 22
    y = (v - (quarter << 22)).to(tl.float32) * 2.384185791015625e-07  # 2**-22
    y2 = y * y
    sine = y * polynomial(_SIN, _SIN_TERMS, y2)
    cosine = polynomial(_COS, _COS_TERMS, y2)
    odd = (quarter & 1) != 0
    # signs by their bit: a negation may be compiled to 0 - x, which makes a positive zero of a positive zero
    cos = tl.where(odd, sine, cosine).to(tl.uint32, bitcast=True) ^ (((quarter + 1) & 2).to(tl.uint32) << 30)
    sin = tl.where(odd, cosine, sine).to(tl.uint32, bitcast=True) ^ ((quarter & 2).to(tl.uint32) << 30)
    return radius * cos.to(tl.float32, bitcast=True), radius * sin.to(tl.float32, bitcast=True)


@triton.jit
def polynomial(COEFFICIENTS: tl.constexpr, TERMS: tl.constexpr, x):
    """Horner's rule from the highest power down, each step rounded."""
    total = tl.zeros_like(x) + COEFFICIENTS[TERMS - 1]
    for i in tl.static_range(2, TERMS + 1):
        total = total * x + COEFFICIENTS[TERMS - i]
    return total


@triton.jit
def four(a, b, c, d):
    """Four tensors [...] -> [..., 4]."""
    pairs = tl.join(tl.join(a, c), tl.join(b, d))  # [..., 2, 2]
    return tl.reshape(pairs, a.shape + [4])  # noqa: RUF005 - Triton knows no starred lists
