"""Families: structured sets of ablation configurations."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Nested configurations: what is clamped at a point stays clamped at all later ones.

    Attributes:
        configurations: their numbers, int64 [T].
        deaths: for each site, int64 [C]: at how many points, the first ones, a unit is not clamped.
    """

    configurations: Tensor
    deaths: tuple[Tensor, ...]

    @property
    def points(self) -> int:
        """T."""
        return len(self.configurations)


@dataclass(frozen=True)
class Alone:
    """Configurations that clamp one unit each, all of one site.

    Attributes:
        site: the index of the site.
        configurations: their numbers, int64 [k].
        units: the unit that each clamps, int64 [k].
    """

    site: int
    configurations: Tensor
    units: Tensor

    def middle(self, count: int) -> "Alone":
        """So many of them, or all if they are fewer, around the middle."""
        start = max(0, len(self.units) - count) // 2
        part = slice(start, start + count)
        return Alone(self.site, self.configurations[part], self.units[part])


class Family(Protocol):
    """K configurations of the pooled units of all sites, which are numbered site after site.

    Each of them is either on one of the family's curves or clamps one unit alone; but noise, and pairs of units
    (:mod:`sdkernels.engine.pairs`), are run by a way of their own.
    """

    @property
    def unit_counts(self) -> tuple[int, ...]:
        """The number of units of each site."""

    @property
    def configurations(self) -> int:
        """K."""

    @property
    def is_ablating(self) -> Tensor:
        """bool [K]: whether a configuration clamps any unit at all."""

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""

    def curves(self) -> list[Curve]:
        """The nested configurations."""

    def alone(self) -> list[Alone]:
        """The configurations of one unit, by site."""

    def only(self, chosen: Tensor) -> "Family":
        """Some of the configurations, int64 [k] increasing, numbered anew."""


@dataclass(frozen=True)
class Cumulative:
    """Cumulative ablation: at point t of order r the first ``points[t]`` units of ``orders[r]`` are clamped.

    Attributes:
        orders: int64 ``[R, U]``, each row a permutation of the pooled units.
        points: int64 ``[T]``, increasing counts of clamped units.
        unit_counts: the number of units of each site; pooled units are numbered site after site.
    """

    orders: Tensor
    points: Tensor
    unit_counts: tuple[int, ...]
    configurations: int = field(init=False)  # K = R * T, configuration r * T + t

    def __post_init__(self) -> None:
        object.__setattr__(self, "configurations", len(self.orders) * len(self.points))

    @cached_property
    def death(self) -> Tensor:
        """int64 [R, U]: at which place of each order a unit is clamped (the inverse permutations)."""
        return self.orders.argsort(1)

    @property
    def is_ablating(self) -> Tensor:
        """bool [K]: whether a configuration clamps any unit at all."""
        return (self.points > 0).repeat(len(self.orders))

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""
        k = torch.arange(self.configurations)[configurations]
        order, point = k // len(self.points), k % len(self.points)
        pooled = self.death[order] < self.points[point, None]  # [K, U]
        return list(pooled.split(self.unit_counts, dim=1))

    def curves(self) -> list[Curve]:
        """One an order."""
        return [
            Curve(
                torch.arange(r * len(self.points), (r + 1) * len(self.points)),
                tuple(torch.searchsorted(self.points, place, right=True) for place in places.split(self.unit_counts)),
            )
            for r, places in enumerate(self.death)
        ]

    def alone(self) -> list[Alone]:
        """None."""
        return []

    def only(self, chosen: Tensor) -> "Part":
        """Some of the configurations, int64 [k] increasing, numbered anew."""
        return Part(self, chosen)


@dataclass(frozen=True)
class Singles:
    """Every unit alone: configuration u clamps pooled unit u and no other, so K = U."""

    unit_counts: tuple[int, ...]

    @property
    def configurations(self) -> int:
        """K, which is U."""
        return sum(self.unit_counts)

    @property
    def is_ablating(self) -> Tensor:
        """bool [K], all True."""
        return torch.ones(self.configurations, dtype=torch.bool)

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""
        units = torch.arange(self.configurations)
        return list((units[configurations, None] == units).split(self.unit_counts, dim=1))

    def curves(self) -> list[Curve]:
        """None."""
        return []

    def alone(self) -> list[Alone]:
        """All, a site at a time."""
        pooled = torch.arange(self.configurations).split(self.unit_counts)
        return [Alone(site, units, units - units[0]) for site, units in enumerate(pooled)]

    def only(self, chosen: Tensor) -> "Part":
        """Some of the configurations, int64 [k] increasing, numbered anew."""
        return Part(self, chosen)


