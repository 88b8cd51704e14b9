"""Contestants take turns, so that a machine whose speed drifts slows all alike; ratios are taken turn by turn."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

import sdkernels


@dataclass(frozen=True)
class Race:
    """Seconds by contestant and turn; the first contestant is the package."""

    title: str
    seconds: Mapping[str, list[float]]
    notes: Mapping[str, Any]

    def ratios(self, opponent: str) -> list[float]:
        """How many times longer the opponent took, turn by turn."""
        ours = next(iter(self.seconds.values()))
        return [theirs / own for theirs, own in zip(self.seconds[opponent], ours, strict=True)]

    def table(self) -> str:
        """Markdown: median seconds, and the ratio to the package: median, least and most over turns."""
        lines = [
            f"### {self.title}",
            "",
            "| | time (median) | times sdkernels (median, least to most) |",
            "|---|---|---|",
        ]
        for name, seconds in self.seconds.items():
            ratios = self.ratios(name)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(f"| {name} | {duration(median(seconds))} | {median(ratios):.2f} ({spread}) |")
        notes = "; ".join(f"{name}: {note}" for name, note in {**self.notes, **machine()}.items())
        return "\n".join([*lines, "", notes])

    def write(self, folder: Path, name: str) -> None:
        """Keep the table and the raw times."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(self.table() + "\n")
        raw = {"title": self.title, "seconds": dict(self.seconds), "notes": dict(self.notes), "machine": machine()}
        (folder / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n")


def race(
    title: str, contestants: Mapping[str, Callable[[], Any]], turns: int, notes: Mapping[str, Any], runs: int = 1
) -> Race:
    """Run every contestant in every turn, ``runs`` times without a pause; its time is that of one run."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, contestant in contestants.items():
            start = perf_counter()
            for _ in range(runs):
                contestant()
            seconds[name].append((perf_counter() - start) / runs)
    return Race(title, seconds, notes)


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
