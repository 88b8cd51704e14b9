"""Similarity of many networks, against a pair at a time in numpy; and of two, over a million positions."""

from typing import Any

import pytest
import torch

from python_bench.contest import OURS
from python_bench.peaks import PRODUCT, peaks
from python_bench.race import Race
from python_bench.similarity_contest import (
    DIFFERENCE,
    MEMORY,
    PRODUCTS,
    RAW,
    STREAM,
    TOY_STREAM,
    TOYS,
    WORKLOADS,
    AllPairs,
    Streaming,
    memory_taken,
)

TURNS = 3


@pytest.mark.parametrize("name", WORKLOADS)
def test_all_pairs(name, benchmark, report, is_tiny):
    workload = (TOYS if is_tiny else WORKLOADS)[name]
    contest = AllPairs(workload)
    turns = contest.turns

    def run_others() -> None:
        for other in turns.seconds:
            if other != OURS:
                turns.take(other)

    benchmark.pedantic(lambda: turns.take(OURS), setup=run_others, rounds=workload.turns)
    notes: dict[str, Any] = {"networks": workload.networks, "units": workload.units, "examples": workload.examples}
    notes[DIFFERENCE] = f"{contest.check():.0e}"
    gflop, rate = workload.products / 1e9, peaks(torch.device("cpu"), small=is_tiny)[PRODUCT]
    notes[PRODUCTS] = f"{gflop:.3g} GFLOP, {gflop / rate:.2g} s at the {rate:.0f} GFLOP/s of torch.mm in float32"
    result = Race(workload.title, turns.seconds, notes, contest.parts)
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)


def test_streaming(benchmark, report, is_tiny):
    maps = TOY_STREAM if is_tiny else STREAM
    contest = Streaming(maps)
    turns = contest.turns
    benchmark.pedantic(lambda: turns.take(OURS), setup=lambda: turns.take(RAW), rounds=1 if is_tiny else TURNS)
    notes: dict[str, Any] = {"channels": maps.channels, "images a batch": maps.batch_size}
    notes[DIFFERENCE] = f"{contest.check():.0e}"
    for positions in (maps.positions // 4, maps.positions):
        notes[f"{positions:,} positions, {MEMORY}"] = round(memory_taken(maps, positions) / 2**20)
    result = Race(maps.title, turns.seconds, notes)
    report(result, "similarity_streaming")
    benchmark.extra_info["seconds"] = dict(result.seconds)
