"""Training data that is read, decoded and perhaps drawn at random item by item, in worker processes."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sdkernels.lab.seeds import drawing_from, seed_for
from sdkernels.lab.training.feeds import call_for_logits, evaluation_batch

Key = tuple[int, int]  # which item, and the seed of what it draws


class DatasetFeed:
    """Shuffled mini-batches of a map-style ``Dataset`` of (input, label).

    The order is that of in-memory data. What an item's transforms draw from torch's, numpy's and Python's generators
    depends on seed, epoch and item alone, not on the number of workers or on where a run was interrupted.

    Args:
        dataset: items ``(input tensor, whole number)``; all inputs of one shape. Where it has ``labels`` or ``targets``
            ``[N]``, or a ``sha256``, they tell it from other data sets; else three of its items do.
        device: the model's.
        batch_size: examples a mini-batch.
        seed: of what the items draw.
        workers: processes that read items; 0 reads them in this one.
    """

    def __init__(self, dataset: Any, device: torch.device, batch_size: int, seed: int, workers: int) -> None:
        if len(dataset) == 0:
            raise ValueError("there is nothing to train on: the data set has no example")
        self._items, self._keys = _SeededItems(dataset), _Keys()
        self._device, self._batch_size, self._seed = device, batch_size, seed
        self._length = len(dataset)
        self._labels = _known_labels(dataset)
        self.classes_needed = 0 if self._labels is None else int(self._labels.max()) + 1
        self.steps = -(-len(dataset) // batch_size)
        self._loader: DataLoader[Any] = DataLoader(
            self._items,
            batch_sampler=self._keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # it seeds workers from this; items are seeded one by one
        )

    @cached_property
    def _first(self) -> Tensor:
        return self._items[(0, 0)][0]

    @cached_property
    def _sha256(self) -> str:
        """Of everything where the data set knows it, else of labels and three items: reading all may take an hour."""
        known = getattr(self._items.dataset, "sha256", None)
        if isinstance(known, str):
            return known
        digest = hashlib.sha256()
        if self._labels is not None:
            digest.update(self._labels.numpy().data)
        for index in sorted({0, self._length // 2, self._length - 1}):
            item, label = self._items[(index, 0)]
            digest.update(item.contiguous().view(torch.uint8).numpy().data)
            digest.update(str(label).encode())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Number, shape, type and fingerprint."""
        return {
            "kind": "dataset",
            "inputs": [self._length, *self._first.shape],
            "dtype": str(self._first.dtype),
            "sha256": self._sha256,
        }

    def batches(self, shuffle: Generator, epoch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Mini-batches ``start..stop`` of the epoch's permutation."""
        order = torch.randperm(self._length, generator=shuffle)
        base = seed_for(f"items of epoch {epoch}", self._seed)
        chosen = order.split(self._batch_size)[start:stop]
        return self._read([[(i, (base + i) % 2**63) for i in batch.tolist()] for batch in chosen])

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All items in their own order; what they draw is the same every time."""
        base = seed_for("items evaluated", self._seed)
        keys = [(i, (base + i) % 2**63) for i in range(self._length)]
        size = evaluation_batch(self._first.numel())
        return self._read([keys[i : i + size] for i in range(0, len(keys), size)])

    def forward(self, model: nn.Module, inputs: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Logits ``[N, L]``; nothing is carried on."""
        return call_for_logits(model, inputs), None

    def _read(self, batches: list[list[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        self._keys.batches = batches
        for inputs, labels in self._loader:
            yield inputs.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


def _known_labels(dataset: Any) -> Tensor | None:
    """The labels int64 ``[N]`` without reading the items, if the data set has them at hand."""
    for name in ("labels", "targets"):
        try:
            labels = torch.as_tensor(getattr(dataset, name, None))
        except (TypeError, ValueError, RuntimeError):  # none, or something else under this name
            continue
        if labels.shape == (len(dataset),) and not labels.is_floating_point():
            return labels.to("cpu", torch.int64).contiguous()
    return None


class _Keys:
    """The batch sampler: batches set anew for every pass, so that the workers stay."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _SeededItems(Dataset[tuple[Tensor, int]]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, seed = key
        with _all_drawing_from(seed):
            item = self.dataset[index]
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Tensor)):
            raise TypeError(
                f"item {index} of {type(self.dataset).__name__} is not (input tensor, label); give it a transform that "
                "makes tensors, e.g. ToTensor"
            )
        label = int(item[1])
        if label < 0:
            raise ValueError(f"item {index} of {type(self.dataset).__name__} has label {label}; classes count from 0")
        return item[0].detach(), label


@contextmanager
def _all_drawing_from(seed: int) -> Iterator[None]:
    """Torch's, numpy's and Python's global generators start at ``seed`` and are afterwards as before."""
    python, array = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with drawing_from(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
