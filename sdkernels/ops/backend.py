"""Which implementation an op runs: one function decides, and nothing falls back in silence.

``SDKERNELS_BACKEND=reference|native|triton`` overrides the choice below.

========= ==========================================================================
backend   what it is
========= ==========================================================================
reference pure torch, any device: the specification of every op
native    ``sdkernels._C``: C++ for CPU tensors; CUDA C++ for CUDA tensors, some ops
triton    Triton kernels for CUDA tensors; for CPU tensors only in Triton's
          interpreter (``TRITON_INTERPRET=1``), to test them
========= ==========================================================================

An op for CPUs alone (``winograd_input``, ``winograd_output``) has no Triton version: its reference runs on a GPU.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "native", "triton")

# What runs when nobody asks.
DEFAULT_BACKEND = {"cpu": "native", "cuda": "triton"}

# The backends of every op; `dispatcher` fills it in.
OFFERED: dict[str, tuple[str, ...]] = {}

BUILD_HINT = (
    "build it with `python -m pip install .` (needs g++), or set SDKERNELS_BACKEND=reference to run pure torch, slower"
)
CUDA_HINT = "unset SDKERNELS_BACKEND to use the default, or build with nvcc and SDKERNELS_CUDA=1"
TRITON_HINT = (
    "install triton (CUDA builds of torch bring it), or set SDKERNELS_BACKEND=reference to run pure torch, slower"
)


def choose_backend(device: torch.device, op: str | None = None) -> str:
    """The backend of ``op`` for tensors on ``device``: ``SDKERNELS_BACKEND`` if set, else the device's default.

    An op without the default runs its reference.

    Raises:
        ValueError: ``SDKERNELS_BACKEND`` names no backend.
        RuntimeError: the backend cannot run this op on this device, or was not built.
    """
    asked = os.environ.get("SDKERNELS_BACKEND")
    if asked is not None and asked not in BACKENDS:
        raise ValueError(f"SDKERNELS_BACKEND={asked!r} is no backend; choose one of {', '.join(BACKENDS)}")
    backend = asked or DEFAULT_BACKEND.get(device.type, "reference")
    if op is not None and backend not in OFFERED.get(op, BACKENDS):
        if asked is not None:
            raise RuntimeError(f"SDKERNELS_BACKEND={asked}: {op} has no {asked} version; unset it to use the default")
        backend = "reference"
    if backend == "native":
        library = native_library()
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"SDKERNELS_BACKEND=native runs on CPU and CUDA tensors, got one on {device}; unset it")
        if device.type == "cuda" and not library.has_cuda:
            raise RuntimeError(f"SDKERNELS_BACKEND=native: the native core was built without CUDA; {CUDA_HINT}")
        if device.type == "cuda" and op is not None and not hasattr(library, f"{op}_cuda"):
            raise RuntimeError(f"SDKERNELS_BACKEND=native: {op} has no CUDA C++ version; unset it to use the default")
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError(f"triton, which runs ops on {device}, is not installed: {TRITON_HINT}")
        if device.type != "cuda" and not interpreted():
            raise RuntimeError(
                f"SDKERNELS_BACKEND=triton runs on CUDA tensors, got one on {device}; unset it to use the default, or "
                "set TRITON_INTERPRET=1 before the start to run in Triton's interpreter, very slowly"
            )
    return backend


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def dispatcher(
    op: str, implementations: Mapping[str, Callable[..., Any]], check: Callable[..., None]
) -> Callable[..., Any]:
    """A function that checks its arguments and runs the backend for the first one's device."""
    OFFERED[op] = tuple(implementations)

    def dispatch(first: Tensor, *others: Any) -> Any:
        check(first, *others)
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            return implementations[choose_backend(first.device, op)](first, *others)

    return dispatch


def native_library() -> ModuleType:
    """The compiled core, ``sdkernels._C``.

    Raises:
        RuntimeError: it was not built, or does not load; says how to get it.
    """
    try:
        return importlib.import_module("sdkernels._C")
    except ImportError as error:
        built = Path(__file__).parents[1].glob("_C.*.so")
        others = "".join(f"; {path.name} is there, and does not fit" for path in built)
        raise RuntimeError(f"sdkernels' native core is missing ({error}{others}): {BUILD_HINT}") from error


def native_function(op: str, like: Tensor) -> Callable[..., None]:
    """The core's function for tensors like this one: pointers and sizes in.

    Its last argument is filled in here: on a CPU how many threads may work, on a GPU torch's current stream. The error
    code that it gives becomes an exception.
    """
    library = native_library()
    name = f"{op}_cuda" if like.is_cuda else op
    last = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else torch.get_num_threads()
    function = getattr(library, name, None)
    if function is None:
        raise RuntimeError(f"{library.__file__} has no {name}, so it was built from other sources: {BUILD_HINT}")

    def call(*arguments: Any) -> None:
        if code := function(*arguments, last):
            raise RuntimeError(f"sdkernels.{op}: the native core refused the call (error code {code})")

    return call


def triton_version(op: str, name: str | None = None) -> Callable[..., Any]:
    """An op's Triton version, in ``sdkernels.ops.triton.<op>``, imported when it first runs: Triton is optional."""

    def run(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"sdkernels.ops.triton.{op}"), name or op)(*arguments)

    return run
