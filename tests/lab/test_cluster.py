"""Work done by Ray's workers is the work of one process, and asks of them what was agreed upon."""

import itertools
import os
import sys
import types
from functools import partial

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.cluster.dispatch import IN_FLIGHT
from sdkernels.lab.cluster.ray_workers import RayWorkers
from sdkernels.lab.models import mlp
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


def test_closed_workers_do_nothing(workers):
    second = RayWorkers("local", count=1)  # on the Ray that there is, which stays
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        second.run(tells_pid, [])
    assert len(list(workers.run(tells_pid, [(0, lambda: 0.0)]))) == 2
