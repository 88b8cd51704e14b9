"""Every timed process keeps its memory; the races' tables are printed at the end and kept where ``--results`` says."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Tell glibc to give no memory back: on a virtual machine each fresh page costs a fault, and page faults are not
    what is compared. Must run before the first large allocation."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not mallopt(_M_MMAP_MAX, 0) or not mallopt(_M_TRIM_THRESHOLD, 2**31 - 1):
        raise RuntimeError("benchmarks need glibc: its allocator must be told to keep its memory")


keep_memory()

_tables: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write each race's table and times into this folder")
    parser.addoption("--tiny", action="store_true", help="toys instead of the workloads: does the benchmark work?")


@pytest.fixture
def is_tiny(request: pytest.FixtureRequest) -> bool:
    """Whether ``--tiny`` was given."""
    return request.config.getoption("--tiny")


@pytest.fixture
def report(request: pytest.FixtureRequest):
    """Print a race at the end of the session, and keep it under a name if ``--results`` is given."""

    def keep(race, name: str) -> None:
        _tables.append(race.table())
        if folder := request.config.getoption("--results"):
            race.write(folder, name)

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for table in _tables:
        terminalreporter.write_line(f"\n{table}\n")
