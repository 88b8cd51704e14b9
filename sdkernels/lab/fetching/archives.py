"""Take the expected files, and nothing else, out of a tar or zip archive that may be hostile."""

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from sdkernels.lab.fetching.partial import FetchError, local_write, place

_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20  # tarfile reads a header whole; nobody's file name has a megabyte
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


def extract(
    archive: Path,
    members: Mapping[str, Path],
    *,
    limit: int,
    wrong: Callable[[str, Path], str | None] = lambda path, unpacked: None,
) -> None:
    """Extract members of a ``.tar.gz``, ``.tgz`` or ``.zip`` archive, all or none.

    Nothing is written but the given targets, whatever paths the archive holds: a member is taken only if its path is
    an expected one, letter for letter (a leading ``./`` aside), and only if it is a regular file that is there once.
    Bytes are counted as they are unpacked, not as the archive says.

    Args:
        archive: by its suffix a zip or a gzipped tar.
        members: path in the archive to the file to be written; folders of the targets must exist.
        limit: bytes that the archive may unpack to, all members together, wanted or not.
        wrong: called with a member's path in the archive and its unpacked bytes' file; says what is wrong with it.

    Raises:
        FetchError: a damaged archive; a member missing, there twice, wrong, or no regular file; more than ``limit``
            bytes; a target that cannot be written. No target has been touched then.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with zipfile.ZipFile(folder / "a.zip", "w") as made:
        ...     made.writestr("set/train.txt", "one two")
        >>> extract(folder / "a.zip", {"set/train.txt": folder / "train.txt"}, limit=1000)
        >>> (folder / "train.txt").read_text()
        'one two'
    """
    unpack = _from_zip if archive.suffix == ".zip" else _from_tar
    unpacked = {target: target.with_name(target.name + ".unpacking") for target in members.values()}
    taken: set[str] = set()

    def take(path: str, regular: bool, source: Callable[[], IO[bytes] | None]) -> None:
        path = path.removeprefix("./")
        if path not in members:
            return
        if path in taken:
            raise FetchError(f"{archive.name} holds {path} twice")
        file = source() if regular else None
        if file is None:
            raise FetchError(f"{archive.name}: {path} is a link or a device, not a file")
        taken.add(path)
        _copy(file, unpacked[members[path]])

    try:
        try:
            unpack(archive, take, limit)
        except _DAMAGED as error:
            raise FetchError(f"{archive.name} is damaged: {error}") from error
        except (ValueError, IndexError, struct.error, RecursionError) as error:  # zipfile's, of a damaged directory
            raise FetchError(f"{archive.name} is damaged: {type(error).__name__}: {error}") from error
        except OSError as error:  # gzip's BadGzipFile is one too
            if isinstance(error, FetchError):
                raise
            raise FetchError(f"{archive.name} is damaged or cannot be read: {error}") from error
        if missing := members.keys() - taken:
            raise FetchError(f"{archive.name} lacks {', '.join(sorted(missing))}")
        for path, target in members.items():
            if why := wrong(path, unpacked[target]):
                raise FetchError(f"{archive.name}: {path} is not the published file: {why}")
        for target, temporary in unpacked.items():
            with local_write(target):
                place(temporary, target)
    finally:
        for temporary in unpacked.values():
            with local_write(temporary):
                temporary.unlink(missing_ok=True)


_Take = Callable[[str, bool, Callable[[], IO[bytes] | None]], None]


def _from_tar(archive: Path, take: _Take, limit: int) -> None:
    with gzip.open(archive) as unzipped:
        counted = _Counted(unzipped, archive.name, limit)
        with tarfile.open(fileobj=counted, mode="r:") as tar:
            for member in tar:
                take(member.name, member.isreg() and not member.issparse(), partial(tar.extractfile, member))
        while counted.read(_CHUNK):
            pass  # to the end: gzip compares its checksum there


def _from_zip(archive: Path, take: _Take, limit: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        # zipfile never unpacks more of a member than the directory says, so that the sum is a bound
        if sum(member.file_size for member in members) > limit:
            raise FetchError(f"{archive.name} unpacks to more than {limit:,} bytes")
        for member in members:
            mode = member.external_attr >> 16
            encrypted = bool(member.flag_bits & 1)
            regular = not member.is_dir() and not encrypted and (stat.S_IFMT(mode) == 0 or stat.S_ISREG(mode))
            take(member.filename, regular, partial(opened.open, member))


def _copy(source: IO[bytes], path: Path) -> None:
    """Write all of a member; errors of reading and of writing are told apart."""
    with local_write(path):
        path.unlink(missing_ok=True)  # a link of that name would be written through
        target = path.open("xb")
    with source, target:
        while chunk := source.read(_CHUNK):
            with local_write(path):
                target.write(chunk)
                target.flush()


class _Counted(io.RawIOBase):
    """What is unpacked, with an end to it: a bomb is given up at ``limit`` bytes."""

    def __init__(self, source: gzip.GzipFile, name: str, limit: int) -> None:
        self._source, self._name, self._limit = source, name, limit

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= max(_CHUNK, _LONGEST_HEADER):
            raise FetchError(f"{self._name} has a header beyond all measure")
        data = self._source.read(size)
        self._check()
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or not 0 <= offset <= self._limit:
            raise FetchError(f"{self._name} unpacks to more than {self._limit:,} bytes")
        return self._source.seek(offset)

    def tell(self) -> int:
        return self._source.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check(self) -> None:
        if self._source.tell() > self._limit:
            raise FetchError(f"{self._name} unpacks to more than {self._limit:,} bytes")
