"""Builds ``sdkernels._C``, the torch-free core of ``csrc/``: C++, and CUDA where wanted. All else is in pyproject.toml.

- ``SDKERNELS_CUDA``: ``1`` builds the CUDA versions of ops, or fails; ``0`` does not; ``auto``, the default, does where
  there are both nvcc (on the PATH) and an NVIDIA driver. The result imports on machines without a GPU.
- ``SDKERNELS_CUDA_ARCHS``: compute capabilities with ``;`` between, each as nvcc writes it (``80``, ``90a``); one with
  ``+PTX`` also runs on later GPUs, whose driver compiles it. The default is ``80+PTX;90a``.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from platform import machine

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.errors import CCompilerError

# Contraction off: a fused multiply-add would give other bits than the reference.
CXX_FLAGS = ["-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"]
# What files with these in their names need besides: kernels are compiled once for each level of x86-64.
LEVELS = {"_v3_": ["-march=x86-64-v3"], "_v4_": ["-march=x86-64-v4"]} if machine() in ("x86_64", "AMD64") else {}
FLAGS_BY_NAME = {**LEVELS, "_sums": ["-ffp-contract=fast"]}
NVCC_FLAGS = ["-O3", "--std=c++17", "-fmad=false", "-Icsrc/core", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
DEFAULT_ARCHS = "80+PTX;90a"
COMPILER_HINT = (
    "sdkernels' core is C++17 with OpenMP: install g++ (on Debian, apt install g++) or name another in CC and CXX; or"
    " install a wheel, made by `python -m pip wheel --no-deps .` where there is one, which needs no compiler"
)


def find_nvcc(asked: str) -> str | None:
    """The nvcc to build with, None to build without CUDA, for a value of SDKERNELS_CUDA."""
    if asked not in ("auto", "0", "1"):
        raise SystemExit(f"SDKERNELS_CUDA={asked!r}: it is auto, 0 or 1")
    nvcc = shutil.which("nvcc")
    if asked == "1" and nvcc is None:
        raise SystemExit("SDKERNELS_CUDA=1, but there is no nvcc on the PATH: add the CUDA toolkit's bin folder to it")
    has_driver = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()  # the second is WSL's
    return nvcc if asked == "1" or (asked == "auto" and has_driver) else None


def arch_flags(archs: str) -> list[str]:
    """nvcc's flags for a value of SDKERNELS_CUDA_ARCHS."""
    flags = []
    for arch in archs.split(";"):
        match = re.fullmatch(r"(\d+[af]?)(\+PTX)?", arch.strip())
        if match is None:
            raise SystemExit(f"SDKERNELS_CUDA_ARCHS={archs!r}: cannot read {arch!r}; an example is {DEFAULT_ARCHS}")
        code = f"[sm_{match[1]},compute_{match[1]}]" if match[2] else f"sm_{match[1]}"
        flags += ["-gencode", f"arch=compute_{match[1]},code={code}"]
    return flags


def library_folders(nvcc: str) -> list[str]:
    """Where the toolkit's libraries are. nvcc is asked: the one on the PATH may be a script that runs another."""
    run = subprocess.run([nvcc, "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
    (line,) = re.findall(r"^#\$ LIBRARIES=(.*)$", run.stderr, re.MULTILINE)
    return [folder for folder in re.findall(r'"?-L([^"\s]+)"?', line) if not folder.endswith("stubs")]


class BuildCore(build_ext):
    """The usual build, with some files' own flags, and the .cu files compiled by nvcc first."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        self.force = True  # what is there may have been built with other settings
        nvcc = find_nvcc(os.environ.get("SDKERNELS_CUDA", "auto"))
        if nvcc is not None:
            Path(self.build_temp).mkdir(parents=True, exist_ok=True)
            flags = [*NVCC_FLAGS, *arch_flags(os.environ.get("SDKERNELS_CUDA_ARCHS", DEFAULT_ARCHS))]
            objects = {source: f"{self.build_temp}/{Path(source).name}.o" for source in sorted(glob("csrc/core/*.cu"))}
            commands = [[nvcc, "-c", source, "-o", result, *flags] for source, result in objects.items()]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(self.spawn, commands))
            ext.extra_objects += objects.values()
            ext.define_macros += [("SDKERNELS_CUDA", None)]
            ext.library_dirs += library_folders(nvcc)
            ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
        compile_cpp = self.compiler._compile

        def compile_as_named(result, source, suffix, first, last, macros):
            own = [flag for name, flags in FLAGS_BY_NAME.items() if name in source for flag in flags]
            compile_cpp(result, source, suffix, first, last + own, macros)

        self.compiler._compile = compile_as_named
        try:
            super().build_extension(ext)
        except CCompilerError as error:
            raise SystemExit(f"{error}\n{COMPILER_HINT}") from error


if __name__ == "__main__":
    ParallelCompile("NPY_NUM_BUILD_JOBS").install()
    core = Pybind11Extension(
        "sdkernels._C",
        # In this order: of library code that several levels hold, the linker keeps the first, which runs everywhere.
        sources=["csrc/bindings.cpp", *sorted(glob("csrc/core/*.cpp"))],
        include_dirs=["csrc/core"],
        depends=sorted(glob("csrc/core/*.h") + glob("csrc/core/*.cu*")),
        cxx_std=17,
        extra_compile_args=CXX_FLAGS,
        extra_link_args=["-fopenmp"],
    )
    setup(ext_modules=[core], cmdclass={"build_ext": BuildCore})
