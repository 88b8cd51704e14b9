"""Sweeps of the command line that are killed at random moments, again and again, end like those that were not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load

from sdkernels.engine.ledger import Ledger
from sdkernels.lab.sweep.results import from_bytes
from tests.lab import forking

MEASURES = """
[[measure]]
name = "ablation"
function = "cumulative_ablation"
layers = {layers}
orders = 6
points = 17

[[measure]]
name = "noise"
function = "noise_robustness"
layers = {layers}
on = "test"
scales = [0.5, 1.0, 2.0]
repeats = 4

[[measure]]
name = "importance"
function = "unit_importance"
layers = {layers}
examples = 250
"""

# The state of a training is kept after every step, or every epoch of networks that are trained together: then a kill
# costs one of these, or one tile, and no more.
SWEEPS = {
    "mlps": """
checkpoint_seconds = 0
[network]
data = "digits"
model = "mlp"
hidden = [24, 24]
[training]
epochs = 5
batch_size = 64
learning_rate = 3e-3
schedule = "cosine"
[grid]
corruption = [0.0, 0.5]
seed = [0, 1]
"""
    + MEASURES.format(layers='["hidden1", "hidden2"]'),
    "convnet": """
checkpoint_seconds = 0
[network]
data = "digits"
examples = 256
model = "convnet"
width = 0.05
standardise = true
[training]
epochs = 3
optimiser = "sgd"
momentum = 0.9
learning_rate = 0.05
batch_size = 32
augmentation = "crop_flip"
[grid]
seed = [5]
"""
    + MEASURES.format(layers='["conv9", "conv11"]'),
    "together": """
checkpoint_seconds = 0
together = 4
[network]
data = "digits"
model = "mlp"
hidden = [24, 24]
[training]
epochs = 16
batch_size = 64
stop_when_memorised = true
[grid]
corruption = [0.0, 0.5]
learning_rate = [1e-2, 1e-3]
seed = [0, 1]
"""
    + MEASURES.format(layers='["hidden2"]'),
    "texts": """
checkpoint_seconds = 0
[network]
data = "digits_tokens"
examples = 1000
model = "lstm"
hidden = 8
embedding = 6
layers = 2
dropout = 0.2
[training]
epochs = 3
batch_size = 8
unroll = 20
clip_norm = 1.0
[grid]
seed = [0, 1]
until = [1, 3]
""",
}


class Forked:
    """Commands in processes forked from one that has imported everything."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, forking.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._server.stdout.readline() == "ready\n"

    def run(self, sweep, moment=None, wait=0.0):
        """The exit code, negative for a signal, and how long it took."""
        order = {"arguments": sweep.arguments, "wait": wait, "moment": moment, "store": str(sweep.store)}
        order |= {"out": str(sweep.out), "log": str(sweep.log)}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["code"], answer["seconds"]

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture(scope="module")
def forked():
    server = Forked()
    yield server
    server.close()


class OneSweep:
    """A sweep's files, and what they hold."""

    def __init__(self, name, folder):
        folder.mkdir()
        self.spec, self.store, self.out = folder / f"{name}.toml", folder / "work.sdk", folder / "out"
        self.log = folder / "log"
        self.spec.write_text(SWEEPS[name])
        self.arguments = ["sweep", str(self.spec), "--store", str(self.store), "--out", str(self.out)]

    def said(self):
        return Path(f"{self.log}.said").read_text()

    def work(self):
        """How often each step, epoch and tile was begun."""
        return Counter(self.log.read_text().splitlines()) if self.log.exists() else Counter()

    def kept(self):
        """When each finished thing was written, and how far each training is."""
        if not self.store.exists():
            return {}, {}
        with Ledger(self.store) as ledger:
            finished = {
                (kind, item.key): item.written
                for kind in ("network", "condition")
                for item in ledger.items_without_content(kind)
            }
            for run in ledger.runs():
                finished |= {(run.key, t.part, t.start, t.examples): t.written for t in ledger.tiles(run)}
            states = {item.key: item.description["step"] for item in ledger.items_without_content("training state")}
            ledger.check()
        return finished, states


def assert_nothing_is_lost(before, after):
    """What was finished stays as it is, and no training goes back."""
    (finished, states), (finished_now, states_now) = before, after
    assert finished.items() <= finished_now.items()
    for key, step in states.items():
        assert states_now.get(key, step) >= step
    if finished_now.keys() == finished.keys():
        assert states.keys() <= states_now.keys()


def kill_once(forked, sweep, draw, longest):
    """Whether the process was killed, and had not ended before; at most so many seconds after its start."""
    kind = draw.choices(("start", "written", "table"), (6, 3, 1))[0]
    wait = draw.uniform(0, longest) if kind == "start" else draw.choice((0, draw.uniform(0, 0.02)))
    before = sweep.kept()
    code, _ = forked.run(sweep, kind, wait)
    assert code in (0, -signal.SIGKILL), sweep.said()
    assert_nothing_is_lost(before, sweep.kept())
    return code != 0


