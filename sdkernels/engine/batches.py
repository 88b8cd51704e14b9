"""Data in: a DataLoader, a Dataset or a pair of tensors -> checked (inputs, labels) batches on the model's device."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from sdkernels.engine.arguments import dense, whole_number
from sdkernels.engine.readings import Readings
from sdkernels.ops import random_stream

# What the random stream is asked for here; a model's sites are numbered from 0.
_ONE_DRAW = torch.zeros(1, dtype=torch.int64)
_ORDER, _DONORS = 2**32 - 1, 2**32 - 2

INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Batch(NamedTuple):
    """Examples, and what tells them apart."""

    inputs: Tensor  # [N, ...]
    labels: Tensor  # [N]
    places: Tensor  # int64 [N], as which each is read, from 0
    ids: Tensor  # int64 [N], where it stands in the data
    donors: Tensor | None = None  # [N, ...], the inputs of the example whose activations each may be given

    def part(self, examples: slice) -> "Batch":
        """Some of the examples."""
        donors = None if self.donors is None else self.donors[examples]
        return Batch(self.inputs[examples], self.labels[examples], self.places[examples], self.ids[examples], donors)

    def to(self, device: torch.device) -> "Batch":
        """Inputs, labels and donors on another device."""
        donors = None if self.donors is None else self.donors.to(device)
        return self._replace(inputs=self.inputs.to(device), labels=self.labels.to(device), donors=donors)


class Batches:
    """Iterate over ``data`` as often as wanted; every batch is checked, moved and cast.

    Args:
        data: a ``DataLoader`` (or any re-iterable of ``(inputs, labels)``), a ``Dataset``, or a pair of tensors.
        batch_size: examples a batch for a ``Dataset`` or tensors; a ``DataLoader`` has its own.
        device: where batches go.
        dtype: what floating inputs are cast to; None leaves them.
        called: the argument that gave the data.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        called: str = "data",
    ) -> None:
        self._batch_size = whole_number("batch_size", batch_size, 1, what="a positive int, examples a batch")
        self._source = _as_batch_source(data, self._batch_size, called)
        self.called = called
        self.device = device
        self._dtype = dtype
        self.examples = _count_examples(self._source)  # None if the source does not say
        self._donors: Callable[[Tensor], Tensor] | None = None
        self._order: Tensor | None = None
        self.longest = 1  # examples of a batch, as far as they were read
        self.readings = Readings()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for batch in self.readings.begin(self._source, self.called):
            inputs, labels = self._move(_check_batch(batch, start, self.called))
            if not len(labels):
                continue
            self.readings.see(inputs, start, self.called)
            start += len(labels)
            self.longest = max(self.longest, len(labels))
            yield inputs, labels
        if start == 0:
            raise ValueError(f"{self.called} is empty: it gave no example")
        self.readings.end(start, self.called)

    def of(self, data: Any, called: str) -> "Batches":
        """Other data, treated alike; ``called`` is the argument that gave it."""
        return Batches(data, batch_size=self._batch_size, device=self.device, dtype=self._dtype, called=called)

    def numbered(self) -> Iterator[Batch]:
        """The batches with their examples' places in the data, and donors if there are any."""
        start = 0
        for inputs, labels in self if self._order is None else self.indexed().batches(self._order):
            places = torch.arange(start, start + len(labels))
            ids = places if self._order is None else self._order[places]
            start += len(labels)
            donors = None if self._donors is None else self._donors(ids)
            if donors is not None and donors.shape != inputs.shape:
                raise ValueError(
                    f"value='resample' needs examples of one shape; got inputs {list(inputs.shape)} and "
                    f"{list(donors.shape)}"
                )
            yield Batch(inputs, labels, places, ids, donors)

    def with_donors(self, data: "Batches | None", seed: int) -> "Batches":
        """The same batches, every example with another one of ``data`` (by default of these), drawn by ``seed``.

        Example i gets example :math:`i + 1 + (r_i \bmod (M - 1)) \bmod M`, never itself, with a word :math:`r_i` of the
        random stream that depends on i and the seed alone; of other data example :math:`r_i \bmod M`.

        Raises:
            TypeError: the data cannot be read in any order.
        """
        pool = (self if data is None else data).indexed()
        own, count = data is None, len(pool)
        if own and count < 2:
            raise ValueError("value='resample' needs another example: the data has one")

        def draw(ids: Tensor) -> Tensor:
            words = random_stream("bits", seed, _ONE_DRAW, ids, 1, site=_DONORS)[0, :, 0]
            chosen = (ids + 1 + words % (count - 1)) % count if own else words % count
            return pool.at(chosen)[0]

        batches = copy.copy(self)
        batches._donors = draw
        if own and isinstance(self._source, DataLoader) and isinstance(self._source.sampler, RandomSampler):
            batches._order = torch.arange(count)  # as donors are counted: a shuffled example may be its own donor
        return batches

    def drawn(self, order: Tensor) -> "Batches":
        """The same, but of the examples at these places alone, int64 [n], in this order, where they are numbered."""
        batches = copy.copy(self)
        batches._order, batches.examples = order, len(order)
        return batches

    def elsewhere(self, device: torch.device) -> "Batches":
        """Without any data, for who is given batches one by one, on a device."""
        batches = copy.copy(self)
        batches._source, batches._donors, batches._order, batches.device = [], None, None, device
        batches.readings = Readings()
        return batches

    def indexed(self) -> "Indexed":
        """The data by place.

        Raises:
            TypeError: it cannot be read in any order; says what can.
        """
        return Indexed(self._source, self._batch_size, self._move, self.called)

    def _move(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        inputs = inputs.to(self.device)
        if self._dtype is not None and inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        return inputs, labels.to(self.device, torch.int64)

    def first(self) -> tuple[Tensor, Tensor]:
        """The first batch."""
        return next(iter(self))


class Indexed:
    """Data whose examples can be read in any order: tensors, or a data set that has a length and items.

    Args:
        source: what :class:`Batches` iterates over.
        batch_size: examples that are read at once.
        move: to the model's device and dtype.
        called: the argument that gave the data.
    """

    def __init__(
        self, source: Any, batch_size: int, move: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]], called: str
    ) -> None:
        self._batch_size, self._move, self._called = batch_size, move, called
        self._read: Callable[[Sequence[int]], Any]
        if isinstance(source, _TensorBatches):
            self._count = len(source.labels)
            self._read = lambda places: (source.inputs[list(places)], source.labels[list(places)])
            return
        data: Any = source.dataset if isinstance(source, DataLoader) else source
        is_indexed = hasattr(data, "__getitem__") and isinstance(data, Sized) and not isinstance(data, IterableDataset)
        if not isinstance(source, DataLoader) or not is_indexed or not _reads_all(source):
            raise TypeError(
                f"examples must be drawn at random, so {called} must be one that can be read in any order: a pair of "
                "tensors, a Dataset with a length, or a DataLoader that reads all of one, each example once; got "
                f"{_described(source)}"
            )
        self._count = len(data)
        self._read = lambda places: source.collate_fn([data[i] for i in places])

    def __len__(self) -> int:
        return self._count

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some examples."""
        return self._move(_check_batch(self._read(places.tolist()), 0, self._called))

    def shuffled(self, seed: int) -> Tensor:
        """All places in an order drawn by ``seed``, int64 [M]."""
        places = torch.arange(self._count)
        return random_stream("bits", seed, _ONE_DRAW, places, 1, site=_ORDER)[0, :, 0].argsort(stable=True)

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels in this order, batch by batch."""
        for places in order.split(self._batch_size):
            yield self.at(places)


