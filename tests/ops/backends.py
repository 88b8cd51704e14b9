"""Which implementations of an op the tests run, and where: this file alone decides.

=========== ===========================================================================================================
lane        what runs
=========== ===========================================================================================================
plain       reference and native on the CPU; where there is a GPU also reference, triton and (if built) native on it
interpreter with TRITON_INTERPRET=1: triton on CPU tensors; the small cases of tests that take ``backend``, no others
=========== ===========================================================================================================

A module whose tests take the fixture ``backend`` names its op: ``OP = "perturb"``.
"""

import os
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

from sdkernels.ops.backend import OFFERED, native_library

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The native core; a GPU's tests run without it, and test_backend.py fails.
try:
    CORE: ModuleType | None = native_library()
except RuntimeError:
    CORE = None


@dataclass(frozen=True)
class Backend:
    """A value of SDKERNELS_BACKEND and where the tensors are."""

    name: str
    device: str

    def __str__(self) -> str:
        return f"{self.name}-{self.device}"


def backends_of(op: str) -> list[Backend]:
    """All that can run an op here."""
    has_triton = "triton" in OFFERED[op]
    if INTERPRETED:
        return [Backend("triton", "cpu")] * has_triton
    pairs = [Backend("reference", "cpu")] + [Backend("native", "cpu")] * (CORE is not None)
    if torch.cuda.is_available():
        pairs += [Backend("reference", "cuda")] + [Backend("triton", "cuda")] * has_triton
        if hasattr(CORE, f"{op}_cuda"):
            pairs.append(Backend("native", "cuda"))
    return pairs


# The interpreter computes bfloat16 wrongly, and says nothing.
DTYPES = [torch.float64, torch.float32, torch.float16] + [torch.bfloat16] * (not INTERPRETED)

# On a test or a case: too big for the interpreter.
big = pytest.mark.not_interpreted

# On a test: where there is a GPU.
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def drawn(examples: int, interpreted: int = 6) -> settings:
    """For hypothesis: how many examples in either lane. The fixture ``backend`` is the same for all of them.

    Where there is a GPU there are fewer: nearly each is a kernel to compile.
    """
    if torch.cuda.is_available():
        examples = min(examples, 30)
    return settings(
        max_examples=interpreted if INTERPRETED else examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def cpu_levels() -> list[int]:
    """The levels of x86-64 that this processor runs."""
    if CORE is None:
        return []
    levels = [level for level in (1, 3, 4) if CORE.use_cpu_level(level)]
    CORE.use_cpu_level(0)
    return levels
