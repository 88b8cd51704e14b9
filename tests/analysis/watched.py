"""Statistics of units by raw hooks and NumPy, unit by unit: what `unit_statistics` is held against."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn


def activations(model: nn.Module, modules: list[nn.Module], inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of some layers for all examples, float64."""
    found: list[torch.Tensor] = []
    handles = [m.register_forward_hook(lambda *call: found.append(call[2].detach().double().clone())) for m in modules]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def by_unit(output: torch.Tensor, unit_dim: int) -> np.ndarray:
    """[C, N, S]: of each unit, every example's elements."""
    moved = output.movedim(unit_dim, 0).reshape(output.shape[unit_dim], len(output), -1)
    return moved.numpy()


def of_units(units: np.ndarray, of: Callable[[np.ndarray], object]) -> np.ndarray:
    """A number a unit, of its elements [N, S]."""
    return np.array([of(unit) for unit in units])


def selectivity(unit: np.ndarray, labels: np.ndarray, kind: str) -> float:
    """Of elements [N, S], from the formula."""
    means = unit.mean(1)
    classes = np.unique(labels)
    by_class = np.array([means[labels == label].mean() for label in classes])
    best = by_class.argmax()
    others = np.delete(by_class, best) if kind == "macro" else means[labels != classes[best]]
    other = others.mean()
    return (by_class[best] - other) / (by_class[best] + other) if by_class[best] > 0 else np.nan
