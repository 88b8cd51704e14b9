"""One screen that says what is installed, what works, and what to do about what does not."""

import importlib
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import sdkernels
from sdkernels.ops.backend import BUILD_HINT, DEFAULT_BACKEND, choose_backend, native_library
from sdkernels.ops.perturb import IMPLEMENTATIONS


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is "ok", "missing" or "off" (optional), or "broken" (must be mended)."""

    name: str
    state: str
    detail: str


def examine() -> list[Finding]:
    """Look at everything, and try what is there; nothing is changed."""
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
        *(_package(name, *what_for) for name, what_for in _PACKAGES.items()),
    ]


def screen(findings: list[Finding]) -> str:
    """The findings as a table."""
    width = max(len(f.name) for f in findings)
    return "\n".join(f"{f.name:<{width}}  {f.state:<7}  {f.detail}" for f in findings)


_PACKAGES = {  # what for, and by which extra
    "pandas": ("to_pandas(), recipes", "paper"),
    "matplotlib": ("plot(), recipes", "paper"),
    "tqdm": ("progress bars", "paper"),
    "scikit-learn": ("the embedded digits", "paper"),
    "scipy": ("tests of published claims", "paper"),
    "pillow": ("folders of images", "paper"),
    "safetensors": ("trained networks", "paper"),
    "typer": ("the command line", "paper"),
    "pyarrow": ("tables as parquet", "parquet"),
    "ray": ("work on several machines", "scale"),
}


def _native() -> Finding:
    name = "native CPU core"
    try:
        library = native_library()
    except RuntimeError as error:
        return Finding(name, "broken", str(error))
    if not torch.equal(_trial("native", "cpu"), _trial("reference", "cpu")):
        return Finding(name, "broken", f"{library.__file__} gives other numbers than the reference: {BUILD_HINT}")
    cuda = "with CUDA" if library.has_cuda else "without CUDA"
    level = f"x86-64-v{library.cpu_level()}"
    return Finding(name, "ok", f"agrees with the reference; {level}, built {cuda} ({library.__file__})")


def _cuda() -> Finding:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        try:
            backend = choose_backend(torch.device("cuda"), "perturb")
            agrees = torch.equal(_trial(backend, "cuda").cpu(), _trial("reference", "cpu"))
        except RuntimeError as error:
            return Finding("CUDA", "broken", f"{names}: {str(error).splitlines()[0]}")
        works = f"{backend} gives what the CPU gives" if agrees else f"{backend} gives other numbers than the CPU"
        return Finding("CUDA", "ok" if agrees else "broken", f"{names}; CUDA {torch.version.cuda}; {works}")
    if torch.version.cuda is None:
        return Finding("CUDA", "missing", "this torch is built without CUDA; for a GPU, install a CUDA build of torch")
    return Finding("CUDA", "missing", f"torch is built for CUDA {torch.version.cuda} and sees no GPU; try nvidia-smi")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("Triton", "missing", "ops on GPUs need it; it comes with CUDA builds of torch")
    triton = importlib.import_module("triton")
    return Finding("Triton", "ok", f"{getattr(triton, '__version__', 'of unknown version')}; for ops on GPUs")


def _interpreter() -> Finding:
    on = os.environ.get("TRITON_INTERPRET") == "1"
    return Finding("Triton interpreter", "on" if on else "off", "" if on else "TRITON_INTERPRET=1 turns it on")


def _cuda_compiler() -> Finding:
    path = shutil.which("nvcc")
    return Finding("nvcc", "ok" if path else "missing", path or "only to build the CUDA C++ versions of some ops")


def _backends() -> Finding:
    chosen: list[str] = []
    for device in DEFAULT_BACKEND:
        try:
            chosen.append(f"{device}: {choose_backend(torch.device(device))}")
        except ValueError as error:
            return Finding("ops run on", "broken", str(error))
        except RuntimeError as error:
            chosen.append(f"{device}: none ({error})")
    asked = " (SDKERNELS_BACKEND)" if "SDKERNELS_BACKEND" in os.environ else ""
    return Finding("ops run on", "ok", "; ".join(chosen) + asked)


def _trial(backend: str, device: str) -> torch.Tensor:
    """A small call of perturb, with noise: bits that every backend must agree on."""
    x = torch.arange(24.0, device=device).view(2, 3, 4)
    ablated = torch.tensor([[True, False, True], [False, True, False]], device=device)
    sigma, ids = torch.full((2, 3), 0.5, device=device), torch.arange(2, device=device)
    out = torch.empty(2, 2, 3, 4, device=device)
    seed = torch.tensor(7, device=device)
    value = torch.tensor(-1.0, device=device)
    run = IMPLEMENTATIONS[backend]
    run(out, x, ablated, value, None, None, True, sigma, seed, ids, ids, 0, False, 1, True)
    return out


def _package(name: str, what_for: str, extra: str) -> Finding:
    try:
        return Finding(name, "ok", f"{version(name)} ({what_for})")
    except PackageNotFoundError:
        return Finding(name, "missing", f'needed for {what_for}: `python -m pip install "sdkernels[{extra}]"`')
