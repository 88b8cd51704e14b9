"""Passes over data that break off, what they read again, and whether two results have the same bits."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis import passes

EXAMPLES, SIZE, CLASSES = 101, 16, 4

CALLS = {
    "statistics": partial(sd.unit_statistics, layers=["1", "4"], mean_maps=True),
    "sketch": partial(sd.unit_statistics, layers=["1", "4"], mean_maps=True),  # with the fixture of few blocks
    "moments": partial(sd.unit_statistics, layers=["1", "4"], cells=0),
    "signed": partial(sd.taylor_importance, layers=["1", "4"]),
    "squared": partial(sd.taylor_importance, layers=["1", "4"], kind="squared"),
    "directions": partial(sd.principal_directions, layer="1"),
}


class StoppedError(Exception):
    pass


class Reads:
    """Batches of given examples, which break off before one of them, and may say how many there are."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor, size: int = SIZE, stop: int | None = None) -> None:
        self.inputs, self.labels, self.size, self.stop = inputs, labels, size, stop

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, start in enumerate(range(0, len(self.labels), self.size)):
            if index == self.stop:
                raise StoppedError
            yield self.inputs[start : start + self.size], self.labels[start : start + self.size]


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        convolution, *linear = nn.Conv2d(2, 5, 3), nn.Linear(80, 7), nn.Linear(7, CLASSES)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear[0], nn.ReLU(), linear[1])
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    """Of which none is of class 2."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (EXAMPLES,), generator=generator)
    return torch.randn(EXAMPLES, 2, 6, 6, generator=generator), labels + (labels == 2)


def same(one: object, other: object) -> bool:
    """Whether two results have the same bits, whatever else they say."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(math.pi), other.nan_to_num(math.pi))
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many examples each forward pass was of; not by hooks, which are part of the model."""
    seen: list[int] = []
    convolved = nn.functional.conv2d

    def counting(x: torch.Tensor, *rest) -> torch.Tensor:
        seen.append(len(x))
        return convolved(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "conv2d", counting)
        yield seen


def batches_in(seen: list[int]) -> int:
    """How many examples were passed on, beside the few that layers and the model are looked at with."""
    return sum(count for count in seen if count > 8)


def keep_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(passes, "SHARE", math.inf)
    monkeypatch.setattr("sdkernels.analysis.gathered.BLOCK", 6)  # of which no batch is a multiple
