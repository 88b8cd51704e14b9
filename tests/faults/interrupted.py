"""Ctrl-C at a chosen moment: before the n-th line that a call runs in the package."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from inspect import CO_GENERATOR
from pathlib import Path
from types import FrameType
from typing import Any

import sdkernels

_ROOT = str(Path(sdkernels.__file__).parent)


def lines_of(do: Callable[[], Any]) -> list[tuple[str, int]]:
    """The lines of the package that it runs, in order: file and number."""
    seen: list[tuple[str, int]] = []
    _trace(do, lambda file, line: seen.append((file, line)))
    return seen


def interrupt(do: Callable[[], Any], at: int) -> Any:
    """What it gives if it has no line so far; else it is interrupted there.

    Raises:
        KeyboardInterrupt: wherever it was.
    """
    count = 0

    def see(_file: str, _line: int) -> None:
        nonlocal count
        count += 1
        if count == at + 1:
            raise KeyboardInterrupt

    return _trace(do, see)


def _trace(do: Callable[[], Any], see: Callable[[str, int], None]) -> Any:
    ends: dict[int, set[int]] = {}  # by frame, the lines of with statements that it has been at

    def local(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            file, line = frame.f_code.co_filename, frame.f_lineno
            if line in _withs(file):  # at a block's end Python is at its first line again, where it heeds no signal
                been = ends.setdefault(id(frame), set())
                if line in been:
                    return local
                been.add(line)
            see(file[len(_ROOT) + 1 :], line)
        elif event == "return" and not frame.f_code.co_flags & CO_GENERATOR:
            ends.pop(id(frame), None)
        return local

    def start(frame: FrameType, _event: str, _argument: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(_ROOT) else None

    before = sys.gettrace()
    sys.settrace(start)
    try:
        return do()
    finally:
        sys.settrace(before)


@cache
def _withs(file: str) -> frozenset[int]:
    """The lines on which with statements begin, and their parts stand."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            found.update(range(node.lineno, node.body[0].lineno))
    return frozenset(found)
