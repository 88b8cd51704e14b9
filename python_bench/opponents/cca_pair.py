"""Canonical correlations of two networks' activations in numpy, a pair at a time: covariances, their roots, an SVD.

Activations stand as ``[C, N]``, as ``np.cov`` takes them. A pair gives the distance of a from b, and that of b from a.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Matrix = NDArray[np.float64]


def activations(networks: Iterable[nn.Module], inputs: torch.Tensor) -> list[Matrix]:
    """What each network gives, ``[C, N]``."""
    with torch.no_grad():
        return [network(inputs).t().double().contiguous().numpy() for network in networks]


def mean_cca(a: Matrix, b: Matrix) -> tuple[float, float]:
    """1 - mean correlation."""
    correlations = np.linalg.svd(_between(*_covariances(a, b)), compute_uv=False)
    return (float(1 - correlations.mean()),) * 2


def mean_cca_by_pseudo_inverses(a: Matrix, b: Matrix) -> tuple[float, float]:
    """The same in the steps of the program that is used most, ``cca_core.py`` of github.com/google/svcca."""
    of_a, cross, of_b = _covariances(a, b)
    sizes = np.abs(of_a).max(), np.abs(of_b).max()
    roots = []
    for covariance, size in zip((of_a, of_b), sizes, strict=True):
        values, vectors = np.linalg.eigh(np.linalg.pinv(covariance / size))
        roots.append(vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T)
    _, correlations, _ = np.linalg.svd(roots[0] @ (cross / np.sqrt(sizes[0] * sizes[1])) @ roots[1])
    return (float(1 - correlations.mean()),) * 2


def pwcca(a: Matrix, b: Matrix) -> tuple[float, float]:
    """1 - mean weighted by how much each variate of the first accounts for its neurons: the paper's formula."""
    of_a, cross, of_b = _covariances(a, b)
    roots = _inverse_root(of_a), _inverse_root(of_b)
    left, correlations, right = np.linalg.svd(roots[0] @ cross @ roots[1])
    found = []
    for rows, root, vectors in ((a, roots[0], left.T), (b, roots[1], right)):
        centred = rows - rows.mean(1, keepdims=True)
        variates = (vectors @ root) @ centred  # [C, N]
        weights = np.abs(variates @ centred.T).sum(1)
        found.append(float(1 - weights @ correlations / weights.sum()))
    return found[0], found[1]


class RawSums:
    """Mean CCA of two networks over more rows than memory holds, by float64 sums of products, batch by batch."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Matrix = np.zeros(0)
        self._products: Matrix = np.zeros((0, 0))

    def add(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        """A batch of rows, ``[n, C_a]`` and ``[n, C_b]``."""
        rows = np.concatenate([a, b], 1).astype(np.float64)
        if not self._count:
            self._sum, self._products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        self._count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def distance(self, first: int) -> float:
        """1 - mean correlation of the first columns with the others."""
        mean = self._sum / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        parts = covariance[:first, :first], covariance[:first, first:], covariance[first:, first:]
        return float(1 - np.linalg.svd(_between(*parts), compute_uv=False).mean())


def _covariances(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Of a, of a with b, of b: from the covariance of both stacked."""
    covariance = np.cov(a, b)
    return covariance[: len(a), : len(a)], covariance[: len(a), len(a) :], covariance[len(a) :, len(a) :]


def _between(of_a: Matrix, cross: Matrix, of_b: Matrix) -> Matrix:
    """The whitened cross-covariance."""
    return _inverse_root(of_a) @ cross @ _inverse_root(of_b)


def _inverse_root(covariance: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(values)) @ vectors.T


PAIRWISE: Mapping[str, Mapping[str, Callable[[Matrix, Matrix], tuple[float, float]]]] = {
    "cca": {
        "numpy, a pair at a time": mean_cca,
        "numpy, with pseudo-inverses, a pair at a time": mean_cca_by_pseudo_inverses,
    },
    "pwcca": {"numpy, a pair at a time": pwcca},
}
