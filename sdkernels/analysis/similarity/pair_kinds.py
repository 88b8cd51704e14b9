"""Pairs of networks by their groups: within each group, and between each two of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from sdkernels.analysis.similarity.compared import Label


@dataclass(frozen=True, eq=False)
class PairKind:
    """All pairs of a network of one group and a different one of another, or of the same.

    Attributes:
        name: as a legend says it.
        kind: ``"within"``, ``"between"``, or ``"all"`` where there are no groups.
        first, second: the groups; both None for the pairs of all networks.
        pairs: int64 ``[P, 2]``, each pair once.
    """

    name: str
    kind: Literal["within", "between", "all"]
    first: Label | None
    second: Label | None
    pairs: Tensor

    @property
    def is_within(self) -> bool:
        return self.kind != "between"

    def over_layers(self, distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of symmetric distances ``[layers, M, M]``, by layer: mean and standard deviation over the pairs whose
        distance is known, float64 ``[layers]``, and how many those are, int64 ``[layers]``.

        The mean is nan of no pair, and the standard deviation (divided by one less) of fewer than two.
        """
        chosen = distance[:, self.pairs[:, 0], self.pairs[:, 1]]  # [layers, P]
        count = chosen.isfinite().sum(1)
        mean = chosen.nansum(1) / count
        squares = (chosen - mean[:, None]).square().nansum(1)
        return mean, torch.where(count > 1, squares / (count - 1), torch.nan).sqrt(), count


def pair_kinds(groups: Sequence[Label] | None, networks: int) -> list[PairKind]:
    """The pairs within each group, in the order of the groups' first networks, then those between each two groups.

    Without groups, all pairs.
    """
    if groups is None:
        return [PairKind("all pairs", "all", None, None, torch.combinations(torch.arange(networks)))]
    members = {group: [place for place, other in enumerate(groups) if other == group] for group in groups}
    within = [
        PairKind(f"within {group}", "within", group, group, torch.combinations(torch.tensor(places)))
        for group, places in members.items()
    ]
    between = [
        PairKind(
            f"{first} / {second}",
            "between",
            first,
            second,
            torch.cartesian_prod(torch.tensor(members[first]), torch.tensor(members[second])),
        )
        for first, second in combinations(members, 2)
    ]
    return within + between
