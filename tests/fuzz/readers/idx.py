"""MNIST's files: sizes in a header, gzipped or not."""

import gzip
import random
import struct
from pathlib import Path

from sdkernels.lab.readers.idx import read_idx
from tests.fuzz.readers.mutations import changed_bytes
from tests.fuzz.readers.reader import Reader


def _seeds() -> list[bytes]:
    images = struct.pack(">4B3I", 0, 0, 8, 3, 4, 3, 2) + bytes(range(24))
    return [images, gzip.compress(images, mtime=0), struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28)]


def _read(path: Path) -> None:
    images = read_idx(path, 3, "Get it")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    written = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.numpy().tobytes()
    assert written == raw, "what was read is not what the file holds"


def _change(content: bytes, draw: random.Random) -> bytes:
    """Behind gzip's checksum; sizes alone."""
    if content[:2] == b"\x1f\x8b":
        try:
            return gzip.compress(_change(gzip.decompress(content), draw), mtime=0)
        except (OSError, EOFError, gzip.zlib.error):
            return changed_bytes(content, draw)
    if draw.random() < 0.1:
        return gzip.compress(content, mtime=0)
    size, at = draw.choice((0, 1, 2, 24, 2**16, 2**31, 2**32 - 1)), draw.randrange(3)
    return content[: 4 + 4 * at] + struct.pack(">I", size) + content[8 + 4 * at :]


READER = Reader("idx", "train-images-idx3-ubyte", _seeds, _read, _change)
