"""Builds ``sdkernels._C``: the torch-free C++ core of ``csrc/``. All else is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile("NPY_NUM_BUILD_JOBS").install()

setup(
    ext_modules=[
        Pybind11Extension(
            "sdkernels._C",
            sources=["csrc/bindings.cpp", *sorted(glob("csrc/core/*.cpp"))],
            include_dirs=["csrc/core"],
            depends=sorted(glob("csrc/core/*.h")),
            cxx_std=17,
            # Contraction off: a fused multiply-add would give other bits than the reference.
            extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wextra"],
            extra_link_args=["-fopenmp"],
        )
    ]
)
