"""Work done by Ray's workers, some of whom are killed in the middle, is the work of one process."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.cluster.dispatch import IN_FLIGHT, WorkerLostError
from sdkernels.lab.cluster.ray_workers import RayWorkers, _room
from sdkernels.lab.cluster.worker import ClusterWorker, dumps
from sdkernels.lab.models import mlp

pytest.importorskip("ray")

EXAMPLES = 150


@pytest.fixture(scope="module")
def workers():
    with RayWorkers("local", count=2) as workers:
        yield workers


class Residual(nn.Module):
    """A user's class, which is sent by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, (12, 10), 8, seed=1)
        self.head = mlp(8, (6,), 4, seed=2)

    def forward(self, x):
        return self.head(x + self.body(x))


@pytest.fixture
def model():
    return Residual().double().eval()


LAYERS = ["body.relu1", "body.relu2", "head.relu1"]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(EXAMPLES, 8, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 4, (EXAMPLES,), generator=generator)


def gap(logits, labels):
    """A user's metric."""
    best = logits.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) * (labels + 1)


CALLS = {
    "cumulative": partial(sd.cumulative_ablation, orders=3, points="all", metrics=["accuracy", "loss", gap]),
    "resampled": partial(sd.cumulative_ablation, orders=2, points=7, value="resample", outcomes=True),
    "few examples": partial(sd.cumulative_ablation, orders=2, points=5, tolerance=0.1),
    "units": partial(sd.unit_importance, metrics=["class_accuracy", "agreement"]),
    "sets": partial(sd.ablate, units=[[0, 3, 5], [], [27], [11, 12], [1]], outcomes=True),
    "noise": partial(sd.noise_robustness, scales=4, repeats=3, outcomes=True),
    "pairs": partial(sd.pair_importance),
    "hooks": partial(sd.unit_importance, method="loop"),
}


def assert_equal(result, expected):
    """Counts by the integer; sums of losses to rounding, as they are added in another order."""
    assert result.sums.keys() == expected.sums.keys()
    for name, found in (*result.sums.items(), *result.baseline_sums.items()):
        whole = expected.sums if found is result.sums.get(name) else expected.baseline_sums
        if found.dtype == torch.int64:
            assert torch.equal(found, whole[name]), name
        else:
            torch.testing.assert_close(found, whole[name], rtol=1e-12, atol=1e-10)
    for name in ("ambiguous", "class_examples", "outcomes", "used"):
        found, whole = getattr(result, name), getattr(expected, name)
        assert (found is None) == (whole is None), name
        assert found is None or torch.equal(found, whole), name
    assert result.examples == expected.examples


@pytest.mark.parametrize("name", CALLS)
def test_workers_give_what_one_process_gives(name, model, data, workers, tmp_path):
    expected = CALLS[name](model, LAYERS, data)
    assert_equal(CALLS[name](model, LAYERS, data, workers=workers), expected)
    found = CALLS[name](model, LAYERS, data, workers=workers, store=tmp_path / "work.sdk")
    assert_equal(found, expected)
    assert "by 2 workers" in found.plan
    with Ledger(tmp_path / "work.sdk") as ledger:
        assert all(run.finished for run in ledger.runs())
        kept = ledger.check()
    again = CALLS[name](model, LAYERS, data, store=tmp_path / "work.sdk")  # all of it was kept
    assert_equal(again, expected)
    assert "of the tiles were in" in again.plan
    with Ledger(tmp_path / "work.sdk") as ledger:
        assert ledger.check() == kept


def test_examples_and_configurations_are_cut(model, data, workers, tmp_path):
    sd.unit_importance(model, LAYERS, data, workers=workers, store=tmp_path / "work.sdk")
    with Ledger(tmp_path / "work.sdk") as ledger:
        (run,) = ledger.runs()
        assert run.description["layout"] == {"first": 64, "size": 64, "parts": 3}
        assert [(tile.start, tile.part) for tile in ledger.tiles(run)] == list(
            itertools.product((0, 64, 128), range(3))
        )


