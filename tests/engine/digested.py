"""Values of every kind, and their digests."""

import enum
import functools
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sdkernels.engine.digest import Digest
from sdkernels.engine.families import Cumulative, Noise, Sets, Singles
from sdkernels.engine.pairs import Pairs
from sdkernels.engine.values import Clamp
from tests.engine.networks import ConvNet, Residual, Tokens
from tests.engine.stored import network

SCALE = 2.0


class Kind(enum.Enum):
    FIRST = 1


@dataclass
class Weighted:
    """A metric that is an object."""

    weight: float

    def __call__(self, logits, labels):
        return self.weight * self.of(logits, labels)

    def of(self, logits, labels):
        return logits.gather(1, labels[:, None])[:, 0]


def doubled(x):
    return x * SCALE


def metric(logits, labels):
    """Reads a global, by a function that is one."""
    return doubled(logits)[:, 0] * (labels in {1, 2, 3})


def closed_over(weight):
    def weighted(logits, labels, power=2):
        return weight * logits[:, 0] ** power

    return weighted


def values() -> dict:
    """By name."""
    orders, points = torch.arange(6).flip(0)[None], torch.tensor([0, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {cls.__name__: cls().eval() for cls in (ConvNet, Residual, Tokens)}
    models["script"] = torch.jit.script(network())
    models["trace"] = torch.jit.trace(network(), torch.ones(1, 4, dtype=torch.float64))
    models["traced by fx"] = torch.fx.symbolic_trace(network())
    models["parametrized"] = nn.utils.parametrizations.weight_norm(network()[2])
    return {
        "plain": [None, True, 1, 1.5, -0.0, 1j, "a\u2603", b"a", (1, 2), [1, [2]], {"a": {1, 2}}, slice(1, None), ...],
        "frozen": frozenset({"a", "b", "c"}),
        "torch": [torch.float32, torch.device("cpu"), torch.Size([1, 2]), torch.contiguous_format, torch.strided],
        "generator": torch.Generator().manual_seed(3),
        "numpy": [
            np.arange(3),
            np.float32(0.1),
            np.array("a"),
            np.random.default_rng(0),
            np.float64(2),
            np.bool_(True),
        ],
        "path": Path("a"),
        "kind": Kind.FIRST,
        "ordered": OrderedDict(a=1),
        "metric": metric,
        "lambda": lambda logits, labels: (logits.argmax(1) == labels).float(),
        "partial": functools.partial(closed_over(2.0), power=3),
        "closure": closed_over(torch.arange(3)),
        "object": Weighted(0.5),
        "method": Weighted(0.5).of,
        "built in": [len, torch.relu, torch.Tensor.add, np.add, torch.ops.aten.relu.default, "a".join],
        "class": [Weighted, nn.Linear, dict],
        "loss": nn.CrossEntropyLoss(reduction="none"),
        "families": [
            Cumulative(orders, points, (6,)),
            Cumulative(orders, points, (6,)).only(torch.tensor([1])),
            Singles((2, 4)),
            Sets(torch.eye(2).bool(), (2,)),
            Noise(torch.ones(2), torch.arange(2), (torch.ones(3),), True, 5),
            Pairs(torch.tensor([[0, 1]]), (3,)),
        ],
        "clamp": Clamp(torch.zeros(()), "all", None, torch.ones(2)),
        **models,
    }


def digests() -> dict[str, str]:
    return {name: Digest(value).hex for name, value in values().items()}
