"""Fused operations. Each module holds one op: its maths, its schema, its reference, its backends."""

from sdkernels.ops.nested_linear import nested_linear
from sdkernels.ops.perturb import perturb

__all__ = ["nested_linear", "perturb"]
