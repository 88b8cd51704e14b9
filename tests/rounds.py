"""Stands in for pytest-benchmark's fixture, so that benchmarks run as plain functions."""

from collections.abc import Callable
from typing import Any


class Rounds:
    """What the benchmarks use of pytest-benchmark, which need not be installed here."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, run: Callable[[], Any], setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            assert setup() is None, "pytest-benchmark would take it for arguments"
            run()
