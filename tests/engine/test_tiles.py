"""How a run is cut does not show in its integers."""

import math
from functools import cache

import pytest
import torch

import sdkernels as sd
from sdkernels.engine import memory, tiles
from sdkernels.lab.models import mlp
from tests.engine.compare import tensors_of
from tests.engine.networks import image_networks
from tests.engine.parse import read_plan
from tests.pairwise import pairwise

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")
EXAMPLES = 23
CUTS = {  # WORKING_SET, FEWEST, MOST, batch_size, threads
    "examples by themselves": (1, 1, 8192, 256, 1),
    "threes": (2**30, 1, 3, 1, 1),
    "sevens of batches of five": (1, 7, 7, 5, 2),
    "points side by side": (2**14, 16, 16, 64, 2),
    "all at once": (2**30, 16, 8192, 1000, 2),
}
NETWORKS = {"mlp": (mlp(72, (12, 9), 5, seed=0).double().eval(), ["relu1", "relu2"]), **image_networks()}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(name: str, kind: str, batch_size: int = 256):
    model, layers = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, 2, 6, 6, generator=generator, dtype=torch.float64)
    data = inputs.flatten(1) if name == "mlp" else inputs, torch.randint(0, 5, (EXAMPLES,), generator=generator)
    options = {"metrics": METRICS, "batch_size": batch_size, "value": 0.3}
    if kind == "singles":
        return sd.unit_importance(model, layers, data, **options)
    return sd.cumulative_ablation(model, layers, data, orders=2, points=6, **options)


@cache
def uncut(name: str, kind: str) -> dict[str, torch.Tensor]:
    """What comes of a run as it is cut by itself."""
    return tensors_of(run(name, kind))


@pytest.mark.parametrize(*pairwise(name=NETWORKS, cut=CUTS, kind=["curve", "singles"]), ids=str)
def test_cuts_do_not_show(monkeypatch, threads, name, cut, kind):
    expected = uncut(name, kind)
    working_set, fewest, most, batch_size, count = CUTS[cut]
    for module in (memory, tiles):
        monkeypatch.setattr(module, "WORKING_SET", {"cpu": working_set})
    monkeypatch.setattr(memory, "FEWEST", fewest)
    monkeypatch.setattr(memory, "MOST", most)
    threads(count)
    result = run(name, kind, batch_size)
    most_at_once = EXAMPLES if cut == "all at once" else min(fewest, most) if most != 3 else 3
    assert read_plan(result.plan).tile == math.ceil(EXAMPLES / math.ceil(EXAMPLES / most_at_once))  # all about alike
    for field, tensor in tensors_of(result).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[field], rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(tensor, expected[field]), field
