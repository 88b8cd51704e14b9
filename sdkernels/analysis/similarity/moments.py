"""Means and scatters of several layers' activations over the same examples, from one pass, batch by batch.

Of n rows seen before, with mean m and scatter S, and of a batch X, with d the step from m to the mean of all, the
scatter of all about their mean is

    S + n d d' + (X - m - d)' (X - m - d):

a sum of what is positive, so that nothing cancels, however far from 0 the activations are and however the examples are
sorted (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance"; raw second moments would lose all
digits at a mean of 1e8 standard deviations). The middle term is one more row of the batch, ``sqrt(n) d``, and so costs
nothing beside the products of the batch. A block's product with itself is symmetric: strips of it are summed from the
diagonal on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sdkernels.analysis.similarity.row_norms import RowNorms
from sdkernels.analysis.states import WithoutRows

# What float64 sums may be off by, as a part; and what networks' numbers are rounded to: what arrives as float64 is not
# held to be finer, as it mostly is a mean over positions, or a copy, of float32 numbers.
SUMS = 8 * torch.finfo(torch.float64).eps
FLOAT32 = torch.finfo(torch.float32).eps

STRIP = 128  # columns; narrower ones save little more, and products of fewer columns are slower

# Numbers that are centred and multiplied at once: they stay in a CPU's cache, or keep a GPU busy.
AT_ONCE = {"cpu": 2**20}
AT_ONCE_ELSEWHERE = 2**25


class Moments(WithoutRows):
    r"""Streaming centred moments, in float64, of M blocks of columns over the same rows.

    .. math:: \bar x_i = \frac{1}{N} \sum_n x_{n,i} \qquad
              S_{ij} = \sum_n (x_{n,i} - \bar x_i)(x_{n,j} - \bar x_j)^\top

    for every block :math:`i` with itself and for the pairs of blocks that are asked for. Blocks that stand beside each
    other and are asked for by the same block are one product of matrices.

    Args:
        widths: the number of columns of each block, ``C_i``.
        pairs: pairs ``(i, j)`` of blocks, i != j, in either order.
        row_norms: also sum the products of rows' squared norms, which debiased CKA needs: :meth:`norm_products`.
        device: where to sum; by default where the first batch is.
        names: of the blocks, for messages.

    Source:
        Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations".

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.moments import Moments
        >>> moments = Moments([2, 1], [(0, 1)])
        >>> for batch in (torch.tensor([[1e6, 0.0], [1e6 + 2, 1.0]]), torch.tensor([[1e6 + 1, 2.0]])):
        ...     moments.add([batch, batch[:, 1:]])
        >>> moments.count, moments.mean(0).tolist()
        (3, [1000001.0, 1.0])
        >>> moments.scatter(0).tolist(), moments.scatter(0, 1).tolist()
        ([[2.0, 1.0], [1.0, 2.0]], [[1.0], [2.0]])
    """

    def __init__(
        self,
        widths: Sequence[int],
        pairs: Iterable[tuple[int, int]] = (),
        *,
        row_norms: bool = False,
        device: torch.device | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.widths = tuple(widths)
        self.count = 0
        self._device = device
        self._names = [f"block {i}" for i in range(len(self.widths))] if names is None else list(names)
        if not self.widths or min(self.widths) < 1 or len(self._names) != len(self.widths):
            raise ValueError(f"widths={list(self.widths)}, names={names}: give a positive width, and a name, a block")
        edges = [0]
        for width in self.widths:
            edges.append(edges[-1] + width)
        self._columns = [slice(*both) for both in pairwise(edges)]
        self._pairs = _in_order(pairs, len(self.widths))
        self._panels = list(_panels(self._pairs, len(self.widths)))  # (i, first, last): i with each of first..last
        self._products = list(_products(self._panels, self._columns))
        self._at = {(i, j): at for at, (i, first, last) in enumerate(self._panels) for j in range(first, last + 1)}
        self._resolution = [0.0] * len(self.widths)
        # Both [sum of C_i]: the first batch's mean, and how far beyond it the mean of all is. Their sum is rounded to
        # the digits of an offset; the second alone is as fine as the spread, and what is subtracted from later batches.
        self._shift = self._mean = torch.empty(0)
        self._scatters: list[Tensor] = []  # of each panel, [C_i, sum of C_first .. C_last]
        self._norms = RowNorms(self._columns, self._pairs) if row_norms else None
        self._room: Tensor | None = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def add(self, blocks: Sequence[Tensor]) -> None:
        """See a batch: of each block ``[n, C_i]``, in any dtype of real numbers; n may differ from batch to batch.

        Raises:
            ValueError: shapes that do not fit, nan or inf; names the block, and the row and column.
        """
        examples = self._check(blocks)
        if not examples:
            return
        if not self.count:
            self._start(blocks[0].device if self._device is None else self._device)
        self._check_finite(blocks)
        at_once = rows_at_once(len(self._mean), self._mean.device)
        for parts in zip(*(block.split(at_once) for block in blocks), strict=True):
            self._add(parts)
        for i, block in enumerate(blocks):
            self._resolution[i] = max(self._resolution[i], resolution(block.dtype))

    def _add(self, blocks: Sequence[Tensor]) -> None:
        examples = len(blocks[0])
        rows = self._rows(blocks, examples)
        batch = rows[:-1]
        if not self.count:
            self._shift = batch.mean(0)
        batch -= self._shift
        own = batch.mean(0)
        total = self.count + examples
        step = (own - self._mean) * (examples / total)
        self._mean += step
        batch -= self._mean
        torch.mul(step, self.count**0.5, out=rows[-1])
        if self._norms is not None:
            self._norms.add(batch, step, self.count, self.scatter)
        for at, left, right, out in self._products:
            self._scatters[at][out].addmm_(rows[:, left].t(), rows[:, right])
        self.count = total

    def mean(self, i: int) -> Tensor:
        """float64 [C_i]."""
        self._seen()
        return (self._shift + self._mean)[self._columns[i]]

    def scatter(self, i: int, j: int | None = None) -> Tensor:
        """float64 [C_i, C_j], the sum of centred products; of a block with itself without ``j``.

        Raises:
            ValueError: the pair was not asked for.
        """
        j = i if j is None else j
        low, high = sorted((i, j))
        if (low, high) not in self._at:
            raise ValueError(f"the scatter of {self._names[i]} and {self._names[j]} was not asked for: pairs=")
        self._seen()
        at = self._at[low, high]
        start = self._columns[self._panels[at][1]].start
        of = self._columns[high]
        found = self._scatters[at][:, of.start - start : of.stop - start]
        if i == j:
            return found.triu() + found.triu(1).t()
        return found if i <= j else found.t()

    def rounding(self, i: int) -> Tensor:
        """float64 [C_i]: the standard deviation that rounding may give a constant column: two units in the last place
        of its mean, in float32 or a coarser dtype that was seen."""
        return 2 * self._resolution[i] * self.mean(i).abs()

    def norm_products(self, i: int, j: int) -> Tensor:
        r"""float64 scalar: :math:`\sum_n |x_{n,i} - \bar x_i|^2\, |x_{n,j} - \bar x_j|^2`; i and j may be one.

        Raises:
            ValueError: it was not asked for.
        """
        if self._norms is None or tuple(sorted((i, j))) not in self._at:
            raise ValueError(
                f"products of the norms of {self._names[i]} and {self._names[j]} were not asked for: "
                "row_norms=True, and pairs="
            )
        self._seen()
        return self._norms.product(i, j)

    def tensors(self) -> dict[str, Tensor]:
        """All that was seen, as :meth:`load` takes it."""
        self._seen()
        found = {"count": torch.tensor(self.count), "mean": self._mean, "shift": self._shift}
        found["resolution"] = torch.tensor(self._resolution, dtype=torch.float64)
        found |= {f"scatter/{at}": scatter for at, scatter in enumerate(self._scatters)}
        return found | ({} if self._norms is None else self._norms.tensors())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See what another, of the same blocks and pairs, has seen, and nothing else."""
        self.count = int(tensors["count"])
        self._resolution = tensors["resolution"].tolist()
        # Copies: sums go on in place, and what is loaded may be read-only or another's.
        self._mean = tensors["mean"].clone().to(device=self._device)
        self._shift = tensors["shift"].clone().to(device=self._device)
        self._scatters = [tensors[f"scatter/{at}"].clone().to(device=self._device) for at in range(len(self._panels))]
        if self._norms is not None:
            self._norms.load(tensors, self._device)

    def _seen(self) -> None:
        if not self.count:
            raise ValueError("no examples were seen: add() at least one batch")

    def _check(self, blocks: Sequence[Tensor]) -> int:
        """How many rows all blocks have."""
        if len(blocks) != len(self.widths):
            raise ValueError(f"{len(blocks)} blocks for {len(self.widths)} widths: give one tensor [n, C] a width")
        for name, block, width in zip(self._names, blocks, self.widths, strict=True):
            if block.ndim != 2 or block.shape[1] != width or len(block) != len(blocks[0]):
                raise ValueError(
                    f"{name} {list(block.shape)} must be [{len(blocks[0])}, {width}]: as many rows as {self._names[0]}"
                    ", and its own columns"
                )
            if block.is_complex():
                raise ValueError(f"{name} {list(block.shape)} is {block.dtype}: give real numbers")
        return len(blocks[0])

    def _start(self, device: torch.device) -> None:
        self._device = device
        self._mean = torch.zeros(self._columns[-1].stop, dtype=torch.float64, device=device)
        self._scatters = [
            self._mean.new_zeros(self.widths[i], sum(self.widths[first : last + 1])) for i, first, last in self._panels
        ]
        if self._norms is not None:
            self._norms.start(device)

    def _rows(self, blocks: Sequence[Tensor], examples: int) -> Tensor:
        """The blocks beside each other as float64 [n + 1, sum of C_i]; the last row is free."""
        if self._room is None or len(self._room) <= examples:
            self._room = self._mean.new_empty(examples + 1, len(self._mean))
        rows = self._room[: examples + 1]
        for columns, block in zip(self._columns, blocks, strict=True):
            rows[:-1, columns] = block
        return rows

    def _check_finite(self, blocks: Sequence[Tensor]) -> None:
        sums = (block.sum(dtype=torch.promote_types(block.dtype, torch.float32)) for block in blocks)
        if torch.stack([one.to(self._mean) for one in sums]).isfinite().all():
            return
        for name, block in zip(self._names, blocks, strict=True):
            if len(found := (~block.isfinite()).nonzero()):
                row, column = found[0].tolist()
                raise ValueError(
                    f"{name} {list(block.shape)}: row {row}, column {column} is {float(block[row, column])}, "
                    f"{len(found)} of {block.numel()} numbers are not finite; activations must be"
                )
            if block.dtype == torch.float64 and not block.sum().isfinite():
                raise ValueError(f"{name} {list(block.shape)}: its sum overflows float64; scale activations down")


