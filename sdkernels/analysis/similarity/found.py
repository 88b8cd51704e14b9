"""What comparisons of many pairs of layers found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from sdkernels.analysis.similarity.comparisons import Block, Pair, blocks_of
from sdkernels.analysis.similarity.method import Method, few_examples
from sdkernels.analysis.similarity.moments import Moments
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
    distances: dict[Pair, float] = {}
    examples: dict[Pair, int] = {}
    few: list[str] = []
    if method.is_whitened:
        for block in blocks_of(pairs):
            moments, i, _ = moments_of(block, block)
            white[block] = method.whiten(moments, i, name_of(block))
    for a, b in dict.fromkeys(pairs):
        moments, i, j = moments_of(a, b)
        examples[a, b] = moments.count
        if (b, a) in distances and is_same_backwards(method, white.get(a), white.get(b)):
            distances[a, b] = distances[b, a]
            continue
        if a == b:
            distances[a, b] = 0.0
            continue
        names = name_of(a), name_of(b)
        distances[a, b] = method.compare(moments, i, j, white.get(a), white.get(b), names=names).distance
        if white and (message := few_examples(white[a], white[b], names)):
            few.append(message)
    return found_of(distances, examples, white, few)


def is_same_backwards(method: Method, white_a: Whitening | None, white_b: Whitening | None) -> bool:
    """Whether the distance of b and a is that of a and b."""
    if method.is_symmetric or white_a is None or white_b is None:
        return method.is_symmetric
    return method.side == "smaller" and white_a.live != white_b.live  # the same neurons weigh


def found_of(
    distances: Mapping[Pair, float], examples: Mapping[Pair, int], white: Mapping[Block, Whitening], few: Sequence[str]
) -> Found:
    """As one."""
    return Found(
        distances=distances,
        examples=examples,
        ranks={block: own.rank for block, own in white.items()},
        solvers_of={block: own.solver for block, own in white.items()},
        conditions={block: own.condition for block, own in white.items()},
        few=tuple(few),
    )
