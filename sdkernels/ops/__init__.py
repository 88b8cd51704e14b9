"""Fused operations. Each module holds one op: its maths, its schema, its reference, its backends.

Their Triton kernels are in ``ops.triton``, their C++ and CUDA kernels in ``csrc/core``, under the same names.
"""

from sdkernels.ops.class_histogram import class_histogram
from sdkernels.ops.class_means import class_means
from sdkernels.ops.class_moments import ClassMoments
from sdkernels.ops.nested_linear import nested_linear, nested_linear_score
from sdkernels.ops.perturb import pack_mask, perturb
from sdkernels.ops.random_stream import random_stream
from sdkernels.ops.rank_one import rank_one
from sdkernels.ops.score import Score, score
from sdkernels.ops.winograd import winograd_input, winograd_output, winograd_weight

__all__ = [
    "ClassMoments",
    "Score",
    "class_histogram",
    "class_means",
    "nested_linear",
    "nested_linear_score",
    "pack_mask",
    "perturb",
    "random_stream",
    "rank_one",
    "score",
    "winograd_input",
    "winograd_output",
    "winograd_weight",
]
