"""Values that a hurried or an unkind caller might give for any argument."""

import fractions
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class Stubborn:
    """Raises whatever is asked of it."""

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __iter__(self) -> Any:
        raise RuntimeError("no items")


HOSTILE: Mapping[str, Callable[[], Any]] = {
    repr(value): (lambda value=value: value)
    for value in (
        *(None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, -(2**63), 10**30),
        *(0.0, -0.0, 0.5, -0.5, 1.0, 1.5, 1e-300, 1e300, float("inf"), -float("inf"), float("nan"), 1 + 2j),
        *("", "all", "mean", "zzz", "1", "1@0", "1@7", "..", "cpu", "meta", "ascending", "\x00", "\ud800", "1" * 300),
        *(b"", b"1", (), [], {}, set(), [[]], [None], [0], [1.5], ["1"], ["1", "1"], [[0]], [[9]], [[-1]], [["a"]]),
        *((0, 1), (1, 0), (1, 2, 3), {"1": 0.5}, {"zzz": 1}, {1: 2}, {"1": None}, {None: 1}, {"1": "mean"}),
        *(range(3), slice(2), int, print, Ellipsis, NotImplemented, fractions.Fraction(1, 2), Path("/nonexistent/x")),
        *(np.int64(2), np.float32(0.5), np.bool_(True), np.float64("nan"), np.str_("1")),
    )
} | {
    "object()": object,
    "Stubborn()": Stubborn,
    "an iterator": lambda: iter([1, 2]),
    "a generator": lambda: (i for i in range(2)),
    "a function": lambda: lambda *arguments: None,
    "a raising function": lambda: _raising,
    "a list in itself": lambda: _in_itself(),
    "np.zeros(0)": lambda: np.zeros(0),
    "np.array of objects": lambda: np.array([None, "a"], dtype=object),
    "np.array of strings": lambda: np.array(["a", "b"]),
    "np.ones((2, 3))": lambda: np.ones((2, 3)),
    "np.ones((40, 3)).T": lambda: np.ones((3, 40)).T,
    "torch.empty(0)": lambda: torch.empty(0),
    "torch.zeros(0, 3)": lambda: torch.zeros(0, 3),
    "torch.tensor(2)": lambda: torch.tensor(2),
    "torch.tensor(nan)": lambda: torch.tensor(float("nan")),
    "torch.zeros(4)": lambda: torch.zeros(4),
    "torch.ones(7)": lambda: torch.ones(7),
    "torch.arange(7)": lambda: torch.arange(7),
    "torch.arange(7)[None]": lambda: torch.arange(7)[None],
    "torch.full((7,), nan)": lambda: torch.full((7,), float("nan")),
    "torch.ones(2, 7, bool)": lambda: torch.ones(2, 7, dtype=torch.bool),
    "torch.ones(2, 7, complex)": lambda: torch.ones(2, 7, dtype=torch.complex64),
    "torch.ones(2, 7, meta)": lambda: torch.ones(2, 7, device="meta"),
    "torch.ones(2, 7, sparse)": lambda: torch.ones(2, 7).to_sparse(),
    "torch.ones(1).expand(2, 7)": lambda: torch.ones(1).expand(2, 7),
    "torch.ones(40, 3).half()": lambda: torch.ones(40, 3).half(),
    "torch.randn(40, 3) with an inf": lambda: torch.ones(40, 3).index_fill(0, torch.tensor([5]), float("inf")),
    "torch.ones(2, 2, 2, 2, 2)": lambda: torch.ones(2, 2, 2, 2, 2),
    "two tensors of other lengths": lambda: (torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64)),
    "labels that are floats": lambda: (torch.zeros(5, 3), torch.zeros(5)),
    "labels that are negative": lambda: (torch.zeros(5, 3), torch.full((5,), -1)),
    "labels that are too large": lambda: (torch.zeros(5, 3), torch.full((5,), 99)),
    "no examples": lambda: (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
    "one example": lambda: (torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)),
    "inputs with nan": lambda: (torch.full((5, 3), float("nan")), torch.zeros(5, dtype=torch.int64)),
    "inputs of another width": lambda: (torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)),
    "inputs of int64": lambda: (torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)),
    "nn.ReLU()": nn.ReLU,
    "nn.Identity in training": lambda: nn.Sequential(nn.Identity(), nn.Identity()).train(),
    "nn.Sequential()": lambda: nn.Sequential().eval(),
    "a lazy module": lambda: nn.Sequential(nn.LazyLinear(3), nn.ReLU()).eval(),
    "a module class": lambda: nn.ReLU,
}


def _raising(*_arguments: Any) -> Any:
    raise ZeroDivisionError("of the caller's own")


def _in_itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found
