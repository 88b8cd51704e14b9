"""What the command starts beside its measurements: the build in place, and the test suite. Imports no torch."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

XDIST_WORKERS = 6  # share one GPU
PLUGINS = [  # of pytest: module, name, options
    ("hypothesis", "hypothesispytest", []),
    ("xdist", "xdist", ["-n", str(XDIST_WORKERS)]),
    ("pytest_timeout", "timeout", ["--timeout=120", "--timeout-method=thread"]),
]
GRACE = 20.0  # seconds to write a summary after an interrupt


def find_nvcc() -> str | None:
    """The nvcc on the PATH, or in the folder of a CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def arch_of(capability: tuple[int, int]) -> str:
    """What SDKERNELS_CUDA_ARCHS calls a device: since Hopper with the instructions that only it has."""
    major, minor = capability
    return f"{major}{minor}" + ("a" if major >= 9 else "")


def child_environment(nvcc: str | None = None, **more: str) -> dict[str, str]:
    """For a process in the checkout: it imports the package from there, and ops run where they run by default."""
    environment = {k: v for k, v in os.environ.items() if k not in ("SDKERNELS_BACKEND", "TRITON_INTERPRET")}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUNBUFFERED"] = "1"
    if nvcc is not None:
        environment["PATH"] = os.pathsep.join([str(Path(nvcc).parent), environment.get("PATH", "")])
    return {**environment, **more}


def bounded(command: list[str], log: Path, environment: dict[str, str], limit: float) -> tuple[int | None, float]:
    """Run a command in the checkout, its output appended to a log; its exit status, None if it ran out of time.

    At the limit it is interrupted as by Ctrl-C, so that it can sum up, and killed if that takes long.
    """
    start = time.monotonic()
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        status: int | None = None
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            process.kill()
            process.wait()
    return status, time.monotonic() - start


def build(log: Path, capability: tuple[int, int], limit: float) -> dict[str, Any]:
    """The native core in place, and the package's metadata, which its version is read from.

    With nvcc the CUDA versions too, for this device; where that fails, and without nvcc, the C++ alone.
    """
    nvcc = find_nvcc()
    command = [sys.executable, "setup.py", "egg_info", "build_ext", "--inplace"]
    arch = arch_of(capability)
    attempts = [("C++ alone", child_environment(SDKERNELS_CUDA="0"))]
    if nvcc is not None:
        with_cuda = child_environment(nvcc, SDKERNELS_CUDA="1", SDKERNELS_CUDA_ARCHS=arch)
        attempts.insert(0, (f"C++ and CUDA for sm_{arch}", with_cuda))
    problems = [] if nvcc else ["no nvcc, so no CUDA C++"]
    end = time.monotonic() + limit
    built = "nothing"
    for what, environment in attempts:
        left = end - time.monotonic()
        share = left if what == attempts[-1][0] else 0.75 * left  # so that something is built
        status, _ = bounded(command, log, environment, max(1.0, share))
        if status == 0:
            built = what
            break
        why = "did not end in time" if status is None else f"exit status {status}"
        problems.append(f"{what}: {why}, see {log.name}: {_last_error(log)}")
    metadata = ensure_metadata()
    return {"built": built, "problems": [*problems, *metadata]}


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
    return (errors or [""])[-1][:300]


def ensure_metadata() -> list[str]:
    """Without metadata the package does not import: where the build made none, write the least that will do."""
    if any(importlib.metadata.distributions(name="sdkernels", path=[str(ROOT), *sys.path])):
        return []
    match = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    version = match.group(1) if match else "0"
    folder = ROOT / "sdkernels.egg-info"
    folder.mkdir(exist_ok=True)
    (folder / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: sdkernels\nVersion: {version}\n")
    return ["setuptools wrote no metadata of the package, so its least was written"]


def run_tests(folder: Path, scratch: Path, limit: float) -> dict[str, Any]:
    """The whole suite, several processes at once where pytest-xdist is there; output in ``tests.log``."""
    log, summary = folder / "tests.log", scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={summary}"]
    for module, plugin, options in PLUGINS:
        if importlib.util.find_spec(module):
            command += ["-p", plugin, *options]
    threads = max(1, (os.cpu_count() or 1) // XDIST_WORKERS)
    # other plugins that happen to be installed may warn, and a warning is an error here
    environment = child_environment(find_nvcc(), OMP_NUM_THREADS=str(threads), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    log.write_text("")
    status, seconds = bounded(command, log, environment, limit)
    counts = counts_of(summary if status in (0, 1) else None, log)
    done = {0: "done", 1: "done", None: "its time was up"}.get(status, f"pytest's exit status {status}, see tests.log")
    return {"status": done, "seconds": seconds, "all_ran": status in (0, 1), **counts}


def counts_of(summary: Path | None, log: Path) -> dict[str, Any]:
    """Counts of outcomes and the tests that failed: from pytest's XML, or for a suite that did not end from its log."""
    if summary is not None:
        cases = list(ElementTree.parse(summary).getroot().iter("testcase"))
        outcomes = [next((child.tag for child in case if child.tag in _OUTCOMES), "passed") for case in cases]
        named = zip(cases, outcomes, strict=True)
        wrong = [f"{c.get('classname')}::{c.get('name')}" for c, outcome in named if outcome in ("failure", "error")]
    else:
        words = [found for line in log.read_text(errors="replace").splitlines() for found in _LINE.findall(line)]
        lines = [((name or name_last).strip(), word or word_first) for name, word, word_first, name_last in words]
        outcomes = [_OUTCOME_OF_WORD[word] for _, word in lines]
        wrong = [name for name, word in lines if word in ("FAILED", "ERROR")]
    totals = {tag: outcomes.count(tag) for tag in ("passed", *_OUTCOMES)}
    return {
        "passed": totals["passed"],
        "failed": totals["failure"] + totals["error"],
        "skipped": totals["skipped"],
        "failures": wrong,
    }


_OUTCOMES = ("failure", "error", "skipped")
_OUTCOME_OF_WORD = {
    "PASSED": "passed",
    "XFAIL": "passed",
    "XPASS": "failure",
    "FAILED": "failure",
    "ERROR": "error",
    "SKIPPED": "skipped",
}
_WORDS = "|".join(_OUTCOME_OF_WORD)
# `tests/a.py::b PASSED [ 1%]`, or from one of several processes `[gw0] [ 1%] PASSED tests/a.py::b`
_LINE = re.compile(rf"^(\S+::.*?) ({_WORDS})\b|^\[gw\d+\] \[ *\d+%\] ({_WORDS}) (\S+::.*)")