def kill_a_started_command(sweep, wait_for_work, draw):
    """As ``kill_once``, of the installed command itself."""
    command = Path(sys.executable).with_name("sdkernels")
    before = sweep.kept()
    with Path(f"{sweep.log}.said").open("a") as said:
        process = subprocess.Popen(
            [command, *sweep.arguments],
            start_new_session=True,
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        begin = time.monotonic()
        while wait_for_work and sweep.kept() == before and process.poll() is None:
            assert time.monotonic() - begin < 120
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.2 if wait_for_work else 1.0))  # and not when all is done
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, sweep.said()
    assert_nothing_is_lost(before, sweep.kept())


def assert_same_end(whole, killed):
    """Weights bit for bit, counts and accuracies exactly; losses of measures but for how tiles were cut.

    How many examples a tile has depends on how fast the first one was, and a convolution of more examples rounds its
    float32 otherwise.
    """
    assert {path.name for path in killed.out.iterdir()} == {path.name for path in whole.out.iterdir()}
    for path in whole.out.iterdir():
        ours, theirs = (pd.read_csv(file, dtype=str) for file in (path, killed.out / path.name))
        losses = [] if path.name == "networks.csv" else [name for name in ours.columns if name.endswith("loss")]
        pd.testing.assert_frame_equal(ours.drop(columns=losses), theirs.drop(columns=losses))
        np.testing.assert_allclose(ours[losses].astype(float), theirs[losses].astype(float), rtol=1e-6, atol=1e-7)
    with Ledger(whole.store) as ledger, Ledger(killed.store) as other:
        assert ledger.kinds().keys() == other.kinds().keys() <= {"network", "condition"}  # no state is left over
        for network in ledger.items("network"):
            found = other.item("network", network.key)
            weights, others = load(network.content), load(found.content)
            assert weights.keys() == others.keys()
            assert all(bool((weights[name] == others[name]).all()) for name in weights)
            told = [
                {name: epoch[name] for name in ("epoch", "step", "loss", "accuracy")}
                for item in (network, found)
                for epoch in item.description["history"]
            ]
            assert told[: len(told) // 2] == told[len(told) // 2 :]
        for condition in ledger.items("condition"):
            found = other.item("condition", condition.key)
            ours, theirs = (from_bytes(item.description["function"], item.content) for item in (condition, found))
            for name in ours.sums:
                if ours.sums[name].dtype.is_floating_point:
                    np.testing.assert_allclose(ours.sums[name], theirs.sums[name], rtol=1e-6)
                else:
                    assert ours.sums[name].equal(theirs.sums[name])
            assert ours.ambiguous.equal(theirs.ambiguous)
            assert ours.examples == theirs.examples


def trained(sweep):
    """Steps and epochs that were begun."""
    return {line for line in sweep.work() if not line.startswith('["tile"')}


def assert_little_is_repeated(whole, killed, kills):
    """Each kill repeats at most one step or epoch or tile.

    Tiles are not compared with those of the whole run, which is cut otherwise.
    """

    assert trained(killed) == trained(whole)
    repeated = sum(count - 1 for count in killed.work().values())
    assert repeated <= kills, Counter(killed.work()).most_common(5)


@pytest.fixture(scope="module")
def whole(forked, tmp_path_factory):
    """Runs that nothing stops."""
    found = {}
    for name in SWEEPS:
        found[name] = OneSweep(name, tmp_path_factory.mktemp("whole") / name)
        code, seconds = forked.run(found[name])
        assert code == 0, found[name].said()
        work = found[name].work()
        code, idle = forked.run(found[name])  # start-up, and the writing of tables
        assert code == 0, found[name].said()
        assert found[name].work() == work
        found[name].longest = idle + (seconds - idle) / 6
    return found


def kill_many_times(name, at_least, forked, whole, folder, *, seed):
    draw = random.Random(f"{name} {seed}")
    killed = 0
    for attempt in range(1000):
        sweep, kills = OneSweep(name, folder / f"{name}-{attempt}"), 0
        while kill_once(forked, sweep, draw, whole[name].longest):
            kills += 1
            assert kills < 100, "it does not get on"
        killed += kills
        assert_same_end(whole[name], sweep)
        assert_little_is_repeated(whole[name], sweep, kills)
        if killed >= at_least:
            return


@pytest.mark.parametrize(("name", "at_least"), [("mlps", 12), ("convnet", 6), ("together", 10), ("texts", 6)])
def test_killed_sweeps_end_like_one_that_was_not(name, at_least, forked, whole, tmp_path):
    kill_many_times(name, at_least, forked, whole, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("seed", range(1, 5))
def test_two_hundred_kills(name, seed, forked, whole, tmp_path):
    kill_many_times(name, 17, forked, whole, tmp_path, seed=seed)


def test_the_installed_command_goes_on_after_kills(forked, whole, tmp_path):
    draw = random.Random(0)
    sweep = OneSweep("mlps", tmp_path / "mlps")
    for wait_for_work in (False, True, True):
        kill_a_started_command(sweep, wait_for_work, draw)
    code, _ = forked.run(sweep)
    assert code == 0, sweep.said()
    assert_same_end(whole["mlps"], sweep)
    counts = sweep.work()  # of the last run alone
    assert all(count == 1 for count in counts.values())
    assert trained(sweep) < trained(whole["mlps"])
