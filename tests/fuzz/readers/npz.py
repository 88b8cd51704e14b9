"""NumPy's ``.npz`` archives, taken apart and put together again with something changed."""

import io
import json
import random
import zipfile
from collections.abc import Callable

import numpy as np

from tests.fuzz.readers.mutations import changed_bytes, changed_value

_DTYPES = ("<f8", "<i8", "<f4", "|u1", "|b1", "|O", "<c16", "<U3", "|S3", "<M8[s]", ">f8", "|V8", "<f2")
_SHAPES = ((), (0,), (1,), (2, 2), (2**40,), (2**20, 2**20), (-1,), (2**62, 4), (1,) * 40)


def changed_npz(content: bytes, draw: random.Random) -> bytes:
    """One of its arrays with other numbers, another type or shape, another name; or its header with another entry."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {info.filename: file.read(info)[: 1 << 20] for info in file.infolist()}
    except Exception:  # a damaged archive may raise anything
        return changed_bytes(content, draw)
    if not members:
        return changed_bytes(content, draw)
    header = "header.npy" if draw.random() < 0.4 else draw.choice(sorted(members))
    at = header if header in members else draw.choice(sorted(members))
    match draw.randrange(6):
        case 0:
            del members[at]
        case 1:
            members[draw.choice((at + "x", "x.npy", "sums/x.npy", "../x.npy", "x"))] = members[at]
        case 2:
            members[at] = members[draw.choice(sorted(members))]
        case 3:
            members[at] = changed_bytes(members[at], draw)
        case _:
            members[at] = _changed_array(members[at], draw)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        for name, member in members.items():
            made.writestr(zipfile.ZipInfo(name), member)
    return file.getvalue()


def _changed_array(member: bytes, draw: random.Random) -> bytes:
    try:
        array = np.load(io.BytesIO(member), allow_pickle=False)
    except Exception:  # a damaged array may raise anything
        return changed_bytes(member, draw)
    if array.dtype.kind == "U" and not array.shape:
        return _of(lambda: np.array(_changed_text(str(array), draw)), member)
    match draw.randrange(5):
        case 0:  # claims a shape or type and holds something else
            file = io.BytesIO()
            claim = {"descr": draw.choice(_DTYPES), "fortran_order": draw.random() < 0.5, "shape": draw.choice(_SHAPES)}
            np.lib.format.write_array_header_1_0(file, claim)
            return file.getvalue() + array.tobytes()
        case 1:
            return _of(lambda: array.astype(draw.choice(("f8", "i8", "f4", "u1", "?", "c16", "U3", ">f8"))), member)
        case 2:
            return _of(lambda: np.resize(array, draw.choice(((), (0,), (1,), (3,), (2, 3), (1, 2, 3)))), member)
        case 3:
            return _of(lambda: array[..., :-1] if array.ndim else array[None], member)
        case _:
            return _of(lambda: np.full_like(array, draw.choice((0, 1, -1, 2**40, np.nan, np.inf))), member)


def _changed_text(text: str, draw: random.Random) -> str:
    try:
        return json.dumps(changed_value(json.loads(text), draw)) if draw.random() < 0.95 else "[" * 100_000
    except (ValueError, RecursionError):
        return changed_bytes(text.encode(errors="replace"), draw).decode(errors="replace")


def _of(make: Callable[[], np.ndarray], otherwise: bytes) -> bytes:
    file = io.BytesIO()
    try:
        with np.errstate(all="ignore"):
            np.save(file, make(), allow_pickle=False)
    except (ValueError, TypeError, OverflowError):
        return otherwise
    return file.getvalue()
