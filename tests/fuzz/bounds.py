"""How long anything that is tried may take, and how much memory."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 30
ROOM = 4 * 2**30  # bytes that a call may take


@contextmanager
def within_bounds() -> Iterator[None]:
    """No hang, and no more memory than there is room."""

    def late(*_arguments: Any) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
