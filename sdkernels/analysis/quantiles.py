r"""Quantiles of many units at once, in one pass and in bounded memory.

All values are held while they fit. After that, two blocks of sorted values are merged into one of half as many, each
of which stands for twice as many: every second one is kept, the first of each pair and the second in turn. Whoever asks
how many values lie below a threshold is told too few, or too many, by at most the weight of one value for each such
merge. So the error of any rank is bounded by the larger of two sums that are known exactly (Manku, Rajagopalan, Lindsay
1998, "Approximate medians and other quantiles in one pass and with limited memory").

Blocks are cut by the number of examples, so nothing depends on how the data came in batches.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WORTH_THREADS = 2**21  # values; OpenMP's own threads wait for work for a while, and are in the way
UNITS_AT_ONCE = 256  # when all values of a unit are sorted: bounds the copies


@dataclass(eq=False)
class _Block:
    rows: Tensor  # [block, C]; sorted by unit where the level is above 0
    level: int  # each row stands for 2 ** level values


class QuantileSketch:
    """The distributions of C units.

    Args:
        units: C.
        blocks: how many blocks may be held, at least 2; beyond, they are merged. Where N examples need more than that
            many distinct weights, there are up to log2(N / block) + 2.
        block: examples a block.
        dtype: what values are rounded to: float64, or float32, which is sorted in half the time.
        device: where the values are.

    Example:
        >>> sketch = QuantileSketch(units=1, blocks=8)
        >>> sketch.add(torch.arange(1.0, 101.0, dtype=torch.float64)[:, None])
        >>> sketch.edges(4), sketch.rank_error
        (tensor([[25.5000, 50.5000, 75.5000]], dtype=torch.float64), 0.0)
    """

    def __init__(
        self,
        units: int,
        *,
        blocks: int,
        block: int = 1024,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if blocks < 2 or block < 2 or block % 2:
            raise ValueError(f"blocks={blocks} and block={block} must be at least 2, and block even")
        self.units, self.block, self.dtype, self.device = units, block, dtype, device
        self.count = 0
        self._limit = blocks
        self._blocks: list[_Block] = []
        self._open = self._new_block()
        self._filled = 0
        self._too_few = self._too_many = 0  # by which a rank may be off, in values

    @property
    def is_exact(self) -> bool:
        """Whether every value is still there."""
        return self._too_few == self._too_many == 0

    @property
    def rank_error(self) -> float:
        """By how much of all values the rank of an edge may be off, 0 to 1."""
        return max(self._too_few, self._too_many) / max(self.count, 1)

    def add(self, values: Tensor) -> None:
        """See values [N, C]."""
        self.count += len(values)
        while len(values):
            taken = min(self.block - self._filled, len(values))
            self._open[self._filled : self._filled + taken] = values[:taken]
            self._filled += taken
            values = values[taken:]
            if self._filled == self.block:
                self._blocks.append(_Block(self._open, 0))
                self._open, self._filled = self._new_block(), 0
                self._shrink()

    def merge(self, other: "QuantileSketch") -> None:
        """See all that another of the same block size has seen."""
        if (other.units, other.block, other.dtype) != (self.units, self.block, self.dtype):
            raise ValueError(
                f"a sketch of {other.units} units in blocks of {other.block} {other.dtype} does not go into one of "
                f"{self.units} units in blocks of {self.block} {self.dtype}"
            )
        self.add(other._open[: other._filled])
        self.count += other.count - other._filled
        self._too_few += other._too_few
        self._too_many += other._too_many
        self._blocks += [_Block(held.rows.clone(), held.level) for held in other._blocks]
        self._shrink()

    def held(self) -> Iterator[Tensor]:
        """The values that are held, [n, C] at a time, in the order in which they came as long as all are."""
        yield from (held.rows for held in self._blocks)
        if self._filled:
            yield self._open[: self._filled]

    def between(self, start: int, stop: int) -> Tensor:
        """The values of some examples, [stop - start, C], of a sketch that is exact."""
        parts: list[Tensor] = []
        for first, rows in zip(range(0, self.count, self.block), self.held(), strict=True):
            if first < stop and start < first + len(rows):
                parts.append(rows[max(start - first, 0) : stop - first])
        return torch.cat(parts)

    def tensors(self) -> dict[str, Tensor]:
        """All that was seen, as :meth:`load` takes it."""
        rows = [held.rows for held in self._blocks]
        return {
            "numbers": torch.tensor([self.count, self._limit, self._too_few, self._too_many]),
            "levels": torch.tensor([held.level for held in self._blocks], dtype=torch.int64),
            "rows": torch.cat(rows) if rows else self._open[:0],
            "open": self._open[: self._filled],
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See what another of the same units and block size has seen, and nothing else; in no more blocks than own."""
        self.count, limit, self._too_few, self._too_many = tensors["numbers"].tolist()
        self._limit = min(self._limit, limit)
        rows = tensors["rows"].to(self.device).split(self.block)
        levels = tensors["levels"].tolist()
        self._blocks = [_Block(own.clone(), level) for own, level in zip(rows, levels, strict=False)]
        self._open, self._filled = self._new_block(), len(tensors["open"])
        self._open[: self._filled] = tensors["open"].to(self.device)
        self._shrink()

    def let_go(self) -> None:
        """Free the values; the count and the error stay."""
        self._blocks, self._open, self._filled = [], self._open[:0], 0

    def edges(self, cells: int) -> Tensor:
        """Edges that cut the non-zero values of each unit into cells of equal mass, float64 [C, cells - 1].

        An edge lies half-way between two values that were seen, or before the first, so that none is on it unless
        values repeat, and as many of n values as :math:`n j / cells`, rounded, lie below edge j, but for
        :attr:`rank_error` of all values. A unit that was never other than zero has edges of 0.
        """
        held = list(self._levels())
        weights = torch.cat([rows.new_full((len(rows),), 2.0**level, dtype=torch.float64) for rows, level in held])
        targets = torch.arange(1, cells, dtype=torch.float64, device=self.device) / cells
        found: list[Tensor] = []
        for first in range(0, self.units, UNITS_AT_ONCE):
            values = torch.cat([rows[:, first : first + UNITS_AT_ONCE].t() for rows, _ in held], dim=1)
            found.append(_edges(values, targets) if self.is_exact else _weighted_edges(values, weights, targets))
        return torch.cat(found)

    def _levels(self) -> Iterator[tuple[Tensor, int]]:
        yield from ((held.rows, held.level) for held in self._blocks)
        yield self._open[: self._filled], 0

    def _new_block(self) -> Tensor:
        return torch.empty(self.block, self.units, dtype=self.dtype, device=self.device)

    def _shrink(self) -> None:
        """Merge blocks of the least weight that two have, until no more than may be are held, or no two have one."""
        while len(self._blocks) > self._limit:
            levels = [held.level for held in self._blocks]
            twice = [level for level in levels if levels.count(level) > 1]
            if not twice:
                return
            level = min(twice)
            first, second = [held for held in self._blocks if held.level == level][:2]
            values = _sort(torch.cat([first.rows, second.rows]).t().contiguous()).t()
            keeps_second = self._too_few <= self._too_many
            if keeps_second:
                self._too_few += 2**level
            else:
                self._too_many += 2**level
            place = self._blocks.index(first)
            self._blocks = [held for held in self._blocks if held is not first and held is not second]
            self._blocks.insert(place, _Block(values[int(keeps_second) :: 2].contiguous(), level + 1))


