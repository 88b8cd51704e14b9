"""Arrays as NumPy's ``.npz`` holds them, with no pickle; read in no more memory than the file can fill."""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

_DEFLATED = 1032  # bytes at most that one compressed byte may stand for


def write_arrays(file: IO[bytes], arrays: Mapping[str, np.ndarray[Any, Any]], *, compressed: bool = False) -> None:
    """Write numbers and texts by name, which need no pickle; NumPy 2.0 would take ``allow_pickle=`` for one of them."""
    write: Any = np.savez_compressed if compressed else np.savez
    write(file, **arrays)


def read_arrays(file: IO[bytes]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an ``.npz``; none is made before the file was seen to be large enough to hold it.

    Raises:
        ValueError: something else, or an array that the file cannot hold. Of a damaged file, zipfile's own errors too.
    """
    length = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        is_deflated = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        # zipfile never unpacks more of a member than the directory says, so that the sum is a bound
        if (size := sum(member.file_size for member in members)) > length * (_DEFLATED if is_deflated else 1):
            raise ValueError(f"its arrays would be {size} bytes, and cannot: it is {length} bytes long")
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(member) as content:
        is_first = np.lib.format.read_magic(content) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(content)
        held = member.file_size - content.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{member.filename[:100]} is {dtype} {list(shape)[:10]} in {held} bytes")
    with archive.open(member) as content:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(content, allow_pickle=False)
    return array
