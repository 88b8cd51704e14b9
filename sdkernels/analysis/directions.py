"""Ablation of directions: what a layer's activations have along some of them is clamped."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from sdkernels.analysis.bases import Directions, resolve_directions
from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.importance import UnitImportance
from sdkernels.analysis.measure import Options, measure
from sdkernels.analysis.orders import Orders, for_sites
from sdkernels.analysis.sampling import Series, area_under, each_alone
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.sets import AblationScores
from sdkernels.engine import choices
from sdkernels.engine.arguments import is_one_of
from sdkernels.engine.batches import Batches
from sdkernels.engine.choices import Points, Units, make_orders, make_points, make_sets
from sdkernels.engine.families import Cumulative, Sets, Singles
from sdkernels.engine.keeping import Workers
from sdkernels.engine.scores import Metric, Metrics
from sdkernels.engine.sites import Layers, Site
from sdkernels.engine.values import Value, Within


def ablate_directions(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    directions: Directions,
    orders: Orders | None = None,
    points: Points = 33,
    subspaces: Units | None = None,
    orthonormalize: bool = False,
    value: Value = 0.0,
    baselines: Value | None = None,
    value_data: Any = None,
    within: Within | None = None,
    metrics: Metric | Metrics = ("accuracy", "loss"),
    outcomes: bool = False,
    tolerance: float | None = None,
    tolerance_of: Literal["auc", "accuracy"] = "auc",
    confidence: float = 0.95,
    seed: int = 0,
    method: Literal["auto", "loop"] = "auto",
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    configs_per_batch: int | Literal["auto"] = "auto",
    memory_fraction: float = 0.5,
    show_progress: bool = False,
    store: Path_ | None = None,
    workers: Workers | None = None,
) -> UnitImportance | AblationCurve | AblationScores:
    r"""Clamp what a layer's activations have along directions, alone, in order, or by subspaces; score the network.

    With orthonormal directions :math:`q_1, \dots, q_K`, the rows of :math:`Q` ``[K, C]``, the activation :math:`z` of
    the layer's C channels, at every position, becomes

    .. math:: z \leftarrow z - \sum_{k \in S} q_k (q_k \cdot z - v_k)

    for the ablated directions :math:`S`: with :math:`v = 0` they are projected out, with :math:`v` the mean nothing is
    left of how the examples differ along them. A unit is the direction of one channel, so that the rows of an identity
    give just what :func:`sdkernels.unit_importance` and its like give.

    Args:
        model, layers, data: as for :func:`sdkernels.cumulative_ablation`.
        directions: a tensor ``[K, C]``, a row a direction; ``"random"``, a random rotation by ``seed``, as
            :func:`sdkernels.random_directions` draws it; ``"principal"``, all :func:`sdkernels.principal_directions`
            of the layer over ``value_data``, by descending variance; or a dict of these by layer. The directions of all
            ``layers`` are pooled and numbered as units are. Rows that are orthonormal to within 1e-4 are made so, by
            moving them least. Where each is ablated alone, unit length is enough, and K may be more than C.
        orders: ablate more and more of them, in these orders, as :func:`sdkernels.cumulative_ablation` does units.
        points: how many of them, along the orders; as there.
        subspaces: ablate these sets of them, as :func:`sdkernels.ablate` does units: index lists, or a bool tensor.
            With neither orders nor subspaces, every direction is ablated alone.
        orthonormalize: make given rows orthonormal in their order, by Gram and Schmidt: each keeps what those before
            it leave.
        value, baselines, value_data, within: what a coordinate :math:`q_k \cdot z` is clamped to, and where, as there
            for units; means, deviations and other examples' activations are those of the coordinates.
        metrics, outcomes: as there.
        tolerance, confidence: stop early what is known well enough; as there. ``tolerance_of`` matters with orders.
        seed: of random directions and orders, of the order of the examples, and of ``value="resample"``. The global
            random state is left as it was.
        method, precision, unit_dim, select, batch_size, configs_per_batch, memory_fraction, show_progress, store,
            workers: as there.

    Returns:
        A :class:`UnitImportance` whose units are the directions; with ``orders`` an :class:`AblationCurve`; with
        ``subspaces`` an :class:`AblationScores`. Its ``directions`` are those that were ablated, by layer.

    Raises:
        ValueError, TypeError: both orders and subspaces; directions of another width than the layer's, with a row that
            is zero or not finite, or that are not orthonormal, with the worst pair of rows; and as
            :func:`sdkernels.cumulative_ablation`; each says what, where and the fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.2, of units; Ravfogel, Elazar, Gonen, Twiton, Goldberg 2020, "Null it out", section 4, of projections.

    Example:
        >>> import torch, sdkernels as sd
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> inputs = torch.randn(50, 4)
        >>> data = inputs, model(inputs).argmax(1)
        >>> alone = sd.ablate_directions(model, "1", data, directions="random")
        >>> tuple(alone.correct.shape), tuple(alone.directions["1"].shape)
        ((8,), (8, 8))
        >>> curve = sd.ablate_directions(model, "1", data, directions="principal", orders=torch.arange(8)[None])
        >>> curve.points.tolist(), curve.correct[0, :1].tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], [50])
    """
    if orders is not None and subspaces is not None:
        raise ValueError("orders and subspaces are two ways to ablate directions together; give one, or neither")
    options = Options.of(locals())
    if not is_one_of(tolerance_of, ("auc", "accuracy")):
        raise ValueError(f"tolerance_of={tolerance_of!r}: it is of each order's 'auc', or of each point's 'accuracy'")
    by_layer: dict[str, Tensor] = {}

    def turn(sites: list[Site], own_model: nn.Module, batches: Batches) -> list[Site]:
        are_alone = orders is None and subspaces is None
        found = resolve_directions(
            directions, sites, own_model, batches, seed=options.seed, are_alone=are_alone, orthonormalize=orthonormalize
        )
        by_layer.update({site.name: basis for site, basis in zip(sites, found, strict=True)})
        return [site.along(basis) for site, basis in zip(sites, found, strict=True)]

    if orders is not None:
        return _along_orders(model, layers, data, options, turn, by_layer, orders, points, tolerance_of)
    given = list(directions.values()) if isinstance(directions, Mapping) else [directions]
    drawn = options.seed if any(isinstance(basis, str) and basis == "random" for basis in given) else None
    if subspaces is not None:
        sets = measure(
            model,
            layers,
            data,
            lambda counts: _make_subspaces(subspaces, counts),
            options,
            turn,
            called="ablate_directions",
        )
        masks = sets.family.masks
        fields = sets.fields(len(masks), seed=drawn)
        return AblationScores(units=masks, directions=by_layer, bounds=sets.bounds, **fields)
    alone = measure(model, layers, data, Singles, options, turn, called="ablate_directions")
    fields = alone.fields(alone.family.configurations, seed=drawn)
    return UnitImportance(directions=by_layer, bounds=alone.bounds, **fields)


def _along_orders(
    model: nn.Module,
    layers: Layers,
    data: Any,
    options: Options,
    turn: Callable[[list[Site], nn.Module, Batches], list[Site]],
    directions: Mapping[str, Tensor],  # which turn fills
    orders: Orders,
    points: Points,
    tolerance_of: str,
) -> AblationCurve:
    plain: list[choices.Orders] = []

    def turn_and_read_orders(sites: list[Site], own_model: nn.Module, batches: Batches) -> list[Site]:
        turned = turn(sites, own_model, batches)
        plain.append(for_sites(orders, turned))
        return turned

    def make_family(counts: tuple[int, ...]) -> Cumulative:
        chosen = make_orders(plain[0], counts, options.seed)
        return Cumulative(chosen, make_points(points, sum(counts)), counts)

    def series_of(family: Cumulative) -> list[Series]:
        if tolerance_of == "accuracy":
            return each_alone(family.configurations)
        return area_under(family.points / family.orders.shape[1], len(family.orders))

    measured = measure(
        model, layers, data, make_family, options, turn_and_read_orders, series_of, called="ablate_directions"
    )
    family, bounds = measured.family, measured.bounds
    shape = len(family.orders), len(family.points)
    fields = measured.fields(*shape, seed=options.seed)
    if bounds is not None:
        fields |= {"auc_bounds": bounds} if tolerance_of == "auc" else {"bounds": bounds.view(*shape, 2)}
    return AblationCurve(orders=family.orders, points=family.points, directions=directions, **fields)


def _make_subspaces(subspaces: Units, counts: tuple[int, ...]) -> Sets:
    try:
        return Sets(make_sets(subspaces, counts), counts)
    except (ValueError, TypeError) as error:
        raise type(error)(f"subspaces, whose units are directions: {error}") from error
