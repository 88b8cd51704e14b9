"""How a network's layers come to be what they are over its training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from sdkernels.analysis.measure import check_fraction, progress, versions
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.similarity.activations import PositionsWord
from sdkernels.analysis.similarity.checkpoints import Checkpoint, Checkpoints
from sdkernels.analysis.similarity.compared import Label
from sdkernels.analysis.similarity.comparisons import pair_of
from sdkernels.analysis.similarity.found import Found
from sdkernels.analysis.similarity.inputs import Inputs
from sdkernels.analysis.similarity.method import MethodWord, SideWord
from sdkernels.analysis.similarity.networks import Way, names_in, together
from sdkernels.analysis.similarity.over_data import Options, check_memory, compare_over, settings_of
from sdkernels.analysis.similarity.over_steps import place_of
from sdkernels.analysis.similarity.similarity_curve import SimilarityCurve
from sdkernels.analysis.similarity.whitening import Solver
from sdkernels.engine.sites import Layers


def similarity_over_training(
    checkpoints: Mapping[Label, Checkpoint] | Iterable[Checkpoint] | Iterable[tuple[Label, Checkpoint]],
    layers: Layers,
    data: Any,
    *,
    model: nn.Module | None = None,
    reference: int = -1,
    method: MethodWord = "cca",
    side: SideWord = "smaller",
    compat: Literal["svcca"] | None = None,
    variance: float = 0.99,
    reduce: int | None = None,
    debiased: bool = False,
    tolerance: float | None = None,
    solver: Solver = "auto",
    positions: PositionsWord = "mean",
    subsample: int | None = None,
    seed: int = 0,
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    memory_fraction: float = 0.5,
    device: str | torch.device | None = None,
    show_progress: bool = False,
    store: Path_ | None = None,
) -> SimilarityCurve:
    r"""How far is each layer, at each moment of training, from what it is at the end?

    With activations :math:`x^{(t)}` of a layer at checkpoint t, for the same data, the curve of that layer is

    .. math:: d_t = d(x^{(t)}, x^{(r)})

    r being the reference. A layer whose curve falls before those of others has settled before them. Each checkpoint is
    one pass over the data, in which it and the reference run side by side: two networks are in memory at a time, beside
    what the caller holds, and no activations.

    Args:
        checkpoints: T of them, in their order: a mapping of labels, as training steps, to checkpoints, a sequence of
            pairs (label, checkpoint), or of checkpoints alone, which are numbered from 0. Each is a model in evaluation
            mode; a state dict, with ``model``; or a function without arguments that gives one of these, as ``lambda:
            torch.load(path)``, which is called when its turn has come, so that no more than two are held.
        layers: as for :func:`sdkernels.cumulative_ablation`, by name; modules only of ``model``.
        data: a ``DataLoader``, a ``Dataset``, a pair of tensors, or inputs ``[N, ...]`` alone; labels are not read.
        model: in evaluation mode: what state dicts are loaded into a copy of. It is not changed.
        reference: the place among the checkpoints from which distances are, from 0; negative ones count from the end.
        method, side, compat, variance, reduce, debiased, tolerance, solver: as for :func:`sdkernels.similarity`. The
            first argument there is the checkpoint, the second the reference. ``solver="svd"`` cannot be had here.
        positions, subsample, seed, memory_fraction, device: as for :func:`sdkernels.compare_layers`.
        precision, unit_dim, select, batch_size, show_progress: as for :func:`sdkernels.cumulative_ablation`. The total
            that progress is shown of is of 2 (T - 1) passes through a network.
        store: as for :func:`sdkernels.compare_layers`: checkpoints that were finished are read, and run no more; the
            data is read once more for each, to see that it is the same.

    Returns:
        A :class:`SimilarityCurve` of ``what="training"``: distances ``[layers, T]``, 0 at the reference.

    Raises:
        ValueError, TypeError: fewer than two checkpoints, a state dict that does not fit, a reference out of range; and
            as :func:`sdkernels.compare_layers`; each says which checkpoint.

    Source:
        Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, "SVCCA", section 4; Morcos, Raghu, Bengio 2018, "Insights on
        representational similarity in neural networks with canonical correlation", section 4.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.over_training import similarity_over_training
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> generator = torch.Generator().manual_seed(0)
        >>> end = {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
        >>> begin = {name: torch.randn(value.shape, generator=generator) for name, value in end.items()}
        >>> half = {name: (begin[name] + value) / 2 for name, value in end.items()}
        >>> inputs = torch.randn(200, 4, generator=generator)
        >>> curve = similarity_over_training({0: begin, 500: half, 1000: end}, ["0", "1"], inputs, model=model)
        >>> curve.moments, bool((curve.distance.diff() < 0).all()), curve.distance[:, -1].tolist()
        ((0, 500, 1000), True, [0.0, 0.0])
    """
    options, way = Options.of(locals(), "similarity_over_training"), Way.of(locals())
    fraction = check_fraction(memory_fraction)
    given = Checkpoints(checkpoints, model)
    place = place_of("reference", reference, len(given.labels), "checkpoints")
    at = given.labels[place]
    final = given.load(at)
    names = names_in(f"checkpoint {at!r}", final, layers) if model is None else names_in("model", model, layers)
    passes = 2 * (len(given.labels) - 1)
    examples = Inputs(data, batch_size=batch_size, device=torch.device("cpu")).examples
    finds: dict[Label, Found] = {}
    with progress(show_progress, examples, passes, "comparing checkpoints") as advance:
        for label in given.labels:
            if label == at:
                continue
            models = {f"checkpoint {label!r}": given.load(label), f"checkpoint {at!r}, the reference": final}
            with together(models, [names, names], data, way) as networks:
                sites = range(len(networks.subjects[0].sites))
                pairs = [pair_of(networks, (0, site), (1, site), options.positions) for site in sites]
                check_memory(networks, pairs, fraction)
                finds[label] = compare_over(networks, pairs, replace(options, advance=advance))
                called = tuple(networks.site(0, site).name for site in sites)
                precision_name = networks.precision
            del models, networks  # or there would be three when the next one is loaded
    found = Found.together([one.apart(place) for place, one in enumerate(finds.values())])
    found.say()
    return SimilarityCurve(
        distance=torch.tensor(
            [_distances(finds.get(one), len(called)) for one in given.labels], dtype=torch.float64
        ).t(),
        layers=called,
        moments=given.labels,
        what="training",
        reference=at,
        ranks=_ranks(finds, given.labels),
        examples=next(iter(finds.values())).data_points,
        settings=settings_of(precision_name, options, found),
        versions=versions(),
    )


def _distances(found: Found | None, layers: int) -> list[float]:
    """Of each layer; 0 at the reference."""
    return [0.0] * layers if found is None else list(found.distances.values())


def _ranks(finds: Mapping[Label, Found], labels: tuple[Label, ...]) -> torch.Tensor | None:
    """int64 [layers, T]; None where nothing was whitened."""
    some = next(iter(finds.values()))
    if not some.ranks:
        return None
    of_reference = [some.ranks[b] for _, b in some.distances]
    return torch.tensor(
        [
            [finds[label].ranks[a] for a, _ in finds[label].distances] if label in finds else of_reference
            for label in labels
        ]
    ).t()
