"""The family of pairs of units, and the units that many pairs have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdkernels.engine.families import Alone, Curve, Sets


@dataclass(frozen=True)
class Pairs:
    """Pairs of units, and each of their units alone.

    The first V configurations clamp one unit each, the P behind them two.

    Attributes:
        pairs: int64 ``[P, 2]``, two different pooled units each.
        unit_counts: the number of units of each site; pooled units are numbered site after site.
    """

    pairs: Tensor
    unit_counts: tuple[int, ...]

    @cached_property
    def units(self) -> Tensor:
        """int64 [V], increasing: the units of all pairs."""
        units: Tensor = self.pairs.unique()
        return units

    @property
    def configurations(self) -> int:
        """K = V + P."""
        return len(self._members)

    @property
    def is_ablating(self) -> Tensor:
        """bool [K], all True."""
        return torch.ones(self.configurations, dtype=torch.bool)

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""
        return list(self._masks(self._members[configurations]).split(self.unit_counts, dim=1))

    def one_by_one(self) -> list["Masks"]:
        """The masks of each site, made when they are asked for: all of them are large."""
        return [Masks(self, site) for site in range(len(self.unit_counts))]

    def curves(self) -> list[Curve]:
        """None."""
        return []

    def alone(self) -> list[Alone]:
        """The units of all pairs, by site."""
        return _by_site(torch.arange(len(self.units)), self.units, self.unit_counts)

    def only(self, chosen: Tensor) -> Sets:
        """Some of the configurations, int64 [k] increasing, numbered anew: sets, which need have nothing in common."""
        return Sets(self._masks(self._members[chosen]), self.unit_counts)

    def in_common(self, may_be_first: Tensor) -> list["Common"]:
        """The pairs, by a unit that they have in common, as few such units as a simple rule finds.

        Of each pair that is the unit that stands in more pairs, or the one with the lower number; but only a unit whose
        site may be ``may_be_first`` bool [sites, sites] to that of the other.
        """
        site = torch.arange(len(self.unit_counts)).repeat_interleave(torch.tensor(self.unit_counts))
        one, other = self.pairs.unbind(1)
        often = self.pairs.flatten().bincount(minlength=len(site))
        there, back = may_be_first[site[one], site[other]], may_be_first[site[other], site[one]]
        is_better = (often[other] > often[one]) | ((often[other] == often[one]) & (other < one))
        swapped = torch.where(there & back, is_better, ~there)
        first, second = torch.where(swapped, other, one), torch.where(swapped, one, other)
        order = (first * len(site) + second).argsort()
        firsts, counts = first[order].unique_consecutive(return_counts=True)
        starts = torch.tensor(self.unit_counts).cumsum(0) - torch.tensor(self.unit_counts)
        found: list[Common] = []
        for unit, rows in zip(firsts.tolist(), order.split(counts.tolist()), strict=True):
            others = _by_site(len(self.units) + rows, second[rows], self.unit_counts)
            found.append(Common(int(site[unit]), unit - int(starts[site[unit]]), tuple(others)))
        return found

    @cached_property
    def _members(self) -> Tensor:
        """int64 [K, 2]: the units of each configuration; one twice where it is alone."""
        return torch.cat([self.units[:, None].expand(-1, 2), self.pairs])

    def _masks(self, members: Tensor) -> Tensor:
        """bool [k, U]."""
        everyone = torch.arange(sum(self.unit_counts))
        return (members[:, :1] == everyone) | (members[:, 1:] == everyone)


@dataclass(frozen=True)
class Masks:
    """The masks of one site: entry k is bool [C]."""

    family: Pairs
    site: int

    def __getitem__(self, k: int) -> Tensor:
        return self.family.ablated(slice(k, k + 1))[self.site][0]


@dataclass(frozen=True)
class Common:
    """Configurations that clamp one unit in common, and each a second one.

    Attributes:
        site, unit: the unit, and its site's index.
        others: the second units with their configurations, by site.
    """

    site: int
    unit: int
    others: tuple[Alone, ...]


def _by_site(configurations: Tensor, units: Tensor, unit_counts: Sequence[int]) -> list[Alone]:
    """Configurations [k] of one pooled unit each, increasing."""
    ends = torch.tensor(unit_counts).cumsum(0)
    counts = torch.searchsorted(units, ends).diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    groups = zip(configurations.split(counts), units.split(counts), strict=True)
    return [
        Alone(site, numbers, own - (int(ends[site]) - unit_counts[site]))
        for site, (numbers, own) in enumerate(groups)
        if len(own)
    ]
