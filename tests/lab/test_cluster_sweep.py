"""Sweeps by Ray's workers: the numbers of one process, also where a worker is killed in the middle."""

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import sdkernels as sd
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.cluster import RayWorkers
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, run_sweep
from sdkernels.lab.sweep.driver import Driver
from sdkernels.lab.sweep.table import condition_table, networks_table
from sdkernels.lab.training import TrainingOptions

ABLATION = Condition("ablation", "cumulative_ablation", ["hidden1", "hidden2"], arguments={"orders": 3, "points": 9})
NOISE = Condition("noise", "noise_robustness", ["hidden1"], "test", arguments={"scales": 3, "repeats": 2})


@pytest.fixture(scope="module")
def workers():
    pytest.importorskip("ray")
    with RayWorkers("local", count=2) as workers:
        yield workers


def tells_pid():
    def do(seconds):
        time.sleep(seconds)
        yield os.getpid()

    return do


def sweep_of(networks: int) -> Sweep:
    training = TrainingOptions(epochs=12, batch_size=32)
    settings = [NetworkSettings("digits", "mlp", {"hidden": [24, 16]}, training, seed=s) for s in range(networks)]
    return Sweep(tuple(settings), (ABLATION, NOISE), checkpoint_seconds=0.0)


def tables_of(sweep: Sweep, store: Path, **how):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has: the bits of a product depend on it
    try:
        done = run_sweep(sweep, store, **how)
    finally:
        torch.set_num_threads(threads)
    return {"networks": networks_table(done), **{c.name: condition_table(done, c.name) for c in sweep.conditions}}


def assert_equal(found, expected):
    for name, table in expected.items():
        counts = [column for column in table if "loss" not in column]
        pd.testing.assert_frame_equal(found[name][counts], table[counts], check_exact=True)
        pd.testing.assert_frame_equal(found[name], table, rtol=1e-9)


@pytest.mark.parametrize("networks", [3, 1], ids=["networks-shared", "tiles-shared"])
def test_workers_give_what_one_process_gives(networks, workers, tmp_path):
    sweep = sweep_of(networks)
    expected = tables_of(sweep, tmp_path / "here.sdk")
    assert_equal(tables_of(sweep, tmp_path / "there.sdk", workers=workers), expected)
    with Ledger(tmp_path / "there.sdk") as ledger:
        tiles = [run.description["layout"] for run in ledger.runs()]
        assert ledger.kinds() == {"condition": 2 * networks, "network": networks}
    # Few networks: the workers share tiles, which the driver keeps. Many: each measures its own, and sends results.
    assert len(tiles) == (2 if networks == 1 else 0)
    assert all(layout["size"] < 512 for layout in tiles)


def test_workers_train_language_models(workers, tmp_path):
    training = TrainingOptions(epochs=2, batch_size=8, unroll=20)
    options = {"embedding": 4, "hidden": 6, "layers": 2, "dropout": 0.2}
    given = {"options": options, "training": training, "examples": 1000}
    settings = [NetworkSettings("digits_tokens", "lstm", **given, seed=s, until=u) for s in range(2) for u in (1, 2)]
    sweep = Sweep(tuple(settings), checkpoint_seconds=0.0)
    expected = tables_of(sweep, tmp_path / "here.sdk")
    assert_equal(tables_of(sweep, tmp_path / "there.sdk", workers=workers), expected)


def test_a_worker_is_killed_in_the_middle(workers, tmp_path, monkeypatch):
    sweep = sweep_of(3)
    expected = tables_of(sweep, tmp_path / "here.sdk")
    keep, states = Driver.keep, []
    pids = {pid for _, pid in workers.run(tells_pid, ((i, lambda: 0.2) for i in range(6)))}
    assert len(pids) == 2

    def keep_and_kill(self, number, message):
        keep(self, number, message)
        if message.what == "state":
            states.append(message.record["step"])
            if len(states) == 20:
                os.kill(min(pids), signal.SIGKILL)

    monkeypatch.setattr(Driver, "keep", keep_and_kill)
    with pytest.warns(sd.SdkernelsWarning, match="a worker was lost"):
        found = tables_of(sweep, tmp_path / "there.sdk", workers=workers)
    assert_equal(found, expected)
