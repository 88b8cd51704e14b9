"""A clean end on SIGTERM: work stops where a piece of it, a tile or a training's state, has just been kept.

Python ends at once on SIGTERM, and loses the piece that it was at. Importing the package changes nothing of that, nor
does calling it; within :func:`stopping_cleanly`, where the command line runs its commands, the signal is noted, and
heeded by :func:`heed`, which the engine calls between pieces.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked: list[signal.Signals] = []


class Stopped(SystemExit):
    """A signal has asked for the end, and all that was done is kept; a process ends with code 128 + the signal's.

    Attributes:
        kept: what there is, and where.
    """

    def __init__(self, by: signal.Signals, kept: str) -> None:
        super().__init__(128 + by)
        self.by, self.kept = by, kept

    def __str__(self) -> str:
        return f"stopped by {self.by.name}; {self.kept}"


def is_asked() -> bool:
    """Whether a signal has asked for the end: whoever can keep something should do so now."""
    return bool(_asked)


def heed(kept: str) -> None:
    """End the work if a signal has asked for it.

    Args:
        kept: what there is of the work, and where, in words.

    Raises:
        Stopped: one has.
    """
    if _asked:
        raise Stopped(_asked[0], kept)


@contextmanager
def stopping_cleanly(go_on: str = "run it again to go on") -> Iterator[None]:
    """Within the context the first SIGTERM lets the running piece of work end; the second one ends all at once.

    A process that is stopped so says on its standard error what is kept, and ends with code 143. Other threads than the
    main one receive no signals: there the context does nothing.

    Args:
        go_on: what to do to go on, which is said behind that.

    Example:
        >>> with stopping_cleanly("run this script again to go on"):
        ...     pass  # calls with store=, which is where they keep finished tiles
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, before = os.getpid(), signal.getsignal(signal.SIGTERM)

    def ask(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a process that was forked meanwhile, as a loader's worker
            os.kill(os.getpid(), number)
            return
        _asked.append(signal.Signals(number))
        # Not by print, in whose middle this may come.
        os.write(2, b"\nSIGTERM: ending after this piece of work; a second one ends it at once\n")

    try:
        signal.signal(signal.SIGTERM, ask)
        yield
    except Stopped as stopped:
        print(f"\n{stopped}: {go_on}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        _asked.clear()
