"""Sweeps in TOML."""

import random
from pathlib import Path

from sdkernels.lab.sweep.spec import read_sweep
from tests.fuzz.readers.mutations import changed_bytes
from tests.fuzz.readers.reader import Reader

_SWEEP = b"""name = "depth"
checkpoint_seconds = 5.0
together = 2
[network]
data = "digits"
model = "mlp"
examples = 200
hidden = [16, 16]
corruption = 0.5
[training]
epochs = 2
learning_rate = 0.01
batch_size = 64
[grid]
seed = [0, 1, 2]
until = [1, 2]
[[measure]]
name = "ablation"
function = "cumulative_ablation"
layers = ["hidden1", "hidden2"]
on = "test"
orders = 2
points = 5
"""
_TEXT = b"""[network]
data = "digits_tokens"
model = "lstm"
hidden = 8
embedding = 8
[training]
steps = 3
schedule = "step"
milestones = [1, 2]
[[measure]]
name = "units"
function = "unit_statistics"
layers = ["lstm1"]
"""
_VALUES = (
    *(b"0", b"-1", b"1", b"2.5", b"nan", b"inf", b"1e400", b"9223372036854775808", b"true", b'""', b'"a"', b'".."'),
    *(b'"../x"', b'"/x"', b'"C:\\\\x"', b'"a\\u0000b"', b'"CON"', b"[]", b"{}", b"[[]]", b"[1, 2, 3]", b"[1.5]"),
    *(b'["a"]', b"2020-01-01", b"07:32:00", b"{a = {b = 1}}", b'"<script>"', b"[0, 0]", b"[true]", b"10000000000000"),
    *(b"[" + b"1, " * 500 + b"1]", b"[" * 2000, b"[" + b", ".join(b"%d" % i for i in range(300)) + b"]"),
)
_KEYS = (
    *(b"seed", b"data", b"model", b"hidden", b"epochs", b"until", b"layers", b"store", b"model_", b"corruption"),
    *(b"batch_size", b"together", b"name", b"momentum", b"milestones", b"dropout", b"width", b"'a b'", b"__class__"),
)


def _change(content: bytes, draw: random.Random) -> bytes:
    """A line with another key or value; a line out, in or elsewhere."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    key, _, value = lines[at].partition(b" = ")
    match draw.randrange(6):
        case 0:
            lines[at] = draw.choice(_KEYS) + b" = " + (value or b"1")
        case 1 | 2:
            lines[at] = key + b" = " + draw.choice(_VALUES)
        case 3:
            lines.insert(at, draw.choice(_KEYS) + b" = " + draw.choice(_VALUES))
        case 4:
            lines.insert(draw.randrange(len(lines)), lines.pop(at))
        case _:
            lines[at] = changed_bytes(lines[at], draw)
    return b"\n".join(lines)


def _read(path: Path) -> None:
    sweep = read_sweep(path)
    assert sorted(place for group in sweep.groups for place in group) == [*range(len(sweep.networks))]
    assert all(sweep.label(place) for place in range(len(sweep.networks)))
    for name in (sweep.name, *(condition.name for condition in sweep.conditions)):
        inside = path.parent.resolve()
        assert (inside / f"{name}.csv").resolve().parent == inside, f"{name!r} leads out of its folder"


READER = Reader("sweeps", "sweep.toml", lambda: [_SWEEP, _TEXT], _read, _change)
