"""Workers that are killed, drivers that are stopped and tasks that fail, and what is left of their work."""

import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import sdkernels as sd
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.cluster.dispatch import WorkerLostError
from sdkernels.lab.cluster.ray_workers import RayWorkers
from tests.lab.small_clusters import LAYERS, Residual, assert_equal, inputs_and_labels, tells_pid

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def workers():
    with RayWorkers("local", count=2) as workers:
        yield workers


@pytest.fixture
def model():
    return Residual().double().eval()


@pytest.fixture
def data():
    return inputs_and_labels()


# Workers that are lost


def kills_once(marker: Path):
    """A metric that kills a worker, once."""
    path, driver = str(marker), os.getpid()

    def deadly(logits, labels):
        if os.getpid() != driver and len(labels) > 8 and not os.path.exists(path):
            open(path, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return logits[:, 0]

    return deadly


def test_a_worker_is_killed(model, data, workers, tmp_path):
    metrics = ["accuracy", "loss", kills_once(tmp_path / "marker")]
    call = partial(sd.cumulative_ablation, model, LAYERS, data, orders=3, points="all", metrics=metrics)
    expected = call()
    with pytest.warns(sd.SdkernelsWarning, match="a worker was lost"):
        found = call(workers=workers, store=tmp_path / "work.sdk")
    assert (tmp_path / "marker").exists()
    assert_equal(found, expected)
    with Ledger(tmp_path / "work.sdk") as ledger:
        (run,) = ledger.runs()
        assert run.finished
        assert len(list(ledger.tiles(run))) == 3 * 3
        ledger.check()


def test_a_worker_is_killed_from_outside(workers):
    asked, found, killed = [], {}, None

    def argument(task):
        asked.append(task)
        return 0.1

    def do_all():
        nonlocal killed
        for task, pid in workers.run(tells_pid, ((i, partial(argument, i)) for i in range(8))):
            if task == 3 and killed is None:
                killed = pid
                os.kill(pid, signal.SIGKILL)
            found.setdefault(task, []).append(pid)

    with pytest.warns(sd.SdkernelsWarning, match="a worker was lost"):
        do_all()
    assert set(found) == set(range(8))
    assert len(found[3]) == 3  # one before, and both of the second time
    assert found[3][1] == found[3][2] != killed
    assert asked.count(3) == 2  # its argument was asked for anew
    assert all(asked.count(task) <= 2 for task in range(8))
    assert all(pids in ([pids[0]] * 2, found[3]) for pids in found.values())  # the others were done once


def test_a_task_that_kills_every_worker_is_named(workers, monkeypatch):
    monkeypatch.setattr(workers._crew, "_retries", 1)

    def start():
        def do(task):
            if task == "bad":
                os.kill(os.getpid(), signal.SIGKILL)
            yield task

        return do

    with (
        pytest.warns(sd.SdkernelsWarning, match="a worker was lost"),
        pytest.raises(WorkerLostError, match=r"task 'bad' lost its worker 2 times, and retries=1; .* process has died"),
    ):
        list(workers.run(start, ((name, lambda name=name: name) for name in ["good", "bad", "fine"])))


def test_workers_that_cannot_begin(workers, monkeypatch):
    monkeypatch.setattr(workers._crew, "_retries", 0)
    with pytest.raises(WorkerLostError, match="1 workers in a row were lost before they had begun"):
        list(workers.run(lambda: os._exit(1), [("any", int)]))


# Errors of the user's


def fails_at_2():
    def do(task):
        yield task
        if task == 2:
            raise ValueError("not this one")

    return do


def test_an_error_of_a_task_is_raised_as_it_is(workers):
    begun = []

    def tasks():
        for i in range(20):
            begun.append(i)
            yield i, lambda i=i: i

    with pytest.raises(ValueError, match="not this one") as caught:
        list(workers.run(fails_at_2, tasks()))
    assert type(caught.value) is ValueError
    assert "in do" in str(caught.value.__cause__)  # the worker's lines
    assert len(begun) < 12  # at once
    assert list(workers.run(fails_at_2, [(0, lambda: 0)])) == [(0, 0)]  # they are as good as before


def test_an_error_of_the_start_is_raised_as_it_is(workers):
    with pytest.raises(ZeroDivisionError):
        list(workers.run(lambda: 1 // 0, [(0, int)]))


def test_a_bad_label_is_refused_by_the_library_itself(model, data, workers, tmp_path):
    inputs, labels = data
    labels[140] = 9
    with pytest.raises(ValueError, match="label 9 of example 140"):
        sd.unit_importance(model, LAYERS, (inputs, labels), workers=workers, store=tmp_path / "work.sdk")
    with Ledger(tmp_path / "work.sdk") as ledger:
        assert ledger.runs()[0].finished is None


# Calls that are stopped


class Stopped(Exception):  # noqa: N818 - stands for Ctrl-C
    pass


class StoppedAfter:
    """Workers whose user loses patience."""

    def __init__(self, workers, messages):
        self.workers, self.messages = workers, messages
        self.count, self.sharing = workers.count, workers.sharing

    def run(self, start, tasks):
        for number, message in enumerate(self.workers.run(start, tasks)):
            if number == self.messages:
                raise Stopped
            yield message


def test_workers_go_on_where_workers_stopped_and_so_does_one_process(model, data, workers, tmp_path):
    store = tmp_path / "work.sdk"
    call = partial(sd.unit_importance, model, LAYERS, data)
    expected = call()
    for messages in (2, 3):
        with pytest.raises(Stopped):
            call(workers=StoppedAfter(workers, messages), store=store)
    with Ledger(store) as ledger:
        (run,) = ledger.runs()
        assert len(list(ledger.tiles(run))) == 5
        assert run.finished is None
    found = call(store=store)
    assert "5 of the tiles were in" in found.plan
    assert_equal(found, expected)


def test_workers_go_on_where_one_process_stopped(model, data, workers, tmp_path):
    store = tmp_path / "work.sdk"
    call = partial(sd.unit_importance, model, LAYERS, data)
    expected = call()
    original = Ledger.keep_tile

    def keep_one(self, *arguments):
        original(self, *arguments)
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "keep_tile", keep_one)
        with pytest.raises(Stopped):
            call(store=store)
    found = call(workers=workers, store=store)
    assert "1 of the tiles were there already" in found.plan
    assert_equal(found, expected)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_a_call_that_is_given_up_leaves_nobody_at_work(workers):
    messages = workers.run(tells_pid, ((i, lambda: 600.0) for i in itertools.count()))
    _, pid = next(messages)
    messages.close()
    wait_until(lambda: not is_there(pid))
    messages = workers.run(tells_pid, ((i, lambda: 600.0) for i in itertools.count()))
    _, pid = next(messages)
    assert len(list(workers.run(tells_pid, [(0, lambda: 0.0)]))) == 2  # another call, while the first is held
    wait_until(lambda: not is_there(pid))
    with pytest.raises(RuntimeError, match="given to another call"):
        next(messages)


SCRIPT = """
import sys, time, torch
import sdkernels as sd
from sdkernels.lab.cluster import RayWorkers
from tests.lab.small_clusters import LAYERS, Residual
from tests.lab.test_cluster_losses import slowly
generator = torch.Generator().manual_seed(3)
data = torch.rand(150, 8, generator=generator, dtype=torch.float64), torch.randint(0, 4, (150,), generator=generator)
with RayWorkers("local", count=2) as workers:
    sd.unit_importance(
        Residual().double().eval(), LAYERS, data, metrics=["accuracy", slowly], workers=workers, store=sys.argv[1]
    )
"""


def slowly(logits, _labels):
    """A metric that takes its time, and notes where, if it is given a folder for that."""
    if folder := os.environ.get("SDKERNELS_TEST_FOLDER"):
        Path(folder, str(os.getpid())).touch()
        time.sleep(0.3)
    return logits[:, 0]


def tiles_of(store):
    if not store.exists():
        return 0
    with Ledger(store) as ledger:
        return sum(len(list(ledger.tiles(run))) for run in ledger.runs())


def started_with(text):
    """The processes in whose environment this stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if text.encode() in path.read_bytes() and is_there(path.parent.name):
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, id="interrupted", marks=pytest.mark.slow),
    ],
)
def test_the_driver_is_stopped(how, model, data, tmp_path):
    store, root, pids = tmp_path / "work.sdk", Path(__file__).parents[2], tmp_path / "pids"
    pids.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, store],
        env={**os.environ, "SDKERNELS_TEST_FOLDER": str(pids), "PYTHONPATH": str(root)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: tiles_of(store) >= 2, 60.0)
    if how == signal.SIGINT:  # as a terminal sends it
        os.killpg(driver.pid, how)
    else:
        driver.kill()
    _, said = driver.communicate(timeout=30)
    if how == signal.SIGINT:
        assert said.rstrip().endswith("KeyboardInterrupt")
        wait_until(lambda: not started_with(str(pids)))
    wait_until(lambda: not any(is_there(path.name) for path in pids.iterdir()))
    kept = tiles_of(store)
    assert 2 <= kept < 9
    call = partial(sd.unit_importance, model, LAYERS, data, metrics=["accuracy", slowly])
    found = call(store=store)
    assert f"{kept} of the tiles were in" in found.plan
    assert_equal(found, call())
