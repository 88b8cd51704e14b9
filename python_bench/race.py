"""Contestants take turns, so that a machine whose speed drifts slows all alike; ratios are taken turn by turn."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

import sdkernels


@dataclass(frozen=True)
class Part:
    """How much of the work a contestant did; its time is scaled to all of it, but for what it does once."""

    done: int
    of: int
    what: str = "configurations"
    once: float = 0.0  # seconds, whatever is done

    def scaled(self, seconds: float) -> float:
        """What all of the work would take."""
        return self.once + (seconds - self.once) * self.of / self.done

    def __str__(self) -> str:
        return f"timed on {self.done:,} of {self.of:,} {self.what}"


@dataclass(frozen=True)
class Race:
    """Seconds by contestant and turn, each for what it did; the first contestant is the package and does all."""

    title: str
    seconds: Mapping[str, list[float]]
    notes: Mapping[str, Any]
    parts: Mapping[str, Part] = field(default_factory=dict)

    def scaled(self, name: str) -> list[float]:
        """Seconds, or what they would be for all of the work."""
        part = self.parts.get(name, Part(1, 1))
        return [part.scaled(seconds) for seconds in self.seconds[name]]

    def ratios(self, opponent: str) -> list[float]:
        """How many times longer the opponent takes, turn by turn."""
        ours = next(iter(self.seconds.values()))
        return [theirs / own for theirs, own in zip(self.scaled(opponent), ours, strict=True)]

    def table(self) -> str:
        """Markdown: median seconds, and the ratio to the package: median, least and most over turns."""
        lines = [
            f"### {self.title}",
            "",
            "| | time (median) | times sdkernels (median, least to most) |",
            "|---|---|---|",
        ]
        for name in self.seconds:
            ratios = self.ratios(name)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            time = duration(median(self.scaled(name))) + (f", {self.parts[name]}" if name in self.parts else "")
            lines.append(f"| {name} | {time} | {median(ratios):.2f} ({spread}) |")
        return "\n".join([*lines, "", described({**self.notes, **machine()})])

    def write(self, folder: Path, name: str) -> None:
        """Keep the table and the raw times."""
        raw = {
            "title": self.title,
            "seconds": dict(self.seconds),
            "parts": {contestant: asdict(part) for contestant, part in self.parts.items()},
            "notes": dict(self.notes),
            "machine": machine(),
        }
        write_result(folder, name, self.table(), raw)


@dataclass(frozen=True)
class Growth:
    """How time grows with a size; no opponents.

    Attributes:
        size: what grows.
        rows: seconds, run by run, by the size's value.
    """

    title: str
    size: str
    rows: Mapping[int, list[float]]
    notes: Mapping[str, Any]

    def table(self) -> str:
        """Markdown: median seconds, and the ratio to the row before."""
        lines = [f"### {self.title}", "", f"| {self.size} | time (median) | times the row before |", "|---|---|---|"]
        before = None
        for value, seconds in self.rows.items():
            now = median(seconds)
            lines.append(f"| {value:,} | {duration(now)} | {f'{now / before:.2f}' if before else ''} |")
            before = now
        return "\n".join([*lines, "", described({**self.notes, **machine()})])

    def write(self, folder: Path, name: str) -> None:
        """Keep the table and the raw times."""
        raw = {"title": self.title, "size": self.size, "rows": dict(self.rows), "notes": dict(self.notes)}
        write_result(folder, name, self.table(), {**raw, "machine": machine()})


def write_result(folder: Path, name: str, table: str, raw: Mapping[str, Any]) -> None:
    """``name.md`` and ``name.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(table + "\n")
    (folder / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n")


def described(notes: Mapping[str, Any]) -> str:
    """Notes in a line."""
    return "; ".join(f"{name}: {note}" for name, note in notes.items())


def markdown(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table's lines."""
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(r) + " |" for r in rows)]


class Turns:
    """Takes contestants' times one by one, and keeps what they gave last."""

    def __init__(self, contestants: Mapping[str, Callable[[], Any]], runs: int = 1) -> None:
        self._contestants = contestants
        self._runs = runs
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}
        self.results: dict[str, Any] = {}

    def take(self, name: str) -> None:
        """A turn of one contestant, ``runs`` times without a pause; its time is that of one run."""
        start = perf_counter()
        for _ in range(self._runs):
            self.results[name] = self._contestants[name]()
        self.seconds[name].append((perf_counter() - start) / self._runs)


def race(
    title: str, contestants: Mapping[str, Callable[[], Any]], turns: int, notes: Mapping[str, Any], runs: int = 1
) -> Race:
    """Run every contestant in every turn."""
    times = Turns(contestants, runs)
    for _ in range(turns):
        for name in contestants:
            times.take(name)
    return Race(title, times.seconds, notes)


def duration(seconds: float) -> str:
    """Seconds, or milliseconds where they are short."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def machine() -> dict[str, str]:
    """What the times depend on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "device": f"CPU, {model}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "sdkernels": f"{sdkernels.__version__} ({commit.stdout.strip() or 'no commit'})",
        "allocator": "keeps its memory",
    }
