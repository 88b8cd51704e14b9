"""Images in a folder a class."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from sdkernels.lab.readers.image_folder import ImageFolder
from tests.fuzz.readers.mutations import changed_bytes
from tests.fuzz.readers.reader import Reader

_PNG = b"\x89PNG\r\n\x1a\n"
_SIZES = (0, 1, 2, 15, 40, 10_000, 2**20, 2**27, 2**31 - 1, 2**31, 2**32 - 1)


def _seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 26, 3), np.uint8)
    made = []
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P")):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, kind)
        made.append(file.getvalue())
    for kind in ("TIFF", "BMP", "EPS"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        made.append(file.getvalue())
    return made


def _read(path: Path) -> None:
    folder = path.parent / "set" / "cat"
    folder.mkdir(parents=True)
    (folder / path.name).write_bytes(path.read_bytes())
    for options, side in (({"resize": 16, "crop": 14}, 14), ({"resize": None, "crop": 20}, 20)):
        image, label = ImageFolder(folder.parent, pixels="bytes", **options)[0]
        assert image.shape == (3, side, side)
        assert label == 0


def _change(content: bytes, draw: random.Random) -> bytes:
    """A PNG's chunks, with their checksums."""
    chunks = _chunks(content)
    if not chunks:
        return changed_bytes(content, draw)
    at = draw.randrange(len(chunks))
    kind, body = chunks[at]
    match draw.randrange(6):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(at, draw.choice(chunks))
        case 2 | 3 if kind == b"IHDR" and len(body) == 13:
            sizes = [draw.choice((*_SIZES, *struct.unpack(">II", body[:8]))) for _ in range(2)]
            chunks[at] = (kind, struct.pack(">II", *sizes) + body[8:])
        case 2:
            chunks.insert(at, (draw.choice((b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"acTL", b"PLTE")), draw.randbytes(20)))
        case 3 if kind == b"IDAT":
            chunks[at] = (kind, zlib.compress(bytes(draw.choice((0, 1, 10**4, 10**7)))))
        case _:
            chunks[at] = (kind, changed_bytes(body, draw))
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(_PNG)
    while content.startswith(_PNG) and at + 12 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


READER = Reader("images", "1.jpg", _seeds, _read, _change)
