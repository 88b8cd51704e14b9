"""For stored calls: a small network, data that stops in the middle, tiles of a few examples, and what is redone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sdkernels.engine import keeping, parts

EXAMPLES, FIRST, SIZE = 61, 16, 8  # so seven tiles


def network(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """[N, 4] -> five logits; layers "1" and "3"."""
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (nn.utils.skip_init(nn.Linear, *shape) for shape in ((4, 6), (6, 5), (5, 5)))
    model = nn.Sequential(first, nn.ReLU(), second, nn.LeakyReLU(0.1), third)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def examples(count: int = EXAMPLES, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs float64 [N, 4] and labels."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 4, generator=generator, dtype=torch.float64),
        torch.randint(0, 5, (count,), generator=generator),
    )


class StoppedError(Exception):
    """What a data set raises in the middle."""


class Reads(Dataset):
    """Examples, of which the one at ``stop`` cannot be read."""

    def __init__(self, inputs: Tensor, labels: Tensor, stop: int | None = None) -> None:
        self.inputs, self.labels, self.stop = inputs, labels, stop

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.stop:
            raise StoppedError
        return self.inputs[index], self.labels[index]


def set_small_tiles(patch: pytest.MonkeyPatch) -> None:
    """Tiles of ``SIZE`` examples, the first one of ``FIRST``, whatever the time that they take."""
    patch.setattr(parts, "TILE_SECONDS", 1e-12)
    patch.setattr(parts, "LEAST_EXAMPLES", SIZE)
    patch.setattr(parts, "FIRST_EXAMPLES", FIRST)
    patch.setattr(keeping, "FIRST_EXAMPLES", FIRST)


@contextmanager
def tiles_scored() -> Iterator[list[tuple[int, int]]]:
    """The tiles that are scored and not taken from the ledger: where they start and how many examples they have."""
    seen: list[tuple[int, int]] = []
    score = parts._Here._score_anew

    def scoring(self: Any, job: Any, index: int, batch: Any, data: bytes) -> Any:
        seen.append((int(batch.places[0]), len(batch.labels)))
        return score(self, job, index, batch, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts._Here, "_score_anew", scoring)
        yield seen


def differences(one: Any, other: Any, *, sums_within: float = 0.0) -> list[str]:
    """The fields of two results that differ; sums of losses may by ``sums_within``, relatively. Plans are left out."""
    assert type(one) is type(other)
    names = [field.name for field in fields(one) if field.name != "plan"]
    return [name for name in names if not _same(getattr(one, name), getattr(other, name), sums_within)]


def _same(one: Any, other: Any, within: float) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.is_floating_point() and within:
            return one.shape == other.shape and torch.allclose(one, other, within, within, equal_nan=True)
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], within) for key in one)
    return bool(one == other)
