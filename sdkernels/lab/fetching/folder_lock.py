"""One process at a time in a folder."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL = 0.1  # seconds


@contextmanager
def alone_in(folder: Path, wait_says: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process works in the folder, and keep others out.

    The kernel lets go of the lock when its holder dies, however it dies. Where files cannot be locked (not POSIX, some
    network file systems), there is no protection.

    Args:
        folder: must exist and be writable.
        wait_says: called once, if there is somebody to wait for.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / ".fetching"
    waiting = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if not waiting:
                wait_says()
                waiting = True
            time.sleep(_POLL)
            continue
        except OSError:  # this file system has no locks
            break
        if _is(path, descriptor):
            break
        os.close(descriptor)  # its holder removed it just before letting go: lock the file that others see
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that no one else can hold it
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
