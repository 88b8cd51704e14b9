"""One seed a purpose, from the one that the user gives."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(purpose: str, seed: int) -> int:
    """A seed of 63 bits for one purpose.

    Two generators with the same seed draw the same numbers: with one seed for all, the examples whose labels are
    corrupted would also be the first that training sees.

    Example:
        >>> seed_for("shuffling", 0) == seed_for("shuffling", 0), seed_for("shuffling", 0) == seed_for("orders", 0)
        (True, False)
    """
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within the context torch's default generator on the CPU starts at ``seed``; afterwards it is as it was before.

    Unlike ``torch.manual_seed``, this seeds no other device. For torch's initialisers, which take no generator all the
    way down.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
