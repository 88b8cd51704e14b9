"""The public function that takes statistics of units, and its pass over the data."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdkernels.analysis.gathered import BLOCK, Counts, Gathered, Watched
from sdkernels.analysis.measure import check_fraction, progress, versions
from sdkernels.analysis.passes import LARGEST_STATE, Pass, pass_over
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.statistics import UnitStatistics
from sdkernels.analysis.subject import Subject, studied
from sdkernels.engine.arguments import flag, whole_number
from sdkernels.engine.batches import check_labels
from sdkernels.engine.memory import memory_limit
from sdkernels.engine.sites import Layers, watch


def unit_statistics(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    num_classes: int | None = None,
    cells: int = 60,
    mean_maps: bool = False,
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    memory_fraction: float = 0.5,
    show_progress: bool = False,
    store: Path_ | None = None,
) -> UnitStatistics:
    r"""Take statistics of every unit of every layer, in one pass over the data.

    With :math:`\bar x_{n,u}` the mean of unit :math:`u` over the positions of example :math:`n`, they are by unit and
    class :math:`l`

    .. math::

       \mu_{l,u} = \frac{1}{n_l} \sum_{n \in l} \bar x_{n,u} \qquad
       \sigma^2_{l,u} = \frac{1}{n_l} \sum_{n \in l} (\bar x_{n,u} - \mu_{l,u})^2

    the same over all examples and over all elements, extremes, firing rates, and how :math:`\bar x_{n,u}` is
    distributed in each class. Everything is centred from the start, in float64. From the result follow, without
    another pass, :meth:`~UnitStatistics.selectivity`, :meth:`~UnitStatistics.mutual_information`,
    :meth:`~UnitStatistics.class_correlation` and :meth:`~UnitStatistics.sparsity`.

    Args:
        model, layers, data: as for :func:`sdkernels.cumulative_ablation`. The model need not give logits if
            ``num_classes`` is given.
        num_classes: L; labels are 0 to L - 1. By default as many as the model gives logits.
        cells: how finely distributions are kept: as counts, by class, in so many cells of equal mass. 60 is divided
            by most numbers of bins that anybody asks for. They take ``8 L U cells`` bytes; 0 keeps none.
            Edges are exact as long as ``N U`` activations fit into memory, float64 for layers that give float64, else
            float32: what rounds to one number is one value. Where they do not fit, edges come from a sketch, whose
            error is the result's ``rank_error``, and a second pass counts.
        mean_maps: keep the mean example of each layer's output, element by element.
        precision, unit_dim, select, batch_size, show_progress: as there.
        memory_fraction: the part of the device's memory, or of the machine's on a CPU, that activations may take until
            their edges are known.
        store: a file, an SQLite database, in which what was gathered so far is kept every now and then: the same call,
            made again after a crash or a kill, reads the data from the start and goes on where it was; once finished,
            it runs the model no more. It is found by a digest of the model's code and weights, layers and options, and
            taken if the examples are the same, in the same order; ``batch_size`` may change. Until their edges are
            known, activations are kept too, 4 bytes each (8 in float64): of more than 8 GiB, and of a sketch of more
            than 0.9 GB, what comes after is done again. ``sdkernels runs`` shows what is kept.

    Returns:
        A :class:`UnitStatistics`: tensors ``[U]`` and ``[L, U]``.

    Raises:
        ValueError, TypeError: activations that are not finite, with the layer and unit; labels out of range; a layer
            that does not exist, a model in train mode, empty data, histograms that do not fit into memory; each says
            what, where and the fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.3; Chan, Golub, LeVeque 1979, of the moments.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [-1.0], [0.0]]), torch.zeros(3)
        >>> inputs, labels = torch.tensor([[1.0], [3.0], [-1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> stats = sd.unit_statistics(model, "1", (inputs, labels))
        >>> stats.class_mean
        tensor([[2.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000]], dtype=torch.float64)
        >>> stats.selectivity().values, stats.dead
        (tensor([0.6000, 1.0000,    nan], dtype=torch.float64), tensor([False, False,  True]))
    """
    if num_classes is not None:
        num_classes = whole_number("num_classes", num_classes, 1)
    cells = whole_number("cells", cells, 0)
    mean_maps = flag("mean_maps", mean_maps)
    fraction = check_fraction(memory_fraction)
    with studied(
        model,
        layers,
        data,
        precision=precision,
        unit_dim=unit_dim,
        select=select,
        batch_size=batch_size,
        scored=num_classes is None,
    ) as subject:
        _, sites, batches, _, output, precision_name = subject
        device = batches.device
        classes = output.shape[1] if num_classes is None else num_classes
        units = sum(site.units for site in sites)
        blocks = _blocks(units, classes, cells, memory_limit(device, fraction))
        watched = [Watched(site, classes, blocks if cells else 0, mean_maps, device) for site in sites]
        kept = partial(pass_over, subject, store=store, determines=(classes, cells, mean_maps, fraction))
        with (
            progress(show_progress, batches.examples, 1, "taking statistics") as advance,
            kept(Gathered(watched), advance=advance, called="unit_statistics") as passing,
        ):
            labels = _pass(subject, passing, [one.see for one in watched], classes)
            for one in watched:
                one.check()
            if cells:
                if _histogram_bytes(units, classes, cells) > LARGEST_STATE:
                    passing.keep()  # with the activations, as what comes of them is too large
                for one in watched:
                    one.close(cells, classes, labels)
            if not all(one.counts is not None for one in watched) and cells:
                passing.keep()  # edges
                counts = Counts(watched, cells, classes)
                with (
                    progress(show_progress, batches.examples, 1, "counting") as advance,
                    kept(counts, advance=advance, called="unit_statistics, counting") as counting,
                ):
                    see = [partial(counts.see, index) for index in range(len(sites))]
                    again = _pass(subject, counting, see, classes)
                    if not torch.equal(again.bincount(minlength=classes), labels.bincount(minlength=classes)):
                        raise ValueError(
                            "data gave other examples when it was read again, as is done where activations do not fit "
                            f"into memory: {len(labels)} and then {len(again)}, or other labels. Give data that stays, "
                            "or a larger memory_fraction"
                        )
                    for one, own in zip(watched, counts.counts, strict=True):
                        one.counts = own
                    passing.finish()
                    counting.drop()
            passing.finish()
    return _result(watched, precision_name)


def _pass(subject: Subject, batches: Pass, see: Sequence[Any], classes: int) -> Tensor:
    """Show each site's outputs and their labels to its own of ``see``; all labels, int64 [N]."""
    labels = torch.empty(0, dtype=torch.int64)
    because = "num_classes={}, or as many logits"

    def show(index: int, output: Tensor) -> None:
        see[index](subject.sites[index].read(output).detach(), labels)

    with torch.no_grad(), watch(subject.model, subject.sites, show):
        for inputs, labels in batches:
            check_labels(labels, classes, batches.examples, because)
            subject.model(inputs.clone())  # a model may write into its inputs
    return torch.cat(batches.labels)


def _blocks(units: int, classes: int, cells: int, limit: float) -> int:
    """How many blocks of activations of all units fit beside the histograms."""
    counts = _histogram_bytes(units, classes, cells)
    if cells and counts > limit:
        raise ValueError(
            f"histograms of {units} units in {cells} cells by {classes} classes (num_classes=) take "
            f"{counts / 2**30:.1f} GiB, and memory_fraction allows {limit / 2**30:.1f}: ask for fewer cells, as "
            "cells=20, for none by cells=0, or for fewer layers"
        )
    return max(2, int((limit - counts) / (8 * units * BLOCK)))  # of float64, to be sure


def _histogram_bytes(units: int, classes: int, cells: int) -> int:
    return 8 * classes * units * (cells + 1)


def _result(watched: Sequence[Watched], precision: str) -> UnitStatistics:
    moments = [one.moments for one in watched]
    over_classes = [of.over_classes() for of in moments]
    count = moments[0].count
    no_examples = (count == 0)[:, None]

    def units(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=-1).cpu()

    maps = {one.site.name: one.mean_map.mean.cpu() for one in watched if one.mean_map is not None}
    edges = [one.edges for one in watched if one.edges is not None]
    counts = [one.counts for one in watched if one.counts is not None]
    return UnitStatistics(
        class_examples=count.cpu(),
        class_mean=units([torch.where(no_examples, torch.nan, of.mean) for of in moments]),
        class_variance=units([torch.where(no_examples, torch.nan, of.variance()) for of in moments]),
        mean=units([mean for _, mean, _ in over_classes]),
        variance=units([m2 / examples for examples, _, m2 in over_classes]),
        elements=units([of.elements.expand(len(of.minimum)) for of in moments]),
        element_variance=units([of.element_variance() for of in moments]),
        minimum=units([of.minimum for of in moments]),
        maximum=units([of.maximum for of in moments]),
        fired=units([of.fired for of in moments]),
        fired_elements=units([of.fired_elements for of in moments]),
        edges=None if not edges else torch.cat(edges).cpu(),
        histogram=None if not counts else torch.cat(counts, dim=1).cpu(),
        rank_error=max((one.sketch.rank_error for one in watched if one.sketch is not None), default=0.0),
        mean_maps=maps or None,
        layers=tuple(one.site.name for one in watched),
        unit_counts=tuple(one.site.units for one in watched),
        precision=precision,
        versions=versions(),
    )
