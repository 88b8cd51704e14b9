"""The engine's workloads on a device, against the same opponents as on a CPU, each tuned there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from python_bench.contest import OURS, PLANNED, TF32, Contest, Tolerance, run_contest
from python_bench.gpu.clock import Cases, Row
from python_bench.workloads import WORKLOADS, Workload, on_gpu, tiny

BUDGET = {"full": 1.0, "quick": 0.5, "tiny": 0.0}  # seconds a turn of an opponent
QUICK = 1000  # examples, at most

# The workloads at the size of the papers' figures: what it is, its examples, and the seconds aimed at on an H200.
AIMS = {
    "cumulative_mlp_all_points": ("figure 1a", 60_000, 0.2),
    "cumulative_convnet": ("figure 1b", 50_000, 1.0),
    "units_convnet": ("all units of the ConvNet", 10_000, 10.0),
}


def engine_cases(device: torch.device, scale: str, tf32: bool = False) -> Cases:
    """A race for each workload."""
    return {name: partial(_case, name, device, scale, tf32) for name in WORKLOADS}


def _case(name: str, device: torch.device, scale: str, tf32: bool) -> dict[str, partial[Row]]:
    return {OURS: partial(_race, name, sized(name, scale), device, BUDGET[scale], tf32)}


def sized(name: str, scale: str) -> Workload:
    """A workload at one of the command's scales."""
    if scale == "tiny":
        return tiny(name)
    workload = on_gpu(name)
    if scale == "full":
        return workload
    examples = min(QUICK, workload.examples)
    return replace(workload, examples=examples, batches=(examples // 4, examples), turns=1)


def _race(name: str, workload: Workload, device: torch.device, budget: float, tf32: bool) -> Row:
    with arithmetic(tf32):
        contest = Contest(workload, device, budget, workload.batches, TF32 if tf32 else Tolerance())
        result = run_contest(contest)
    ours = contest.turns.results[OURS]
    left_out = contest.differences()
    row: Row = {
        "shape": f"{result.title}, on the device, {'TF32' if tf32 else 'float32'}",
        "seconds": {who: result.scaled(who) for who in result.seconds},
        "ratios": {who: median(result.ratios(who)) for who in result.seconds},
        "settings": contest.settings,
        "parts": {who: str(part) for who, part in result.parts.items()},
        "notes": dict(result.notes),
        "ambiguous": int(ours.ambiguous.max()),
        "plan": ours.plan,
    }
    if PLANNED in result.notes:
        row["planned_gflop"] = result.notes[PLANNED]
    if name in AIMS:
        figure, examples, aim = AIMS[name]
        whole = median(result.seconds[OURS]) * examples / workload.examples
        row["at_size"] = f"{figure}, {examples:,} examples: {whole:.3g} s at this rate; aim {aim} s"
    if left_out:
        row["failed"] = "; ".join(f"{who}: {why}" for who, why in left_out.items())
    return row


@contextmanager
def arithmetic(tf32: bool) -> Iterator[None]:
    """Products and convolutions of float32 in IEEE arithmetic, or in TF32; of all contestants."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
