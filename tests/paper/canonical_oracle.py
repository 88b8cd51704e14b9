"""Distances as the paper defines them, by QR and SVD of the data, which the package does not use for them."""

import numpy as np


def distances(a, b, variance=0.99):
    """By method, of activations ``[N, C]`` and ``[N, D]``; the first's neurons weigh."""
    x, y = (np.asarray(one, dtype=np.float64) - np.asarray(one, dtype=np.float64).mean(0) for one in (a, b))
    correlations, variates = _canonical(x, y)
    weights = np.abs(variates.T @ x).sum(1)
    reduced, _ = _canonical(_principal(x, variance), _principal(y, variance))
    return {
        "cca": 1 - correlations.mean(),
        "pwcca": 1 - (weights * correlations).sum() / weights.sum(),
        "svcca": 1 - reduced.mean(),
    }


def _canonical(x, y):
    """Correlations ``[c]`` and the first's variates ``[N, c]``, which are orthonormal."""
    one, other = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    left, correlations, _ = np.linalg.svd(one.T @ other)
    return correlations, one @ left[:, : len(correlations)]


def _principal(x, variance):
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    share = np.cumsum(singular**2) / (singular**2).sum()
    return (left * singular)[:, : int(np.searchsorted(share, variance)) + 1]
