"""A model's fingerprint changes with what the model computes, and with nothing else."""

import copy

import pytest
import torch
from torch import nn

from sdkernels.analysis.fingerprint import fingerprint


@pytest.fixture
def model(seeds_torch):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    model(torch.randn(2, 3, 5, 5))
    return model


def test_running_it_changes_nothing(model):
    before = fingerprint(model)
    x = torch.randn(2, 3, 5, 5)
    model(x).sum().backward()
    assert fingerprint(model) == before
    hash(before)


@pytest.mark.parametrize(
    "change",
    {
        "in place": lambda m: m[0].bias.add_(1),
        "one bit through data": lambda m: m[4].weight.data.view(torch.int32)[1, 2].bitwise_xor_(1),
        "one bit of an odd number of elements": lambda m: m[4].bias.data.view(torch.int32)[2].bitwise_xor_(1),
        "an array of the same memory": lambda m: m[0].weight.detach().numpy().__setitem__((0, 0, 0, 0), 3.0),
        "a buffer": lambda m: m[1].running_var.mul_(2),
        "a count": lambda m: m[1].num_batches_tracked.add_(1),
        "the dtype": lambda m: m.double(),
        "the layout": lambda m: m.to(memory_format=torch.channels_last),
        "a mode": lambda m: m[1].train(),
        "a number": lambda m: setattr(m[1], "eps", 1.0),
        "a copy of a module": lambda m: m.__setitem__(2, copy.deepcopy(m[2])),
        "a hook": lambda m: m[2].register_forward_hook(lambda *_: None),
        "a hook before": lambda m: m[2].register_forward_pre_hook(lambda *_: None),
        "a tied weight": lambda m: setattr(m[0], "bias", m[1].bias),
    }.items(),
    ids=lambda change: change[0],
)
def test_it_changes_with(model, change):
    before = fingerprint(model)
    with torch.no_grad():
        change[1](model)
    assert fingerprint(model) != before


def test_another_hook_is_another(model):
    handle = model[2].register_forward_hook(lambda *_: None)
    before = fingerprint(model)
    handle.remove()
    model[2].register_forward_hook(lambda *_: None)
    assert fingerprint(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (4, 8)], ids=str)
def test_any_tensor(dtype, shape):
    model = nn.Module()
    model.register_buffer("held", torch.zeros(shape, dtype=dtype))
    model.register_buffer("turned", torch.zeros(4, 3, dtype=dtype).t())
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.turned.data[0, 1] = 1
    assert fingerprint(model) != before


def test_a_model_of_inference_mode(seeds_torch):
    with torch.inference_mode():
        model = nn.Linear(3, 4)
    assert fingerprint(model) == fingerprint(model)
