"""Measurements in a process of their own, and the one that watches it: a kernel that hangs or crashes costs one row.

The worker appends to a file a line when it begins a measurement and a line when that is done. When it dies or takes too
long, the watcher notes what it was at, and starts another, which leaves out all that was begun.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from python_bench.gpu.build import ROOT

STAGES = ("bits", "ceilings", "ops", "engine")
SCALES = ("full", "quick", "tiny")
INPUTS = "inputs"  # the step that makes a case

DEAD_DEVICE = 3  # exit status: nothing more can run in this process
POLL = 0.1  # seconds


def stage_cases(stage: str, device: Any, scale: str, tf32: bool = False) -> Any:
    """The cases of a stage, see :data:`python_bench.gpu.clock.Cases`."""
    if stage == "bits":
        from python_bench.gpu.bits import bits_cases

        return bits_cases(device, scale)
    if stage == "engine":
        from python_bench.gpu.engine import engine_cases

        return engine_cases(device, scale, tf32)
    from python_bench.gpu.clock import Clock, ceilings

    if stage == "ceilings":
        return ceilings(device, scale)
    from python_bench.gpu.linear import linear_cases
    from python_bench.gpu.perturb import perturb_cases
    from python_bench.gpu.sums import sums_cases

    clock = Clock(device, quick=scale != "full")
    return {
        name: case
        for cases in (perturb_cases, sums_cases, linear_cases)
        for name, case in cases(device, scale, clock).items()
    }


def work(cases: Any, records: Path, alive: Callable[[], bool] = lambda: True) -> int:
    """Measure all that was not begun before; the exit status."""
    before = read_records(records)
    begun = {(row["case"], row["who"]) for row in before}
    closed = {row["case"] for row in before if row["who"] == INPUTS and ("failed" in row or "finished" in row)}

    def step(case: str, who: str, run: Callable[[], Any]) -> Any:
        """What ``run`` gives, None if it failed; its row is written."""
        append_record(records, {"case": case, "who": who, "begun": True})
        start = time.perf_counter()
        try:
            result = run()
            row = {} if who == INPUTS else result
        except Exception as error:
            traceback.print_exc()
            result, row = None, {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:600]}
            gc.collect()  # a traceback may hold large tensors
        append_record(records, {"case": case, "who": who, **row, "spent": round(time.perf_counter() - start, 2)})
        return result

    for case, make in cases.items():
        if case in closed:
            continue
        measures = step(case, INPUTS, make) or {}
        for who, measure in measures.items():
            if not alive():
                return DEAD_DEVICE
            if (case, who) not in begun:
                step(case, who, measure)
        if not alive():
            return DEAD_DEVICE
        append_record(records, {"case": case, "who": INPUTS, "finished": True})
        measures = measure = None
        gc.collect()
    return 0


def read_records(records: Path) -> list[dict[str, Any]]:
    """All lines so far; one that is being written is left out."""
    if not records.exists():
        return []
    return [json.loads(line) for line in records.read_text().splitlines(keepends=True) if line.endswith("\n")]


def append_record(records: Path, row: dict[str, Any]) -> None:
    """One more line."""
    with records.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rows_of(records: Path) -> list[dict[str, Any]]:
    """What is measured or failed, without the steps that only made inputs."""
    lines = [line for line in read_records(records) if "begun" not in line and "finished" not in line]
    return [line for line in lines if line["who"] != INPUTS or "failed" in line]


def supervise(
    command: list[str],
    records: Path,
    log: Path,
    environment: dict[str, str],
    limit: float,
    row_limit: float,
    on_change: Callable[[], None] = lambda: None,
) -> str | None:
    """Run the worker until all is measured, anew where it died; limits in seconds.

    Returns:
        Why there is no more, or None if all was measured or noted as failed.
    """
    end = time.monotonic() + limit
    while True:
        with log.open("ab") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                problem = _watch(process, records, end, row_limit, on_change)
            finally:
                process.kill()
                process.wait()
        if problem is None:
            return None
        lines = read_records(records)
        if process.returncode != DEAD_DEVICE:  # that one noted what it was at
            if not lines or "begun" not in lines[-1]:
                return f"{problem}, see {log.name}"
            append_record(records, {"case": lines[-1]["case"], "who": lines[-1]["who"], "failed": problem})
            on_change()
        if time.monotonic() > end:
            return "its time was up"


def _watch(
    process: "subprocess.Popen[bytes]", records: Path, end: float, row_limit: float, on_change: Callable[[], None]
) -> str | None:
    size, changed = -1, time.monotonic()
    while True:
        status = process.poll()
        now = time.monotonic()
        new_size = records.stat().st_size if records.exists() else 0
        if new_size != size:
            size, changed = new_size, now
            on_change()
        if status is not None:
            return None if status == 0 else f"the process died (exit status {status})"
        if now > end:
            return "the stage's time was up"
        if now - changed > row_limit:
            return f"not done after {row_limit:.0f} s"
        time.sleep(POLL)


def main(arguments: list[str] | None = None) -> int:
    """``python -m python_bench.gpu.worker STAGE RECORDS``"""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("records", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--tf32", action="store_true")
    options = parser.parse_args(arguments)

    import torch

    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(0)
        torch.set_float32_matmul_precision("highest")

    def alive() -> bool:
        """Whether the device still works: after a bad memory access nothing does in this process."""
        if device.type != "cuda":
            return True
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True

    with torch.no_grad():
        status = work(stage_cases(options.stage, device, options.scale, options.tf32), options.records, alive)
    if status:
        sys.stdout.flush()
        os._exit(status)  # a broken device may hang what runs at exit
    return status


if __name__ == "__main__":
    sys.exit(main())
