"""Families: structured sets of ablation configurations."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Direction = Literal["ascending", "descending"]
Orders = int | Tensor | tuple[Tensor, Direction]
Points = int | str | Tensor | Sequence[int]
Units = Tensor | NDArray[Any] | Sequence[Sequence[int] | Tensor | NDArray[Any]]

_FLAT = "each set is a list of its own, so write [[0, 3]] for one set of two units, or [[0], [3]] for two sets of one"


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


class Family(Protocol):
    """K configurations of the pooled units of all sites, which are numbered site after site.

    Each of them is either on one of the family's curves or clamps one unit alone.
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


def make_orders(orders: Orders, units: int, seed: int) -> Tensor:
    """int64 [R, U] permutations: random ones by number, given ones checked, or the order of a score.

    Raises:
        ValueError: not permutations of 0..U-1, or a score of the wrong length; says which row.
    """
    if isinstance(orders, tuple):
        if len(orders) != 2:
            raise ValueError(f"orders is a tuple of {len(orders)}; give (score per unit, 'ascending' or 'descending')")
        return _order_by_score(*orders, units=units)
    if isinstance(orders, Tensor):
        return _check_orders(orders, units)
    if isinstance(orders, bool) or not isinstance(orders, (int, np.integer)):
        raise TypeError(
            f"orders is a {type(orders).__name__}; give a number of random orders, a LongTensor [R, U], or "
            "(score per unit, 'ascending' or 'descending')"
        )
    if orders < 1:
        raise ValueError(f"orders={orders} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(units, generator=generator) for _ in range(int(orders))])


def make_points(points: Points, units: int) -> Tensor:
    """int64 [T] increasing counts of clamped units, 0..U.

    A number asks for that many evenly spaced counts including 0 and U (fewer if U + 1 is less); ``"all"`` for 0..U.

    Raises:
        ValueError: counts out of 0..U, or not increasing.
    """
    if isinstance(points, str):
        if points != "all":
            raise ValueError(f"points={points!r}: the only word is 'all'; else give a number or a sequence of counts")
        return torch.arange(units + 1)
    if isinstance(points, (int, np.integer)) and not isinstance(points, bool):
        if points < 2:
            raise ValueError(f"points={points} must be at least 2: none ablated, and all of them")
        evenly: Tensor = torch.linspace(0, units, int(points), dtype=torch.float64).round().long().unique()
        return evenly
    if isinstance(points, bool) or not isinstance(points, (Tensor, np.ndarray, Sequence)):
        raise TypeError(f"points is a {type(points).__name__}; give a number, a sequence of counts, or 'all'")
    try:
        counts = torch.as_tensor(points)
    except (TypeError, ValueError) as error:
        raise ValueError(f"points must be a sequence of counts, integers 0..{units}: {error}") from error
    if counts.ndim != 1 or len(counts) == 0 or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(
            f"points must be a sequence of counts of ablated units, integers 0..{units}; got {counts.dtype} "
            f"{list(counts.shape)}"
        )
    counts = counts.long().cpu()
    if counts.min() < 0 or counts.max() > units:
        raise ValueError(f"points must lie in 0..{units}, the number of units; got {counts.min()}..{counts.max()}")
    if (counts.diff() <= 0).any():
        raise ValueError("points must increase strictly")
    return counts


def make_sets(units: Units, unit_counts: tuple[int, ...]) -> Tensor:
    """bool [K, U]: the sets of pooled units (numbered site after site) that ``units`` lists, one a row.

    Args:
        units: a sequence of K index sequences, each a list, a range or a 1-d tensor of integers; an empty one clamps
            nothing. Or a bool tensor ``[K, U]``, True where a unit is clamped.
        unit_counts: the number of units of each site; U is their sum.

    Raises:
        ValueError: no set at all, a flat list of indices, an index out of 0..U-1 or twice in a set, a tensor of another
            dtype or shape; says which row.
        TypeError: something that is no sequence of integers; says which row.
    """
    count = sum(unit_counts)
    if isinstance(units, np.ndarray):
        units = torch.from_numpy(units.copy()) if units.dtype.kind in "biuf" else units.tolist()
    if isinstance(units, Tensor):
        return _check_masks(units, count)
    if not _is_list(units):
        raise TypeError(
            f"units is a {type(units).__name__}; give a list of index lists, or a bool tensor [K, {count}], True = "
            "ablated"
        )
    if len(units) == 0:
        raise ValueError("units is empty: give at least one set of units; [[]] is one set that ablates nothing")
    masks = torch.zeros(len(units), count, dtype=torch.bool)
    for row, indices in enumerate(units):
        masks[row, _check_set(indices, row, count)] = True
    return masks


def _check_masks(masks: Tensor, units: int) -> Tensor:
    if masks.ndim == 1 and masks.dtype != torch.bool:
        raise ValueError(f"units is a flat {masks.dtype} tensor {list(masks.shape)}: {_FLAT}")
    if masks.dtype != torch.bool:
        raise ValueError(
            f"units is a {masks.dtype} tensor {list(masks.shape)}; give a bool tensor [K, {units}], True = ablated, or "
            "a list of index lists"
        )
    if masks.ndim != 2 or len(masks) == 0 or masks.shape[1] != units:
        raise ValueError(f"units {list(masks.shape)} must be [K, {units}]: a row a set, a column a unit, K at least 1")
    return masks.detach().cpu().clone()


def _check_set(indices: Any, row: int, units: int) -> Tensor:
    """int64 [n]: the units of one set."""
    if isinstance(indices, (Tensor, np.ndarray)) and indices.ndim != 1:
        if indices.ndim == 0:
            raise ValueError(f"units[{row}] is the single number {indices.item()}: {_FLAT}")
        raise ValueError(f"units[{row}] {list(indices.shape)} must be a 1-d set of unit indices")
    if isinstance(indices, (int, np.integer)):
        raise ValueError(f"units[{row}] is the single number {indices}: {_FLAT}")
    if not isinstance(indices, (Tensor, np.ndarray)) and not _is_list(indices):
        raise TypeError(f"units[{row}] is a {type(indices).__name__}; give a list, a range or a 1-d tensor of integers")
    if len(indices) == 0:
        return torch.zeros(0, dtype=torch.int64)
    try:
        listed = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"units[{row}] must hold integers 0..{units - 1}: {error}") from error
    if listed.dtype == torch.bool:
        raise ValueError(f"units[{row}] holds bools; masks come as one bool tensor [K, {units}], as torch.stack gives")
    if listed.ndim != 1 or listed.is_floating_point() or listed.is_complex():
        raise ValueError(f"units[{row}] must hold integers 0..{units - 1}; got {listed.dtype} {list(listed.shape)}")
    listed = listed.long().cpu()
    outside = listed[(listed < 0) | (listed >= units)]
    if len(outside):
        raise ValueError(
            f"units[{row}] names unit {int(outside[0])}; the pooled units of all layers are 0..{units - 1}"
        )
    distinct, times = listed.unique(return_counts=True)
    if len(distinct) < len(listed):
        raise ValueError(f"units[{row}] names unit {int(distinct[times > 1][0])} more than once")
    return listed


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, (str, bytes))


