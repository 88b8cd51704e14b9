"""Many networks, each compared with each other, at one layer or several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdkernels.analysis.measure import check_fraction, progress, versions
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.similarity.activations import PositionsWord
from sdkernels.analysis.similarity.compared import Label, check_labels
from sdkernels.analysis.similarity.found import Found
from sdkernels.analysis.similarity.held import compare_held
from sdkernels.analysis.similarity.method import MethodWord, SideWord
from sdkernels.analysis.similarity.networks import Way, names_in, together
from sdkernels.analysis.similarity.over_data import Options, compare_over, settings_of
from sdkernels.analysis.similarity.pairwise_result import PairwiseSimilarity
from sdkernels.analysis.similarity.passes_of_pairs import describe, plan_passes
from sdkernels.analysis.similarity.units import choose_units
from sdkernels.analysis.similarity.whitening import Solver
from sdkernels.engine.memory import memory_limit
from sdkernels.engine.sites import Layers


def pairwise_similarity(
    models: Mapping[str, nn.Module] | Sequence[nn.Module],
    layers: Layers,
    data: Any,
    *,
    groups: Mapping[str, Label] | Sequence[Label] | None = None,
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
    units: int | None = None,
    seed: int = 0,
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    memory_fraction: float = 0.5,
    device: str | torch.device | None = None,
    show_progress: bool = False,
    store: Path_ | None = None,
) -> PairwiseSimilarity:
    r"""How alike are many networks, each pair of them, at each of some layers?

    With activations :math:`X_i` ``[N, C_i]`` of network i for the same N data points, and their whitening :math:`W_i`,
    which is found once for each network and layer, the canonical correlations of networks i and j are the singular
    values of

    .. math:: K_{ij} = \big((X_i - \bar x_i) W_i\big)^\top \big((X_j - \bar x_j) W_j\big)

    so that each pair costs one product and one small SVD. Each network runs once, if its activations fit into memory
    with those of the others (``"hold"``), for as many layers at a time as fit. Else the networks run side by side and
    moments are summed (``"lockstep"``), of all pairs at once, or of two groups of networks at a time where these do not
    fit either. ``settings["ways"]`` of the result says what was done.

    Args:
        models: M of them, in evaluation mode: a mapping by name, or a sequence, numbered from 0. Not changed.
        layers: as for :func:`sdkernels.cumulative_ablation`, by names that all models have.
        data: a ``DataLoader``, a ``Dataset``, a pair of tensors, or inputs ``[N, ...]`` alone; labels are not read.
        groups: a label for each network, as how it was trained: a mapping by name, or a sequence.
        method, side, compat, variance, reduce, debiased, tolerance, solver: as for :func:`sdkernels.similarity`, whose
            first argument is the network of the row. Only PWCCA is not symmetric; with ``side="smaller"``, it is where
            the two layers differ in their numbers of live units. ``solver="svd"`` cannot be had here; ``"auto"`` takes
            SVD of ill-conditioned activations that are held.
        positions, subsample: as for :func:`sdkernels.compare_layers`.
        units: compare layers in so many of their units, drawn at random, so that networks of several widths are
            compared in as many directions; the same ones in all networks whose layers are as wide. None: in all.
        seed: of the draws of positions and units.
        precision, unit_dim, select, batch_size, show_progress: as for :func:`sdkernels.cumulative_ablation`. The total
            that progress is shown of is of passes of an example through a network.
        memory_fraction: the part of the device's memory, or of the machine's on a CPU, that activations and moments may
            take.
        device: where they are; as for :func:`sdkernels.compare_layers`.
        store: as for :func:`sdkernels.compare_layers`; activations that are held are kept too, up to 8 GiB.

    Returns:
        A :class:`PairwiseSimilarity`: distances ``[layers, M, M]``. Where a layer gives a million float32 numbers or
        more, and they are held, whitened ones are multiplied in float32 and added up in float64, but for PWCCA:
        distances are then good to 1e-8, between layers that are all but the same to 1e-7; else to 1e-12.

    Raises:
        ValueError, TypeError: fewer than two models; more ``units`` than a layer has; moments of two networks that do
            not fit; and as :func:`sdkernels.compare_layers`; each names the network.

    Source:
        Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
        correlation", section 3.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.over_networks import pairwise_similarity
        >>> generator = torch.Generator().manual_seed(0)
        >>> models = {name: torch.nn.Sequential(torch.nn.Linear(4, 3, False), torch.nn.Tanh()).eval() for name in "abc"}
        >>> for model in models.values():
        ...     model[0].weight.data = torch.randn(3, 4, generator=generator)
        >>> models["b"][0].weight.data = models["a"][0].weight.flip(0)  # the same units in another order
        >>> inputs = torch.randn(500, 4, generator=generator)
        >>> result = pairwise_similarity(models, ["0", "1"], inputs)
        >>> result.distance[:, 0].abs().round(decimals=6)[:, :2].tolist(), result.settings["ways"]
        ([[0.0, 0.0], [0.0, 0.0]], {'0': 'hold, 1 pass', '1': 'hold, 1 pass'})
    """
    options, way = Options.of(locals(), "pairwise_similarity"), Way.of(locals())
    fraction = check_fraction(memory_fraction)
    by_name = _by_name(models)
    first = next(iter(by_name))
    names = names_in(f"models[{first!r}]", by_name[first], layers)
    labels = _groups(groups, list(by_name))
    with together(by_name, [names] * len(by_name), data, way) as networks:
        if units is not None:
            choose_units(networks, units, seed)
        sites = networks.subjects[0].sites
        examples = networks.inputs.examples
        if examples is None:
            examples = sum(len(labels) for _, labels in networks.inputs)
        limit = memory_limit(networks.device, fraction)
        passes = plan_passes(networks, options.method, options.positions, examples, limit)
        runs = sum(one.networks for one in passes)
        parts: list[Found] = []
        with progress(show_progress, examples, runs, "comparing networks") as advance:
            telling = replace(options, advance=advance)
            for one in passes:
                if one.way == "hold":
                    parts.append(compare_held(networks, one.pairs, telling, examples))
                else:
                    parts.append(compare_over(networks, one.pairs, telling))
        found = Found.together(parts)
        settings = {**settings_of(networks.precision, options, found), "ways": describe(passes, networks)}
        settings |= {} if units is None else {"units": units, "seed": seed}
    found.say()
    distance = torch.zeros(len(sites), len(by_name), len(by_name), dtype=torch.float64)
    for (a, b), value in found.distances.items():
        distance[a.site, a.network, b.network] = value
        if options.method.is_symmetric:
            distance[a.site, b.network, a.network] = value
    return PairwiseSimilarity(
        distance=distance,
        names=tuple(by_name),
        layers=tuple(site.name for site in sites),
        groups=labels,
        ranks=_ranks(found, len(sites), len(by_name)),
        examples=found.data_points,
        settings=settings,
        versions=versions(),
    )


def _by_name(models: Any) -> dict[str, nn.Module]:
    """The networks by name, two at least.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if isinstance(models, nn.ModuleDict):
        models = dict(models.items())
    if isinstance(models, nn.ModuleList):
        models = list(models)
    if isinstance(models, nn.Module) or not isinstance(models, (Mapping, Sequence)):
        raise TypeError(f"models is a {type(models).__name__}; give a sequence of models, or a mapping by name")
    found = dict(models) if isinstance(models, Mapping) else {str(i): model for i, model in enumerate(models)}
    if unnamed := [name for name in found if not isinstance(name, str) or not name]:
        raise TypeError(f"models has the name {unnamed[0]!r}; give strings")
    if len(found) < 2:
        raise ValueError(f"models holds {len(found)}; give at least two, or compare layers of one by compare_layers")
    return found


def _groups(given: Any, names: list[str]) -> tuple[Label, ...] | None:
    """A label a network."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return check_labels("groups", given, len(names), "networks")
    if set(given) != set(names):
        raise ValueError(f"groups is a mapping of {sorted(map(str, given))}; it must name the models {sorted(names)}")
    return tuple(given[name] for name in names)


def _ranks(found: Found, layers: int, networks: int) -> Tensor | None:
    """int64 [layers, M]; None where nothing was whitened, or a layer has several, as of maps that were resampled."""
    of: dict[tuple[int, int], set[int]] = {}
    for block, rank in found.ranks.items():
        of.setdefault((block.site, block.network), set()).add(rank)
    if not of or any(len(ranks) > 1 for ranks in of.values()):
        return None
    return torch.tensor([[of[layer, network].copy().pop() for network in range(networks)] for layer in range(layers)])
