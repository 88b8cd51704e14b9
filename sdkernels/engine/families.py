"""Families: structured sets of ablation configurations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Direction = Literal["ascending", "descending"]
Orders = int | Tensor | tuple[Tensor, Direction]
Points = int | str | Tensor | Sequence[int]


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

    def ablated(self, configurations: slice) -> list[Tensor]:
        """The masks of a run of configurations: for each site, bool [K, C], True where a unit is clamped."""
        k = torch.arange(self.configurations)[configurations]
        order, point = k // len(self.points), k % len(self.points)
        pooled = self.death[order] < self.points[point, None]  # [K, U]
        return list(pooled.split(self.unit_counts, dim=1))

    def last_to_die_first(self, order: int) -> list[Tensor]:
        """For each site, its units int64 [C], the last to be clamped first: at any point the living are a prefix."""
        return [d.argsort(descending=True) for d in self.death[order].split(self.unit_counts)]

    def living(self, order: int) -> Tensor:
        """int64 [T, sites]: how many units of each site are not clamped."""
        counts = [(site[None, :] >= self.points[:, None]).sum(1) for site in self.death[order].split(self.unit_counts)]
        return torch.stack(counts, dim=1)


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
