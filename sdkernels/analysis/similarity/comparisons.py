"""Which layers are compared with which, and the moments of their activations that one pass over the data gathers."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from sdkernels.analysis.saved import by_prefix, with_prefix
from sdkernels.analysis.similarity.activations import Positions, Size
from sdkernels.analysis.similarity.method import Method
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.similarity.networks import Together
from sdkernels.analysis.states import WithoutRows


class Block(NamedTuple):
    """Columns of data points: the units of a layer, at some of its positions."""

    network: int
    site: int
    size: Size | None = None  # the map that positions stand for; None: their mean, or features
    step: int | None = None  # of a sequence [N, T, F], this one alone


Pair = tuple[Block, Block]


def pair_of(together: Together, a: tuple[int, int], b: tuple[int, int], positions: Positions) -> Pair:
    """Two layers, each a network and a site, at the positions that they have in common.

    Raises:
        ValueError: their positions do not correspond.
    """
    one, other = together.site(*a), together.site(*b)
    size = positions.size(
        *(one.example_shape, one.unit_dim, other.example_shape, other.unit_dim),
        (together.named(*a), together.named(*b)),
    )
    return Block(*a, size), Block(*b, size)


def blocks_of(pairs: Iterable[Pair]) -> list[Block]:
    """All blocks, each once, in the order in which pairs name them."""
    return list(dict.fromkeys(block for pair in pairs for block in pair))


def name_of(together: Together, block: Block) -> str:
    """What messages call a block."""
    name = together.named(block.network, block.site)
    return name if block.step is None else f"{name}, step {block.step},"


def numbers_of_moments(together: Together, pairs: Iterable[Pair]) -> int:
    """How many numbers the moments of pairs are."""
    pairs = list(pairs)
    widths = {block: together.site(block.network, block.site).units for block in blocks_of(pairs)}
    both = {frozenset(pair) for pair in pairs if pair[0] != pair[1]}
    return sum(prod(widths[block] for block in pair) for pair in both) + sum(width**2 for width in widths.values())


class Rows:
    """Makes the rows of blocks from what networks give.

    Args:
        together: the networks.
        blocks: what is wanted.
        positions: what becomes of positions.
    """

    def __init__(self, together: Together, blocks: Iterable[Block], positions: Positions) -> None:
        self._together, self._positions = together, positions
        self._of: dict[tuple[int, int], list[Block]] = {}
        for block in blocks:
            self._of.setdefault((block.network, block.site), []).append(block)
        networks = range(len(together.subjects))
        self._sites = [sorted(site for network, site in self._of if network == number) for number in networks]

    @property
    def networks(self) -> int:
        """How many networks run."""
        return sum(1 for sites in self._sites if sites)

    @property
    def device(self) -> torch.device:
        """Where rows are."""
        return self._together.device

    def of(self, inputs: Tensor, start: int) -> dict[Block, Tensor]:
        """The rows of a batch, ``[rows, C]`` each; its first example stands at place ``start`` of the data."""
        found: dict[Block, Tensor] = {}

        def see(network: int, site: int, output: Tensor) -> None:
            for block in self._of[network, site]:
                found[block] = self._rows(block, output, start)

        self._together.run(inputs, see, self._sites)
        for (network, site), blocks in self._of.items():
            if blocks[0] not in found:
                raise ValueError(
                    f"{self._together.named(network, site)} was not called for the batch at example {start}, but was "
                    "for the first ones; compare layers that are called for all inputs"
                )
        return found

    def _rows(self, block: Block, output: Tensor, start: int) -> Tensor:
        """Rows of their own: the network may write into its output."""
        site = self._together.site(block.network, block.site)
        if len(output) == 0 or output.ndim != len(site.example_shape) + 1 or output.shape[site.unit_dim] != site.units:
            raise ValueError(
                f"{self._together.named(block.network, block.site)} gives {list(output.shape)} at example {start}, and "
                f"gave [N, {', '.join(map(str, site.example_shape))}] for the first ones"
            )
        if block.step is not None:
            rows = output.select(3 - site.unit_dim, block.step)
        else:
            name = self._together.named(block.network, block.site)
            rows = self._positions.rows(output, site.unit_dim, block.size, start=start, name=name)
        is_own = rows.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()
        return rows.to(self._together.device) if is_own else rows.to(self._together.device, copy=True)


class PassMoments(WithoutRows):
    """The moments that pairs of blocks need, as the state of a pass.

    Blocks at the same positions have the same data points, and so their moments in common; of each size of maps there
    are moments of their own.

    Args:
        together: the networks.
        pairs: of blocks at the same positions; a block may be paired with itself.
        positions: what becomes of positions.
        method: says what is to be summed.
    """

    def __init__(self, together: Together, pairs: Sequence[Pair], positions: Positions, method: Method) -> None:
        self._blocks: dict[Size | None, list[Block]] = {}
        for block in (block for pair in pairs for block in pair):
            own = self._blocks.setdefault(block.size, [])
            if block not in own:
                own.append(block)
        self._at = {block: (size, i) for size, own in self._blocks.items() for i, block in enumerate(own)}
        self._pairs = list(pairs)
        self._together = together
        self.source = Rows(together, self._at, positions)
        self._moments: dict[Size | None, Moments] = {}
        for size, own in self._blocks.items():
            at = [(self._at[a][1], self._at[b][1]) for a, b in pairs if a.size == size]
            self._moments[size] = method.moments(
                [together.site(block.network, block.site).units for block in own],
                [(i, j) for i, j in at if i != j],
                device=together.device,
                names=[name_of(together, block) for block in own],
            )

    def see(self, inputs: Tensor, start: int) -> None:
        """Run the networks on a batch, whose first example stands at place ``start``, and take in what they give."""
        found = self.source.of(inputs, start)
        for size, own in self._blocks.items():
            self._moments[size].add([found[block] for block in own])

    def of(self, a: Block, b: Block) -> tuple[Moments, int, int]:
        """The moments of a pair, and which blocks of them the two are."""
        (size, i), (_, j) = self._at[a], self._at[b]
        return self._moments[size], i, j

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: values
            for number, moments in enumerate(self._moments.values())
            for name, values in with_prefix(str(number), moments.tensors()).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for number, moments in enumerate(self._moments.values()):
            moments.load(by_prefix(tensors, str(number)))
