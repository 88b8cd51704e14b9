"""Training data that fits in memory: inputs and labels as two tensors."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sdkernels.lab.training.feeds import call_for_logits, evaluation_batch


class InMemoryFeed:
    """Shuffled mini-batches of two tensors, which are moved to the model's device once.

    Args:
        inputs: ``[N, ...]``.
        labels: int64 ``[N]``.
        device: the model's.
        batch_size: examples a mini-batch.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, device: torch.device, batch_size: int) -> None:
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(f"labels must be int64 [N]; got {labels.dtype} {tuple(labels.shape)}")
        if inputs.ndim == 0 or len(inputs) != len(labels):
            raise ValueError(f"inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} differ in their number")
        if len(labels) == 0:
            raise ValueError("there is nothing to train on: the data set has no example")
        if int(labels.min()) < 0:
            raise ValueError(f"labels hold {int(labels.min())}; classes count from 0")
        self.inputs, self.labels = inputs.to(device), labels.to(device)
        self.batch_size = batch_size
        self.steps = -(-len(labels) // batch_size)
        self.classes_needed = int(labels.max()) + 1

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.inputs, self.labels):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Shape, type and fingerprint."""
        return {
            "kind": "in memory",
            "inputs": list(self.inputs.shape),
            "dtype": str(self.inputs.dtype),
            "sha256": self._sha256,
        }

    def batches(self, shuffle: Generator, epoch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Mini-batches ``start..stop`` of the epoch's permutation."""
        order = torch.randperm(len(self.labels), generator=shuffle).to(self.labels.device)
        for batch in order.split(self.batch_size)[start:stop]:
            yield self.inputs[batch], self.labels[batch]

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples in their own order."""
        size = evaluation_batch(self.inputs[0].numel())
        yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def forward(self, model: nn.Module, inputs: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Logits ``[N, L]``; nothing is carried on."""
        return call_for_logits(model, inputs), None
