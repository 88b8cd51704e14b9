"""Everything that needs a GPU, in one command: ``python -m python_bench.gpu --out DIR``.

From a plain checkout, without network, in under eight minutes: builds in place if nvcc is there, confirms that the
random stream has the same bits in C++, CUDA and Triton, measures every op against the machine's copy bandwidth and
product peak and against plain torch, and the engine against its opponents, runs the test suite on CUDA, and writes
``DIR/gpu_<device>.json`` and ``.md``, anew after every step. Logs are beside them.

Exit status: 0; 1 if bits or results differ, a test fails or a stage does not end; 2 without a GPU. Targets are shown
beside what was measured, and not asserted.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from python_bench.gpu.build import ROOT, build, child_environment, find_nvcc, run_tests
from python_bench.gpu.report import Report
from python_bench.gpu.worker import rows_of, supervise

NO_GPU = 2
MEASUREMENTS_LOG = "measurements.log"
TOTAL = 440.0  # seconds: with the start and the end below eight minutes

# Seconds: the most a stage may take, what is kept for it while those before it run, and the most for one measurement.
# Tests come last: they take what time there is.
LIMITS = {
    "build": (150.0, 0.0, 0.0),
    "bits": (70.0, 40.0, 45.0),
    "ceilings": (40.0, 25.0, 30.0),
    "ops": (140.0, 80.0, 45.0),
    "engine": (200.0, 90.0, 80.0),
    "tests": (260.0, 110.0, 0.0),
}
ONLY = {"ops": ("ceilings", "ops"), "engine": ("engine",), "bits": ("bits",)}


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m python_bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the report and logs")
    parser.add_argument("--skip-tests", action="store_true", help="do not run the test suite")
    parser.add_argument("--only", choices=ONLY, help="build, and measure only this")
    parser.add_argument("--quick", action="store_true", help="small shapes and few repetitions: does everything run?")
    parser.add_argument("--tf32", action="store_true", help="the engine's races in TF32, on both sides")
    options = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} sees no GPU"
        print(
            f"python_bench.gpu needs an NVIDIA GPU: torch {torch.__version__} {why}. Nothing was run.", file=sys.stderr
        )
        return NO_GPU
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started ends too
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out.resolve(), torch.cuda.get_device_name(0), setting())
    stages = ["build", *(ONLY[options.only] if options.only else LIMITS)]
    if options.only or options.skip_tests:
        why = f"left out by --only {options.only}" if options.only else "left out by --skip-tests"
        stages = [stage for stage in stages if stage != "tests"]
        report.set("tests", result=f"not run: {why}")
    stages = list(dict.fromkeys(stages))
    scale = "quick" if options.quick else "full"
    run_stages(report, stages, "cuda", scale, torch.cuda.get_device_capability(0), options.tf32)
    print(report.markdown_path.read_text())
    print(f"wrote {report.json_path} and {report.markdown_path.name}")
    return 1 if report.problems() else 0


def run_stages(
    report: Report, stages: list[str], device: str, scale: str, capability: tuple[int, int], tf32: bool = False
) -> None:
    """One stage after another, each within its time; one that fails is noted, and the next begins."""
    folder = report.json_path.parent
    (folder / MEASUREMENTS_LOG).unlink(missing_ok=True)
    end = time.monotonic() + TOTAL
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        for i, stage in enumerate(stages):
            most, _, row_limit = LIMITS[stage]
            reserved = sum(LIMITS[later][1] for later in stages[i + 1 :])
            limit = max(1.0, min(most, end - time.monotonic() - reserved))
            start = time.monotonic()
            report.set(stage, result="begun")
            try:
                if stage == "build":
                    _build(report, folder / "build.log", capability, limit)
                elif stage == "tests":
                    _tests(report, folder, scratch, limit)
                else:
                    options = ["--device", device, "--scale", scale, *(["--tf32"] if tf32 else [])]
                    _measure(report, stage, options, scratch, folder / MEASUREMENTS_LOG, limit, row_limit)
            except Exception as error:
                report.set(stage, result="failed", problems=[f"{type(error).__name__}: {error}"])
            report.set(stage, seconds=time.monotonic() - start)
            print(f"{stage}: {report.stages[stage]['result']} ({time.monotonic() - start:.0f} s)", flush=True)


def _build(report: Report, log: Path, capability: tuple[int, int], limit: float) -> None:
    log.write_text("")
    done = build(log, capability, limit)
    # without the compiler the rest goes on: a fact about the machine, not a failure
    failed = [problem for problem in done["problems"] if "see build.log" in problem]
    facts = [problem for problem in done["problems"] if problem not in failed]
    report.set("build", result="; ".join([f"built {done['built']}", *facts]), problems=failed)


def _tests(report: Report, folder: Path, scratch: Path, limit: float) -> None:
    done = run_tests(folder, scratch, limit)
    counts = f"{done['passed']} passed, {done['failed']} failed, {done['skipped']} skipped"
    incomplete = [] if done["all_ran"] else [f"{done['status']}, with {counts} by then"]
    report.set(
        "tests",
        result=counts if done["all_ran"] else f"not complete ({done['status']}): {counts}",
        problems=incomplete,
        **{name: done[name] for name in ("passed", "failed", "skipped", "failures")},
    )


def _measure(
    report: Report, stage: str, options: list[str], scratch: Path, log: Path, limit: float, row_limit: float
) -> None:
    records = scratch / f"{stage}.jsonl"
    command = [sys.executable, "-m", "python_bench.gpu.worker", stage, str(records), *options]

    def note() -> None:
        report.set(stage, rows=rows_of(records))

    problem = supervise(command, records, log, child_environment(find_nvcc()), limit, row_limit, note)
    note()
    rows = report.rows(stage)
    failed = sum("failed" in row for row in rows)
    result = f"{len(rows) - failed} measured" + (f", {failed} failed" if failed else "")
    problems = [problem] if problem else []
    if stage == "bits":
        differing = sum(row.get("differing_bits", 0) for row in rows)
        result += f"; {differing} bits differ in {sum(row.get('values', 0) for row in rows):,} values"
        if not any("values" in row for row in rows):
            problems.append("nothing was compared")
    elif not rows:
        problems.append("nothing was measured")
    report.set(stage, result=f"{result}; {problem}" if problem else result, problems=problems)


def setting() -> dict[str, str]:
    """What the numbers depend on."""
    import torch

    device = torch.cuda.get_device_properties(0)
    nvcc = find_nvcc()
    release = re.search(r"release ([\d.]+)", _said(nvcc, "--version")) if nvcc else None
    return {
        "memory": f"{device.total_memory / 2**30:.0f} GiB",
        "multiprocessors": str(device.multi_processor_count),
        "compute capability": f"{device.major}.{device.minor}",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
        "torch": str(torch.__version__),
        "CUDA of torch": str(torch.version.cuda),
        "triton": _version("triton"),
        "nvcc": release.group(1) if release else "none",
        "python": platform.python_version(),
        "CPU cores": str(os.cpu_count()),
        "commit": _said("git", "describe", "--always", "--dirty") or "unknown",
    }


def _said(*command: str) -> str:
    """What a program prints; nothing where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
