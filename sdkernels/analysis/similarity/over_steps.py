"""How a recurrent network's layers come to be what they are over the steps of a sequence."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from sdkernels.analysis.measure import check_fraction, progress, versions
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.similarity.comparisons import Block
from sdkernels.analysis.similarity.method import MethodWord, SideWord
from sdkernels.analysis.similarity.networks import Together, Way, names_in, together
from sdkernels.analysis.similarity.over_data import Options, check_memory, compare_over, settings_of
from sdkernels.analysis.similarity.similarity_curve import SimilarityCurve
from sdkernels.analysis.similarity.whitening import Solver
from sdkernels.engine.sites import Layers


def similarity_over_steps(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    reference: int = -1,
    method: MethodWord = "cca",
    side: SideWord = "smaller",
    compat: Literal["svcca"] | None = None,
    variance: float = 0.99,
    reduce: int | None = None,
    debiased: bool = False,
    tolerance: float | None = None,
    solver: Solver = "auto",
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    memory_fraction: float = 0.5,
    device: str | torch.device | None = None,
    show_progress: bool = False,
    store: Path_ | None = None,
) -> SimilarityCurve:
    r"""How far is each layer, at each step of a sequence, from what it is at the last one?

    Of activations ``[N, T, F]``, those at step t ``[N, F]`` are a representation of their own, which is compared with
    the one at step ``reference``:

    .. math:: d_t = d(x_{\cdot, t}, x_{\cdot, r})

    with the N examples as data points. One pass sums the moments of all steps; activations are not held.

    Over training, each checkpoint has a curve of its own, and together they say how this changes:

    ``{label: similarity_over_steps(model, layers, data) for label, model in checkpoints.items()}``

    Args:
        model: in evaluation mode. It is not changed.
        layers: as for :func:`sdkernels.cumulative_ablation`; each gives ``[N, T, F]``, of one T. Recurrent ones give a
            tuple, of which ``select=0`` is the sequence; they need ``batch_first=True``.
        data: a ``DataLoader``, a ``Dataset``, a pair of tensors, or inputs ``[N, T]`` or ``[N, T, ...]`` alone; labels
            are not read.
        reference: the step from which distances are, from 0; negative ones count from the end.
        method, side, compat, variance, reduce, debiased, tolerance, solver: as for :func:`sdkernels.similarity`. The
            first argument there is step t, the second the reference. ``solver="svd"`` cannot be had here.
        precision, unit_dim, select, batch_size, show_progress: as for :func:`sdkernels.cumulative_ablation`.
        memory_fraction, device, store: as for :func:`sdkernels.compare_layers`.

    Returns:
        A :class:`SimilarityCurve` of ``what="steps"``: distances ``[layers, T]``, 0 at the reference.

    Raises:
        ValueError, TypeError: a layer without steps, or of other T than the first; a reference out of range; and as
            :func:`sdkernels.compare_layers`.

    Source:
        Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
        correlation", appendix: representations over the steps of a sequence.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.over_steps import similarity_over_steps
        >>> from sdkernels.lab.models import lstm_language_model
        >>> model = lstm_language_model(20, embedding=4, hidden=3, layers=2, dropout=0.0, seed=0).eval()
        >>> tokens = torch.randint(0, 20, (200, 5), generator=torch.Generator().manual_seed(0))
        >>> curve = similarity_over_steps(model, ["lstm1", "lstm2"], tokens, select=0)
        >>> curve.distance.shape, curve.moments, bool((curve.distance[:, 0] > curve.distance[:, 3]).all())
        (torch.Size([2, 5]), (0, 1, 2, 3, 4), True)
    """
    options = Options.of({**locals(), "positions": "mean", "subsample": None, "seed": 0}, "similarity_over_steps")
    way, fraction = Way.of(locals()), check_fraction(memory_fraction)
    with together({"": model}, [names_in("model", model, layers)], data, way) as networks:
        sites = range(len(networks.subjects[0].sites))
        count = _steps(networks)
        last = place_of("reference", reference, count, "steps")
        order = [last, *(step for step in range(count) if step != last)]  # next to each other, one product for all
        pairs = {
            (site, step): (Block(0, site, None, step), Block(0, site, None, last)) for site in sites for step in order
        }
        check_memory(networks, list(pairs.values()), fraction)
        with progress(show_progress, networks.inputs.examples, 1, "comparing steps") as advance:
            found = compare_over(networks, list(pairs.values()), replace(options, advance=advance))
        own = settings_of(networks.precision, options, found)
    own.pop("positions")
    distance = [[found.distances[pairs[site, step]] for step in range(count)] for site in sites]
    ranks = torch.tensor([[found.ranks.get(pairs[site, step][0], -1) for step in range(count)] for site in sites])
    found.say()
    return SimilarityCurve(
        distance=torch.tensor(distance, dtype=torch.float64),
        layers=tuple(networks.site(0, site).name for site in sites),
        moments=tuple(range(count)),
        what="steps",
        reference=last,
        ranks=ranks if found.ranks else None,
        examples=found.data_points,
        settings=own,
        versions=versions(),
    )


def _steps(networks: Together) -> int:
    """T, which all layers have.

    Raises:
        ValueError: a layer has no steps, or another number of them.
    """
    counts: dict[str, int] = {}
    for site in networks.subjects[0].sites:
        if len(site.example_shape) != 2:
            raise ValueError(
                f"layer {site.name!r} gives [N, {', '.join(map(str, site.example_shape))}] and no sequence [N, T, F]; "
                "name layers that give one step after the other"
            )
        counts[site.name] = site.example_shape[2 - site.unit_dim]
    if len(set(counts.values())) > 1:
        raise ValueError(f"layers have other numbers of steps: {counts}; compare those of one number at a time")
    return next(iter(counts.values()))


def place_of(name: str, place: int, count: int, what: str) -> int:
    """A place from the start, 0..count - 1.

    Raises:
        ValueError, TypeError: it is out of range, or no int.
    """
    if isinstance(place, bool) or not isinstance(place, int):
        raise TypeError(f"{name} is a {type(place).__name__}; give an int: its place among the {count} {what}")
    if not -count <= place < count:
        raise ValueError(f"{name}={place} must be within {-count}..{count - 1}: there are {count} {what}")
    return place % count
