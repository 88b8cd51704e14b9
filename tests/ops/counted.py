"""class_histogram by its definition: counting one by one."""

from itertools import product

import torch
from torch import Tensor

from tests.ops.tensors import numbers


def counted(x: Tensor, labels: Tensor, edges: Tensor, classes: int, unit_dim: int = 1) -> Tensor:
    """[L, C, E + 2], one example and one unit at a time."""
    counts = torch.zeros(classes, len(edges), edges.shape[1] + 2, dtype=torch.int64)
    for n, c in product(range(len(x)), range(len(edges))):
        mean = float(x[n].select(unit_dim - 1, c).double().mean())
        place = 0 if mean == 0 else 1 + sum(not mean < edge for edge in edges[c].tolist())
        counts[labels[n], c, place] += 1
    return counts


def ascending(units: int, edges: int, seed: int = 0) -> Tensor:
    return numbers((units, edges), torch.float64, seed).sort(1).values
