"""Fused operations. Each module holds one op: its maths, its schema, its reference, its backends."""

from sdkernels.ops.perturb import perturb

__all__ = ["perturb"]
