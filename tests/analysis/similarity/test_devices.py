"""Where activations are summed and decomposed: where the caller says, wherever the networks are."""

import copy

import pytest
import torch

import sdkernels as sd
from sdkernels.engine.memory import memory_limit
from tests.analysis.similarity.oracle import related
from tests.ops.backends import on_cuda

FUNCTIONS = {
    "compare_layers": lambda a, b, **options: sd.compare_layers(a, b, ["1"], inputs(), **options).distance[0, 0],
    "pairwise_similarity": lambda a, b, **options: sd.pairwise_similarity([a, b], ["1"], inputs(), **options).distance[
        0, 0, 1
    ],
    "similarity_over_training": lambda a, b, **options: sd.similarity_over_training(
        [a, b], ["1"], inputs(), **options
    ).distance[0, 0],
}


def inputs():
    return torch.randn(300, 5, generator=torch.Generator().manual_seed(0))


def network(seed):
    linear = torch.nn.utils.skip_init(torch.nn.Linear, 5, 4, bias=False)
    linear.weight.data = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.Sequential(linear, torch.nn.Tanh()).eval()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_memory_is_that_of_the_device_that_is_named(name, monkeypatch):
    """Of one processor two names."""
    asked = []

    def limit(device, fraction):
        asked.append(device)
        return memory_limit(device, fraction)

    for module in ("over_data", "over_networks"):
        monkeypatch.setattr(f"sdkernels.analysis.similarity.{module}.memory_limit", limit)
    models = [network(seed) for seed in range(2)]
    expected = FUNCTIONS[name](*models)
    assert FUNCTIONS[name](*models, device="cpu:0") == expected
    assert asked == [torch.device("cpu"), torch.device("cpu:0")]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("device", ["meta", "cpus", "cuda:99"])
def test_a_device_that_cannot_sum_is_refused(name, device):
    with pytest.raises(ValueError, match=rf"device='{device}' cannot sum float64 numbers here .*give 'cpu'"):
        FUNCTIONS[name](network(0), network(1), device=device)
    with pytest.raises(TypeError, match=r"device is a int; give a torch\.device or its name"):
        FUNCTIONS[name](network(0), network(1), device=0)


@on_cuda
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("method", ["cca", "pwcca", "cka"])
def test_networks_and_sums_on_a_gpu(name, method):
    here = [network(seed) for seed in range(2)]
    there = [copy.deepcopy(model).cuda() for model in here]
    expected = FUNCTIONS[name](*here, method=method)
    for models, device in ((here, "cuda"), (there, "cpu"), (there, None), ((here[0], there[1]), "cuda")):
        found = FUNCTIONS[name](*models, method=method, device=device)
        assert float(found) == pytest.approx(float(expected), abs=1e-6)  # a GPU's float32


def test_matrices():
    a, b = related(3, 200, 4, 5)
    found = sd.similarity(a, b, device=torch.device("cpu"))
    assert found.distance == sd.similarity(a, b).distance
    with pytest.raises(ValueError, match="device='meta' cannot sum float64 numbers here"):
        sd.similarity(a, b, device="meta")


@on_cuda
@pytest.mark.parametrize("solver", ["cholesky", "eigh", "svd"])
def test_matrices_on_a_gpu(solver):
    a, b = related(3, 200, 4, 5)
    expected = sd.similarity(a, b, solver=solver).distance
    for one, other, device in ((a, b, "cuda"), (a.cuda(), b.cuda(), None), (a.cuda(), b, "cpu")):
        assert sd.similarity(one, other, solver=solver, device=device).distance == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="give both on one device, or say device="):
        sd.similarity(a.cuda(), b)
