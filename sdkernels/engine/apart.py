"""Run sets of units that share nothing with each other: whole tensors below the first site, a pass a set.

A set that is neither one of a nested run nor a single unit shares with the others what lies above the sites. To arrange
the weights of every layer below for it alone takes longer than it saves, unless it clamps most of the units.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sdkernels.engine.dense import AtSite, DenseRun
from sdkernels.engine.families import Curve
from sdkernels.engine.graph import Graph, Values
from sdkernels.engine.rules import Knowledge, Mark
from sdkernels.engine.values import Clamp

# A set of at least this part of the units is worth weights of its own.
LARGEST_SHARE = 0.5


class ApartRun:
    """Runs configurations of one set each.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        clamps: for each site, what a clamped unit becomes.
        curves: of one point each.
    """

    def __init__(self, graph: Graph, know: Knowledge, clamps: Sequence[Clamp], curves: Sequence[Curve]) -> None:
        self.nodes = [n for n in graph.nodes if n in graph.dependent]
        self.configurations = [int(curve.configurations) for curve in curves]
        self._clamps = clamps
        self._masks = [[death == 0 for death in curve.deaths] for curve in curves]
        self._dense = DenseRun(graph, know, self.nodes)
        marks = [rule for node in self.nodes if isinstance(rule := know.rules[node], Mark)]
        self._by_value = {mark.site for mark in marks if mark.by_value}
        self._dims = {mark.site: know.dims[node] or 0 for node in self.nodes if (mark := know.rules[node]) in marks}

    def logits(
        self,
        intact: Values,
        clamped: Sequence[Tensor],
        values_in_range: Mapping[int, Tensor],
        examples: int,
        only: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Configurations [1] and their logits [1, N, L], one by one; of ``only`` some of them, by place.

        ``clamped`` are, for each site, what its clamped units are, [1, *example] or [N, *example], and
        ``values_in_range`` what they are in their range, of sites whose own activations decide.
        """
        for i in range(len(self.configurations)) if only is None else only:
            at_site = self._clamping(self._masks[i], clamped, values_in_range)
            yield torch.tensor([self.configurations[i]]), self._dense.logits(intact, examples, at_site)[None]

    def _clamping(
        self, masks: Sequence[Tensor], clamped: Sequence[Tensor], values_in_range: Mapping[int, Tensor]
    ) -> AtSite:
        def at_site(site: int, x: Tensor, _may_write: bool) -> Tensor:
            if not masks[site].any():
                return x
            value = clamped[site]
            if site in self._by_value:
                value = self._clamps[site].within(x, values_in_range[site])
            shape = [1] * x.ndim
            shape[self._dims[site]] = len(masks[site])
            return torch.where(masks[site].to(x.device).view(shape), value, x)

        return at_site


def is_apart(curve: Curve) -> bool:
    """Whether a curve is one set of less than half of the units."""
    units = sum(len(death) for death in curve.deaths)
    clamped = sum(int((death == 0).sum()) for death in curve.deaths)
    return curve.points == 1 and 0 < clamped < math.ceil(LARGEST_SHARE * units)
