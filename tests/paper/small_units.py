"""Figures of single units at a scale of seconds: networks of all three parts, and tables made by hand."""

import numpy as np
import pandas as pd

from sdkernels.lab.sweep import run_sweep
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from tests.lab.small_folders import make_imagenet

BLOCKS = ["block1.1", "block4.3"]

CONVNETS = {
    "cifar10.networks.shape": {"width": 1 / 32},
    "cifar10.networks.examples": 100,
    "cifar10.networks.repeats": 2,
    "imagenet.layers": BLOCKS,
    "epochs": 1,
}
ALL = {**CONVNETS, "mnist.networks.shape": {"hidden": [12, 9]}, "mnist.networks.repeats": 2, "cifar10.ablated_on": 50}


def run(recipe, changes, folder):
    """What the recipe draws and tests, of networks in ``folder`` and of a small ImageNet."""
    if not (folder / "imagenet").exists():
        make_imagenet(folder)
    options = change_options(recipe.presets["quick"], changes)
    sweeps = recipe.sweeps(options).items()
    return Done(options, {name: run_sweep(sweep, folder / "networks.sdk", data_dir=folder) for name, sweep in sweeps})


def units(part, networks=4, layers=6, per_layer=20, name="conv", seed=0, **columns):
    """A table of units; each column is a function of depth, noise ``[U]`` and the network's number."""
    generator = np.random.default_rng(seed)
    frames = []
    for network in range(networks):
        depth = np.repeat(np.arange(1, layers + 1), per_layer)
        noise = generator.normal(size=len(depth))
        frames.append(
            pd.DataFrame(
                {
                    "part": part,
                    "network": network,
                    "layer": [f"{name}{place}" for place in depth],
                    "depth": depth,
                    "unit": np.tile(np.arange(per_layer), layers),
                    "dead": False,
                    **{column: make(depth, noise, network) for column, make in columns.items()},
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
