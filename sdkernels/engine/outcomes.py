"""Which predictions are correct, configuration by configuration and example by example: a bit each."""

import torch
import torch.nn.functional as F
from torch import Tensor

_BITS = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)


class Outcomes:
    """Bits of K configurations and as many examples as are written.

    Bit e % 8 of byte e // 8 of a row is that of the example that was read as the e-th.
    """

    def __init__(self, configurations: int, examples: int | None) -> None:
        self._examples = 0
        self._bytes = torch.zeros(configurations, -(-(examples or 0) // 8), dtype=torch.uint8)

    def write(self, configurations: Tensor, places: Tensor, correct: Tensor) -> None:
        """Note bool [k, n] for configurations [k] and examples whose places [n] follow one another."""
        first, count = int(places[0]), correct.shape[1]
        self._examples = max(self._examples, first + count)
        if (missing := -(-self._examples // 8) - self._bytes.shape[1]) > 0:
            self._bytes = F.pad(self._bytes, (0, max(missing, self._bytes.shape[1])))  # twice as many, at least
        begin, end = first // 8, -(-(first + count) // 8)
        rows = configurations.cpu()
        bits = unpack(self._bytes[rows, begin:end], 8 * (end - begin))
        bits[:, first - 8 * begin : first - 8 * begin + count] = correct.cpu()
        self._bytes[rows, begin:end] = pack(bits)

    @property
    def packed(self) -> Tensor:
        """uint8 [K, ceil(N / 8)]."""
        return self._bytes[:, : -(-self._examples // 8)].clone()


def pack(bits: Tensor) -> Tensor:
    """bool [K, N] -> uint8 [K, ceil(N / 8)], the first example in the lowest bit."""
    padded = F.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8))
    packed: Tensor = (padded.unflatten(1, (-1, 8)) * _BITS).sum(2, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, examples: int) -> Tensor:
    """uint8 [K, ceil(N / 8)] -> bool [K, N]."""
    bits: Tensor = ((packed[..., None] & _BITS) > 0).flatten(1)
    return bits[:, :examples]
