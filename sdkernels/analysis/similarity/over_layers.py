"""The layers of two networks, or of one, compared over any data set in one pass."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdkernels.analysis.measure import check_fraction, progress, versions
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.similarity.activations import PositionsWord
from sdkernels.analysis.similarity.comparisons import Block, pair_of
from sdkernels.analysis.similarity.layer_similarity import LayerSimilarity
from sdkernels.analysis.similarity.method import MethodWord, SideWord
from sdkernels.analysis.similarity.networks import Way, names_in, together
from sdkernels.analysis.similarity.over_data import Options, check_memory, compare_over, settings_of
from sdkernels.analysis.similarity.whitening import Solver
from sdkernels.engine.arguments import is_one_of
from sdkernels.engine.sites import Layers, unwrap


def compare_layers(
    model_a: nn.Module,
    model_b: nn.Module,
    layers: Layers,
    data: Any,
    *,
    layers_b: Layers | None = None,
    matching: Literal["all", "same"] = "all",
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
) -> LayerSimilarity:
    r"""How alike are the layers of two networks, or of one, in what they say of the same examples?

    With activations :math:`x_n` ``[C_a]`` of a layer of the one and :math:`y_n` ``[C_b]`` of a layer of the other, for
    the same N data points, one pass sums

    .. math:: S_{xx} = \sum_n (x_n - \bar x)(x_n - \bar x)^\top \qquad S_{xy} = \sum_n (x_n - \bar x)(y_n - \bar y)^\top

    and :math:`S_{yy}`, of every pair that is compared, in float64; distances follow as :func:`sdkernels.similarity`
    takes them from activations. These are not held: memory goes by the squares of layers' widths, not by the data.

    Args:
        model_a, model_b: in evaluation mode, of any two architectures, on any devices. They are not changed. The same
            model twice runs once, and gives the distances between its own layers.
        layers: of ``model_a``, A of them, as for :func:`sdkernels.cumulative_ablation`; of ``model_b`` too, by name,
            unless ``layers_b`` is given.
        data: a ``DataLoader``, a ``Dataset``, a pair of tensors, or inputs ``[N, ...]`` alone; labels are not read.
        layers_b: of ``model_b``, B of them.
        matching: ``"all"``, every layer against every other; ``"same"``, each of ``layers`` against the one at the same
            place of ``layers_b``, and nothing else.
        method, side, compat, variance, reduce, debiased, tolerance, solver: as for :func:`sdkernels.similarity`.
            ``solver="svd"`` needs activations, and cannot be had here. The first argument there is the layer of
            ``model_a``.
        positions: what becomes of the positions of maps ``[N, C, H, W]`` and the steps of sequences ``[N, T, F]``.
            ``"mean"``: each example gives one data point, the mean over its positions. ``"each"``: every position is a
            data point, for which the two maps must be of one size. ``"resample"``: as ``"each"``, after the larger map
            was interpolated to the size of the smaller one.
        subsample: how many positions each example gives, at most: others are drawn for each example, the same for all
            layers; None: all.
        seed: of these draws, which go by it and by the example's place in the data alone. The global random state is
            left as it was.
        precision, unit_dim, select, batch_size, show_progress: as there; ``unit_dim`` and ``select`` by layer may name
            layers of both.
        memory_fraction: the part of the device's memory, or of the machine's on a CPU, that moments may take.
        device: where activations are summed, and decomposed; None: where the first model is. It takes float64.
        store: a file, an SQLite database, in which the moments so far are kept every now and then, and at the end the
            distances: the same call, made again after a crash or a kill, reads the data from the start and goes on
            where it was; once finished, it runs no model. It is found by a digest of the models' code and weights,
            layers and options, and taken if the examples are the same, in the same order; ``batch_size`` may change.
            Moments of more than 0.9 GB are not kept.

    Returns:
        A :class:`LayerSimilarity`: distances ``[A, B]``, nan where ``matching="same"`` compares nothing.

    Raises:
        ValueError, TypeError: a layer that does not exist, a model in train mode, activations that are not finite, maps
            that do not correspond, too few examples for the layers' ranks, an option that the method does not use; each
            says what, where and the fix.

    Source:
        Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
        correlation"; Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, "SVCCA".

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.over_layers import compare_layers
        >>> one = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Identity()).eval()
        >>> other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Identity()).eval()
        >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> mixed = torch.tensor([[2.0, 1.0, 0.0], [1.0, -1.0, 0.0]])  # the same two inputs
        >>> one[0].weight.data, other[0].weight.data = weight, mixed
        >>> inputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> result = compare_layers(one, other, ["0"], inputs)
        >>> result.distance.abs().round(decimals=6), result.examples
        (tensor([[0.]], dtype=torch.float64), 100)
    """
    options, way = Options.of(locals(), "compare_layers"), Way.of(locals())
    if not is_one_of(matching, ("all", "same")):
        raise ValueError(f"matching={matching!r}: choose 'all' or 'same'")
    fraction = check_fraction(memory_fraction)
    names_a = names_in("model_a", model_a, layers)
    names_b = names_a if layers_b is None else names_in("model_b", model_b, layers_b)
    if matching == "same" and len(names_a) != len(names_b):
        raise ValueError(
            f"matching='same' compares layers at the same place, and there are {len(names_a)} layers and "
            f"{len(names_b)} of layers_b; give as many, or matching='all'"
        )
    is_one = isinstance(model_b, nn.Module) and unwrap(model_a) is unwrap(model_b)
    models = {"": model_a} if is_one else {"model_a": model_a, "model_b": model_b}
    wanted = [list(dict.fromkeys([*names_a, *names_b]))] if is_one else [names_a, names_b]
    with together(models, wanted, data, way) as networks:
        a = [(0, wanted[0].index(name)) for name in names_a]
        b = [(len(models) - 1, wanted[-1].index(name)) for name in names_b]
        places = [(i, j) for i in range(len(a)) for j in range(len(b)) if matching == "all" or i == j]
        pairs = {(i, j): pair_of(networks, a[i], b[j], options.positions) for i, j in places}
        check_memory(networks, list(pairs.values()), fraction)
        with progress(show_progress, networks.inputs.examples, len(models), "comparing layers") as advance:
            found = compare_over(networks, list(pairs.values()), replace(options, advance=advance))
        settings = {**settings_of(networks.precision, options, found), "matching": matching}
    found.say()
    return LayerSimilarity(
        distance=_table(len(a), len(b), {at: found.distances[pair] for at, pair in pairs.items()}),
        layers_a=tuple(networks.site(*site).name for site in a),
        layers_b=tuple(networks.site(*site).name for site in b),
        rank_a=_ranks(len(a), {(i, block): found.ranks.get(block) for (i, _), (block, _) in pairs.items()}),
        rank_b=_ranks(len(b), {(j, block): found.ranks.get(block) for (_, j), (_, block) in pairs.items()}),
        examples=found.data_points,
        settings=settings,
        versions=versions(),
    )


def _table(rows: int, columns: int, given: Mapping[tuple[int, int], float]) -> Tensor:
    """float64 [rows, columns], nan where nothing is given."""
    table = torch.full((rows, columns), torch.nan, dtype=torch.float64)
    for at, number in given.items():
        table[at] = number
    return table


def _ranks(layers: int, given: Mapping[tuple[int, Block], int | None]) -> Tensor | None:
    """int64 [layers]; None where there are none, or a layer has several, as of maps that were resampled to sizes."""
    of = [{rank for (at, _), rank in given.items() if at == layer} for layer in range(layers)]
    if any(len(ranks) != 1 or None in ranks for ranks in of):
        return None
    return torch.tensor([rank for ranks in of for rank in ranks])
