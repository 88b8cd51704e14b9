"""What setup.py makes of its two environment variables, and what a source distribution holds."""

import importlib.util
import re
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from pybind11.setup_helpers import build_ext
from setuptools import Distribution
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).parents[1]
SETUP = ROOT / "setup.py"


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("sdkernels_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("archs", "flags"),
    [
        ("80", ["-gencode", "arch=compute_80,code=sm_80"]),
        (
            "80+PTX; 90a",
            ["-gencode", "arch=compute_80,code=[sm_80,compute_80]", "-gencode", "arch=compute_90a,code=sm_90a"],
        ),
    ],
)
def test_architectures_become_nvcc_flags(build, archs, flags):
    assert build.arch_flags(archs) == flags


@pytest.mark.parametrize("archs", ["", "8.0", "sm_80", "80,90", "80;", "80+ptx"])
def test_unreadable_architectures_are_refused(build, archs):
    with pytest.raises(SystemExit, match="SDKERNELS_CUDA_ARCHS"):
        build.arch_flags(archs)


@pytest.mark.parametrize("asked", ["auto", "0", "1"])
def test_nvcc_is_used_when_asked_for(build, asked, monkeypatch, tmp_path):
    nvcc = script(tmp_path / "nvcc", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.Path, "exists", lambda path: False)  # no driver
    assert build.find_nvcc(asked) == (str(nvcc) if asked == "1" else None)


@pytest.mark.parametrize("asked", ["auto", "0", "1"])
def test_automatically_only_with_a_driver(build, asked, monkeypatch, tmp_path):
    nvcc = script(tmp_path / "nvcc", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    assert build.find_nvcc(asked) == (None if asked == "0" else str(nvcc))


def test_without_nvcc_only_a_request_fails(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.Path, "exists", lambda path: True)
    assert build.find_nvcc("auto") is None
    assert build.find_nvcc("0") is None
    with pytest.raises(SystemExit, match="no nvcc on the PATH"):
        build.find_nvcc("1")


def test_other_requests_are_refused(build):
    with pytest.raises(SystemExit, match="SDKERNELS_CUDA='yes'"):
        build.find_nvcc("yes")


def test_library_folders_are_those_that_nvcc_names(build, tmp_path):
    said = '#$ TOP=/opt/cuda\n#$ LIBRARIES=  "-L/opt/cuda/lib/stubs" "-L/opt/cuda/lib"\n#$ gcc -E'
    nvcc = script(tmp_path / "nvcc", f"cat >&2 <<'END'\n{said}\nEND")
    assert build.library_folders(str(nvcc)) == ["/opt/cuda/lib"]


def test_a_source_distribution_holds_the_cuda_files():
    patterns = (ROOT / "MANIFEST.in").read_text().split()
    suffixes = {path.suffix for path in (ROOT / "csrc" / "core").iterdir()} - {".cpp"}  # setup.py names those
    assert {f"*{suffix}" for suffix in suffixes} <= set(patterns)


@pytest.mark.parametrize("error", [CompileError("command 'g++' failed: No such file or directory"), LinkError("no")])
def test_a_build_without_a_compiler_says_what_to_install(build, monkeypatch, error):
    def fail(self, ext):
        raise error

    monkeypatch.setattr(build_ext, "build_extension", fail)
    monkeypatch.setenv("SDKERNELS_CUDA", "0")
    command = build.BuildCore(Distribution())
    command.compiler = SimpleNamespace(_compile=None)
    with pytest.raises(SystemExit, match=rf"{re.escape(str(error))}\n.*install g\+\+.*wheel"):
        command.build_extension(None)


def test_the_core_is_built_with_what_is_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (asked,) = re.findall(r"^requires = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(found := re.findall(r'"(.*?)"', asked)) == 2
    assert set(found) <= set(pins)


def test_setup_starts_nothing_that_is_slow():
    text = SETUP.read_text()
    assert "import torch" not in text
    assert len(text.splitlines()) < 110
