"""One streaming pass over a data set: what the sites' outputs are on average."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from sdkernels.engine.sites import Site, running, watch
from sdkernels.ops import ClassMoments


class Average(Protocol):
    """Something that is taken over all examples of one site."""

    def add(self, output: Tensor, labels: Tensor) -> None:
        """See a batch [N, ...] and its labels [N]."""


class ElementMean:
    """The mean example, ``[*example]`` in float64."""

    def __init__(self) -> None:
        self._examples = 0
        self._total: Tensor | None = None

    def add(self, output: Tensor, labels: Tensor) -> None:
        total = output.sum(0, dtype=torch.float64)
        self._total = total if self._total is None else self._total + total
        self._examples += len(labels)

    def tensors(self) -> dict[str, Tensor]:
        """All that was seen, as :meth:`load` takes it."""
        total = {} if self._total is None else {"total": self._total}
        return {"examples": torch.tensor(self._examples), **total}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """See what another has seen, and nothing else."""
        self._examples = int(tensors["examples"])
        self._total = tensors["total"].to(device) if "total" in tensors else None

    @property
    def mean(self) -> Tensor:
        """``[*example]``."""
        assert self._total is not None  # noqa: S101 - empty data is refused before
        return self._total / self._examples


class ClassMean:
    """The mean example of each of L classes, ``[L, *example]`` in float64; nan for classes without examples."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._examples: Tensor | None = None
        self._total: Tensor | None = None

    def add(self, output: Tensor, labels: Tensor) -> None:
        if self._total is None or self._examples is None:
            self._total = output.new_zeros(self._classes, *output.shape[1:], dtype=torch.float64)
            self._examples = labels.new_zeros(self._classes)
        self._total.index_add_(0, labels, output.double())
        self._examples += labels.bincount(minlength=self._classes)

    @property
    def mean(self) -> Tensor:
        """``[L, *example]``."""
        assert self._total is not None  # noqa: S101 - empty data is refused before
        assert self._examples is not None  # noqa: S101 - as above
        return self._total / self._examples.view(-1, *[1] * (self._total.ndim - 1))


class Spread:
    """Each unit's mean and standard deviation over examples and positions, ``[C]`` in float64."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._moments: ClassMoments | None = None

    def add(self, output: Tensor, labels: Tensor) -> None:
        if self._moments is None:
            self._moments = ClassMoments.empty(1, self._site.units, output.device)
        self._moments.update(output, torch.zeros_like(labels), unit_dim=self._site.unit_dim)

    @property
    def mean(self) -> Tensor:
        """``[C]``."""
        assert self._moments is not None  # noqa: S101 - empty data is refused before
        return self._moments.element_mean

    @property
    def deviation(self) -> Tensor:
        """``[C]``, of the population: divided by the number of elements."""
        assert self._moments is not None  # noqa: S101 - empty data is refused before
        return (self._moments.element_m2 / self._moments.elements).sqrt()


def average(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Iterable[tuple[Tensor, Tensor]],
    wanted: Sequence[Sequence[Average]],
    called: str = "data",
) -> None:
    """Show every output of each site to all that is wanted of it; ``called`` is the argument that gave the data.

    Raises:
        ValueError: an output that is not finite; names the layer.
    """
    labels = torch.empty(0, dtype=torch.int64)
    watched = [i for i, averages in enumerate(wanted) if averages]

    def see(index: int, output: Tensor) -> None:
        site = sites[watched[index]]
        output = site.read(output)
        if not output.sum().isfinite() and not output.isfinite().all():
            wrong = int((~output.isfinite()).sum())
            raise ValueError(
                f"layer {site.name!r}: {wrong} of {output.numel()} activations of a batch are not finite, so means are "
                f"not either; look at {called}"
            )
        for one in wanted[watched[index]]:
            one.add(output, labels)

    with torch.no_grad(), watch(model, [sites[i] for i in watched], see):
        for place, (inputs, labels) in enumerate(batches):  # noqa: B007 - see reads the labels
            with nullcontext() if place else running(model, inputs, called):
                model(inputs.clone())  # a model may write into its inputs
