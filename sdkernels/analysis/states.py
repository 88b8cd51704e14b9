"""What a pass over the data accumulates, and how it is written down."""

import io
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sdkernels.engine.arrays import read_arrays, write_arrays


class State(Protocol):
    """What a pass accumulates."""

    def tensors(self) -> dict[str, Tensor]:
        """All but the rows, by name."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Become, from a state that has seen nothing, what :meth:`tensors` was taken of; rows follow."""

    @property
    def row_bytes(self) -> int:
        """What is held of each example so far, beside the tensors; 0 where nothing is."""

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """What is held of some examples, each [n, ...]."""

    def add_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Hold these of the next examples too."""


class WithoutRows:
    """A :class:`State` that holds nothing of single examples."""

    row_bytes = 0

    def rows(self, _start: int, _stop: int) -> dict[str, Tensor]:
        return {}

    def add_rows(self, _rows: Mapping[str, Tensor]) -> None:
        pass


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """As NumPy's ``.npz``, without pickle; not compressed, which would take longer than most work does."""
    file = io.BytesIO()
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    write_arrays(file, {"header": np.array(json.dumps(header)), **arrays})
    return file.getvalue()


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`pack` was given."""
    arrays = read_arrays(io.BytesIO(content))
    header = json.loads(str(arrays.pop("header")))
    return header, {name: torch.from_numpy(array) for name, array in arrays.items()}