def _reads_all(loader: DataLoader[Any]) -> bool:
    """Whether a loader gives every example of its data set once."""
    sampler = loader.sampler
    if loader.batch_size is None or loader.drop_last:
        return False
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return isinstance(sampler, SequentialSampler)


def _described(source: Any) -> str:
    if not isinstance(source, DataLoader):
        return f"a {type(source).__name__}"
    data, sampler = type(source.dataset).__name__, type(source.sampler).__name__
    return f"a DataLoader over a {data} with a {sampler}{', drop_last' if source.drop_last else ''}"


def check_labels(labels: Tensor, classes: int, start: int, because: str = "the model gives {} logits") -> None:
    """Refuse labels outside ``0 <= label < classes``; ``start`` is the number of examples before this batch."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"data: label {int(labels[at])} of example {start + at} is out of range: {because.format(classes)}, so "
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


def _as_batch_source(data: Any, batch_size: int, called: str) -> Iterable[Any]:
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, labels = (dense(called, part, real=False) for part in data)
        if inputs.ndim == 0 or labels.ndim != 1 or len(inputs) != len(labels):
            raise ValueError(
                f"{called} is a pair of tensors of shapes {list(inputs.shape)} and {list(labels.shape)}: it must be "
                "inputs [N, ...] and labels [N]"
            )
        return _TensorBatches(inputs, labels, batch_size)
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, Iterator):
        raise TypeError(
            f"{called} is an iterator, which can be read only once; give a DataLoader, a Dataset or two tensors"
        )
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Tensor)):
        return data
    raise TypeError(
        f"{called} is a {type(data).__name__}; give a DataLoader, a Dataset or a pair of tensors (inputs, labels)"
    )


def _count_examples(source: Iterable[Any]) -> int | None:
    if isinstance(source, _TensorBatches):
        return len(source.labels)
    if isinstance(source, DataLoader) and isinstance(source.sampler, Sized) and not source.drop_last:
        return len(source.sampler) if source.batch_size else None
    return None


def _check_batch(batch: Any, start: int, called: str) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise TypeError(
            f"{called} gave a batch of type {type(batch).__name__}; every batch must be a pair of tensors (inputs, "
            "labels); torch.as_tensor makes one of an array"
        )
    inputs, labels = (
        dense(f"{called}, {part} of a batch", given, real=False)
        for part, given in zip(("inputs", "labels"), batch, strict=True)
    )
    if labels.dtype not in INTEGER_DTYPES or labels.ndim != 1:
        raise ValueError(
            f"{called}: labels must be class indices, integers [N]; got {labels.dtype} {list(labels.shape)} at "
            f"example {start}"
        )
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise ValueError(
            f"{called}: a batch has inputs {list(inputs.shape)} but labels {list(labels.shape)} (at example {start})"
        )
    return inputs, labels


def gather(parts: Iterable[Batch], examples: int) -> Iterator[Batch]:
    """Batches, concatenated while shapes agree until each has ``examples`` rows."""
    waiting: list[Batch] = []
    for part in parts:
        if waiting and part.inputs.shape[1:] != waiting[0].inputs.shape[1:]:
            yield concatenate(waiting)
        waiting.append(part)
        if sum(len(one.labels) for one in waiting) >= examples:
            yield concatenate(waiting)
    if waiting:
        yield concatenate(waiting)


def concatenate(parts: list[Batch]) -> Batch:
    """One batch of all parts, which are let go."""
    if len(parts) == 1:
        return parts.pop()
    inputs, labels, places, ids = map(torch.cat, list(zip(*parts, strict=True))[:4])
    donors = [part.donors for part in parts if part.donors is not None]
    parts.clear()
    return Batch(inputs, labels, places, ids, torch.cat(donors) if donors else None)
