"""Digests: the same in every process, and another one for all that a result depends on."""

import functools
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sdkernels.engine.digest import Digest
from sdkernels.engine.digested_model import digest_of_model
from sdkernels.engine.families import Cumulative, Noise, Sets, Singles
from sdkernels.engine.pairs import Pairs
from sdkernels.engine.values import Clamp
from tests.engine import digested
from tests.engine.digested import Weighted, closed_over, digests, metric
from tests.engine.stored import network

TENSORS = {
    "float64": torch.tensor([1.0, 2.0], dtype=torch.float64),
    "float32": torch.tensor([1.0, 2.0]),
    "bfloat16": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "int64": torch.tensor([1, 2]),
    "complex": torch.tensor([1 + 1j, 2]),
    "conjugate": torch.tensor([1 + 1j, 2]).conj(),
    "0-d": torch.tensor(1.0),
    "1 by 1": torch.tensor([[1.0]]),
    "empty": torch.empty(0, 3),
    "empty, too": torch.empty(3, 0),
    "sparse": torch.eye(3).to_sparse(),
    "strided": torch.eye(3),
    "nan": torch.tensor([float("nan")]),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_digests_are_those_of_another_process():
    done = subprocess.run(
        [sys.executable, "-c", "import json; from tests.engine.digested import *; print(json.dumps(digests()))"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "77"},  # sets of strings are in another order
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    here = digests()
    assert json.loads(done.stdout) == here
    assert len(set(here.values())) == len(here)


def test_tensors_by_type_shape_and_bits():
    hexes = {name: Digest(tensor).hex for name, tensor in TENSORS.items()}
    assert len(set(hexes.values())) == len(hexes)
    square = torch.arange(6.0).view(2, 3)
    for same in (square.t().contiguous().t(), square.clone().requires_grad_(), nn.Parameter(square), square[:, :]):
        assert Digest(same).hex == Digest(square).hex
    assert Digest(torch._neg_view(-square)).hex == Digest(square).hex
    assert Digest(torch.tensor([1 - 1j]).conj()).hex == Digest(torch.tensor([1 + 1j])).hex
    assert Digest(torch.zeros(1)).hex != Digest(-torch.zeros(1)).hex
    assert Digest(np.float32([1, 2])).hex != Digest(np.float64([1, 2])).hex
    frozen = np.arange(3)
    frozen.flags.writeable = False
    assert Digest(frozen).hex == Digest(np.arange(3)).hex


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_tensors_by_their_scale_too():
    made = [torch.quantize_per_tensor(torch.zeros(2), *how, torch.qint8) for how in ((0.1, 0), (0.2, 0), (0.1, 5))]
    zeros = torch.zeros(2, dtype=torch.int64)
    made += [
        torch.quantize_per_channel(torch.zeros(2), torch.tensor(sc), zeros, 0, torch.qint8)
        for sc in ([1.0, 2.0], [2.0, 1.0])
    ]
    assert len({Digest(tensor).hex for tensor in made}) == len(made)


DIFFERENT = [
    ([1, 2], [1, 2.0]),
    ([1, [2]], [[1], 2]),
    (["ab", "c"], ["a", "bc"]),
    ([[], 1], [[1]]),
    ("1", 1),
    (b"1", "1"),
    (None, "None"),
    (True, 1),
    ({"a": 1}, {"a": 2}),
    ({"a", "b"}, {"a", "c"}),
    ({"a"}, ["a"]),
    (1j, 2j),
    (slice(1, 2), slice(1, 2, 1)),
    (torch.float32, torch.float64),
    (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    (np.random.default_rng(0), np.random.default_rng(1)),
    (Weighted(0.5), Weighted(0.25)),
    (Weighted(0.5).of, Weighted(0.25).of),
    (closed_over(1.0), closed_over(2.0)),
    (functools.partial(closed_over(1.0), power=1), functools.partial(closed_over(1.0), power=2)),
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x + 1, lambda x: x - 1),
    (lambda x: x.max(), lambda x: x.min()),
    (lambda x, y=1: x, lambda x, y=2: x),
    (lambda x, *, y=1: x, lambda x, *, y=2: x),
    (lambda x: [y in {1, 2} for y in x], lambda x: [y in {1, 3} for y in x]),
    (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)),
    (len, max),
    ([].append, [1].append),
    (
        Cumulative(torch.tensor([[0, 1]]), torch.tensor([1]), (2,)),
        Cumulative(torch.tensor([[1, 0]]), torch.tensor([1]), (2,)),
    ),
    (
        Cumulative(torch.tensor([[0, 1]]), torch.tensor([1]), (2,)),
        Cumulative(torch.tensor([[0, 1]]), torch.tensor([2]), (2,)),
    ),
    (
        Cumulative(torch.tensor([[0, 1]]), torch.tensor([1]), (2,)),
        Cumulative(torch.tensor([[0, 1]]), torch.tensor([1]), (1, 1)),
    ),
    (Singles((2, 3)), Singles((3, 2))),
    (Sets(torch.eye(2).bool(), (2,)), Sets(torch.ones(2, 2).bool(), (2,))),
    (
        Noise(torch.ones(1), torch.arange(1), (torch.ones(1),), True, 5),
        Noise(torch.ones(1), torch.arange(1), (torch.ones(1),), True, 6),
    ),
    (
        Noise(torch.ones(1), torch.arange(1), (torch.ones(1),), True, 5),
        Noise(torch.ones(1), torch.arange(1), (torch.ones(1),), False, 5),
    ),
    (Pairs(torch.tensor([[0, 1]]), (3,)), Pairs(torch.tensor([[0, 2]]), (3,))),
    (Clamp(torch.zeros(2), "all"), Clamp(torch.zeros(2), "class")),
    (Clamp(torch.zeros(2), "all"), Clamp(torch.zeros(2), "all", torch.zeros(()), torch.ones(()))),
]


@pytest.mark.parametrize("pair", range(len(DIFFERENT)))
def test_what_differs_has_another_digest(pair):
    one, other = DIFFERENT[pair]
    assert Digest(one).hex != Digest(other).hex
    assert Digest(one, other).hex != Digest(other, one).hex
    assert Digest(one).hex == Digest(one).hex


def test_what_metrics_read_is_part_of_them(monkeypatch):
    before = Digest(metric).hex
    with monkeypatch.context() as patch:
        patch.setattr(digested, "SCALE", 3.0)  # a global, two calls away
        assert Digest(metric).hex != before
    with monkeypatch.context() as patch:
        patch.setattr(digested, "doubled", lambda x: x * digested.SCALE + 1)
        assert Digest(metric).hex != before
    of = Digest(Weighted(1.0)).hex
    with monkeypatch.context() as patch:
        patch.setattr(Weighted, "of", lambda self, logits, labels: logits[:, 0])  # a method that __call__ calls
        assert Digest(Weighted(1.0)).hex != of
    assert Digest(metric).hex == before


def test_a_metric_in_a_module_is_read_through_it(monkeypatch):
    module = types.ModuleType("somebodys_metrics")
    exec("WEIGHT = 2\ndef score(logits, labels):\n    return logits[:, 0] * WEIGHT\n", vars(module))
    monkeypatch.setitem(sys.modules, "somebodys_metrics", module)
    space = {"somebodys_metrics": module}
    exec("def metric(logits, labels):\n    return somebodys_metrics.score(logits, labels)\n", space)
    space["metric"].__module__ = "somebody"
    module.score.__module__ = "somebodys_metrics"
    before = Digest(space["metric"]).hex
    module.WEIGHT = 3
    assert Digest(space["metric"]).hex != before


def test_loops_of_references_end():
    looped: list = [1]
    looped.append(looped)

    def again(x):
        return again(x - 1) if x else x

    first, second = Weighted(1.0), Weighted(2.0)
    first.other, second.other = second, first
    model = network()
    model.owner = [model]
    model[0].owner = [model]
    for value in (looped, again, first, model):
        assert Digest(value).hex == Digest(value).hex


@pytest.mark.parametrize(
    "value", [object(), threading.Lock(), np.array([object()]), iter([1])], ids=lambda v: type(v).__name__
)
def test_what_hides_its_state_is_refused(value):
    with pytest.raises(TypeError, match=r"cannot be put into a key.* leave out store="):
        Digest(lambda logits, labels: value)
    assert Digest(value, lenient=True).hex == Digest(value, lenient=True).hex


class Net(nn.Module):
    """With all that a model may keep somewhere."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout = network(), nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(5))
        self.register_buffer("hidden", torch.ones(5), persistent=False)
        self.plain = torch.zeros(5)
        self.sizes, self.names, self.activation, self.dtype = [1, 2], {"a": 1}, torch.relu, torch.float64
        self.first, self.nonlinearity = self.inner[0], self.inner[1]
        self.eval()

    def forward(self, x):
        return self.helper(self.inner(x)) * self.scale + self.plain

    def helper(self, x):
        return self.activation(x) * self.factor


def bump(tensor):
    with torch.no_grad():
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], tensor.new_tensor(9.0))


CHANGES = {
    "one weight's last bit": lambda net: bump(net.inner[0].weight),
    "a buffer's last bit": lambda net: bump(net.scale),
    "a buffer that is not saved": lambda net: bump(net.hidden),
    "a tensor that is no buffer": lambda net: bump(net.plain),
    "dropout's p": lambda net: setattr(net.dropout, "p", 0.1),
    "a slope": lambda net: setattr(net.inner[3], "negative_slope", 0.2),
    "a list": lambda net: net.sizes.append(3),
    "a dict": lambda net: net.names.update(b=2),
    "a function": lambda net: setattr(net, "activation", torch.tanh),
    "a type": lambda net: setattr(net, "dtype", torch.float32),
    "its own forward": lambda net: setattr(net.inner[1], "forward", torch.tanh),
    "a hook": lambda net: net.inner[1].register_forward_hook(lambda module, args, output: output * 2),
    "a hook before": lambda net: net.inner[1].register_forward_pre_hook(lambda module, args: None),
    "another activation": lambda net: net.inner.__setitem__(1, nn.ReLU6()),
    "which of two a name means": lambda net: setattr(net, "first", net.inner[2]),
    "which of two without weights": lambda net: setattr(net, "nonlinearity", net.inner[3]),
    "the mode": lambda net: net.train(),
    "precision": lambda net: net.float(),
    "a parametrization": lambda net: nn.utils.parametrizations.weight_norm(net.inner[0]),
    "no bias": lambda net: setattr(net.inner[0], "bias", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_of_a_model_is_seen(name):
    net = Net()
    assert Digest(net).hex == Digest(Net()).hex
    CHANGES[name](net)
    assert Digest(net).hex != Digest(Net()).hex


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("forward", lambda self, x: self.inner(x)),
        ("helper", lambda self, x: self.activation(x) * self.factor + 1),
        ("factor", 3.0),
    ],
)
def test_any_change_of_a_models_class_is_seen(name, other, monkeypatch):
    before = Digest(Net()).hex
    monkeypatch.setattr(Net, name, other)
    assert Digest(Net()).hex != before


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripts_by_their_text_constants_and_attributes(seeds_torch):
    class Scaled(nn.Module):
        def __init__(self, factor: float, constant: float) -> None:
            super().__init__()
            self.factor, self.constant = factor, torch.full((4,), constant)

        def forward(self, x):
            return x * self.factor + self.constant

    made = [Scaled(2.0, 1.0), Scaled(3.0, 1.0), Scaled(2.0, 4.0)]
    traced = [torch.jit.trace(model.eval(), torch.ones(1, 4)) for model in made]
    assert len({Digest(model).hex for model in traced}) == 3
    assert Digest(traced[0]).hex == Digest(torch.jit.trace(made[0], torch.ones(1, 4))).hex
    scripted = [
        torch.jit.script(nn.Sequential(nn.LeakyReLU(slope), nn.Linear(4, 1).apply(zeroed))) for slope in (0.1, 0.2)
    ]
    assert Digest(scripted[0]).hex != Digest(scripted[1]).hex


def zeroed(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()


def test_hooks_on_all_modules_are_seen():
    net = Net()
    before = Digest(net).hex
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        assert Digest(net).hex != before
    finally:
        handle.remove()
    assert Digest(net).hex == before


def test_what_a_pass_writes_is_left_out_and_nothing_else():
    net, seen = Net(), {}
    net.calls = 0

    def hook(module, args, output):
        seen["last"] = output
        net.calls += 1
        net.hidden += 1

    net.inner[1].register_forward_hook(hook)

    def digest():
        return digest_of_model(net, Digest, forward_pass=lambda: net(torch.randn(3, 4, generator=G).double()))

    with torch.no_grad():
        first = digest()
        assert digest() == first
        assert Digest(net).hex != first
        bump(net.scale)
        changed = digest()
        assert changed != first
        net.inner[1]._forward_hooks.clear()
        assert digest() != changed


G = torch.Generator().manual_seed(0)
