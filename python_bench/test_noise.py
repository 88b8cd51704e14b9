"""Robustness to noise against a hook loop and a prefix cache by hand: docs/performance.md."""

from statistics import median

import pytest

from python_bench.noise_contest import NoiseContest
from python_bench.noise_workloads import NOISE_WORKLOADS, tiny_noise

BUDGET = 10.0  # seconds a turn of an opponent


@pytest.mark.parametrize("name", NOISE_WORKLOADS)
def test_noise(name, benchmark, report, is_tiny):
    workload = tiny_noise(name) if is_tiny else NOISE_WORKLOADS[name]
    contest = NoiseContest(workload, 0.0 if is_tiny else BUDGET)
    # the opponents' turns stand where pytest-benchmark sets up its rounds, so that nothing runs twice
    benchmark.pedantic(contest.run_ours, setup=contest.run_opponents, rounds=workload.network.turns)
    result = contest.result()
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)
    floors = workload.network.floors
    ratios = {opponent: median(result.ratios(opponent)) for opponent in floors}
    assert all(ratios[opponent] >= floor for opponent, floor in floors.items()), f"{ratios}, below {floors}"
