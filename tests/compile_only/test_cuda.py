"""The CUDA files compile for each architecture, without spills; the random stream without approximate instructions."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.compile

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "core").glob("*.cu"))
ARCHS = ["80", "90a"]

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)

# Instructions that give other bits than the CPU: rough functions, flushed subnormals, fused products.
INEXACT = re.compile(r"^\s*(?!//)\S*(\.approx|\.ftz|fma\.rn\.f|mad\.rn?\.f|\.full\.f)\S*", re.MULTILINE)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py, which has the flags."""
    spec = importlib.util.spec_from_file_location("sdkernels_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(build: ModuleType, source: Path, *flags: str) -> str:
    """What nvcc says."""
    assert shutil.which("nvcc"), "nvcc is not on the PATH; this lane needs the CUDA toolkit, though no GPU"
    command = ["nvcc", *build.NVCC_FLAGS, *flags, str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done.stderr


def readable(mangled: str) -> str:
    """A kernel's name and template arguments."""
    if shutil.which("c++filt") is None:
        return mangled
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    name = re.sub(r"\(anonymous namespace\)::|sdkernels::|cuda::", "", name.strip())
    return re.sub(r"\((?!\w+\)\d).*", "", name.removeprefix("void "))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_fit_in_registers(build, source, arch, tmp_path, resources):
    said = compiled(
        build, source, "-cubin", "-o", str(tmp_path / "out.cubin"), "-Xptxas", "-v", *build.arch_flags(arch)
    )
    entries = list(ENTRY.finditer(said))
    assert len(entries) == said.count("Compiling entry function") > 0
    spilled = []
    for entry in entries:
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        name = readable(entry["name"])
        stack, spills = int(entry["stack"]), int(entry["stores"]) + int(entry["loads"])
        kernel, _, variant = name.partition("<")
        resources.add(
            source="cuda",
            kernel=kernel,
            variant=variant.removesuffix(">"),
            arch=f"sm_{arch}",
            registers=int(entry["registers"]),
            shared=int(shared[1]) if shared else 0,
            stack=stack,
            spills=spills,
        )
        if stack or spills:
            spilled.append(f"{name}: {stack} bytes of stack, {spills} of spills")
    assert not spilled


@pytest.mark.parametrize("source", [s for s in SOURCES if "random_stream.h" in s.read_text()], ids=lambda s: s.stem)
def test_the_random_stream_is_exact(build, source, tmp_path):
    ptx = tmp_path / "out.ptx"
    compiled(build, source, "-ptx", "-o", str(ptx), "-arch=compute_80")
    text = ptx.read_text()
    assert "sqrt.rn.f32" in text
    assert "mul.rn.f32" in text or "mul.f32" in text
    assert not INEXACT.findall(text)


def test_an_inexact_instruction_would_be_seen():
    for line in ("\tsqrt.approx.f32 %f1, %f2;", "\tadd.ftz.f32 %f1, %f2, %f3;", "\tfma.rn.f64 %fd1, %fd2, %fd3, %fd4;"):
        assert INEXACT.search(f"\tmov.u32 %r1, %r2;\n{line}\n")
    assert not INEXACT.search("\tmul.rn.f32 %f1, %f2, %f3;\n\tmad.lo.s32 %r1, %r2, %r3, %r4;\n")
