"""Fixtures of the ops' tests, and what the interpreter lane leaves out."""

from pathlib import Path

import pytest
import torch

from tests.ops.backends import CORE, INTERPRETED, backends_of, cpu_levels

# Of Triton's kernels only; other lanes have none to run.
collect_ignore = [] if INTERPRETED or torch.cuda.is_available() else ["test_triton_shares.py"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not INTERPRETED:
        return
    left_out = [
        item
        for item in items
        if item.path.is_relative_to(Path(__file__).parent)
        and ("backend" not in getattr(item, "fixturenames", ()) or item.get_closest_marker("not_interpreted"))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    for item in items:  # numpy, which computes for the interpreter, warns of what floats may do
        item.add_marker(pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and hasattr(metafunc.module, "OP"):
        metafunc.parametrize("backend", backends_of(metafunc.module.OP), ids=str, indirect=True)
    if "cpu_level" in metafunc.fixturenames:
        metafunc.parametrize("cpu_level", cpu_levels(), ids=lambda level: f"x86-64-v{level}", indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """Ops run on this backend; its ``device`` is where the tensors go."""
    monkeypatch.setenv("SDKERNELS_BACKEND", request.param.name)
    return request.param


@pytest.fixture
def native(monkeypatch):
    """Ops run in C++ on the CPU."""
    monkeypatch.setenv("SDKERNELS_BACKEND", "native")


@pytest.fixture
def cpu_level(request, native):
    """The C++ code runs at this level of x86-64."""
    assert CORE.use_cpu_level(request.param)
    yield request.param
    CORE.use_cpu_level(0)


@pytest.fixture
def far_memory(tmp_path):
    """A function ``(dtype, elements, device) -> [elements]`` of untouched memory: on the CPU a file with holes."""

    def allocate(dtype: torch.dtype, elements: int, device: str) -> torch.Tensor:
        if device == "cuda":
            if torch.cuda.mem_get_info()[0] < 1.2 * elements * dtype.itemsize:
                pytest.skip("not enough memory on this GPU")
            return torch.empty(elements, dtype=dtype, device=device)
        return torch.from_file(str(tmp_path / "far"), shared=True, size=elements, dtype=dtype)

    yield allocate
    (tmp_path / "far").unlink(missing_ok=True)
