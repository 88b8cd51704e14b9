"""What comparisons of many pairs of layers found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from sdkernels.analysis.similarity.comparisons import Block, Pair, blocks_of
from sdkernels.analysis.similarity.method import Method, few_examples
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.similarity.threads import in_threads
from sdkernels.analysis.similarity.whitening import Solver, Whitening
from sdkernels.engine.checks import warn

_SOLVERS = get_args(Solver)


@dataclass(frozen=True)
class Found:
    """Distances of pairs, and how their layers were whitened.

    Attributes:
        distances: of each pair.
        examples: data points of each pair.
        ranks: of each block, the directions that entered; empty for cka, and the same for the two below.
        solvers_of: which solver whitened it.
        conditions: of it.
        few: of pairs that have too few examples, what a user should be told.
    """

    distances: Mapping[Pair, float]
    examples: Mapping[Pair, int]
    ranks: Mapping[Block, int]
    solvers_of: Mapping[Block, str]
    conditions: Mapping[Block, float]
    few: tuple[str, ...] = ()

    def tensors(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """As :meth:`of` takes them, of these pairs."""
        pairs = list(dict.fromkeys(pairs))
        blocks = blocks_of(pairs) if self.ranks else []
        few = "\n".join(self.few)
        return {
            "distances": torch.tensor([self.distances[pair] for pair in pairs], dtype=torch.float64),
            "examples": torch.tensor([self.examples[pair] for pair in pairs]),
            "ranks": torch.tensor([self.ranks[block] for block in blocks], dtype=torch.int64),
            "solvers": torch.tensor([_SOLVERS.index(self.solvers_of[block]) for block in blocks], dtype=torch.int64),
            "conditions": torch.tensor([self.conditions[block] for block in blocks], dtype=torch.float64),
            "few": torch.tensor(list(few.encode()), dtype=torch.uint8),
        }

    @classmethod
    def of(cls, pairs: Sequence[Pair], tensors: Mapping[str, Tensor]) -> "Found":
        """What gave these tensors, of the same pairs."""
        blocks = blocks_of(pairs)[: len(tensors["ranks"])]  # of cka, none
        return cls(
            distances=dict(zip(dict.fromkeys(pairs), tensors["distances"].tolist(), strict=True)),
            examples=dict(zip(dict.fromkeys(pairs), tensors["examples"].tolist(), strict=True)),
            ranks=dict(zip(blocks, tensors["ranks"].tolist(), strict=True)),
            solvers_of=dict(zip(blocks, (_SOLVERS[i] for i in tensors["solvers"].tolist()), strict=True)),
            conditions=dict(zip(blocks, tensors["conditions"].tolist(), strict=True)),
            few=tuple(bytes(tensors["few"].tolist()).decode().splitlines()),
        )

    @classmethod
    def together(cls, parts: Sequence["Found"]) -> "Found":
        """Several as one."""
        return cls(
            distances={pair: one for part in parts for pair, one in part.distances.items()},
            examples={pair: one for part in parts for pair, one in part.examples.items()},
            ranks={block: one for part in parts for block, one in part.ranks.items()},
            solvers_of={block: one for part in parts for block, one in part.solvers_of.items()},
            conditions={block: one for part in parts for block, one in part.conditions.items()},
            few=tuple(message for part in parts for message in part.few),
        )

    def apart(self, number: int) -> "Found":
        """The same of other networks, so that nothing of several finds is one."""

        def other(block: Block) -> Block:
            return block._replace(network=(number, block.network))  # type: ignore[arg-type]

        return Found(
            distances={(other(a), other(b)): one for (a, b), one in self.distances.items()},
            examples={(other(a), other(b)): one for (a, b), one in self.examples.items()},
            ranks={other(block): one for block, one in self.ranks.items()},
            solvers_of={other(block): one for block, one in self.solvers_of.items()},
            conditions={other(block): one for block, one in self.conditions.items()},
            few=self.few,
        )

    @property
    def largest_condition(self) -> float | None:
        """The worst condition number of all blocks; for Cholesky's an upper bound. None for cka."""
        return max(self.conditions.values(), default=None)

    @property
    def data_points(self) -> int | None:
        """Of each pair, if all have as many."""
        counts = set(self.examples.values())
        return counts.pop() if len(counts) == 1 else None

    def solvers(self) -> dict[str, int]:
        """How many blocks each solver whitened."""
        used = list(self.solvers_of.values())
        return {solver: used.count(solver) for solver in sorted(set(used))}

    def say(self) -> None:
        """Warn of too few examples, once for all pairs."""
        if self.few:
            others = f". And so for {len(self.few) - 1} of the other pairs" if len(self.few) > 1 else ""
            warn(self.few[0] + others)


def compare_pairs(
    pairs: Sequence[Pair],
    method: Method,
    moments_of: Callable[[Block, Block], tuple[Moments, int, int]],
    name_of: Callable[[Block], str],
) -> Found:
    """Compare pairs by their moments; each block is whitened once.

    Args:
        pairs: (first, second).
        method: how.
        moments_of: the moments of a pair, and which of their blocks the two are.
        name_of: what messages call a block.
    """
    white: dict[Block, Whitening] = {}
    if method.is_whitened:
        blocks = blocks_of(pairs)

        def whiten(block: Block) -> Whitening:
            moments, i, _ = moments_of(block, block)
            return method.whiten(moments, i, name_of(block))

        white = dict(zip(blocks, in_threads(whiten, blocks, _device(moments_of, blocks[0])), strict=True))

    def compare(a: Block, b: Block) -> tuple[float, float]:
        names = name_of(a), name_of(b)
        one, other = method.compare_both(*moments_of(a, b), white.get(a), white.get(b), names=names)
        return one.distance, other.distance

    return found_of(pairs, white, compare, lambda a, b: moments_of(a, b)[0].count, name_of)


def _device(moments_of: Callable[[Block, Block], tuple[Moments, int, int]], block: Block) -> torch.device:
    moments, i, _ = moments_of(block, block)
    return moments.mean(i).device


def found_of(
    pairs: Sequence[Pair],
    white: Mapping[Block, Whitening],
    compare: Callable[[Block, Block], tuple[float, float]],
    examples_of: Callable[[Block, Block], int],
    name_of: Callable[[Block], str],
) -> Found:
    """Compare each two blocks once, whichever stands first, and none with itself.

    Args:
        pairs: (first, second).
        white: the blocks' whitenings; none for cka.
        compare: gives the distances of a and b, and of b and a.
        examples_of: the data points of a pair.
        name_of: what messages call a block.
    """
    wanted: dict[Pair, None] = {}
    for a, b in pairs:
        if a != b and (b, a) not in wanted:
            wanted[a, b] = None
    device = next((own.basis.device for own in white.values()), torch.device("cpu"))
    both = zip(wanted, in_threads(lambda pair: compare(*pair), list(wanted), device), strict=True)
    there = {way: one for (a, b), found in both for way, one in zip(((a, b), (b, a)), found, strict=True)}
    distances = {(a, b): 0.0 if a == b else there[a, b] for a, b in pairs}
    few = [few_examples(white[a], white[b], (name_of(a), name_of(b))) for a, b in wanted] if white else []
    return Found(
        distances=distances,
        examples={(a, b): examples_of(a, b) for a, b in distances},
        ranks={block: own.rank for block, own in white.items()},
        solvers_of={block: own.solver for block, own in white.items()},
        conditions={block: own.condition for block, own in white.items()},
        few=tuple(message for message in few if message),
    )