def _check_orders(orders: Tensor, units: int) -> Tensor:
    if orders.is_floating_point() or orders.dtype == torch.bool:
        raise ValueError(
            f"orders is a {orders.dtype} tensor; an order is a LongTensor [R, U] of unit indices, and a score per unit "
            "comes with its direction: orders=(score, 'ascending')"
        )
    if orders.ndim != 2 or len(orders) == 0 or orders.shape[1] != units:
        raise ValueError(f"orders {list(orders.shape)} must be [R, {units}]: each row orders all {units} units")
    orders = orders.long().cpu()
    wrong = (orders.sort(1).values != torch.arange(units)).any(1).nonzero()
    if len(wrong):
        raise ValueError(
            f"orders[{int(wrong[0])}] is no permutation of 0..{units - 1} ({len(wrong)} of {len(orders)} rows are "
            "not): every unit must be there once"
        )
    return orders


def _order_by_score(score: Tensor, direction: Direction, *, units: int) -> Tensor:
    if not isinstance(score, (Tensor, np.ndarray, list)):
        raise TypeError(f"orders=(score, direction): the score is a {type(score).__name__}; give a tensor [{units}]")
    score = torch.as_tensor(score).cpu()
    if direction not in ("ascending", "descending"):
        raise ValueError(f"orders=(score, {direction!r}): the direction is 'ascending' or 'descending'")
    if score.shape != (units,):
        raise ValueError(f"orders=(score, ...): score {list(score.shape)} must be [{units}], one number a unit")
    if score.isnan().any():
        raise ValueError(
            f"orders=(score, ...): {int(score.isnan().sum())} of {units} scores are nan, which has no order"
        )
    return score.argsort(descending=direction == "descending", stable=True)[None]
