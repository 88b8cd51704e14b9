"""class_moments by its definition: two passes over all data at once, in numpy's long double."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdkernels.ops import ClassMoments

Array = np.ndarray


@dataclass(frozen=True)
class Exact:
    """The fields of :class:`sdkernels.ops.ClassMoments`, the size of each unit's numbers, each example's means."""

    count: Array  # [L]
    mean: Array  # [L, C]
    m2: Array  # [L, C]
    elements: int
    element_mean: Array  # [C]
    element_m2: Array  # [C]
    minimum: Array  # [C]
    maximum: Array  # [C]
    fired: Array  # [C]
    fired_elements: Array  # [C]
    size: Array  # [C], the greatest magnitude
    means: Array  # [N, C], of each example


def exact_moments(x: Tensor, labels: Tensor, classes: int, unit_dim: int = 1) -> Exact:
    """Of x [N, ...] and its labels [N], on the CPU."""
    rows = x.movedim(unit_dim, 1).flatten(2) if x.ndim > 2 else x[..., None]  # [N, C, S]
    wide = rows.double().numpy().astype(np.longdouble)
    means = wide.mean(2)  # [N, C]
    units = wide.shape[1]
    mean, m2 = np.zeros((classes, units), np.longdouble), np.zeros((classes, units), np.longdouble)
    for label in range(classes):
        own = means[labels.numpy() == label]
        if len(own):
            mean[label] = own.mean(0)
            m2[label] = ((own - own.mean(0)) ** 2).sum(0)
    element_mean = wide.mean((0, 2))
    return Exact(
        count=np.bincount(labels.numpy(), minlength=classes),
        mean=mean,
        m2=m2,
        elements=wide.shape[0] * wide.shape[2],
        element_mean=element_mean,
        element_m2=((wide - element_mean[:, None]) ** 2).sum((0, 2)),
        minimum=wide.min((0, 2)),
        maximum=wide.max((0, 2)),
        fired=(wide > 0).any(2).sum(0),
        fired_elements=(wide > 0).sum((0, 2)),
        size=np.abs(wide).max((0, 2)),
        means=means,
    )


def assert_equal(found: ClassMoments, exact: Exact, tolerance: float) -> None:
    """Counts and extremes are equal; means and sums of squares, relative to the size of the numbers, nearly so."""
    for name in ("count", "elements", "minimum", "maximum", "fired", "fired_elements"):
        assert np.array_equal(getattr(found, name).cpu().numpy(), getattr(exact, name)), name
    weight = np.maximum(exact.count, 1)[:, None]
    bounds = {
        "mean": exact.size,
        "m2": weight * exact.size**2,
        "element_mean": exact.size,
        "element_m2": exact.elements * exact.size**2,
    }
    for name, size in bounds.items():
        error = np.abs(getattr(found, name).cpu().numpy() - getattr(exact, name))
        assert (error <= tolerance * size).all(), f"{name}: {float((error / size).max())}"


def assert_means(found: Tensor, exact: Exact, tolerance: float) -> None:
    """Examples' means [N, C], relative to the size of the numbers."""
    error = np.abs(found.cpu().numpy() - exact.means)
    assert (error <= tolerance * exact.size).all(), float((error / exact.size).max())


def of_batches(x: Tensor, labels: Tensor, classes: int, ends: list[int], device: str) -> ClassMoments:
    """Batches that end there and at N, in their order."""
    moments = ClassMoments.empty(classes, x.shape[1], device)
    for start, end in zip([0, *ends], [*ends, len(x)], strict=True):
        if start < end:
            moments.update(x[start:end].to(device), labels[start:end].to(device))
    return moments


def all_equal(a: ClassMoments, b: ClassMoments) -> bool:
    """Bit for bit."""
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a.tensors(), b.tensors(), strict=True))