def rows_at_once(columns: int, device: torch.device) -> int:
    """How many rows to centre and multiply at once; enough for a product, however many columns they have."""
    return max(1024, AT_ONCE.get(device.type, AT_ONCE_ELSEWHERE) // columns)


def resolution(dtype: torch.dtype) -> float:
    """The relative distance of neighbouring numbers, not finer than float32's; integers are exact."""
    return max(torch.finfo(dtype).eps, FLOAT32) if dtype.is_floating_point else SUMS


def _in_order(pairs: Iterable[tuple[int, int]], blocks: int) -> list[tuple[int, int]]:
    """Each pair once, the lower number first, without a block's own."""
    found = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})
    if wrong := [pair for pair in found if pair[0] < 0 or pair[1] >= blocks]:
        raise ValueError(f"pairs {wrong} of {blocks} blocks: numbers must be within 0..{blocks - 1}")
    return found


def _panels(pairs: Sequence[tuple[int, int]], blocks: int) -> Iterator[tuple[int, int, int]]:
    """Each block i with runs of neighbours, first..last, that it is to be multiplied with; itself among them."""
    for i in range(blocks):
        run = [i]
        for j in (high for low, high in pairs if low == i):
            if j != run[-1] + 1:
                yield i, run[0], run[-1]
                run = []
            run.append(j)
        yield i, run[0], run[-1]


def _products(
    panels: Iterable[tuple[int, int, int]], columns: Sequence[slice]
) -> Iterator[tuple[int, slice, slice, tuple[slice, slice]]]:
    """What is multiplied: the panel, columns of the left and of the right, and where in the panel the product goes."""
    for at, (i, first, last) in enumerate(panels):
        start, stop = columns[first].start, columns[last].stop
        if first != i:
            yield at, columns[i], slice(start, stop), (slice(None), slice(None))
            continue
        for edge in range(start, columns[i].stop, STRIP):
            left = slice(edge, min(edge + STRIP, columns[i].stop))
            yield at, left, slice(edge, stop), (slice(left.start - start, left.stop - start), slice(edge - start, None))
