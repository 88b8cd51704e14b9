"""Archives of which two files are wanted."""

import gzip
import io
import random
import tarfile
import zipfile
import zlib
from pathlib import Path

from sdkernels.lab.fetching.archives import extract
from tests.fuzz.readers.mutations import changed_bytes
from tests.fuzz.readers.reader import Reader

_LIMIT = 1 << 20
_WANTED = {"set/a.txt": "a.txt", "set/b.txt": "b.txt"}
_NAMES = (
    "set/a.txt",
    "./set/b.txt",
    "../out",
    "/tmp/out",
    "set/../../out",
    "set/a.txt/",
    "C:\\out",
    "set\\a.txt",
    "x\x00y",
)


def _read(path: Path) -> None:
    targets = {name: path.parent / file for name, file in _WANTED.items()}
    sizes = {}
    before = {each.name for each in path.parent.iterdir()}
    try:
        extract(path, targets, limit=_LIMIT, wrong=lambda name, file: sizes.update({name: file.stat().st_size}))
    except OSError:
        assert {each.name for each in path.parent.iterdir()} == before, "a refused archive left files"
        raise
    assert {each.name for each in path.parent.iterdir()} == before | {*_WANTED.values()}
    for name, target in targets.items():
        assert target.is_file()
        assert not target.is_symlink()
        assert target.stat().st_size == sizes[name] <= _LIMIT


def _tar_seeds() -> list[bytes]:
    def made(kind: int, *more: tarfile.TarInfo) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for name in (*_WANTED, "set/other"):
                info = tarfile.TarInfo(name)
                info.size = 5
                tar.addfile(info, io.BytesIO(name[-5:].encode()))
            for info in more:
                tar.addfile(info)
        return gzip.compress(file.getvalue(), mtime=0)

    link = tarfile.TarInfo("set/a.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "../../out"
    return [made(tarfile.USTAR_FORMAT), made(tarfile.PAX_FORMAT), made(tarfile.GNU_FORMAT, link)]


def _change_tar(content: bytes, draw: random.Random) -> bytes:
    """A member's header, with its checksum, behind gzip's."""
    try:
        blocks = zlib.decompressobj(31).decompress(content, _LIMIT)
    except zlib.error:
        return changed_bytes(content, draw)
    if len(blocks) < 1024 or draw.random() < 0.2:
        return gzip.compress(changed_bytes(blocks, draw), mtime=0)
    at = 512 * draw.randrange(len(blocks) // 512)
    header = bytearray(blocks[at : at + 512])
    match draw.randrange(4):
        case 0:
            header[:100] = draw.choice(_NAMES).encode().ljust(100, b"\0")
        case 1:
            header[156:157] = draw.choice(
                (b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"V")
            )
        case 2:
            header[124:136] = draw.choice(
                (b"00000000000\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000005\0")
            )
        case _:
            header = bytearray(changed_bytes(bytes(header), draw)[:512].ljust(512, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(blocks[:at] + bytes(header) + blocks[at + 512 :], mtime=0)


def _zip_seeds() -> list[bytes]:
    def made(way: int) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", way) as archive:
            for name in (*_WANTED, "set/other", "folder/"):
                archive.writestr(zipfile.ZipInfo(name), name * 20)
        return file.getvalue()

    return [made(zipfile.ZIP_STORED), made(zipfile.ZIP_DEFLATED)]


def _change_zip(content: bytes, draw: random.Random) -> bytes:
    """The same members in another archive, one of them changed."""
    file = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
            members = [(info.filename, old.read(info)[:_LIMIT]) for info in old.infolist()]
            at = draw.randrange(len(members))
            for place, (name, data) in enumerate(members):
                info = zipfile.ZipInfo(draw.choice(_NAMES) if place == at and draw.random() < 0.4 else name)
                info.compress_type = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
                if place == at:
                    info.external_attr = draw.choice((0o120777, 0o020666, 0o100644, 0o040755, 0)) << 16
                new.writestr(info, bytes(2 * _LIMIT) if place == at and draw.random() < 0.1 else data)
    except Exception:  # a damaged archive may raise anything
        return changed_bytes(content, draw)
    return file.getvalue()


TAR = Reader("archives_tar", "set.tar.gz", _tar_seeds, _read, _change_tar)
ZIP = Reader("archives_zip", "set.zip", _zip_seeds, _read, _change_zip)
