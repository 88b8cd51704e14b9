"""What is sent to workers, what comes back, and who has room for them: all that needs no running Ray."""

import pickle
import sys
import threading
from functools import partial

import pytest
import torch

import sdkernels as sd
from sdkernels.lab.cluster.ray_workers import RayWorkers, _room
from sdkernels.lab.cluster.worker import ClusterWorker, dumps
from tests.lab.small_clusters import LAYERS, Residual, assert_equal, inputs_and_labels

pytest.importorskip("ray")


@pytest.fixture
def model():
    return Residual().double().eval()


@pytest.fixture
def data():
    return inputs_and_labels()


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


class NeedsTwoError(Exception):
    """An exception that cannot be made of its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


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


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install \"sdkernels\[scale\]\""):
        RayWorkers("local")


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
