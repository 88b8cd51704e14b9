"""Average-linkage clustering of a matrix of distances: its order, and its cut into clusters."""

from typing import Any

import torch
from torch import Tensor

from sdkernels.analysis.extras import require


def leaf_order(distance: Tensor) -> Tensor:
    """The order of M networks along the tree of their symmetric distances ``[M, M]``, int64 ``[M]``.

    Among the orders that the tree allows it is one in which neighbours are as near as may be. A distance of nan counts
    as the largest one.
    """
    if len(distance) < 2:
        return torch.arange(len(distance))
    known = distance[distance.isfinite()]
    tree = _tree(distance.nan_to_num(float(known.max()) if len(known) else 1.0), is_ordered=True)
    leaves = require("scipy.cluster.hierarchy", "the order of a heat map").leaves_list(tree)
    return torch.from_numpy(leaves).long()


def cut(distance: Tensor, count: int) -> Tensor:
    """The cluster of each of M networks when their tree is cut into ``count``, int64 ``[M]``.

    Clusters are numbered in the order of their first networks.
    """
    clusters = [{network} for network in range(len(distance))]
    if count < len(distance):
        merges = _tree(distance, is_ordered=False)[: len(distance) - count, :2].astype(int).tolist()
        for first, second in merges:  # the m-th merge makes cluster M + m
            clusters.append(clusters[first] | clusters[second])
            clusters[first] = clusters[second] = set()
    found = torch.empty(len(distance), dtype=torch.int64)
    for number, members in enumerate(sorted((members for members in clusters if members), key=min)):
        found[list(members)] = number
    return found


def _tree(distance: Tensor, *, is_ordered: bool) -> Any:
    hierarchy = require("scipy.cluster.hierarchy", "clustering")
    above = distance[tuple(torch.triu_indices(len(distance), len(distance), 1))]
    return hierarchy.linkage(above.clamp(min=0).numpy(), method="average", optimal_ordering=is_ordered)
