"""Which examples were read, as one SHA-256 that does not depend on how they came in batches."""

import hashlib

import torch
from torch import Tensor


class ExamplesDigest:
    """Takes examples in, in order, and gives a digest of all so far: their number, shapes, types, bits and labels.

    Example:
        >>> inputs, labels = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0])
        >>> whole, parts = ExamplesDigest(), ExamplesDigest()
        >>> whole.add(inputs, labels)
        >>> parts.add(inputs[:1], labels[:1])
        >>> parts.hex == whole.hex
        False
        >>> parts.add(inputs[1:], labels[1:])
        >>> parts.hex == whole.hex
        True
    """

    def __init__(self) -> None:
        self.count = 0
        self._inputs, self._labels = hashlib.sha256(), hashlib.sha256()
        self._kind = ""

    def add(self, inputs: Tensor, labels: Tensor | None) -> None:
        """Take in inputs [N, ...] and labels [N]; None where nothing depends on them."""
        kind = f"{inputs.dtype}:{list(inputs.shape[1:])}"
        if kind != self._kind:  # said where it changes alone, and from which example on
            self._inputs.update(f"{self.count}:{kind}:".encode())
            self._kind = kind
        _update(self._inputs, inputs)
        if labels is not None:
            _update(self._labels, labels)
        self.count += len(inputs)

    @property
    def hex(self) -> str:
        """64 digits."""
        both = f"{self.count}:{self._inputs.hexdigest()}:{self._labels.hexdigest()}"
        return hashlib.sha256(both.encode()).hexdigest()


def _update(total: "hashlib._Hash", values: Tensor) -> None:
    plain = values.detach()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    plain = plain.resolve_conj().resolve_neg().cpu().contiguous()
    if plain.numel():
        total.update(plain.flatten().view(torch.uint8).numpy().data)
