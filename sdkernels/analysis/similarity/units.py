"""Some of a layer's units, drawn at random: layers of different widths are then compared in as many units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.analysis.similarity.networks import Together
from sdkernels.engine.sites import Site
from sdkernels.ops import random_stream

_ONE_DRAW = torch.zeros(1, dtype=torch.int64)
_UNITS = 2**32 - 4  # what the random stream is asked for here


@dataclass(frozen=True, kw_only=True)
class SomeUnits(Site):
    """A call of a layer of which some units count, and are all that ``read`` gives.

    Attributes:
        chosen: int64 [K], which.
    """

    chosen: Tensor

    def read(self, output: Tensor) -> Tensor:
        return super().read(output).index_select(self.unit_dim, self.chosen.to(output.device))


def drawn_units(units: int, count: int, seed: int) -> Tensor:
    """Which ``count`` of a layer's units are drawn, int64 ``[count]``, ascending.

    They go by the seed and the number of units alone: networks whose layers are as wide give the same ones, so that two
    copies of a network are at distance 0. Of networks that were initialised apart, the units of one have nothing to do
    with the same ones of another, and the draw is as random as one of its own for each.

    Example:
        >>> drawn_units(5, 5, seed=0).tolist(), len(drawn_units(512, 128, seed=0).unique())
        ([0, 1, 2, 3, 4], 128)
    """
    words = random_stream("bits", seed, _ONE_DRAW, _ONE_DRAW, units, site=_UNITS)[0, 0]  # [C]
    return words.argsort(stable=True)[:count].sort().values


def choose_units(together: Together, count: Any, seed: int) -> None:
    """Of each layer of each network, see ``count`` units, drawn by ``seed``.

    Raises:
        TypeError, ValueError: ``count`` is no int, or below 1, or more than a layer has; names layer and network.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"units is a {type(count).__name__}; give an int, how many units of each layer, or None")
    if count < 1:
        raise ValueError(f"units={count} must be at least 1: how many units of each layer")
    together.subjects = tuple(
        subject._replace(sites=_some(together, network, subject.sites, count, seed))
        for network, subject in enumerate(together.subjects)
    )


def _some(together: Together, network: int, sites: Sequence[Site], count: int, seed: int) -> list[Site]:
    found: list[Site] = []
    for place, site in enumerate(sites):
        if site.units < count:
            raise ValueError(
                f"units={count}, and {together.named(network, place)} has {site.units}; give at most as many as the "
                "narrowest layer has"
            )
        shape = list(site.example_shape)
        shape[site.unit_dim - 1] = count
        own = {name: getattr(site, name) for name in Site.__dataclass_fields__} | {"example_shape": tuple(shape)}
        found.append(SomeUnits(**own, chosen=drawn_units(site.units, count, seed)))
    return found
