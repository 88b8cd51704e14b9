"""One call at a time: tracing and hooks change what all threads of a process share, so that threads take turns."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_turn = threading.RLock()
_has_threads = False  # OpenMP's, of a call in this process
_left_behind = False  # in the process that this one was forked from


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Within the context no other thread is within it; a thread may enter it again.

    Raises:
        RuntimeError: this process was forked from one in which a call ran on several threads: they are not here, and
            OpenMP would wait for them for ever.
    """
    global _has_threads
    if torch.get_num_threads() > 1:
        if _left_behind:
            raise RuntimeError(
                "this process was forked from one that ran on several threads, which are not here, and torch is set "
                f"to {torch.get_num_threads()}: it would wait for ever; call torch.set_num_threads(1) first, or start "
                "processes by 'spawn'"
            )
        _has_threads = True
    with _turn:
        yield


def _begin_anew() -> None:
    """In a forked child: whoever had the turn is not there."""
    global _turn, _left_behind
    _turn, _left_behind = threading.RLock(), _left_behind or _has_threads


os.register_at_fork(after_in_child=_begin_anew)
