"""Changes of bytes and of JSON's values, by a generator alone."""

import copy
import json
import random
from typing import Any

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_LONGEST = 1 << 16
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**40, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.5, 1e300),
    *(float("nan"), float("inf"), "", "a", "0", "..", "../x", "/x", "a\x00b", "\ud800", "x" * 3000, "<b>", "$a$b$"),
    *([], {}, [[]], [None], ["a"], [0], [1, 2], {"a": 1}, {"": None}, {"a": {"b": []}}),
)


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """Some bytes set, put in, taken out, doubled or cut off."""
    at = draw.randrange(len(content) + 1)
    length = min(len(content) - at, draw.choice((1, 1, 2, 4, 8, 64, 1024)))
    rest = content[at + length :]
    match draw.randrange(7):
        case 0:
            return content[:at] + draw.randbytes(length) + rest
        case 1:
            return content[:at] + rest
        case 2:
            return content[:at] + draw.randbytes(draw.choice((1, 2, 8, 100))) + content[at:]
        case 3:
            return content[:at]
        case 4:
            return (content[: at + length] + content[at:])[:_LONGEST] if len(content) < _LONGEST else content[:at]
        case 5 if length:
            return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
        case _:
            size = draw.choice((1, 2, 4, 8))
            number = (draw.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(size, draw.choice(("big", "little")))
            return content[:at] + number + content[at + size :]


def changed_value(value: Any, draw: random.Random) -> Any:
    """JSON's value with one thing in it changed: another value, another name, one less, one twice."""
    changed = copy.deepcopy(value)
    places = list(_places(changed))
    if not places:
        return copy.deepcopy(draw.choice(VALUES))
    holder, key = draw.choice(places)
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(draw.choice(VALUES))[:100]] = holder.pop(key)
        case 1:
            holder.append(copy.deepcopy(holder[key]))
        case 2:
            other, place = draw.choice(places)
            holder[key] = copy.deepcopy(other[place])
        case 3 if type(holder[key]) in (int, float):
            holder[key] = draw.choice((holder[key] + 1, -holder[key], holder[key] * 2**40 % 2**64))
        case 3 if isinstance(holder[key], str):
            holder[key] = changed_bytes(holder[key].encode(errors="replace"), draw).decode(errors="replace")
        case _:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return changed


def changed_json(content: bytes, draw: random.Random) -> bytes:
    """The same of a file; now and then what nests too deep."""
    if draw.random() < 0.02:
        return b'{"a":' * 100_000
    try:
        return json.dumps(changed_value(json.loads(content), draw)).encode()
    except (ValueError, RecursionError):
        return changed_bytes(content, draw)


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
