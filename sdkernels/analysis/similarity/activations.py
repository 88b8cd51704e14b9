"""From a layer's output to data points ``[rows, C]``: what becomes of positions, as pixels of maps or steps of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkernels.engine.arguments import is_one_of, whole_number
from sdkernels.ops import random_stream

PositionsWord = Literal["mean", "each", "resample"]
Size = tuple[int, ...]  # of a map: [H, W]; of text: [T]; of features: []

# What the random stream is asked for here; a model's sites are numbered from 0, and two ids at the end are taken.
_ONE_DRAW = torch.zeros(1, dtype=torch.int64)
_PLACES = 2**32 - 3

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rows_of(
    output: Tensor,
    unit_dim: int,
    positions: PositionsWord = "mean",
    *,
    size: Size | None = None,
    places: Tensor | None = None,
) -> Tensor:
    r"""A layer's output as data points, a row each.

    With :math:`x_{n,s,c}` unit c at position s of example n, the rows are

    ``"mean"``: :math:`\bar x_{n,c} = \frac{1}{S} \sum_s x_{n,s,c}`, a row an example; ``"each"``: :math:`x_{n,s,c}`, a
    row a pair of example and position, example after example; ``"resample"``: the same of maps that were interpolated
    to ``size``, linearly along each axis, between the centres of pixels and without smoothing before.

    Args:
        output: floating ``[N, ..., C, ...]``, as maps ``[N, C, H, W]``, steps ``[N, T, F]``, or features ``[N, F]``,
            which have one position and stay as they are.
        unit_dim: which dimension holds the C units, at least 1.
        positions: ``"mean"``, ``"each"`` or ``"resample"``.
        size: with ``"resample"``, the size to be had, one number a dimension of positions.
        places: int64 ``[N, k]``, with ``"each"`` and ``"resample"`` which of the S positions each example gives, in row
            order of the (resampled) map; None: all of them.

    Returns:
        ``[N, C]`` or ``[N k, C]``: float64 where something was computed, else of the output's dtype.

    Raises:
        ValueError: an unknown word, a size that does not fit the output.

    Source:
        Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, "SVCCA", section 2; Morcos, Raghu, Bengio 2018, section 2.3: the
        mean over space.

    Example:
        >>> maps = torch.arange(8.0).view(1, 2, 2, 2)  # [N, C, H, W]
        >>> rows_of(maps, 1).tolist(), rows_of(maps, 1, "each").tolist()
        ([[1.5, 5.5]], [[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
        >>> rows_of(maps, 1, "resample", size=(1, 2)).tolist()
        [[1.0, 5.0], [2.0, 6.0]]
    """
    if not is_one_of(positions, get_args(PositionsWord)):
        raise ValueError(f"positions={positions!r}: choose one of {', '.join(map(repr, get_args(PositionsWord)))}")
    if output.ndim == 2:
        return output
    if positions == "mean":
        return output.movedim(unit_dim, -1).flatten(1, -2).mean(1, dtype=torch.float64)
    maps = output.movedim(unit_dim, 1)  # [N, C, *S]
    if positions == "resample" and size is not None and tuple(maps.shape[2:]) != tuple(size):
        if len(size) != maps.ndim - 2 or len(size) not in _INTERPOLATION:
            raise ValueError(
                f"positions of {list(maps.shape[2:])} cannot be resampled to {list(size)}: maps of one, two or three "
                "dimensions can, to as many. Give positions='mean'"
            )
        maps = F.interpolate(maps.double(), tuple(size), mode=_INTERPOLATION[len(size)], align_corners=False)
    rows = maps.flatten(2).transpose(1, 2)  # [N, S, C]
    if places is not None:
        at = places.to(rows.device)[:, :, None].expand(-1, -1, rows.shape[2])
        rows = rows.gather(1, at)
    return rows.flatten(0, 1)


def places_of(start: int, examples: int, positions: int, count: int, seed: int) -> Tensor:
    """Which positions each of some examples gives, drawn without repeats.

    The draw of an example goes by the seed, its place in the data and the number of positions alone: it is the same for
    every layer and network and at any batch size, and no other example's.

    Args:
        start: of the first example, its place in the data; ``examples`` of them follow each other.
        positions: S, how many there are.
        count: k, how many an example gives; all S where it is larger.
        seed: of the draws. The global random state is left as it was.

    Returns:
        int64 ``[N, k]``, each row ascending.

    Example:
        >>> places = places_of(0, 3, 100, 5, seed=0)
        >>> places.shape, bool((places_of(2, 1, 100, 5, seed=0) == places[2]).all())
        (torch.Size([3, 5]), True)
    """
    if count >= positions:
        return torch.arange(positions).expand(examples, -1)
    ids = torch.arange(start, start + examples)
    words = random_stream("bits", seed, _ONE_DRAW, ids, positions, site=_PLACES)[0]  # [N, S]
    return words.argsort(stable=True, dim=1)[:, :count].sort(1).values


@dataclass(frozen=True)
class Positions:
    """What becomes of positions, for all layers that are compared.

    Args:
        kind: ``"mean"``, ``"each"`` or ``"resample"``, as :func:`rows_of` explains them.
        subsample: of ``"each"`` and ``"resample"``, how many positions an example gives at most; None: all.
        seed: of these draws.

    Raises:
        ValueError, TypeError: an unknown word, a number out of range, a subsample where nothing is drawn.

    Example:
        >>> positions = Positions("resample", subsample=2)
        >>> size = positions.size([3, 4, 4], 1, [5, 2, 2], 1)
        >>> size, positions.rows(torch.zeros(7, 3, 4, 4), 1, size, start=0).shape
        ((2, 2), torch.Size([14, 3]))
    """

    kind: PositionsWord = "mean"
    subsample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_one_of(self.kind, get_args(PositionsWord)):
            words = ", ".join(map(repr, get_args(PositionsWord)))
            raise ValueError(f"positions={self.kind!r}: choose one of {words}")
        whole_number("seed", self.seed, 0)
        if self.subsample is None:
            return
        whole_number("subsample", self.subsample, 1)
        if self.kind == "mean":
            raise ValueError(
                f"subsample={self.subsample} says how many positions an example gives, and with positions='mean' it "
                "gives their mean. Leave out subsample, or give positions='each'"
            )

    def size(
        self,
        a: Sequence[int],
        unit_dim_a: int,
        b: Sequence[int],
        unit_dim_b: int,
        names: tuple[str, str] = ("a", "b"),
    ) -> Size | None:
        """The positions that rows of two outputs have in common; None where they are means.

        Args:
            a, b: shapes of an example, without N.
            unit_dim_a, unit_dim_b: which dimension of ``[N, ...]`` holds the units.
            names: what messages call the two.

        Raises:
            ValueError: their positions do not correspond; says both shapes and the fix.
        """
        if self.kind == "mean":
            return None
        one, other = positions_of(a, unit_dim_a), positions_of(b, unit_dim_b)
        if one == other:
            return one
        if self.kind == "each":
            fix = "'resample', which interpolates the larger maps, or " if len(one) == len(other) else ""
            raise ValueError(
                f"positions='each' needs positions that correspond: {_described(names[0], a)} and "
                f"{_described(names[1], b)} have {_size(one)} and {_size(other)}. Give positions={fix}'mean'"
            )
        if len(one) != len(other):
            raise ValueError(
                f"positions='resample' needs maps of as many dimensions: {_described(names[0], a)} and "
                f"{_described(names[1], b)} have positions of {_size(one)} and {_size(other)}. Give positions='mean'"
            )
        return tuple(min(pair) for pair in zip(one, other, strict=True))

    def rows(self, output: Tensor, unit_dim: int, size: Size | None, *, start: int, name: str = "") -> Tensor:
        """The rows of a batch whose first example stands at place ``start`` of the data.

        Args:
            output: ``[N, ...]``.
            unit_dim: which dimension holds the units.
            size: as :meth:`size` gives it.
            name: what messages call the layer.

        Raises:
            ValueError: positions changed their number from one batch to another.
        """
        if size is None or output.ndim == 2:
            return rows_of(output, unit_dim)
        found = positions_of(output.shape[1:], unit_dim)
        if self.kind == "each" and found != size:
            raise ValueError(
                f"{name or 'an output'} gives {list(output.shape)} at example {start}, but gave "
                f"positions {_size(size)} before; positions='each' needs examples of one size. Give positions="
                "'mean', or inputs of one size"
            )
        count = torch.Size(size).numel()
        places = None
        if self.subsample is not None and self.subsample < count:
            places = places_of(start, len(output), count, self.subsample, self.seed)
        return rows_of(output, unit_dim, self.kind, size=size, places=places)

    def each(self, size: Size | None) -> int:
        """How many rows an example gives."""
        count = 1 if size is None else torch.Size(size).numel()
        return count if self.subsample is None else min(count, self.subsample)


def paired_rows(
    a: Tensor,
    b: Tensor,
    positions: Positions,
    *,
    unit_dim: tuple[int, int] = (1, 1),
    start: int = 0,
    names: tuple[str, str] = ("a", "b"),
) -> tuple[Tensor, Tensor]:
    """Rows of two layers' outputs for the same examples, which correspond.

    Args:
        a, b: ``[N, ...]``, of the same examples.
        positions: what becomes of positions.
        unit_dim: of each, which dimension holds the units.
        start: the place in the data of the first example.
        names: what messages call the two.

    Returns:
        ``[rows, C_a]`` and ``[rows, C_b]``.

    Raises:
        ValueError: their positions do not correspond.

    Example:
        >>> a, b = paired_rows(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2), Positions("resample"))
        >>> a.shape, b.shape
        (torch.Size([8, 3]), torch.Size([8, 5]))
    """
    size = positions.size(a.shape[1:], unit_dim[0], b.shape[1:], unit_dim[1], names)
    one, other = (
        positions.rows(output, dim, size, start=start, name=name)
        for output, dim, name in zip((a, b), unit_dim, names, strict=True)
    )
    return one, other


def positions_of(shape: Sequence[int], unit_dim: int) -> Size:
    """The sizes of all but the units, of an example's shape; ``unit_dim`` counts from N on."""
    return tuple(size for dim, size in enumerate(shape, 1) if dim != unit_dim)


def _described(name: str, shape: Sequence[int]) -> str:
    return f"{name} [N, {', '.join(map(str, shape))}]"


def _size(size: Size) -> str:
    return " x ".join(map(str, size)) or "none"
