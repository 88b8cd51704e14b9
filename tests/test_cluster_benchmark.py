"""The simulation of many workers, where its results are known; and its tables."""

import json
from types import SimpleNamespace

import pytest
import torch

from python_bench import tables
from python_bench.cluster_costs import WORKERS, Scaling, layout, makespan
from sdkernels.engine.elsewhere import layout_for
from sdkernels.engine.families import Cumulative


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_without_a_driver_equal_tasks_are_shared_out(workers):
    assert makespan([2.0] * 24, workers, 0.0, 0.0) == pytest.approx(48.0 / workers)
    assert makespan([2.0] * 25, workers, 0.0, 0.0) == pytest.approx(2.0 * -(-25 // workers))


def test_one_worker_waits_for_the_driver_only_at_first_and_at_last():
    assert makespan([1.0] * 10, 1, 0.25, 0.125) == pytest.approx(10.0 + 0.25 + 0.125)


def test_a_slow_driver_is_all_that_counts():
    assert makespan([0.001] * 100, 16, 1.0, 0.5) == pytest.approx(100 * 1.5, abs=0.01)


def test_a_long_task_at_the_end_is_waited_for():
    assert makespan([1.0, 1.0, 1.0, 9.0], 2, 0.0, 0.0) == pytest.approx(1.0 + 9.0)
    assert makespan([9.0, 1.0, 1.0, 1.0], 2, 0.0, 0.0) == pytest.approx(9.0)


def test_no_task_takes_no_time():
    assert makespan([], 4, 1.0, 1.0) == 0.0


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("examples", "orders"), [(10_000, 10), (500, 3), (64, 40), (1, 1)])
def test_calls_are_cut_as_the_engine_cuts_them(examples, orders, workers):
    family = Cumulative(torch.arange(6).repeat(orders, 1), torch.tensor([0, 3, 6]), (6,))
    job = SimpleNamespace(batches=SimpleNamespace(examples=examples), family=family)
    tiles, size, parts = layout(examples, orders, workers)
    assert layout_for(job, workers) == (size, size, parts)
    assert tiles == -(-examples // size)


def scaling(give=0.0, keep=0.0):
    costs = {"read": give, "send": 0.0, "Ray": 0.0, "keep": keep}
    return Scaling("a call", 10_240, 10, {1: [2.0], 2: [1.0], 4: [0.5], 7: [0.25]}, costs, {"sent a task": "1 kB"})


def test_free_tasks_keep_all_workers_busy_but_for_the_last_round():
    for workers, tasks, seconds, times, efficiency in scaling().rows():
        assert times == pytest.approx(320.0 / seconds)
        assert efficiency == pytest.approx(times / workers)
        assert 0.8 < efficiency <= (8 / 7 if tasks > 640 else 1) + 1e-9
    rows = scaling(give=0.125, keep=0.125).rows()
    assert rows[0][2] == pytest.approx(320.25)
    assert rows[-1][2] >= rows[-1][1] * 0.25  # the driver does one thing at a time
    assert rows[-1][3] < rows[-3][3]


def test_tables(tmp_path):
    whole = scaling(give=0.001)
    whole.write(tmp_path, "cluster")
    raw = json.loads((tmp_path / "cluster.json").read_text())
    assert Scaling.of(raw) == whole
    text = tables.of_result(tmp_path / "cluster.json")
    assert "| 256 | 1,120 |" in text
    assert "| read | 1.00 ms |" in text
    assert "sent a task: 1 kB" in text
    assert text.splitlines()[0] in (tmp_path / "cluster.md").read_text()
