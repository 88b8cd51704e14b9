"""The IDX file format of MNIST and its relatives."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08  # the only element type that these data sets use


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
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {hint}")
    raw = path.read_bytes()
    if raw[:2] == _GZIP_MAGIC:
        try:
            raw = gzip.decompress(raw)
        except EOFError as error:
            raise ValueError(f"{path} is truncated: its gzip stream ends early. Get it again: {hint}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is corrupt: {error}. Get it again: {hint}") from error
    magic = bytes((0, 0, _UINT8, dimensions))
    header = 4 + 4 * dimensions
    if raw[:4] != magic:
        raise ValueError(
            f"{path} is no IDX file of {dimensions}-dimensional bytes: it starts with 0x{raw[:4].hex()}, not "
            f"0x{magic.hex()}. Are image and label files mixed up? Else get it again: {hint}"
        )
    if len(raw) < header:
        raise ValueError(f"{path} is truncated within its header. Get it again: {hint}")
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - header} bytes where its header says {shape}, {math.prod(shape)} bytes. "
            f"Get it again: {hint}"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
