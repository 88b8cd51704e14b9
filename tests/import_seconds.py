"""``python -m tests.import_seconds``: what an import of sdkernels, and its command line, take.

Medians of eleven rounds, an import's as what it takes beyond torch's own in the same round: by the clock, and of
processors, as the clock's seconds are others' too where they work on the same machine. Modules are compiled once before
the rounds, as pip compiles what it installs.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

TORCH = "import torch"
BEYOND = {  # what is imported with torch: only the name; all that is public, which a first use imports
    "import sdkernels": "import torch, sdkernels",
    "import sdkernels.public": "import torch, sdkernels.public",
}
HELP = "import sys; from sdkernels.cli import main; sys.argv = ['sdkernels', '--help']; main()"
ROUNDS = 11


def seconds(code: str, compiled: str) -> tuple[float, float]:
    """By the clock, and of processors, from a process's start to its end."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    surroundings["PYTHONPYCACHEPREFIX"] = compiled
    begin, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=surroundings)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begin, used


def told(name: str, clock: list[float], used: list[float]) -> None:
    """A line."""
    print(f"{name}: {statistics.median(clock):.2f} s by the clock, {statistics.median(used):.2f} s of processors")


def main() -> None:
    """Print a line a command."""
    commands = [TORCH, *BEYOND.values(), HELP]
    with tempfile.TemporaryDirectory() as compiled:
        for code in commands:
            seconds(code, compiled)
        rounds = [[seconds(code, compiled) for code in commands] for _ in range(ROUNDS)]
    clocks, used = ([[one[kind] for one in each] for each in zip(*rounds, strict=True)] for kind in (0, 1))
    told(TORCH, clocks[0], used[0])
    for place, name in enumerate(BEYOND, 1):
        beyond = ([a - b for a, b in zip(each[place], each[0], strict=True)] for each in (clocks, used))
        told(f"{name}, beyond torch", *beyond)
    told("sdkernels --help", clocks[-1], used[-1])


if __name__ == "__main__":
    main()