def test_classes_and_functions_of_main_are_sent_by_value(workers, data, monkeypatch):
    main = types.ModuleType("__main__")
    text = "import torch\nclass Own(torch.nn.Sequential):\n  def forward(self, x): return super().forward(2 * x)\n"
    exec(text + "factor = 3\ndef margin(logits, labels): return factor * logits[:, 0]\n", main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    model = main.Own(*mlp(8, (5,), 4, seed=0)).double().eval()
    model.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
    call = partial(sd.unit_importance, model, "1", data, metrics=["accuracy", main.margin], method="loop")
    assert_equal(call(workers=workers), call())


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


def tells_pid():
    """Tasks that say who does them, take a moment, and say it again."""

    def tell(seconds):
        yield os.getpid()
        time.sleep(seconds)
        yield os.getpid()

    return tell


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


class NeedsTwoError(Exception):
    """An exception that cannot be made of its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


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


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NeedsTwoError(1, 2), "NeedsTwoError: 1 and 2"),
        (KeyError(threading.Lock()), "KeyError: <unlocked"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=["cannot be made again", "cannot be sent", "without words"],
)
def test_an_error_that_cannot_be_sent_is_told(error, text):
    def do(_):
        raise error
        yield

    worker = ClusterWorker(torch.get_num_threads(), has_gpu=True)
    worker._do = do
    (failure,) = worker.do(dumps(None))
    found = pickle.loads(pickle.dumps(failure)).as_exception()
    assert type(found) is RuntimeError
    assert text in (str(found) or repr(found))
    assert "in do" in str(found.__cause__)


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


def test_warnings_of_workers_reach_the_user(data, workers):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(8, (5,), 4, seed=0)

        def forward(self, x):
            return self.net(x) if float(x.detach().abs().sum()) > -1 else x  # cannot be traced

    model = Branching().double().eval()
    with pytest.warns(sd.SdkernelsWarning, match="hook loop"):
        expected = sd.unit_importance(model, "net.relu1", data)
    with pytest.warns(sd.SdkernelsWarning, match="hook loop"):
        assert_equal(sd.unit_importance(model, "net.relu1", data, workers=workers), expected)


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


def test_few_tasks_are_read_ahead(workers):
    read, done = 0, 0

    def tasks():
        nonlocal read
        for i in range(30):
            read += 1
            assert read - done <= IN_FLIGHT * workers.count + 1
            yield i, lambda i=i: i

    def start():
        return lambda task: iter([task])

    for task, message in workers.run(start, tasks()):
        assert task == message
        done += 1
    assert done == read == 30
    assert list(workers.run(start, [])) == []


SCRIPT = """
import sys, time, torch
import sdkernels as sd
from sdkernels.lab.cluster import RayWorkers
from tests.lab.test_cluster import LAYERS, Residual, slowly
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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
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


# What is sent, and to whom


class HereInstead:
    """Does the tasks in this process, but for the last few."""

    count, sharing = 3, 1

    def __init__(self, leaves_out=0):
        self.leaves_out, self.sizes = leaves_out, []

    def run(self, start, tasks):
        do = pickle.loads(pickle.dumps(start))()
        for name, argument in list(tasks)[self.leaves_out :]:
            content = pickle.dumps(argument())
            self.sizes.append(len(content))
            for message in do(pickle.loads(content)):
                yield name, message


def test_a_task_carries_its_own_examples_alone(model):
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(5000, 8, generator=generator, dtype=torch.float64), torch.arange(5000) % 4
    here, call = HereInstead(), partial(sd.unit_importance, model, LAYERS, data, batch_size=5000)
    assert_equal(call(workers=here), call())
    examples = 8 * (8 + 3) * 5000  # bytes: inputs, label, place, number
    assert sum(here.sizes) < 1.2 * examples + 2000 * len(here.sizes)


def test_workers_that_end_too_early_are_an_error(model, data):
    with pytest.raises(RuntimeError, match="HereInstead ended, and 2 of its tasks were not done"):
        sd.unit_importance(model, LAYERS, data, workers=HereInstead(leaves_out=2))


def test_what_workers_see(workers):
    def start():
        def do(_):
            yield torch.get_num_threads(), torch.cuda.is_available(), os.environ["CUDA_VISIBLE_DEVICES"]

        return do

    assert list(workers.run(start, [("task", int)])) == [("task", (1, False, ""))]


def test_ray_listens_to_this_machine_alone_and_leaves_the_environment(workers):
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert ray._private.ray_constants.ENABLE_RAY_CLUSTER
    assert not {"RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & os.environ.keys()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"address": "ray://head:10001"}, "run this on a machine of the cluster"),
        ({"address": ""}, "address=''"),
        ({"count": 0}, "count=0 must be an int of at least 1"),
        ({"count": True}, "count=True"),
        ({"cpus": 0.5}, r"cpus=0\.5 must be an int"),
        ({"retries": -1}, "retries=-1 must be an int of at least 0"),
        ({"gpus": -1}, "gpus=-1 must be a number"),
        ({"gpus": 1.5}, "a part of one GPU, or whole ones"),
        ({"cpus": 1000}, "a worker needs 1000 processors; no machine of the cluster has them"),
        ({"gpus": 1}, "a worker needs 1 processors and 1 GPUs"),
    ],
)
def test_bad_arguments_are_refused(arguments, text, workers):
    with pytest.raises(ValueError, match=text):
        RayWorkers(**arguments)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install \"sdkernels\[scale\]\""):
        RayWorkers("local")


def test_closed_workers_do_nothing(workers):
    second = RayWorkers("local", count=1)  # on the Ray that there is, which stays
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        second.run(tells_pid, [])
    assert len(list(workers.run(tells_pid, [(0, lambda: 0.0)]))) == 2


class FakeRay:
    """Machines of a cluster, and what of them is free."""

    def __init__(self, *nodes, free=None):
        self._nodes = [dict(zip(("CPU", "GPU"), node, strict=True)) for node in nodes]
        self._free = free or {key: sum(n[key] for n in self._nodes) for key in ("CPU", "GPU")}

    def nodes(self):
        return [{"Alive": True, "Resources": r} for r in self._nodes] + [{"Alive": False, "Resources": {"CPU": 99}}]

    def available_resources(self):
        return self._free

    cluster_resources = available_resources


@pytest.mark.parametrize(
    ("ray", "asked", "expected"),
    [
        (FakeRay((8, 0), (5, 0)), (None, 1, 0.0), (13, 8)),
        (FakeRay((8, 0), (5, 0)), (None, 3, 0.0), (3, 2)),  # two and one, not 13 // 3
        (FakeRay((8, 0), (5, 0), free={"CPU": 4.0}), (None, 1, 0.0), (4, 4)),
        (FakeRay((8, 0), (5, 0)), (20, 1, 0.0), (20, 8)),
        (FakeRay((16, 4), (16, 1)), (None, 1, 1.0), (5, 1)),
        (FakeRay((16, 4), (16, 1)), (None, 4, 1.0), (5, 1)),
        (FakeRay((16, 4), (16, 1)), (None, 1, 0.5), (10, 2)),
        (FakeRay((16, 4), (16, 1)), (None, 1, 0.4), (10, 2)),  # a fifth of a GPU is left over
        (FakeRay((16, 4), (16, 1)), (None, 1, 2), (2, 1)),
    ],
)
def test_room(ray, asked, expected):
    assert _room(ray, *asked) == expected
