"""Data points that are held until a pass is over, and then compared, as far as they fit into memory."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from sdkernels.analysis.saved import by_prefix, with_prefix
from sdkernels.analysis.similarity.all_pairs import compare_rows
from sdkernels.analysis.similarity.comparisons import Block, Pair, Rows, blocks_of, name_of
from sdkernels.analysis.similarity.found import Found
from sdkernels.analysis.similarity.method import Method
from sdkernels.analysis.similarity.networks import Together
from sdkernels.analysis.similarity.over_data import Options, pass_of

_KEPT_AS = {torch.float64: torch.float64}  # all others as float32, which holds what they hold


class HeldRows:
    """The rows of all blocks, as the state of a pass (:class:`~sdkernels.analysis.states.State`).

    Args:
        source: makes rows.
        pairs: to be compared in the end.
        method: how.
        examples: how many the data has.
        name_of: what messages call a block.
    """

    def __init__(
        self, source: Rows, pairs: Sequence[Pair], method: Method, examples: int, name_of: Callable[[Block], str]
    ) -> None:
        self.source = source
        self.found: Found | None = None
        self._pairs, self._method, self._examples, self._name_of = pairs, method, examples, name_of
        self._held: dict[Block, Tensor] = {}  # [examples, rows of each, C]
        self._count = 0

    def see(self, inputs: Tensor, start: int) -> None:
        """Run the networks on a batch, whose first example stands at place ``start``, and hold what they give."""
        found = self.source.of(inputs, start)
        self._add({block: rows.unflatten(0, (len(inputs), -1)) for block, rows in found.items()})

    def close(self) -> Found:
        """Compare, layer after layer, and let the rows go."""
        if self.found is None:
            parts: list[Found] = []
            for site in dict.fromkeys(block.site for block in self._held):
                own = {block: held for block, held in self._held.items() if block.site == site}
                rows = {block: held[: self._count].flatten(0, 1) for block, held in own.items()}
                pairs = [pair for pair in self._pairs if pair[0] in own]
                parts.append(compare_rows(rows, pairs, self._method, self._name_of))
                for block in own:
                    del self._held[block]
            self.found = Found.together(parts)
        return self.found

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.found is None else with_prefix("found", self.found.tensors(self._pairs))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if found := by_prefix(tensors, "found"):
            self.found = Found.of(self._pairs, found)

    @property
    def row_bytes(self) -> int:
        return sum(held[0].numel() * held.element_size() for held in self._held.values())

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        return {str(i): self._held[block][start:stop] for i, block in enumerate(blocks_of(self._pairs))}

    def add_rows(self, rows: Mapping[str, Tensor]) -> None:
        blocks = blocks_of(self._pairs)
        if rows:
            self._add({blocks[int(i)]: values for i, values in rows.items()})

    def _add(self, rows: Mapping[Block, Tensor]) -> None:
        count = len(next(iter(rows.values())))
        if self._count + count > self._examples:
            raise ValueError(
                f"data says that it has {self._examples} examples, and gave {self._count + count}; give data that has "
                "as many as it says"
            )
        for block, values in rows.items():
            if block not in self._held:
                dtype = _KEPT_AS.get(values.dtype, torch.float32)
                device = self.source.device
                self._held[block] = torch.empty(self._examples, *values.shape[1:], dtype=dtype, device=device)
            self._held[block][self._count : self._count + count] = values
        self._count += count


def compare_held(together: Together, pairs: Sequence[Pair], options: Options, examples: int) -> Found:
    """Compare pairs of blocks by one pass that holds their data points.

    Args:
        together: the networks and the data.
        pairs: of blocks at the same positions, each of one site.
        options: how.
        examples: how many the data has.

    Raises:
        ValueError: as :func:`~sdkernels.analysis.similarity.over_data.compare_over`.
    """
    source = Rows(together, blocks_of(pairs), options.positions)
    state = HeldRows(source, pairs, options.method, examples, partial(name_of, together))
    determines = (options.method, options.positions, pairs, "held")
    with pass_of(together, state, options, source.networks, determines) as passing:
        for inputs, _ in passing:
            state.see(inputs, passing.examples)
        found = state.close()
        passing.finish()
    return found
