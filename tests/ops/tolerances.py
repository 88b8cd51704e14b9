"""How far a result may be from its definition, each with its reason; where bits must agree, ``same_bits`` says so."""

import torch
from torch import Tensor

# A float32 normal against Box and Muller's formula in float64: absolute, as sdkernels.ops.random_stream promises.
NORMAL = 6e-7

# Moments in float64, relative to the greatest of the numbers: some dozens of roundings of 1e-16 in the given order
MOMENTS = 1e-14
# and merges in any other order, which may cancel a digit. Of a spread like the numbers' own, 1e-12 and 1e-11.
MERGED_MOMENTS = 1e-13
# The variance of float32 numbers of mean 1e4 and spread 1: seven digits, all that float32 could ask for.
SMALL_VARIANCE = 1e-7

# A loss in float64, relative to the greatest logit: an exponential, a logarithm and sums of some dozens of roundings.
LOSS = 1e-14
# A loss that a GPU computes in float32, likewise: four roundings of 6e-8 each, and its short exp and log.
FLOAT32_LOSS = 5e-7


def of_sums(dtype: torch.dtype) -> float:
    """Of two sums of up to 600 products after one another, relative to the greatest: roundings add as a random walk.

    float16 and bfloat16 are summed in float32 and rounded once, by half a unit of their last digit.
    """
    if dtype in (torch.float32, torch.float64):
        return 30 * torch.finfo(dtype).eps
    return 0.6 * torch.finfo(dtype).eps


def winograd_of(dtype: torch.dtype) -> float:
    """Of a 3x3 convolution by Winograd's F(4x4, 3x3), relative to the greatest output.

    The transforms back and forth multiply what is rounded between them by some dozens, and cancel it again.
    """
    return 1e-12 if dtype == torch.float64 else 100 * torch.finfo(dtype).eps


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit; wherever they are, however they lie."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.cpu().contiguous().view(bits), b.cpu().contiguous().view(bits))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """The same bits, but any nan for a nan: processors choose the payload of those that arithmetic makes."""
    both = a.cpu().isnan() & b.cpu().isnan() if a.shape == b.shape else torch.tensor(False)
    return same_bits(a.cpu().masked_fill(both, 0), b.cpu().masked_fill(both, 0))
