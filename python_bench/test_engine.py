"""Each workload of the engine against a hook loop, a prefix cache by hand, captum and vmap: docs/performance.md."""

from statistics import median

import pytest
import torch

from python_bench.contest import Contest
from python_bench.workloads import WORKLOADS, tiny

BUDGET = 10.0  # seconds a turn of an opponent


@pytest.mark.parametrize("name", WORKLOADS)
def test_engine(name, benchmark, report, is_tiny):
    workload = tiny(name) if is_tiny else WORKLOADS[name]
    contest = Contest(workload, torch.device("cpu"), 0.0 if is_tiny else BUDGET)
    # the opponents' turns stand where pytest-benchmark sets up its rounds, so that nothing runs twice
    benchmark.pedantic(contest.run_ours, setup=contest.run_opponents, rounds=workload.turns)
    result = contest.result()
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)
    ratios = {opponent: median(result.ratios(opponent)) for opponent in workload.floors}
    missed = {opponent: ratio for opponent, ratio in ratios.items() if ratio < workload.floors[opponent]}
    assert not missed, f"below {workload.floors}"