@dataclass(frozen=True)
class Sets:
    """Explicit sets: configuration k clamps the units whose ``masks[k]`` is True.

    Attributes:
        masks: bool ``[K, U]``.
        unit_counts: the number of units of each site; pooled units are numbered site after site.
    """

    masks: Tensor
    unit_counts: tuple[int, ...]

    @property
    def configurations(self) -> int:
        """K."""
        return len(self.masks)

    @property
    def is_ablating(self) -> Tensor:
        """bool [K]: whether a configuration clamps any unit at all."""
        return self.masks.any(1)

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""
        return list(self.masks[configurations].split(self.unit_counts, dim=1))

    def curves(self) -> list[Curve]:
        """Runs of sets each of which holds the one before it; a set of one unit is none."""
        runs: list[list[int]] = []
        for k in (self.masks.sum(1) != 1).nonzero().squeeze(1).tolist():
            if runs and not (self.masks[runs[-1][-1]] & ~self.masks[k]).any():
                runs[-1].append(k)
            else:
                runs.append([k])
        return [Curve(torch.tensor(run), tuple((~self.masks[run]).sum(0).split(self.unit_counts))) for run in runs]

    def alone(self) -> list[Alone]:
        """The sets of one unit, by site."""
        single = (self.masks.sum(1) == 1).nonzero().squeeze(1)
        sets, units = self.masks[single].nonzero().unbind(1)
        found: list[Alone] = []
        first = 0
        for site, count in enumerate(self.unit_counts):
            here = (units >= first) & (units < first + count)
            if here.any():
                found.append(Alone(site, single[sets[here]], units[here] - first))
            first += count
        return found

    def only(self, chosen: Tensor) -> "Part":
        """Some of the configurations, int64 [k] increasing, numbered anew."""
        return Part(self, chosen)


@dataclass(frozen=True)
class Part:
    """Some configurations of another family, ``chosen`` int64 [k] increasing, numbered anew."""

    whole: Family
    chosen: Tensor

    @property
    def unit_counts(self) -> tuple[int, ...]:
        """The number of units of each site."""
        return self.whole.unit_counts

    @property
    def configurations(self) -> int:
        """K."""
        return len(self.chosen)

    @property
    def is_ablating(self) -> Tensor:
        """bool [K]: whether a configuration clamps any unit at all."""
        return self.whole.is_ablating[self.chosen]

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""
        return [mask[self.chosen[configurations]] for mask in self.whole.ablated(slice(None))]

    def curves(self) -> list[Curve]:
        """Those of the whole, with fewer points."""
        found: list[Curve] = []
        for curve in self.whole.curves():
            kept = torch.isin(curve.configurations, self.chosen)
            if kept.any():
                before = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])  # kept points before each
                found.append(Curve(self._numbers(curve.configurations[kept]), tuple(before[d] for d in curve.deaths)))
        return found

    def alone(self) -> list[Alone]:
        """Those of the whole, with fewer units."""
        found: list[Alone] = []
        for group in self.whole.alone():
            kept = torch.isin(group.configurations, self.chosen)
            if kept.any():
                found.append(Alone(group.site, self._numbers(group.configurations[kept]), group.units[kept]))
        return found

    def only(self, chosen: Tensor) -> "Part":
        """Some of the configurations, int64 [k] increasing, numbered anew."""
        return Part(self.whole, self.chosen[chosen])

    def _numbers(self, configurations: Tensor) -> Tensor:
        return torch.searchsorted(self.chosen, configurations)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on all units at once: configuration k adds ``factors[k] * deviations * normals of draws[k]``.

    Attributes:
        factors: float64 ``[K]``, at least 0.
        draws: int64 ``[K]``: configurations with the same number get the same normals.
        deviations: for each site, each unit's standard deviation, float64 ``[C]``.
        per_map: one normal for all positions of a unit, not one for each.
        seed: of the normals.
    """

    factors: Tensor
    draws: Tensor
    deviations: tuple[Tensor, ...]
    per_map: bool
    seed: int

    @property
    def unit_counts(self) -> tuple[int, ...]:
        """The number of units of each site."""
        return tuple(len(sd) for sd in self.deviations)

    @property
    def configurations(self) -> int:
        """K."""
        return len(self.factors)

    @property
    def is_ablating(self) -> Tensor:
        """bool [K]: whether a configuration adds any noise at all."""
        return (self.factors > 0) & any(bool((sd > 0).any()) for sd in self.deviations)

    def ablated(self, configurations: slice) -> list[Tensor]:
        """No unit is clamped: for each site, bool [K, C], all False."""
        count = len(self.factors[configurations])
        return [torch.zeros(count, len(sd), dtype=torch.bool) for sd in self.deviations]

    def curves(self) -> list[Curve]:
        """None."""
        return []

    def alone(self) -> list[Alone]:
        """None."""
        return []

    def only(self, chosen: Tensor) -> "Noise":
        """Some of the configurations, int64 [k] increasing, numbered anew."""
        return replace(self, factors=self.factors[chosen], draws=self.draws[chosen])

    def groups(self) -> list[Tensor]:
        """The configurations of each draw, int64 [k]."""
        return [(self.draws == draw).nonzero().squeeze(1) for draw in self.draws.unique()]
