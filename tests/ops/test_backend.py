"""Which implementation runs: what was asked for, or the device's default, or an error that says how to get it."""

import importlib
import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdkernels.ops import backend
from sdkernels.ops.backend import BACKENDS, OFFERED, choose_backend, native_function, native_library
from tests.ops.backends import CORE
from tests.ops.test_registered_ops import CASES

# Where an op's backends are, if not in IMPLEMENTATIONS of a module of its name.
IMPLEMENTED_IN = {
    "class_means": ("class_moments", "IMPLEMENTATIONS"),
    "nested_linear_score": ("nested_linear", "SCORE_IMPLEMENTATIONS"),
    "perturb_into": ("perturb", "IMPLEMENTATIONS"),
    "rank_one_head": ("rank_one", "HEAD_IMPLEMENTATIONS"),
    "winograd_input": ("winograd", "INPUT_IMPLEMENTATIONS"),
    "winograd_output": ("winograd", "OUTPUT_IMPLEMENTATIONS"),
}
CPU_ONLY = ["winograd_input", "winograd_output"]
CPU, GPU, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch):
    monkeypatch.delenv("SDKERNELS_BACKEND", raising=False)


@pytest.fixture
def triton_is_there(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "triton" else found(name))


@pytest.fixture
def triton_is_not(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))


def test_defaults(triton_is_there):
    assert choose_backend(CPU) == "native"
    assert choose_backend(GPU) == "triton"
    assert choose_backend(OTHER) == "reference"


@pytest.mark.parametrize("device", [CPU, GPU, OTHER], ids=str)
def test_the_reference_runs_anywhere(monkeypatch, device):
    monkeypatch.setenv("SDKERNELS_BACKEND", "reference")
    assert choose_backend(device) == "reference"


def test_an_unknown_backend_is_named(monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", "cuda")
    with pytest.raises(ValueError, match="SDKERNELS_BACKEND='cuda' is no backend; choose one of reference, native"):
        choose_backend(CPU)


def test_native_runs_on_cpu_and_cuda_only(monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", "native")
    with pytest.raises(RuntimeError, match="runs on CPU and CUDA tensors, got one on meta"):
        choose_backend(OTHER)


def test_native_without_cuda_is_named(monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", "native")
    monkeypatch.setitem(sys.modules, "sdkernels._C", SimpleNamespace(has_cuda=False))
    with pytest.raises(RuntimeError, match=r"built without CUDA; unset SDKERNELS_BACKEND .* SDKERNELS_CUDA=1"):
        choose_backend(GPU)


def test_an_op_without_a_cuda_version_is_named(monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", "native")
    monkeypatch.setitem(sys.modules, "sdkernels._C", SimpleNamespace(has_cuda=True, perturb_cuda=None))
    assert choose_backend(GPU, "perturb") == "native"
    with pytest.raises(RuntimeError, match="score has no CUDA C\\+\\+ version; unset it"):
        choose_backend(GPU, "score")


def test_a_missing_core_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sdkernels._C", None)
    for run in (native_library, lambda: choose_backend(CPU)):
        with pytest.raises(RuntimeError, match=r"core is missing .*pip install.*SDKERNELS_BACKEND=reference"):
            run()


def test_a_core_for_another_python_is_named(monkeypatch, tmp_path):
    (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "ops" / "backend.py"))
    monkeypatch.setitem(sys.modules, "sdkernels._C", None)
    with pytest.raises(
        RuntimeError, match=r"_C\.cpython-39-x86_64-linux-gnu\.so is there, and does not fit\).*pip install"
    ):
        native_library()


def test_a_core_of_other_sources_is_named():
    with pytest.raises(
        RuntimeError, match=r"_C\..*\.so has no future_op, so it was built from other sources: build it"
    ):
        native_function("future_op", torch.zeros(1))


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_missing_triton_is_named(monkeypatch, triton_is_not, device):
    monkeypatch.setenv("SDKERNELS_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=f"triton, which runs ops on {device}, is not installed: install triton"):
        choose_backend(device)


def test_missing_triton_is_named_where_it_is_the_default(triton_is_not):
    with pytest.raises(RuntimeError, match="SDKERNELS_BACKEND=reference to run pure torch"):
        choose_backend(GPU)


def test_triton_runs_on_the_cpu_in_its_interpreter_only(monkeypatch, triton_is_there):
    monkeypatch.setenv("SDKERNELS_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=r"runs on CUDA tensors, got one on cpu; .*TRITON_INTERPRET=1"):
        choose_backend(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend(CPU) == "triton"


def implementations_of(op: str) -> dict[str, Any]:
    """An op's backends, where its module keeps them."""
    module, name = IMPLEMENTED_IN.get(op, (op, "IMPLEMENTATIONS"))
    return getattr(importlib.import_module(f"sdkernels.ops.{module}"), name)


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("op", list(CASES))
def test_the_chosen_one_runs_and_no_other(monkeypatch, triton_is_there, op, chosen):
    implementations = implementations_of(op)
    assert tuple(implementations) == (BACKENDS[:2] if op in CPU_ONLY else BACKENDS)

    class RanError(Exception):
        pass

    def run(*_):
        raise RanError

    monkeypatch.setenv("SDKERNELS_BACKEND", chosen)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (arguments, *_) = CASES[op].values()
    if chosen not in implementations:
        with pytest.raises(RuntimeError, match=f"SDKERNELS_BACKEND=triton: {op} has no triton version; unset it"):
            getattr(torch.ops.sdkernels, op)(*arguments())
        return
    monkeypatch.setitem(implementations, chosen, run)
    with pytest.raises(RanError):
        getattr(torch.ops.sdkernels, op)(*arguments())


@pytest.mark.parametrize("op", CPU_ONLY)
def test_an_op_without_a_triton_version_runs_its_reference_on_a_gpu(monkeypatch, triton_is_not, op):
    assert OFFERED[op] == ("reference", "native")
    assert choose_backend(GPU, op) == "reference"
    assert choose_backend(CPU, op) == "native"
    monkeypatch.setenv("SDKERNELS_BACKEND", "triton")
    with pytest.raises(RuntimeError, match=f"{op} has no triton version; unset it to use the default"):
        choose_backend(GPU, op)


@pytest.mark.parametrize("op", list(CASES))
def test_no_op_falls_back_in_silence(monkeypatch, op):
    monkeypatch.setitem(sys.modules, "sdkernels._C", None)
    (arguments, *_) = CASES[op].values()
    with pytest.raises(RuntimeError, match="native core is missing"):
        getattr(torch.ops.sdkernels, op)(*arguments())


def test_an_error_of_the_core_becomes_an_exception(monkeypatch):
    given = []
    core = SimpleNamespace(anything=lambda *arguments: given.append(arguments) or 3)
    monkeypatch.setitem(sys.modules, "sdkernels._C", core)
    with pytest.raises(RuntimeError, match=r"sdkernels\.anything: .* refused the call \(error code 3\)"):
        native_function("anything", torch.zeros(1))(5, 6)
    assert given == [(5, 6, torch.get_num_threads())]


def test_the_core_is_built():
    assert CORE is not None, "build it with `python -m pip install .`; until then no native version is tested"


def test_the_core_refuses_a_dtype_that_it_does_not_know():
    """Behind the checks in Python: an error code, nothing read."""
    assert CORE.score(0, 0, 0, [0] * 6, [1, 1, 1], [1, 1, 1], 0, -1.0, 9, 1) != 0
