"""A download in the making: the bytes so far in ``FILE.partial``, and beside it where they came from."""

import errno
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FetchError(OSError):
    """A data set could not be fetched; the message says why and what to do."""


class Partial:
    """The part of a file that has arrived.

    A later run continues it, if what the server said about the file (its entity tag or date, kept in
    ``FILE.partial.json``) or the published checksum can tell that both halves belong to one file.

    Args:
        target: the file in the making; the bytes are kept in ``target`` + ``.partial``.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".partial")
        self.record_path = target.with_name(target.name + ".partial.json")

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() and not self.path.is_symlink() else 0

    @property
    def record(self) -> dict[str, str]:
        """``address``, ``etag`` and ``last_modified`` of the bytes so far; empty if that is not known."""
        try:
            record = json.loads(self.record_path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        texts = isinstance(record, dict) and all(isinstance(value, str) for value in record.values())
        return record if texts else {}

    def validator(self, address: str) -> str | None:
        """What makes a server at ``address`` continue only the very file that was begun, for ``If-Range``."""
        record = self.record
        if record.get("address") != address:
            return None
        etag = record.get("etag", "")
        # a weak tag (W/"...") says "much the same", which is not enough to join bytes by
        return etag if etag.startswith('"') else record.get("last_modified")

    def begin(self, record: dict[str, str]) -> None:
        """Forget earlier bytes and start anew."""
        self.clear()
        with local_write(self.record_path):
            self.record_path.write_text(json.dumps(record))

    def clear(self) -> None:
        """Remove the bytes first and what is said about them last: bytes never have another file's record."""
        with local_write(self.path):
            self.path.unlink(missing_ok=True)
            self.record_path.unlink(missing_ok=True)

    def place(self) -> None:
        """Give the complete file its own name; whoever looks sees the whole file or none."""
        with local_write(self.target):
            place(self.path, self.target)
            self.record_path.unlink(missing_ok=True)

    def append(self, chunks: Iterable[bytes]) -> None:
        """Write what comes, piece by piece and unbuffered: a kill loses nothing that has arrived."""
        with local_write(self.path):
            file = self._open()
        with file:
            for chunk in chunks:  # outside local_write: an error of the network is not one of the disk
                with local_write(self.path):
                    rest = memoryview(chunk)
                    while rest:  # an unbuffered write may take only a part
                        rest = rest[file.write(rest) :]

    def _open(self) -> io.FileIO:
        return self.path.open("ab", buffering=0)


@contextmanager
def local_write(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a FetchError; no other address would help."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        advice = "; make room and run again, what has arrived is kept" if error.errno in _FULL else ""
        raise FetchError(f"cannot write {error.filename or path}: {error.strerror or error}{advice}") from error


def place(path: Path, target: Path) -> None:
    """Move a file to its own name, at once, and durably: its bytes reach the disk before its name does."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
