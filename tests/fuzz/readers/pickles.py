"""Pickles of plain data, changed instruction by instruction."""

import pickle
import pickletools
import random
from pathlib import Path
from typing import Any

import numpy as np

from sdkernels.lab.readers.safe_pickle import load_plain
from tests.fuzz.readers.mutations import changed_bytes
from tests.fuzz.readers.reader import Reader

_DEEP = 100_000
_DOUBLED = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))  # each a pair of the one before
_HARMFUL = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"),
    *(b"\x8c\x02os\x8c\x06system\x93", b"(S'id'\nios\nsystem\n", b"c_codecs\nencode\n", b"cbuiltins\nbytes\n"),
    *(b"(", b"0", b"1", b"2", b".", b"R", b"b", b"o", b"\x81", b"\x92", b"s", b"u", b"a", b"e", b"d", b"l", b"t", b")"),
    *(b"}", b"]", b"\x85", b"\x86", b"\x87", b"\x94", b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"j\xff\xff\xff\x7f"),
    *(b"r\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8, b"\x8e" + b"\xff" * 7 + b"\x7f", b"B\xff\xff\xff\x7f", b"\x8f"),
    *(b"P1\n", b"Q", b"\x82\x01", b"I99999999999\n", b"L1L\n", b"\x8a\xff" + b"\x7f" * 255, b"N", b"\x88", b"K\x01"),
    *(b")" + b"\x85" * _DEEP, b"]" * 50 + b"a" * 49, b")q\x00" + _DOUBLED, b"U\x01b", b"S'abc'\n"),
)


def changed_pickle(content: bytes, draw: random.Random) -> bytes:
    """An instruction out, twice, in another's place, or a harmful one put in."""
    parts = _instructions(content)
    if len(parts) < 2:
        return changed_bytes(content, draw)
    at = draw.randrange(len(parts))
    match draw.randrange(5):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, draw.choice(parts))
        case 2:
            parts[at] = draw.choice(parts)
        case 3:
            parts.insert(at, draw.choice(_HARMFUL))
        case _:
            parts[at] = changed_bytes(parts[at], draw)
    return b"".join(parts)


def _instructions(content: bytes) -> list[bytes]:
    places = []
    try:
        places = [place for _, _, place in pickletools.genops(content)]
    except Exception:  # up to where it is damaged
        return [content]
    return [content[a:b] for a, b in zip(places, [*places[1:], len(content)], strict=True)]


def _seeds() -> list[bytes]:
    plain = {
        "a": [1, -(2**40), True, None, "é", b"\x00\xff"],
        b"b": {"c": []},
        3: np.arange(6, dtype=">i2").reshape(2, 3),
    }
    return [pickle.dumps(plain, protocol) for protocol in range(5)]


def _read(path: Path) -> None:
    found = load_plain(path, "Get it")
    assert _is_plain(found), "it gave more than plain data"
    again = path.with_name("again")
    again.write_bytes(pickle.dumps(found, 4))
    assert _same(load_plain(again, ""), found)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | dict):
        keys = value.keys() if isinstance(value, dict) else ()
        items = value.values() if isinstance(value, dict) else value
        return type(value) in (list, dict) and all(map(_is_plain, keys)) and all(map(_is_plain, items))
    if type(value) is np.ndarray:
        return value.dtype.kind in "iuf"
    return value is None or type(value) in (bool, int, str, bytes)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


READER = Reader("pickles", "batch", _seeds, _read, changed_pickle)
