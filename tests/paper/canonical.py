"""CCA distances by their definitions, from orthonormal bases of the activations."""

import numpy as np
import torch


def activations(model, name, inputs):
    """A module's outputs, averaged over space, float64 [N, C]."""
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.no_grad():
        model(inputs)
    hook.remove()
    found = kept[0].double()
    return (found.mean((2, 3)) if found.ndim == 4 else found).numpy()


def distance(method, x, y):
    """Of "cca" or "pwcca", for which the side of fewer live units weighs, the first of equals."""
    x, y = x - x.mean(0), y - y.mean(0)
    if _live(y).sum() < _live(x).sum():
        x, y = y, x
    one, other = _basis(x), _basis(y)
    left, correlations, _ = np.linalg.svd(one.T @ other, full_matrices=False)
    if method == "cca":
        return 1 - correlations.mean()
    weights = abs(x.T @ one @ left).sum(0)
    return 1 - (weights * correlations).sum() / weights.sum()


def _basis(x):
    live = x[:, _live(x)]
    vectors, sizes, _ = np.linalg.svd(live / live.std(0), full_matrices=False)
    return vectors[:, sizes > 1e-6 * sizes[0]]


def _live(x):
    return x.std(0) > 1e-6 * x.std(0).max()
