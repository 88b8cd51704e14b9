"""Pairs of networks as tables, one row a pair, and back."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdkernels.analysis.similarity.pairwise_result import PairwiseSimilarity
from sdkernels.lab.sweep.results import Compared


def pair_frame(compared: Compared, networks: pd.DataFrame) -> pd.DataFrame:
    """One row a pair of networks compared at one layer: the mean of both directions' distances.

    Args:
        compared: what ``pairwise_similarity`` gave of networks of a sweep.
        networks: one row a network, with its place as ``network``; the other columns come twice, as ``first_...`` and
            ``second_...``.

    Raises:
        TypeError: another comparison's result.
    """
    if not isinstance(compared, PairwiseSimilarity):
        raise TypeError(f"a {type(compared).__name__} has no pairs of networks; give a pairwise_similarity's result")
    (distance,) = compared.symmetrised.numpy()
    first, second = np.triu_indices(len(compared.names), 1)
    of_network = networks.set_index("network").loc[[int(name) for name in compared.names]].reset_index()
    sides = []
    for side, places in (("first", first), ("second", second)):
        names = {name: side if name == "network" else f"{side}_{name}" for name in networks}
        sides.append(of_network.iloc[places].reset_index(drop=True).rename(columns=names))
    return pd.concat(sides, axis=1).assign(distance=distance[first, second])


def networks_of(pairs: pd.DataFrame) -> pd.DataFrame:
    """The networks of such a table, one row each, in the order of their places."""
    sides = []
    for side in ("first", "second"):
        names = [str(name) for name in pairs if name == side or str(name).startswith(f"{side}_")]
        own = {name: "network" if name == side else name.removeprefix(f"{side}_") for name in names}
        sides.append(pairs[names].rename(columns=own))
    return pd.concat(sides).drop_duplicates("network").sort_values("network").reset_index(drop=True)


def matrix_of(pairs: pd.DataFrame, networks: Sequence[int]) -> NDArray[np.float64]:
    """Distances ``[n, n]`` of these networks, with zeros on the diagonal."""
    place = {network: at for at, network in enumerate(networks)}
    found = np.zeros((len(place), len(place)))
    for first, second, distance in zip(pairs["first"], pairs["second"], pairs.distance, strict=True):
        if first in place and second in place:
            found[place[first], place[second]] = found[place[second], place[first]] = distance
    return found
