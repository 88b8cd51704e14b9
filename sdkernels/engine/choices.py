"""Orders, points and sets, as users give them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdkernels.engine.arguments import is_one_of, is_whole, whole_number
from sdkernels.engine.memory import check_room

Direction = Literal["ascending", "descending"]
Spread = Literal["across", "within"]  # how the units of several layers stand in an order by a score
ByScore = tuple[Tensor, Direction] | tuple[Tensor, Direction, Spread]
Orders = int | Tensor | ByScore | Sequence[ByScore]
Points = int | str | Tensor | Sequence[int]
Units = Tensor | NDArray[Any] | Sequence[Sequence[int] | Tensor | NDArray[Any]]
PairsOfUnits = Literal["all"] | Tensor | NDArray[Any] | Sequence[Sequence[int]]

_BY_SCORE = "(score per unit, 'ascending' or 'descending')"
_FLAT = "each set is a list of its own, so write [[0, 3]] for one set of two units, or [[0], [3]] for two sets of one"


def make_orders(orders: Orders, unit_counts: tuple[int, ...], seed: int) -> Tensor:
    """int64 [R, U] permutations: random ones by number, given ones checked, or the order of a score, or of several.

    Raises:
        ValueError: not permutations of 0..U-1, or a score of the wrong length; says which row.
    """
    units = sum(unit_counts)
    if isinstance(orders, tuple):
        return _order_by_score(orders, unit_counts)[None]
    if isinstance(orders, list) and orders and all(isinstance(one, tuple) for one in orders):
        return torch.stack([_order_by_score(one, unit_counts) for one in orders])
    if isinstance(orders, Tensor):
        return _check_orders(orders, units)
    what = f"a number of random orders, a LongTensor [R, U], or {_BY_SCORE}, or a list of such tuples"
    count = whole_number("orders", orders, 1, what=what)
    check_room("orders", count, count * units * 8)
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(units, generator=generator) for _ in range(count)])


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
    if is_whole(points):
        count = min(whole_number("points", points, 2, what="two or more: none ablated, and all of them"), units + 1)
        evenly: Tensor = torch.linspace(0, units, count, dtype=torch.float64).round().long().unique()
        return evenly
    if not isinstance(points, (Tensor, np.ndarray, Sequence)):
        raise TypeError(f"points is a {type(points).__name__}; give a number, a sequence of counts, or 'all'")
    try:
        counts = torch.as_tensor(points)
    except (TypeError, ValueError, RuntimeError) as error:
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


def make_pairs(pairs: PairsOfUnits, unit_counts: tuple[int, ...]) -> Tensor:
    """int64 [P, 2]: pairs of pooled units; ``"all"`` for those within each site, i < j, site after site.

    Raises:
        ValueError: no pair at all, a unit out of 0..U-1 or with itself, a pair twice in whatever order, a tensor of
            another dtype or shape; says which row.
        TypeError: something that is no sequence of pairs of integers.
    """
    units = sum(unit_counts)
    if isinstance(pairs, str):
        if pairs != "all":
            raise ValueError(f"pairs={pairs!r}: the only word is 'all'; else give the pairs, [P, 2]")
        starts = [sum(unit_counts[:site]) for site in range(len(unit_counts))]
        found = [torch.triu_indices(c, c, 1).t() + start for c, start in zip(unit_counts, starts, strict=True)]
        if not any(len(of_site) for of_site in found):
            raise ValueError(f"pairs='all' are those within a layer, and layers of {unit_counts} units have none")
        return torch.cat(found)
    if not isinstance(pairs, (Tensor, np.ndarray)) and not _is_list(pairs):
        raise TypeError(f"pairs is a {type(pairs).__name__}; give 'all', an integer tensor [P, 2] or a list of pairs")
    try:
        listed = torch.as_tensor(pairs).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"pairs must be two integers a row, [P, 2]: {error}") from error
    if listed.numel() == 0:
        raise ValueError("pairs is empty: give at least one pair of units")
    if listed.dtype == torch.bool or listed.is_floating_point() or listed.is_complex():
        raise ValueError(f"pairs is a {listed.dtype} tensor {list(listed.shape)}; give unit numbers, int64 [P, 2]")
    if listed.ndim != 2 or listed.shape[1] != 2:
        raise ValueError(f"pairs {list(listed.shape)} must be [P, 2]: a row a pair of two units")
    listed = listed.long().clone(memory_format=torch.contiguous_format)  # not the user's own
    if len(wrong := ((listed < 0) | (listed >= units)).nonzero()):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"pairs[{row}] names unit {int(listed[row, column])}; the pooled units of all layers are 0..{units - 1}"
        )
    if len(same := (listed[:, 0] == listed[:, 1]).nonzero()):
        raise ValueError(f"pairs[{int(same[0])}] is unit {int(listed[same[0], 0])} with itself; give two units")
    low, high = listed.aminmax(dim=1)
    key = low * units + high
    order = key.argsort(stable=True)
    if len(again := (key[order].diff() == 0).nonzero()):
        first, second = order[int(again[0]) : int(again[0]) + 2].tolist()
        raise ValueError(f"pairs[{first}] and pairs[{second}] are the same pair {listed[first].tolist()}; give it once")
    return listed


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


def _order_by_score(given: ByScore, unit_counts: tuple[int, ...]) -> Tensor:
    """int64 [U]; equals stand in the order of their numbers."""
    if len(given) not in (2, 3):
        raise ValueError(f"orders has a tuple of {len(given)}; give {_BY_SCORE}, and 'within' to treat layers alike")
    units = sum(unit_counts)
    score, direction, spread = given if len(given) == 3 else (*given, "across")
    if not isinstance(score, (Tensor, np.ndarray, list)):
        raise TypeError(f"orders=(score, direction): the score is a {type(score).__name__}; give a tensor [{units}]")
    score = torch.as_tensor(score).cpu()
    if not is_one_of(direction, ("ascending", "descending")):
        raise ValueError(f"orders=(score, {direction!r}): the direction is 'ascending' or 'descending'")
    if not is_one_of(spread, ("across", "within")):
        raise ValueError(
            f"orders=(score, {direction!r}, {spread!r}): 'across' sorts the units of all layers together, 'within' "
            "each layer's own, and takes an equal part of every layer"
        )
    if score.shape != (units,):
        raise ValueError(f"orders=(score, ...): score {list(score.shape)} must be [{units}], one number a unit")
    if score.isnan().any():
        raise ValueError(
            f"orders=(score, ...): {int(score.isnan().sum())} of {units} scores are nan, which has no order"
        )
    if spread == "across":
        return score.argsort(descending=direction == "descending", stable=True)
    places = [part.argsort(descending=direction == "descending", stable=True) for part in score.split(unit_counts)]
    parts = [
        (place.argsort().double() + 0.5) / len(place) for place in places
    ]  # of its layer, when a unit's turn comes
    return torch.cat(parts).argsort(stable=True)
