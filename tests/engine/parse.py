"""Read a result's plan back from its text."""

import re
from dataclasses import dataclass

_CELLS = re.compile(r" {2,}")
_SIZE = r"(\d+(?:\.\d+)?) MiB"


@dataclass(frozen=True)
class Row:
    """A node's line: how it ran, its work and a hook loop's, in floating-point operations an example."""

    mode: str
    work: float
    loop_work: float


@dataclass(frozen=True)
class ReadPlan:
    """What a plan says; sizes in bytes."""

    rows: dict[str, Row]
    configurations: int
    notes: tuple[str, ...]
    tile: int
    peak: float
    limit: float

    @property
    def modes(self) -> dict[str, str]:
        """The mode of every node."""
        return {name: row.mode for name, row in self.rows.items()}

    @property
    def work(self) -> float:
        """Of all nodes."""
        return sum(row.work for row in self.rows.values())

    @property
    def loop_work(self) -> float:
        """Of a hook loop."""
        return sum(row.loop_work for row in self.rows.values())


def read_plan(text: str) -> ReadPlan:
    """Parse what ``Plan.explain`` wrote; anything that is not understood is an error."""
    header, *lines = text.splitlines()
    assert _CELLS.split(header) == ["node", "mode", "MFLOP an example", "a hook loop's"], text
    rows: dict[str, Row] = {}
    while not lines[0].startswith("all "):
        name, mode, work, loop_work = _CELLS.split(lines.pop(0))
        assert name not in rows, text
        rows[name] = Row(mode, float(work) * 1e6, float(loop_work) * 1e6)
    _, *totals = _CELLS.split(lines.pop(0))
    half_a_digit = 0.0005e6 * (len(rows) + 1)
    for total, own in zip(totals, ("work", "loop_work"), strict=True):
        assert abs(float(total) * 1e6 - sum(getattr(row, own) for row in rows.values())) <= half_a_digit, text
    count = re.fullmatch(r"(\d+) configurations; \d+\.\d times less arithmetic than a hook loop", lines.pop(0))
    assert count, text
    memory = re.fullmatch(rf"(\d+) examples at once; memory at most {_SIZE}, limit {_SIZE}", lines.pop())
    assert memory, text
    tile, peak, limit = memory.groups()
    return ReadPlan(rows, int(count[1]), tuple(lines), int(tile), float(peak) * 2**20, float(limit) * 2**20)
