"""The IDX file format of MNIST and its relatives."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdkernels.lab.readers.places import find_folder, read_whole

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08  # the only element type that these data sets use
_DEFLATED = 1032  # bytes at most that one byte of a gzip stream may stand for


def read_idx_split(data_dir: Path, split: str, *, folder: str, classes: int, hint: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of a split from files that are named as MNIST's are.

    Args:
        data_dir: holds the files, or a folder ``folder`` with them.
        split: ``"train"`` or ``"test"``.
        folder: the folder's name.
        classes: labels are below.
        hint: where to get the files; ends every error.

    Returns:
        uint8 ``[N, H, W]`` and uint8 ``[N]``.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a damaged file, files of different sets, no image, a label out of range.
    """
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    place = find_folder(data_dir, (folder, ""), [name + end for name in names for end in ("", ".gz")], hint)
    image_file, label_file = (_plain_or_gzipped(place / name) for name in names)
    images, labels = read_idx(image_file, 3, hint), read_idx(label_file, 1, hint)
    if len(images) != len(labels):
        raise ValueError(
            f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels: they belong to different "
            f"sets. {hint}"
        )
    if len(images) == 0:
        raise ValueError(f"{image_file} holds no image. {hint}")
    if labels.max() >= classes:
        raise ValueError(f"{label_file} holds a label {int(labels.max())}; classes are 0..{classes - 1}. {hint}")
    return images, labels


def read_idx(path: Path, dimensions: int, hint: str) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each size as a big-endian
    32-bit integer, then the elements, last dimension fastest.

    Args:
        path: the file.
        dimensions: how many it must have: 3 for images ``[N, H, W]``, 1 for labels ``[N]``.
        hint: where to get the file; ends every error.

    Returns:
        uint8, ``dimensions``-dimensional.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated or corrupt gzip, a wrong magic number, more or fewer bytes than the header says.
    """
    raw = read_whole(path, hint)
    is_zipped = raw[:2] == _GZIP_MAGIC
    file = gzip.GzipFile(fileobj=io.BytesIO(raw)) if is_zipped else io.BytesIO(raw)
    try:
        shape = _shape(path, file.read(4 + 4 * dimensions), dimensions, hint)
        size, room = math.prod(shape), len(raw) * (_DEFLATED if is_zipped else 1)
        # No more than the header says, and nothing where it says what cannot be: a small file may unpack to gigabytes.
        pixels = file.read(size + 1) if size <= room else file.read(0)
    except EOFError as error:
        raise ValueError(f"{path} is truncated: its gzip stream ends early. {hint}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is corrupt: {error}. {hint}") from error
    if len(pixels) != size:
        there = len(pixels) if size <= room or is_zipped else len(raw) - 4 - 4 * dimensions
        raise ValueError(f"{path} holds {there} bytes where its header says {shape}, {size} bytes. {hint}")
    return torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(shape).copy())


def _shape(path: Path, header: bytes, dimensions: int, hint: str) -> list[int]:
    magic = bytes((0, 0, _UINT8, dimensions))
    if header[:4] != magic:
        raise ValueError(
            f"{path} is no IDX file of {dimensions}-dimensional bytes: it starts with 0x{header[:4].hex()}, not "
            f"0x{magic.hex()}. Are image and label files mixed up? {hint}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise ValueError(f"{path} is truncated within its header. {hint}")
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    if math.prod(max(1, size) for size in shape) >= 2**63:  # with a 0 among them it would be no bytes, and no array
        raise ValueError(f"{path} says that it holds {shape}, which nothing can. {hint}")
    return shape


def _plain_or_gzipped(path: Path) -> Path:
    """The plain file if it is there, else the gzipped one (which an error then names)."""
    return path if path.is_file() else path.with_name(path.name + ".gz")
