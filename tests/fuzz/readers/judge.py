"""What must hold of any file: right data, or an error of the announced kinds that names it, within bounds."""

import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fuzz.readers.reader import Reader

SECONDS = 10.0
ROOM = 4 << 30  # bytes of memory, addresses that are only set aside among them
REFUSALS = (ValueError, TypeError, OSError)
LONGEST = 5000  # characters of a message
WARNINGS = 3

_RUNS_CODE = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
_REACHES_OUT = ("socket.connect", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen")
_CHANGES_FILES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")


class Breach(Exception):  # noqa: N818 - a finding, not an error of the harness
    """A file did what no file may do.

    Attributes:
        what: is the same for files that do the same.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what


class _TooLong(BaseException):
    pass


def judge(reader: Reader, content: bytes, folder: Path) -> bool:
    """Let the reader read a file of this content in an empty folder; whether it took it for right.

    Raises:
        Breach: it hung, took too much memory, raised something else, named no file, warned too often, ran code, or gave
            wrong data.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / reader.file
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as warned, _within_bounds(), _watched(folder) as seen:
        warnings.simplefilter("always")
        try:
            reader.read(path)
            refused = None
        except REFUSALS as error:
            refused = error
        except _TooLong:
            raise Breach("hang", f"more than {SECONDS} s") from None
        except Exception as error:
            raise Breach(f"{type(error).__name__} at {_place(error)}", f"{error!r}"[:1000]) from error
    if seen:
        raise Breach(f"reaches out by {seen[0].split(' ')[0]}", ", ".join(seen[:3]))
    if len(warned) > WARNINGS:
        raise Breach("warnings", f"{len(warned)} of them, as {warned[0].message}")
    if refused is None:
        return True
    if reader.silent:
        raise Breach(f"no silence at {_place(refused)}", repr(refused)) from refused
    message = str(refused)
    if path.name not in message and str(folder) not in message:
        raise Breach(f"nameless {type(refused).__name__} at {_place(refused)}", message[:1000]) from refused
    if len(message) > LONGEST:
        raise Breach(f"long message at {_place(refused)}", f"{len(message)} characters: {message[:300]}") from refused
    return False


def _place(error: BaseException) -> str:
    """The last line of the package, or else of the harness, that the error came through."""
    place, at = "?", error.__traceback__
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if "/sdkernels/" in name or "/fuzz/readers/" in name:
            place = f"{Path(name).stem}.{at.tb_frame.f_code.co_name}:{at.tb_lineno}"
        at = at.tb_next
    return place


@contextmanager
def _within_bounds() -> Iterator[None]:
    def late(*_arguments: Any) -> None:
        raise _TooLong

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


_inside: list[tuple[str, list[str]]] = []  # the folder that may be written to, and what was done beside it


@contextmanager
def _watched(folder: Path) -> Iterator[list[str]]:
    """Hear of code that is run from a file, and of files that are written outside of the folder."""
    seen: list[str] = []
    if not _hooked:
        sys.addaudithook(_hear)  # stays for good
        _hooked.append(True)
    _inside.append((os.path.realpath(folder), seen))
    try:
        yield seen
    finally:
        _inside.pop()


_hooked: list[bool] = []
_TEMPORARY = os.path.realpath(os.environ.get("TMPDIR", "/tmp"))


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    folder, seen = _inside[-1]
    if event in _RUNS_CODE or event in _REACHES_OUT:
        seen.append(f"{event} {arguments}"[:200])
    within = event != "open" and arguments[-1] not in (None, -1)  # a folder that is open already
    writes = event in _CHANGES_FILES or (event == "open" and _is_written(arguments))
    if writes and not within and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((folder, f"{_TEMPORARY}/tmp", "/dev/")) and not path.endswith((".pyc", "__pycache__")):
            seen.append(f"{event} {path}"[:200])


def _is_written(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
