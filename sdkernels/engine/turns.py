"""One call at a time: tracing and hooks change what all threads of a process share, so that threads take turns."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Within the context no other thread is within it; a thread may enter it again."""
    with _turn:
        yield


def _begin_anew() -> None:
    """In a forked child: whoever had the turn is not there."""
    global _turn
    _turn = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew)
