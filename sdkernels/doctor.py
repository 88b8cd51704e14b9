"""One screen that says what is installed, what works, and what to do about what does not."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import sdkernels
from sdkernels.ops.backend import BUILD_HINT, DEFAULT_BACKEND, native_library
from sdkernels.ops.perturb import native, reference


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is "ok", "missing" or "off" (optional), or "broken" (must be mended)."""

    name: str
    state: str
    detail: str


def examine() -> list[Finding]:
    """Look at everything; nothing is changed, and the GPU is not started."""
    system = f"Python {platform.python_version()}, {platform.platform()}"
    return [
        Finding("sdkernels", "ok", f"{sdkernels.__version__}, {system}"),
        Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"),
        _native(),
        _cuda(),
        _triton(),
        _interpreter(),
        _cuda_compiler(),
        _backends(),
        *(_package(name, what_for) for name, what_for in _PACKAGES.items()),
    ]


def screen(findings: list[Finding]) -> str:
    """The findings as a table."""
    width = max(len(f.name) for f in findings)
    return "\n".join(f"{f.name:<{width}}  {f.state:<7}  {f.detail}" for f in findings)


_PACKAGES = {
    "numpy": "results",
    "pandas": "to_pandas(), recipes",
    "matplotlib": "plot(), recipes",
    "tqdm": "progress bars",
    "scikit-learn": "the embedded digits",
    "safetensors": "trained networks",
    "typer": "the command line",
}


def _native() -> Finding:
    name = "native CPU core"
    try:
        path = native_library().__file__
    except RuntimeError as error:
        return Finding(name, "broken", str(error))
    x = torch.arange(24.0).view(2, 3, 4)
    ablated = torch.tensor([[True, False, True]])
    arguments = (x, ablated, torch.tensor(-1.0), 1, True)
    if not torch.equal(native(*arguments), reference(*arguments)):
        return Finding(name, "broken", f"{path} gives other numbers than the reference: {BUILD_HINT}")
    return Finding(name, "ok", f"agrees with the reference ({path})")


def _cuda() -> Finding:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("CUDA", "ok", f"{names}; CUDA {torch.version.cuda}")
    if torch.version.cuda is None:
        return Finding("CUDA", "missing", "this torch is built without CUDA; for a GPU, install a CUDA build of torch")
    return Finding("CUDA", "missing", f"torch is built for CUDA {torch.version.cuda} and sees no GPU; try nvidia-smi")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("Triton", "missing", "no op needs it yet; it comes with CUDA builds of torch")
    return Finding("Triton", "ok", f"{version('triton')}; no op uses it yet")


def _interpreter() -> Finding:
    on = os.environ.get("TRITON_INTERPRET") == "1"
    return Finding("Triton interpreter", "on" if on else "off", "" if on else "TRITON_INTERPRET=1 turns it on")


def _cuda_compiler() -> Finding:
    path = shutil.which("nvcc")
    return Finding("nvcc", "ok" if path else "missing", path or "no op needs it yet")


def _backends() -> Finding:
    asked = os.environ.get("SDKERNELS_BACKEND")
    listed = ", ".join(f"{device}: {asked or backend}" for device, backend in DEFAULT_BACKEND.items())
    return Finding("ops run on", "ok", listed + (" (SDKERNELS_BACKEND)" if asked else ""))


def _package(name: str, what_for: str) -> Finding:
    try:
        return Finding(name, "ok", f"{version(name)} ({what_for})")
    except PackageNotFoundError:
        return Finding(name, "missing", f'needed for {what_for}: `python -m pip install "sdkernels[paper]"`')
