"""All pairs among many layers whose activations are held: each is whitened once, each pair is one product and one SVD.

With whitened activations :math:`Z_i = (X_i - \\bar x_i) W_i` ``[N, r_i]``, whose columns are orthonormal, the canonical
correlations of i and j are the singular values of :math:`Z_i^\\top Z_j`. Singular values of small matrices hardly gain
by several threads, and so pairs are shared among threads instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdkernels.analysis.similarity.comparisons import Block, Pair
from sdkernels.analysis.similarity.found import Found, compare_pairs, found_of
from sdkernels.analysis.similarity.method import Method
from sdkernels.analysis.similarity.moments import Moments, rows_at_once
from sdkernels.analysis.similarity.threads import in_threads
from sdkernels.analysis.similarity.whitening import ILL_CONDITIONED, Whitening, whiten_rows

# From so many numbers of a layer on float32's rounding averages out; fewer take no time in float64.
ROUNDED_FROM = 2**20


def similarities_of(matrices: Sequence[Tensor], method: Method, *, names: Sequence[str] | None = None) -> Tensor:
    r"""The distances of all pairs among M matrices of activations of the same examples.

    Args:
        matrices: M of them, ``[N, C_i]``, on one device.
        method: by what; the row is its first argument, the column its second.
        names: for messages; by default their numbers.

    Returns:
        float64 ``[M, M]`` on the CPU, with zeros on the diagonal.

    Raises:
        ValueError: other numbers of examples, nan or inf, and as :meth:`Method.compare`.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.all_pairs import similarities_of
        >>> from sdkernels.analysis.similarity.method import Method
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 4, generator=generator)
        >>> similarities_of([x[:, :2], x[:, 1:3], x[:, 2:]], Method(method="cca")).round(decimals=1)
        tensor([[0.0000, 0.5000, 1.0000],
                [0.5000, 0.0000, 0.5000],
                [1.0000, 0.5000, 0.0000]], dtype=torch.float64)
    """
    count = len(matrices)
    called = [f"matrix {i}" for i in range(count)] if names is None else list(names)
    blocks = [Block(i, 0) for i in range(count)]
    for name, matrix in zip(called, matrices, strict=True):
        if matrix.ndim != 2 or len(matrix) != len(matrices[0]):
            raise ValueError(
                f"{name} {list(matrix.shape)} must be [{len(matrices[0])}, C]: activations of the same examples as "
                f"those of {called[0]}"
            )
    pairs = pairs_among(blocks, method)
    found = compare_rows(dict(zip(blocks, matrices, strict=True)), pairs, method, lambda block: called[block.network])
    distance = torch.zeros(count, count, dtype=torch.float64)
    for (a, b), one in found.distances.items():
        distance[a.network, b.network] = one
        if method.is_symmetric:
            distance[b.network, a.network] = one
    return distance


def pairs_among(blocks: Sequence[Block], method: Method) -> list[Pair]:
    """Each two of them, the first in their order first; and the other way where the method is not symmetric."""
    found = [(a, b) for i, a in enumerate(blocks) for b in blocks[i + 1 :]]
    return found if method.is_symmetric else found + [(b, a) for a, b in found]


def compare_rows(
    rows: Mapping[Block, Tensor], pairs: Sequence[Pair], method: Method, name_of: Callable[[Block], str]
) -> Found:
    """Compare pairs of blocks by their data points.

    Args:
        rows: of each block ``[N, C]``, any floating dtype.
        pairs: (first, second).
        method: how.
        name_of: what messages call a block.

    Raises:
        ValueError: data points that are not finite; and as :meth:`Method.whiten` and :meth:`Method.compare`.
    """
    blocks = list(rows)
    if not method.is_whitened:
        at = {block: i for i, block in enumerate(blocks)}
        numbers = [(at[a], at[b]) for a, b in pairs if a != b]
        moments = method.moments([x.shape[1] for x in rows.values()], numbers, names=[name_of(b) for b in blocks])
        moments.add(list(rows.values()))
        return compare_pairs(pairs, method, lambda a, b: (moments, at[a], at[b]), name_of)
    found = in_threads(lambda block: whitened(rows[block], method, name_of(block)), blocks, rows[blocks[0]].device)
    white = dict(zip(blocks, found, strict=True))
    unused = Moments([1])  # variates are all that it takes

    def compare(a: Block, b: Block) -> tuple[float, float]:
        one, other = method.compare_both(unused, 0, 0, white[a], white[b], names=(name_of(a), name_of(b)))
        return one.distance, other.distance

    return found_of(pairs, white, compare, lambda a, _b: white[a].examples, name_of)


def whitened(rows: Tensor, method: Method, name: str) -> Whitening:
    """A layer whitened by its data points ``[N, C]``, with their variates ``[N, r]``.

    Many variates of float32 data points, which have as many digits, are kept in float32: products of pairs, most of all
    the work, take half the time. Whitening has gone before, in float64, so that nothing magnifies their rounding, and
    it averages out: distances are off by 1e-9, or, of layers that are all but the same, by 1e-8. Not for PWCCA: its
    weights go by singular vectors, which turn far where correlations are close.
    """
    moments = method.moments([rows.shape[1]], [], names=[name])
    moments.add([rows])
    if method.solver != "svd":
        white = method.whiten(moments, 0, name)
        if method.solver != "auto" or white.condition <= ILL_CONDITIONED**0.5:
            is_exact = method.is_weighted or rows.dtype == torch.float64 or rows.numel() < ROUNDED_FROM
            kept = torch.float64 if is_exact else torch.float32
            variates = white.basis.new_empty(len(rows), white.rank, dtype=kept)
            at_once = rows_at_once(rows.shape[1], rows.device)
            for part, out in zip(rows.split(at_once), variates.split(at_once), strict=True):
                out.copy_((part.double() - moments.mean(0)) @ white.basis)
            return replace(white, variates=variates)
    centred = rows.double() - moments.mean(0)
    return whiten_rows(centred, rounding=moments.rounding(0), name=name, **method.whitening)
