"""What unit statistics gather of each site in their pass over the data, and how it is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from sdkernels.analysis.quantiles import QuantileSketch
from sdkernels.analysis.saved import by_prefix, with_prefix
from sdkernels.analysis.states import WithoutRows
from sdkernels.engine.averages import ElementMean
from sdkernels.engine.sites import Site
from sdkernels.ops import ClassMoments, class_histogram
from sdkernels.ops.layout import computed_in

BLOCK = 1024  # examples


class Watched:
    """What is gathered of one site.

    Args:
        site: where.
        classes: L.
        blocks: how many blocks of activations may be held; 0: distributions are not asked for.
        mean_maps: whether the mean example is.
        device: the model's.

    Attributes:
        edges: float64 [C, cells - 1], and ``counts`` int64 [L, C, cells + 1], once they are known.
    """

    def __init__(self, site: Site, classes: int, blocks: int, mean_maps: bool, device: torch.device) -> None:
        self.site = site
        self.moments = ClassMoments.empty(classes, site.units, device)
        self.sketch: QuantileSketch | None = None  # from the first batch on
        self.mean_map = ElementMean() if mean_maps else None
        self.edges: Tensor | None = None
        self.counts: Tensor | None = None
        self._blocks, self._device = blocks, device
        self._is_closed = False

    @property
    def needs_another_pass(self) -> bool:
        """Whether some activations were let go before they could be counted."""
        return self.sketch is not None and not self.sketch.is_exact

    @property
    def row_bytes(self) -> int:
        """What all activations of an example take, while all are held."""
        if self.sketch is None or self._is_closed or not self.sketch.is_exact:
            return 0
        return self.site.units * self.sketch.dtype.itemsize

    def see(self, output: Tensor, labels: Tensor) -> None:
        """A batch [N, ...]."""
        means = output.new_empty(len(labels), self.site.units, dtype=torch.float64) if self._blocks else None
        is_first = int(self.moments.elements) == 0
        self.moments.update(output, labels, unit_dim=self.site.unit_dim, means=means)
        if is_first:
            self.check()
            if self._blocks:
                self.sketch = self._new_sketch(computed_in(output.dtype))
        if self.sketch is not None and means is not None:
            self.sketch.add(means)
        if self.mean_map is not None:
            self.mean_map.add(output, labels)

    def check(self) -> None:
        """Refuse what is not finite; extremes keep it for ever."""
        wrong = ~(self.moments.minimum.isfinite() & self.moments.maximum.isfinite())
        if wrong.any():
            unit = int(wrong.nonzero()[0])
            found = self.moments.minimum[unit], self.moments.maximum[unit]
            raise ValueError(
                f"layer {self.site.name!r}: activations of unit {unit} are not finite (from {float(found[0])} to "
                f"{float(found[1])}; {int(wrong.sum())} of {self.site.units} units have such), and so are no "
                "statistics; look at the data"
            )

    def close(self, cells: int, classes: int, labels: Tensor) -> None:
        """Find the edges; count all activations if they are still there, and let them go."""
        if self._is_closed:
            return
        assert self.sketch is not None  # noqa: S101 - made where cells are asked for
        edges = self.sketch.edges(cells)
        if self.sketch.is_exact:
            self.counts = self.no_counts(cells, classes)
            start = 0
            for means in self.sketch.held():
                class_histogram(means, labels[start : start + len(means)], edges, self.counts)
                start += len(means)
        self.edges = edges
        self.sketch.let_go()
        self._is_closed = True

    def no_counts(self, cells: int, classes: int) -> Tensor:
        """Zeros, int64 [L, C, cells + 1]."""
        return torch.zeros(classes, self.site.units, cells + 1, dtype=torch.int64, device=self._device)

    def tensors(self) -> dict[str, Tensor]:
        """All but activations that are all held."""
        found = {f"moments/{field.name}": getattr(self.moments, field.name) for field in fields(self.moments)}
        if self.mean_map is not None:
            found.update(with_prefix("mean_map", self.mean_map.tensors()))
        if self.sketch is not None:
            found["dtype"] = torch.empty(0, dtype=self.sketch.dtype)
            if not self.row_bytes:
                found.update(with_prefix("sketch", self.sketch.tensors()))
        for name, values in (("edges", self.edges), ("counts", self.counts)):
            if values is not None:
                found[name] = values
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what gave these tensors; activations that are held are added later."""
        for field in fields(self.moments):
            getattr(self.moments, field.name).copy_(tensors[f"moments/{field.name}"])
        if self.mean_map is not None:
            self.mean_map.load(by_prefix(tensors, "mean_map"), self._device)
        if self._blocks:
            self.sketch = self._new_sketch(tensors["dtype"].dtype)
            if "sketch/numbers" in tensors:
                self.sketch.load(by_prefix(tensors, "sketch"))
        self._is_closed = "edges" in tensors
        if self._is_closed:
            self.edges = tensors["edges"].to(self._device)
            self.counts = tensors["counts"].to(self._device) if "counts" in tensors else None

    def _new_sketch(self, dtype: torch.dtype) -> QuantileSketch:
        return QuantileSketch(self.site.units, blocks=self._blocks, block=BLOCK, dtype=dtype, device=self._device)


class Gathered:
    """All sites' as one state of a pass (:class:`~sdkernels.analysis.states.State`)."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = watched

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: values
            for index, one in enumerate(self._watched)
            for name, values in with_prefix(str(index), one.tensors()).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for index, one in enumerate(self._watched):
            one.load(by_prefix(tensors, str(index)))

    @property
    def row_bytes(self) -> int:
        return sum(one.row_bytes for one in self._watched)

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        return {
            str(index): one.sketch.between(start, stop)
            for index, one in enumerate(self._watched)
            if one.sketch is not None and one.row_bytes
        }

    def add_rows(self, rows: Mapping[str, Tensor]) -> None:
        for index, means in rows.items():
            sketch = self._watched[int(index)].sketch
            if sketch is not None:
                sketch.add(means)


class Counts(WithoutRows):
    """How many activations fall between the edges of each site, counted by a second pass, as its state."""

    def __init__(self, watched: Sequence[Watched], cells: int, classes: int) -> None:
        self._watched = watched
        self.counts = [one.no_counts(cells, classes) for one in watched]

    def see(self, index: int, output: Tensor, labels: Tensor) -> None:
        """A batch of one site."""
        one = self._watched[index]
        assert one.edges is not None  # noqa: S101 - found before
        class_histogram(output, labels, one.edges, self.counts[index], unit_dim=one.site.unit_dim)

    def tensors(self) -> dict[str, Tensor]:
        return {str(index): counts for index, counts in enumerate(self.counts)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for index, counts in enumerate(self.counts):
            counts.copy_(tensors[str(index)])
