"""Data whose labels nobody reads: inputs alone will do, and targets of any shape."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.batches import Batches
from sdkernels.engine.readings import Readings


class Inputs(Batches):
    """Batches of inputs, with zeros for labels; iterate as often as wanted.

    Args:
        data: all that :class:`~sdkernels.engine.batches.Batches` takes; and inputs ``[N, ...]`` alone, a tensor or what
            a ``Dataset``, a ``DataLoader`` or a re-iterable gives; and inputs with targets that are no classes, as the
            next tokens ``[N, T]``, which are not read.
        batch_size: examples a batch for a ``Dataset`` or tensors; a ``DataLoader`` has its own.
        device: where inputs go.

    Raises:
        TypeError, ValueError: data that gives no tensors, or no example.

    Example:
        >>> inputs = Inputs(torch.zeros(5, 2), batch_size=3, device=torch.device("cpu"))
        >>> [tuple(batch.shape) for batch, _ in inputs], inputs.examples
        ([(3, 2), (2, 2)], 5)
    """

    def __init__(self, data: Any, *, batch_size: int, device: torch.device) -> None:
        super().__init__(_without_targets(data), batch_size=batch_size, device=device)
        self._source = _Labelled(self._source)


class _Labelled:
    """Batches as they come, as pairs of inputs and zeros."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source, self._readings = source, Readings()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._readings.begin(self._source, "data"):
            inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
            if not isinstance(inputs, Tensor):
                raise TypeError(
                    f"data gave a batch of type {type(batch).__name__}; every batch must be a tensor of inputs "
                    "[N, ...], or a tuple that begins with one; torch.as_tensor makes one of an array"
                )
            if inputs.ndim == 0:
                raise ValueError("data gave a number for a batch; every batch must be inputs [N, ...]")
            yield inputs, torch.zeros(len(inputs), dtype=torch.int64)


def _without_targets(data: Any) -> Any:
    """Tensors, alone or with targets, as inputs and zeros; other data as it is."""
    inputs = data
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = data
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise ValueError(
                f"data is a pair of tensors of shapes {list(inputs.shape)} and {list(targets.shape)}: it must be "
                "inputs [N, ...] and as many labels, which are not read; or give the inputs alone"
            )
        if targets.is_floating_point() and targets.ndim > 1:
            raise ValueError(
                f"data is a pair of tensors of shapes {list(inputs.shape)} and {list(targets.shape)}, of which the "
                "second would be taken for labels and not be read. If they are two batches of inputs, give "
                "torch.cat(data); if not, the inputs alone"
            )
    if not isinstance(inputs, Tensor):
        return data
    if inputs.ndim == 0:
        raise ValueError("data is a tensor of one number; give inputs [N, ...]")
    return inputs, torch.zeros(len(inputs), dtype=torch.int64)
