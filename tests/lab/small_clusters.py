"""Networks and calls of a moment's work for Ray's workers, and whether two results are equal."""

import os
import time

import torch
from torch import nn

from sdkernels.lab.models import mlp

EXAMPLES = 150
LAYERS = ["body.relu1", "body.relu2", "head.relu1"]


class Residual(nn.Module):
    """A user's class, which is sent by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, (12, 10), 8, seed=1)
        self.head = mlp(8, (6,), 4, seed=2)

    def forward(self, x):
        return self.head(x + self.body(x))


def inputs_and_labels():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(EXAMPLES, 8, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 4, (EXAMPLES,), generator=generator)


def tells_pid():
    """Tasks that say who does them, take a moment, and say it again."""

    def tell(seconds):
        yield os.getpid()
        time.sleep(seconds)
        yield os.getpid()

    return tell


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
