"""A random order an epoch that can be repeated."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from sdkernels.lab.seeds import seed_for


class EpochOrder(Sampler[int]):
    """Every example once an epoch, in an order that depends on the seed and the epoch's number alone.

    A run that is resumed sets ``epoch`` and goes on with the order that it would have had.

    Args:
        examples: N.
        seed: of all the orders.

    Attributes:
        epoch: number of the next epoch, counted up by each.

    Example:
        >>> order = EpochOrder(4, seed=0)
        >>> first, second = list(order), list(order)
        >>> order.epoch = 1
        >>> sorted(first), list(order) == second
        ([0, 1, 2, 3], True)
    """

    def __init__(self, examples: int, seed: int) -> None:
        self.examples, self.seed, self.epoch = examples, seed, 0

    def __len__(self) -> int:
        return self.examples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_for(f"order of epoch {self.epoch}", self.seed))
        self.epoch += 1
        return iter(torch.randperm(self.examples, generator=generator).tolist())
