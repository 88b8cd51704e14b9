"""``python -m tests.import_seconds``: what an import of sdkernels, and its command line, take beyond torch's import.

Medians of the differences within each of eleven rounds: by the clock, and of processors, as the clock's seconds are
others' too where they work on the same machine.
"""

import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": "import torch",
    "import torch, sdkernels": "import torch, sdkernels",
    "sdkernels --help": "import sys; from sdkernels.cli import main; sys.argv = ['sdkernels', '--help']; main()",
}
ROUNDS = 11


def seconds(code: str) -> tuple[float, float]:
    """By the clock, and of processors, from a process's start to its end."""
    begin, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begin, used


def main() -> None:
    """Print a line a command."""
    for code in COMMANDS.values():
        seconds(code)  # writes bytecode, where it may be written
    rounds = [[seconds(code) for code in COMMANDS.values()] for _ in range(ROUNDS)]
    for place, name in enumerate(COMMANDS):
        own, base = zip(*(one[place] for one in rounds), strict=True), zip(*(one[0] for one in rounds), strict=True)
        clock, used = (
            statistics.median(a - b * (place > 0) for a, b in zip(mine, torch, strict=True))
            for mine, torch in zip(own, base, strict=True)
        )
        print(f"{name}: {clock:.2f} s by the clock, {used:.2f} s of processors{', beyond import torch' * (place > 0)}")


if __name__ == "__main__":
    main()
