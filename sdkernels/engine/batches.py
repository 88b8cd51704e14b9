"""Data in: a DataLoader, a Dataset or a pair of tensors -> checked (inputs, labels) batches on the model's device."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Batches:
    """Iterate over ``data`` as often as wanted; every batch is checked, moved and cast.

    Args:
        data: a ``DataLoader`` (or any re-iterable of ``(inputs, labels)``), a ``Dataset``, or a pair of tensors.
        batch_size: examples a batch for a ``Dataset`` or tensors; a ``DataLoader`` has its own.
        device: where batches go.
        dtype: what floating inputs are cast to; None leaves them.
    """

    def __init__(self, data: Any, *, batch_size: int, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._source = _as_batch_source(data, batch_size)
        self._batch_size = batch_size
        self.device = device
        self._dtype = dtype
        self.examples = _count_examples(self._source)  # None if the source does not say

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for batch in self._source:
            inputs, labels = _check_batch(batch, start)
            start += len(labels)
            inputs = inputs.to(self.device)
            if self._dtype is not None and inputs.is_floating_point():
                inputs = inputs.to(self._dtype)
            yield inputs, labels.to(self.device, torch.int64)
        if start == 0:
            raise ValueError("data is empty: it gave no example")

    def of(self, data: Any) -> "Batches":
        """Other data, treated alike."""
        return Batches(data, batch_size=self._batch_size, device=self.device, dtype=self._dtype)

    def first(self) -> tuple[Tensor, Tensor]:
        """The first batch."""
        return next(iter(self))


def check_labels(labels: Tensor, classes: int, start: int) -> None:
    """Refuse labels outside ``0 <= label < classes``; ``start`` is the number of examples before this batch."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"label {int(labels[at])} of example {start + at} is out of range: the model gives {classes} logits, so "
            f"labels must be 0..{classes - 1} ({len(wrong)} of {len(labels)} labels of its batch are out of range)"
        )


class _TensorBatches:
    """Consecutive slices of a pair of tensors."""

    def __init__(self, inputs: Tensor, labels: Tensor, batch_size: int) -> None:
        self.inputs, self.labels, self.batch_size = inputs, labels, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.labels), self.batch_size):
            stop = start + self.batch_size
            yield self.inputs[start:stop], self.labels[start:stop]


def _as_batch_source(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a positive int")
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, labels = data
        if inputs.ndim == 0 or labels.ndim != 1 or len(inputs) != len(labels):
            raise ValueError(
                f"data is a pair of tensors of shapes {list(inputs.shape)} and {list(labels.shape)}: it must be inputs "
                "[N, ...] and labels [N]"
            )
        return _TensorBatches(inputs, labels, batch_size)
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, Iterator):
        raise TypeError("data is an iterator, which can be read only once; give a DataLoader, a Dataset or two tensors")
    if isinstance(data, Iterable):
        return data
    raise TypeError(
        f"data is a {type(data).__name__}; give a DataLoader, a Dataset or a pair of tensors (inputs, labels)"
    )


def _count_examples(source: Iterable[Any]) -> int | None:
    if isinstance(source, _TensorBatches):
        return len(source.labels)
    if isinstance(source, DataLoader) and isinstance(source.sampler, Sized) and not source.drop_last:
        return len(source.sampler) if source.batch_size else None
    return None


def _check_batch(batch: Any, start: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise TypeError(
            f"data gave a batch of type {type(batch).__name__}; every batch must be a pair of tensors (inputs, "
            "labels); torch.as_tensor makes one of an array"
        )
    inputs, labels = batch
    if labels.dtype not in INTEGER_DTYPES or labels.ndim != 1:
        raise ValueError(
            f"labels must be class indices, integers of shape [N]; got {labels.dtype} {list(labels.shape)} at example "
            f"{start}"
        )
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise ValueError(
            f"a batch has inputs {list(inputs.shape)} but labels {list(labels.shape)} (at example {start})"
        )
    return inputs, labels


def gather(parts: Iterable[tuple[Tensor, ...]], examples: int) -> Iterator[tuple[Tensor, ...]]:
    """Tuples of tensors [N, ...], concatenated while shapes agree until each has ``examples`` rows."""
    waiting: list[tuple[Tensor, ...]] = []
    for part in parts:
        if waiting and any(a.shape[1:] != b.shape[1:] for a, b in zip(part, waiting[0], strict=True)):
            yield _concatenate(waiting)
        waiting.append(part)
        if sum(len(one[0]) for one in waiting) >= examples:
            yield _concatenate(waiting)
    if waiting:
        yield _concatenate(waiting)


def _concatenate(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """One tuple of all parts, which are let go."""
    whole = parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))
    parts.clear()
    return whole
