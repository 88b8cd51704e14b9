"""What data gave whenever it was read: the same number of examples, of one type."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


class Readings:
    """Remembers from pass to pass over some data what must not change, and what explains an error if it did."""

    def __init__(self) -> None:
        self._iterator: Any = None
        self._dtype: torch.dtype | None = None
        self._examples: int | None = None
        self._shapes: list[tuple[int, list[int]]] = []  # an example's, and where: the first, and the last other one

    def begin(self, source: Iterable[Any], called: str) -> Iterator[Any]:
        """A pass over the data.

        Raises:
            ValueError: it would go on where the last one ended.
        """
        iterator = iter(source)
        if isinstance(source, DataLoader):  # whose worker processes would live on with their iterator
            return iterator
        if iterator is self._iterator:
            raise ValueError(
                f"{called} gives the same iterator again, which goes on where it was, and it is read several times; "
                "give a DataLoader, a Dataset, two tensors, or an object whose __iter__ begins anew"
            )
        self._iterator = iterator
        return iterator

    def see(self, inputs: Tensor, start: int, called: str) -> None:
        """Note a batch's inputs [N, ...]; ``start`` examples came before.

        Raises:
            ValueError: they are of another type than the first ones.
        """
        if self._dtype is None:
            self._dtype = inputs.dtype
        if inputs.dtype != self._dtype:
            raise ValueError(
                f"{called} gives inputs of {inputs.dtype} at example {start}, and the first ones are {self._dtype}; "
                "cast them to one type, or give precision="
            )
        shape = list(inputs.shape[1:])
        if not self._shapes or shape != self._shapes[0][1]:
            self._shapes = [*self._shapes[:1], (start, shape)]

    def end(self, examples: int, called: str) -> None:
        """Note the end of a whole pass.

        Raises:
            ValueError: the one before had another number of examples.
        """
        if self._examples is None:
            self._examples = examples
        if examples != self._examples:
            raise ValueError(
                f"{called} gave {self._examples} examples when it was read first, and {examples} when it was read "
                "again; what is measured by several passes needs the same examples in each"
            )

    @property
    def change(self) -> str | None:
        """Which shapes there are, where it is not one alone."""
        if len(self._shapes) < 2:
            return None
        (_, first), (start, last) = self._shapes
        return f"inputs {['N', *last]} at example {start}, and {['N', *first]} first".replace("'", "")
