"""What the training loop asks of data, and which kind a user's data is."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from sdkernels.lab.datasets import LabelledData
from sdkernels.lab.tokens import TokenData

Data = LabelledData | TokenData | tuple[Tensor, Tensor] | Dataset[Any] | Tensor

# A batch that is only evaluated holds at most this many examples, and elements of input.
_EXAMPLES, _ELEMENTS = 4096, 2**22


class Feed(Protocol):
    """A data set as a training run reads it."""

    steps: int
    """Mini-batches an epoch."""
    classes_needed: int
    """The largest label and one; 0 where it is not known beforehand."""

    def identity(self) -> dict[str, Any]:
        """What another data set would differ in, as JSON holds it."""
        ...

    def batches(self, shuffle: Generator, epoch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the epoch's batches ``start..stop``; draws from ``shuffle`` what it draws in full."""
        ...

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of every example once, in large batches and always the same order."""
        ...

    def forward(self, model: nn.Module, inputs: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Logits ``[N, L]``, a row for each of ``labels.flatten()``, and what the next batch carries on."""
        ...


def feed_for(data: Data, device: torch.device, *, batch_size: int, unroll: int, seed: int, workers: int = 0) -> Feed:
    """The feed of a user's data.

    Raises:
        TypeError: data of another kind.
        ValueError: data that cannot be trained on: empty, labels of another shape, ...
    """
    from sdkernels.lab.training.from_dataset import DatasetFeed
    from sdkernels.lab.training.in_memory import InMemoryFeed
    from sdkernels.lab.training.token_stream import TokenStreamFeed

    if isinstance(data, LabelledData):
        return InMemoryFeed(data.inputs, data.labels, device, batch_size)
    if isinstance(data, TokenData | Tensor):
        return TokenStreamFeed(data if isinstance(data, Tensor) else data.tokens, device, batch_size, unroll)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return InMemoryFeed(data[0], data[1], device, batch_size)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, tuple | list | dict):
        return DatasetFeed(data, device, batch_size, seed, workers)
    raise TypeError(
        f"cannot train on {type(data).__name__}: give (inputs, labels) as two tensors, a LabelledData, a "
        "torch.utils.data.Dataset of (input, label) with a length, or a token stream as one int64 tensor [M]"
    )


def evaluation_batch(elements: int) -> int:
    """How many examples of ``elements`` numbers each are evaluated at once."""
    return max(1, min(_EXAMPLES, _ELEMENTS // max(1, elements)))


def call_for_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """``model(inputs)``, which must be logits ``[N, L]``."""
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model gives {what} for inputs {tuple(inputs.shape)}; training needs logits [N, L], one row an example"
        )
    return logits