def _sort(rows: Tensor) -> Tensor:
    """Each of [C, n] in ascending order, nan last; in place on CPUs."""
    if rows.device.type != "cpu":
        return rows.sort(1).values
    # NumPy's is faster than torch's, which sorts places too, but uses one thread.
    threads = torch.get_num_threads() if rows.numel() > _WORTH_THREADS else 1
    parts = np.array_split(rows.numpy(), threads)
    if threads == 1:
        parts[0].sort(axis=1)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: part.sort(axis=1), parts))
    return rows


def _edges(rows: Tensor, targets: Tensor) -> Tensor:
    """Of some units' values [C, n], float64 [C, E]: a part of the non-zero ones is below each, as targets [E] say."""
    ordered = _sort(rows)
    nothing = ordered.new_zeros(len(ordered), 1)
    zeros_start = torch.searchsorted(ordered, nothing)
    zeros = torch.searchsorted(ordered, nothing, right=True) - zeros_start  # of each unit, [C, 1]
    counted = ordered.shape[1] - zeros
    below = (counted * targets + 0.5).floor().long()

    def value(place: Tensor) -> Tensor:
        """Of the non-zero values, the one at each place."""
        return ordered.gather(1, (place + zeros * (place >= zeros_start)).clamp(max=ordered.shape[1] - 1)).double()

    return torch.where(counted > 0, _between(value, below, counted), 0.0)


def _weighted_edges(rows: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    """The same where each of the n values stands for as many as ``weights`` [n] say."""
    ordered, places = torch.where(rows == 0, torch.nan, rows).sort(1)  # nan comes last
    mass = torch.where(ordered.isnan(), 0, weights[places]).cumsum(1)  # [C, n]
    below = torch.searchsorted(mass, (mass[:, -1:] * targets + 0.5).floor(), right=True)
    counted = (~ordered.isnan()).sum(1, keepdim=True)
    return torch.where(counted > 0, _between(lambda at: ordered.gather(1, at).double(), below, counted), 0.0)


def _between(value: Callable[[Tensor], Tensor], below: Tensor, counted: Tensor) -> Tensor:
    """Half-way between the last of ``below`` [C, E] of ``counted`` [C, 1] values that ascend, and the next one."""
    last = (counted - 1).clamp(min=0)
    above = below.minimum(last)
    before_first = 2 * value(torch.zeros_like(last)) - value(last.clamp(max=1))
    low = torch.where(above > 0, value((above - 1).clamp(min=0)), before_first)
    high = value(above)
    middle = low + (high - low) / 2
    return torch.where(middle > low, middle, high)
