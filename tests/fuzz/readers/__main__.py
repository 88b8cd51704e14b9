"""Readers of files under a coverage-guided fuzzer: ``python -m tests.fuzz.readers --seconds 60 [READER...]``.

atheris runs each reader in a process of its own, for so many seconds. Findings and corpora are in ``--out``; what is
found is mended in the reader, and its file goes to ``tests/fuzz/readers/cases/READER/``, which
``tests/fuzz/test_readers.py`` reads without atheris.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

# Seconds after which a process that should have ended is: atheris may wait for Python's lock for ever as it ends. An
# input that takes as long is told by libFuzzer before.
_GRACE = 90


def main() -> int:
    """Fuzz every reader that was asked for; exit status 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of each reader")
    parser.add_argument("--out", type=Path, default=Path("fuzzed"), help="a folder for what is found")
    parser.add_argument("readers", nargs="*", metavar="READER", help="by default all")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error('atheris is not installed: `python -m pip install -c constraints.txt -e ".[test,fuzz]"`')
    from tests.fuzz.readers.every import READERS

    if unknown := [name for name in given.readers if name not in READERS]:
        parser.error(f"there is no reader {unknown[0]!r}; there are {', '.join(READERS)}")
    totals = [_fuzz(name, given.seconds, given.out / name) for name in given.readers or READERS]
    print(f"{len(totals)} readers, {sum(runs for runs, _ in totals):,} files, {sum(n for _, n in totals)} findings")
    return 1 if any(found for _, found in totals) else 0


def _fuzz(name: str, seconds: int, folder: Path) -> tuple[int, int]:
    """Until the time is over, again where a crash has ended it; files tried, and kinds of findings."""
    runs, edges, begin, found, log = 0, 0, time.monotonic(), set(), folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    while (left := round(seconds - (time.monotonic() - begin))) > 0:
        command = [sys.executable, "-m", "tests.fuzz.readers.fuzzed", name, str(left), str(folder.absolute())]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                code = process.wait(left + _GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = 0
        said = log.read_text(errors="replace")
        progress = re.findall(r"#(\d+)\s.*?cov: (\d+)", said)
        if not progress:
            raise SystemExit(f"{name} could not be fuzzed:\n{said[-3000:]}")
        runs, edges = runs + int(progress[-1][0]), max(edges, int(progress[-1][1]))
        found |= set(re.findall(r"^FOUND .*", said, re.MULTILINE))
        if code:
            found.add(f"CRASH {name}: {said[-1500:]}")
    print(f"{name}: {runs:,} files in {seconds} s, {edges} edges covered, {len(found)} findings", flush=True)
    print("".join(f"  {line}\n" for line in sorted(found)), end="", flush=True)
    return runs, len(found)


if __name__ == "__main__":
    sys.exit(main())
