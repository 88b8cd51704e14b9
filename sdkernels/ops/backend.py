"""Which implementation an op runs: one function decides, and nothing falls back in silence.

``SDKERNELS_BACKEND=reference|native`` overrides the choice below.

========= ==========================================================================
backend   what it is
========= ==========================================================================
reference pure torch, any device: the specification of every op
native    C++ in ``sdkernels._C``, CPU tensors
========= ==========================================================================
"""

import importlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "native")

# What runs when nobody asks. A GPU version of an op takes the reference's place in this table once it exists.
DEFAULT_BACKEND = {"cpu": "native", "cuda": "reference"}

BUILD_HINT = (
    "build it with `python -m pip install .` (needs g++), or set SDKERNELS_BACKEND=reference to run pure torch, slower"
)


def choose_backend(device: torch.device) -> str:
    """The backend for tensors on ``device``: ``SDKERNELS_BACKEND`` if set, else the device's default.

    Raises:
        ValueError: ``SDKERNELS_BACKEND`` names no backend.
        RuntimeError: the backend cannot run on this device, or was not built.
    """
    asked = os.environ.get("SDKERNELS_BACKEND")
    if asked is not None and asked not in BACKENDS:
        raise ValueError(f"SDKERNELS_BACKEND={asked!r} is no backend; choose one of {', '.join(BACKENDS)}")
    backend = asked or DEFAULT_BACKEND.get(device.type, "reference")
    if backend == "native":
        if device.type != "cpu":
            raise RuntimeError(
                f"SDKERNELS_BACKEND=native runs on CPU tensors, got one on {device}; unset it to use the default"
            )
        native_library()
    return backend


def dispatcher(
    implementations: Mapping[str, Callable[..., Tensor]], check: Callable[..., None]
) -> Callable[..., Tensor]:
    """A function that checks its arguments and runs the backend for the first one's device."""

    def dispatch(first: Tensor, *others: Any) -> Tensor:
        check(first, *others)
        return implementations[choose_backend(first.device)](first, *others)

    return dispatch


def native_library() -> ModuleType:
    """The compiled core, ``sdkernels._C``.

    Raises:
        RuntimeError: it was not built, or does not load; says how to get it.
    """
    try:
        return importlib.import_module("sdkernels._C")
    except ImportError as error:
        raise RuntimeError(f"sdkernels' native core is missing ({error}): {BUILD_HINT}") from error


def check_error_code(op: str, code: int) -> None:
    """Turn the core's error code into an exception."""
    if code:
        raise RuntimeError(f"sdkernels.{op}: the native core refused the call (error code {code})")
