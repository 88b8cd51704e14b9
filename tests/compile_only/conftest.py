"""One table of what the compiled GPU kernels need, printed when the tests end."""

from dataclasses import dataclass, field
from typing import Any

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """These tests need Triton and nvcc; who does not ask for them need not have them."""
    return True if "not compile" in config.option.markexpr else None


COLUMNS = ("source", "kernel", "variant", "arch", "registers", "shared", "stack", "spills")


@dataclass
class Resources:
    """What each compiled kernel needs of a multiprocessor: registers a thread, the others in bytes."""

    rows: list[tuple[str | int, ...]] = field(default_factory=list)

    def add(
        self,
        *,
        source: str,
        kernel: str,
        variant: str,
        arch: str,
        registers: int,
        shared: int,
        stack: int,
        spills: int,
    ) -> None:
        """Note one kernel."""
        self.rows.append((source, kernel, variant, arch, registers, shared, stack, spills))

    def table(self) -> str:
        """All of them in Markdown, the neediest first."""
        rows = sorted(self.rows, key=lambda row: (row[0], -int(row[4]), row[1:]))
        return "\n".join(
            [
                f"| {' | '.join(COLUMNS)} |",
                f"|{' --- |' * len(COLUMNS)}",
                *(f"| {' | '.join(map(str, row))} |" for row in rows),
            ]
        )


_RESOURCES = Resources()


@pytest.fixture(scope="session")
def resources() -> Resources:
    """Where tests note what a compiled kernel needs."""
    return _RESOURCES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _RESOURCES.rows:
        terminalreporter.section("resources of the compiled kernels")
        terminalreporter.write_line(_RESOURCES.table())
