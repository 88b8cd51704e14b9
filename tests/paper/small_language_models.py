"""Language models at a scale of seconds, and what their layers give, by plain torch."""

import torch

from sdkernels.lab.sweep import compare_networks, run_sweep
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done

NETWORKS = {
    "examples": 1500,
    "shape": {"embedding": 5, "hidden": 6, "layers": 2},
    "learning_rate": 1e-2,
    "epochs": 3,
    "repeats": 2,
    "batch_size": 50,
    "unroll": 10,
}


def run(recipe, changes, store, data_dir=None):
    """What the recipe draws and tests."""
    options = change_options(recipe.presets["quick"], {**NETWORKS, **changes})
    found = {part: run_sweep(sweep, store, data_dir=data_dir) for part, sweep in recipe.sweeps(options).items()}
    compared = {
        comparison.name: compare_networks(found[part], comparison).result
        for part, comparisons in recipe.comparisons(options).items()
        for comparison in comparisons
    }
    return Done(options, found, compared=compared)


def windows(tokens, steps, count):
    """So many windows, side by side in the text, spread evenly over it: int64 ``[count, steps]``."""
    there = len(tokens) // steps
    return torch.stack([tokens[steps * (n * there // count) :][:steps] for n in range(count)])


def layers(model, tokens):
    """By layer, what it gives at each step: ``[N, T, F]``."""
    found, x = {}, model.embedding(tokens)
    with torch.no_grad():
        for name in model.layers:
            x, _ = model.get_submodule(name)(x)
            found[name] = x
    return found
