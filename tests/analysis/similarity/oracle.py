"""Canonical correlations and their weights by definition, in float64 NumPy: QR of all activations, and an SVD.

Björck, Golub 1973, "Numerical methods for computing angles between linear subspaces". Nothing of the package is used.
"""

import numpy as np
import torch

RANK = 1e-6  # singular values of standardised activations below this part of the largest are 0


def array(x):
    return x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)


def orthonormal(x):
    """An orthonormal basis of what the centred columns span, [N, r]."""
    x = array(x)
    x = x - x.mean(0)
    x = x - x.mean(0)
    deviations = x.std(0)
    x = x[:, deviations > 0] / deviations[deviations > 0]
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    if values[-1] > RANK * values[0] and len(values) == x.shape[1]:
        return np.linalg.qr(x)[0]
    return left[:, values > RANK * values[0]]


def cca(a, b):
    """Canonical correlations, descending."""
    return np.linalg.svd(orthonormal(a).T @ orthonormal(b), compute_uv=False)


def principal(x, variance):
    """The coordinates along the principal directions that hold that part of the variance."""
    x = array(x)
    left, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    parts = np.cumsum(values**2) / np.sum(values**2)
    count = next(k + 1 for k in range(len(parts)) if parts[k] >= variance)
    return left[:, :count] * values[:count]


def pwcca(a, b, side):
    """The similarity, and weights that add up to 1; ``side`` 0: the neurons of a weigh, 1: those of b."""
    bases = orthonormal(a), orthonormal(b)
    left, correlations, right = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    variates = bases[side] @ (left, right.T)[side]  # [N, c]
    neurons = array((a, b)[side])
    neurons = neurons - neurons.mean(0)
    weights = np.zeros(len(correlations))
    for i in range(len(correlations)):
        for j in range(neurons.shape[1]):
            weights[i] += abs(variates[:, i] @ neurons[:, j])
    weights /= weights.sum()
    return weights @ correlations, weights


def variant(a, b):
    """What pwcca.py of google/svcca computes on centred activations of full rank, a having no more units than b."""
    a, b = (array(x) - array(x).mean(0) for x in (a, b))

    def inverse_root(x):
        values, vectors = np.linalg.eigh(x.T @ x / (len(x) - 1))
        return vectors @ np.diag(values**-0.5) @ vectors.T

    left, correlations, _ = np.linalg.svd(inverse_root(a) @ (a.T @ b / (len(a) - 1)) @ inverse_root(b))
    directions, _ = np.linalg.qr(a @ left)  # without the root
    weights = np.abs(directions.T @ a).sum(1)
    weights /= weights.sum()
    return weights @ correlations, weights


def related(seed, count, units_a, units_b, shared=3, noise=0.5):
    """Activations of two layers with directions in common, float64, mixed, of several scales and offsets."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((count, shared))
    found = []
    for units in (units_a, units_b):
        own = generator.standard_normal((count, units))
        mixed = common @ generator.standard_normal((shared, units)) + noise * own
        found.append(mixed * generator.uniform(0.1, 10, units) + generator.uniform(-5, 5, units))
    return tuple(torch.from_numpy(x) for x in found)
