r"""Sums of products of rows' squared norms about a mean that is known only at the end.

With :math:`q_n = |x_n - \bar x|^2` and :math:`p_n = |y_n - \bar y|^2`, debiased CKA needs :math:`\sum_n q_n p_n`. When
more rows come, the means move, by :math:`d` and :math:`e`, and every :math:`q_n` of a row seen before becomes
:math:`q_n - 2 d^\top (x_n - \bar x) + |d|^2`. Centred rows sum to zero, so that the sum over the n rows before becomes

.. math::
   \sum q p - 2 e^\top \sum q\,(y - \bar y) - 2 d^\top \sum p\,(x - \bar x) + 4 d^\top S_{xy} e
   + |e|^2 \sum q + |d|^2 \sum p + n |d|^2 |e|^2

and the vectors in it, in turn,

.. math:: \sum q\,(y - \bar y) - 2 S_{yx} d - \bigl(\textstyle\sum q + n |d|^2\bigr) e .

Beside these, :math:`S_{xy}` and the traces :math:`\sum q` are all that is needed. The batch itself is centred by the
new means, and joins without any formula.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


class RowNorms:
    """The sums of several blocks of columns, for each block with itself and for pairs ``(i, j)``, i < j."""

    def __init__(self, columns: Sequence[slice], pairs: Sequence[tuple[int, int]]) -> None:
        self._columns = columns
        self._pairs = [(i, i) for i in range(len(columns))] + list(pairs)
        self._products = torch.empty(0)  # [M, M]: sums of q p
        self._weighted = torch.empty(0)  # [M, sum of C_i]: row i holds sums of q_i (y - mean), y in any of its pairs

    def start(self, device: torch.device) -> None:
        blocks = len(self._columns)
        self._products = torch.zeros(blocks, blocks, dtype=torch.float64, device=device)
        self._weighted = torch.zeros(blocks, self._columns[-1].stop, dtype=torch.float64, device=device)

    def add(self, batch: Tensor, step: Tensor, count: int, scatter: Callable[[int, int], Tensor]) -> None:
        """Join a batch that is centred by the mean of all rows.

        Args:
            batch: float64 ``[n, sum of C_i]``.
            step: float64 ``[sum of C_i]``, from the mean of the rows before to that of all.
            count: of the rows before.
            scatter: of those rows, by pair.
        """
        if count:
            self._move(step, count, scatter)
        norms = torch.stack([batch[:, of].square().sum(1) for of in self._columns])  # [M, n]
        self._products.addmm_(norms, norms.t())
        self._weighted.addmm_(norms, batch)

    def product(self, i: int, j: int) -> Tensor:
        return self._products[min(i, j), max(i, j)]

    def tensors(self) -> dict[str, Tensor]:
        return {"norms/products": self._products, "norms/weighted": self._weighted}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device | None) -> None:
        self._products = tensors["norms/products"].clone().to(device=device)
        self._weighted = tensors["norms/weighted"].clone().to(device=device)

    def _move(self, step: Tensor, count: int, scatter: Callable[[int, int], Tensor]) -> None:
        """What was summed about one mean, about another."""
        steps = [step[of] for of in self._columns]
        squares = [part.square().sum() for part in steps]
        traces = [scatter(i, i).trace() for i in range(len(steps))]
        weighted = self._weighted.clone()
        for i, j in self._pairs:
            from_i, from_j = self._weighted[i, self._columns[j]], self._weighted[j, self._columns[i]]
            moved = scatter(i, j) @ steps[j]  # [C_i]
            self._products[i, j] += (
                4 * (steps[i] @ moved)
                - 2 * (steps[j] @ from_i + steps[i] @ from_j)
                + squares[j] * traces[i]
                + squares[i] * traces[j]
                + count * squares[i] * squares[j]
            )
            weighted[j, self._columns[i]] -= 2 * moved + (traces[j] + count * squares[j]) * steps[i]
            if i != j:
                back = steps[i] @ scatter(i, j)  # [C_j]
                weighted[i, self._columns[j]] -= 2 * back + (traces[i] + count * squares[i]) * steps[j]
        self._weighted = weighted
