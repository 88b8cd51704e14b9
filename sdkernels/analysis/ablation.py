"""The public ablation functions."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.importance import UnitImportance
from sdkernels.analysis.measure import Options, measure
from sdkernels.analysis.orders import Orders, for_sites
from sdkernels.analysis.sampling import Series, area_under, each_alone
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.sets import AblationScores
from sdkernels.engine import choices
from sdkernels.engine.arguments import is_one_of
from sdkernels.engine.choices import Points, Units, make_orders, make_points, make_sets
from sdkernels.engine.families import Cumulative, Sets, Singles
from sdkernels.engine.keeping import Workers
from sdkernels.engine.scores import Metric, Metrics
from sdkernels.engine.sites import Layers, Site
from sdkernels.engine.values import Value, Within


def cumulative_ablation(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    orders: Orders = 10,
    points: Points = 33,
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
) -> AblationCurve:
    r"""Clamp more and more units, in fixed orders, and score the network at each point.

    The units of all ``layers`` are pooled. At point :math:`t` of order :math:`r` the first :math:`p_t` units of
    permutation :math:`\pi_r` are clamped to their value, for every example of the data set:

    .. math:: a_u \leftarrow v_u \quad\text{for}\quad u \in \{\pi_r(1), \dots, \pi_r(p_t)\}

    Clamping happens at the layer's output: name the ReLU, not the convolution, to clamp after the nonlinearity.

    Args:
        model: any module that gives logits ``[N, L]`` for inputs ``[N, ...]``, in evaluation mode. It is not changed.
        layers: a dotted name, a module of ``model``, or a list of them. ``"relu@2"`` picks one call of a layer that
            fires several times. Units are dimension 1 of outputs of four or more dimensions and of 1-d
            convolutions, else the last; ``unit_dim`` says otherwise.
        data: a ``DataLoader``, a ``Dataset``, or a pair of tensors: inputs and integer labels ``[N]``.
        orders: a number of random orders, an int64 tensor ``[R, U]`` of permutations of the pooled units (numbered
            layer after layer), or ``(score, "ascending")`` or ``(score, "descending")`` with a score ``[U]`` or a
            :class:`UnitScore`, whose dead units come last if they have none. The units of all layers are sorted
            together; ``(score, "descending", "within")`` sorts each layer's own, and takes an equal part of every layer
            at each point. A list of such tuples is an order each.
        points: a number of evenly spaced counts of clamped units including 0 and U, increasing counts, or ``"all"``.
        value: what a clamped unit becomes: a number; a tensor (``[C]``, or like one example of the layer's output); a
            mean over ``value_data``: ``"mean"`` (per unit), ``"element_mean"`` (per element of its map),
            ``"class_mean"`` and ``"class_element_mean"`` (the same over the examples of the example's own class);
            ``"resample"``, its activation in another example of ``value_data``, the same one in all configurations and
            layers, drawn by ``seed``; or a dict of these by layer.
        baselines: captum's word for ``value``.
        value_data: the data set that means, deviations and other examples come from, by default ``data``.
        within: clamp an element only where :math:`\mu_u - \tau \sigma_u \le a_u \le \mu_u + \tau \sigma_u`, given
            :math:`\tau`, with each unit's mean and standard deviation over the examples and positions of
            ``value_data``; or only where ``low <= a <= high``, given ``(low, high)``, each a number or a tensor as for
            ``value``; or a dict of these by layer. None: everywhere. A range of deviations is wider by a millionth of
            the mean, for units that never change. Its edge is a jump: below float64, an activation within rounding of
            it may fall on either side.
        metrics: any of ``"accuracy"``, ``"loss"``, ``"top5"``, ``"class_accuracy"``, ``"agreement"`` (with the intact
            prediction), and functions (logits ``[N, L]``, labels ``[N]``) -> ``[N]``. Accuracy is always measured.
        outcomes: keep which predictions are correct, a bit a configuration and example: ``curve.outcome_matrix()``.
        tolerance: stop early: draw examples in random order, and stop an order once its area under the accuracy curve
            (``tolerance_of="auc"``), or a point once its accuracy (``"accuracy"``), is within ``tolerance`` of what all
            of ``data`` would give, with this ``confidence``, by an interval that holds whenever it is looked at
            (:class:`~sdkernels.analysis.sequential.ConfidenceSequence`; for each order or point by itself).
            ``curve.used`` says how many examples each point took, ``curve.auc_bounds`` or ``curve.bounds`` the
            intervals. The data must be one that can be read in any order. None: all examples.
        seed: of the random orders, of the order of the examples, and of ``"resample"``. The global random state is left
            as it was.
        method: ``"auto"``, or ``"loop"``: one whole forward pass a configuration and batch, to check any result.
        precision: ``"float32"``, ``"float64"`` or ``"bfloat16"`` runs a converted copy of the model; None the model as
            it is. On CUDA, float32 products are IEEE's, whatever torch is set to, but for ``"tf32"``, whose operands
            are rounded to TF32. ``curve.ambiguous`` goes by the precision.
        unit_dim: the units' dimension, for every layer or by layer.
        select: which part of a tuple holds the units, of layers that give one, for every such layer or by layer: 0 for
            the output of an ``nn.LSTM``.
        batch_size: examples a batch where ``data`` is no ``DataLoader``.
        configs_per_batch: how many single units share a forward pass (captum's ``perturbations_per_eval``); ``"auto"``
            goes by the memory that they take. Nested configurations have shapes of their own, and ask nobody.
        memory_fraction: the part of the device's memory, or of the machine's on a CPU, that tensors may take beyond the
            model and the data. ``curve.plan`` says how much it is.
        show_progress: a tqdm bar over examples x configurations.
        store: a file, an SQLite database, in which finished tiles are kept: the same call, made again after a crash or
            a kill, goes on where it was. They are found by a digest of all that scores depend on: the model's code and
            weights, the data, layers, configurations, values, metrics, precision, seed. ``sdkernels runs`` shows them.
        workers: processes that share the work, as :class:`sdkernels.lab.cluster.RayWorkers`; None: this one does it.

    Returns:
        An :class:`AblationCurve`: int64 counts of correct predictions and float64 sums of losses, ``[R, T]``.

    Raises:
        ValueError, TypeError: a layer that does not exist, a model in train mode, empty data, labels out of range,
            orders that are no permutations, non-finite intact activations, and the like; each says what, where and the
            fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.2 and figure 1.

    Example:
        >>> import torch, sdkernels as sd
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> inputs = torch.randn(50, 4)
        >>> curve = sd.cumulative_ablation(model, "1", (inputs, model(inputs).argmax(1)), orders=2, points=5)
        >>> curve.points.tolist(), curve.correct[:, 0].tolist()
        ([0, 2, 4, 6, 8], [50, 50])
    """

    plain: list[choices.Orders] = []

    def read_orders(sites: list[Site], *_: Any) -> list[Site]:
        plain.append(for_sites(orders, sites))
        return sites

    def make_family(unit_counts: tuple[int, ...]) -> Cumulative:
        chosen = make_orders(plain[0], unit_counts, options.seed)
        return Cumulative(chosen, make_points(points, sum(unit_counts)), unit_counts)

    options = Options.of(locals())
    if not is_one_of(tolerance_of, ("auc", "accuracy")):
        raise ValueError(f"tolerance_of={tolerance_of!r}: it is of each order's 'auc', or of each point's 'accuracy'")

    def series_of(family: Cumulative) -> list[Series]:
        if tolerance_of == "accuracy":
            return each_alone(family.configurations)
        return area_under(family.points / family.orders.shape[1], len(family.orders))

    measured = measure(model, layers, data, make_family, options, read_orders, series_of, called="cumulative_ablation")
    family, bounds = measured.family, measured.bounds
    fields = measured.fields(len(family.orders), len(family.points), seed=options.seed)
    if bounds is not None and tolerance_of == "auc":
        fields["auc_bounds"] = bounds
    elif bounds is not None:
        fields["bounds"] = bounds.view(len(family.orders), len(family.points), 2)
    return AblationCurve(orders=family.orders, points=family.points, **fields)


def unit_importance(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    value: Value = 0.0,
    baselines: Value | None = None,
    value_data: Any = None,
    within: Within | None = None,
    metrics: Metric | Metrics = ("accuracy", "loss"),
    outcomes: bool = False,
    tolerance: float | None = None,
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
) -> UnitImportance:
    r"""Clamp every unit alone, and score the network without it.

    For each unit :math:`u` of all ``layers``, pooled, :math:`a_u \leftarrow v_u` for every example of the data set.
    With :math:`m` a score's mean over examples, the unit's importance is

    .. math:: I_u = m_{\text{intact}} - m_u

    and its negative for a loss: positive means that the unit helps.

    Args:
        model, layers, data: as for :func:`sdkernels.cumulative_ablation`.
        value, baselines, value_data, within: what a clamped unit becomes, and where; as there.
        metrics, outcomes: as there. ``"class_accuracy"`` gives an importance a unit and class.
        tolerance, confidence: stop a unit early, once its accuracy is known well enough; as there.
        seed: of ``value="resample"``, and of the order of the examples.
        method, precision, unit_dim, select, batch_size, configs_per_batch, memory_fraction, show_progress, store,
            workers: as there.

    Returns:
        A :class:`UnitImportance`: int64 counts of correct predictions and float64 sums of losses, ``[U]``, with unit u
        ablated; ``importance()`` ``[U]`` and ``top(k)``.

    Raises:
        ValueError, TypeError: as :func:`sdkernels.cumulative_ablation`; each says what, where and the fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        sections 2.2 and 3.4.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> for layer, weight in ((model[0], [[1, 0], [0, 1], [1, 1]]), (model[2], [[1, 0, 1], [0, 2, 1]])):
        ...     layer.weight.data, layer.bias.data = torch.tensor(weight).float(), torch.zeros(len(weight))
        >>> inputs, labels = torch.tensor([[3.0, 1.0], [4.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> result = sd.unit_importance(model, "1", (inputs, labels))
        >>> result.correct.tolist(), result.top(1).tolist()
        ([1, 2, 3], [0])
    """
    options = Options.of(locals())
    measured = measure(model, layers, data, Singles, options, called="unit_importance")
    return UnitImportance(**measured.fields(measured.family.configurations), bounds=measured.bounds)


def ablate(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    units: Units,
    value: Value = 0.0,
    baselines: Value | None = None,
    value_data: Any = None,
    within: Within | None = None,
    metrics: Metric | Metrics = ("accuracy", "loss"),
    outcomes: bool = False,
    tolerance: float | None = None,
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
) -> AblationScores:
    r"""Clamp explicit sets of units, and score the network with each.

    With set :math:`k`, every example of the data set is run with

    .. math:: a_u \leftarrow v_u \quad\text{for}\quad u \in S_k

    Args:
        model, layers, data: as for :func:`sdkernels.cumulative_ablation`.
        units: K sets of pooled units of all ``layers``, which are numbered 0..U-1, layer after layer: a sequence of
            index lists, ranges or 1-d integer tensors (an empty one ablates nothing), or a bool tensor ``[K, U]``, True
            where a unit is ablated.
        value, baselines, value_data, within: what a clamped unit becomes, and where; as there.
        metrics, outcomes: as there.
        tolerance, confidence: stop a set early, once its accuracy is known well enough; as there.
        seed: of ``value="resample"``, and of the order of the examples.
        method, precision, unit_dim, select, batch_size, configs_per_batch, memory_fraction, show_progress, store,
            workers: as there.

    Returns:
        An :class:`AblationScores`: int64 counts of correct predictions and float64 sums of losses, ``[K]``.

    Raises:
        ValueError, TypeError: ``units`` that are no sets of 0..U-1, with the row that is wrong; and as
            :func:`sdkernels.cumulative_ablation`; each says what, where and the fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.2.

    Example:
        >>> import torch, sdkernels as sd
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> inputs = torch.randn(50, 4)
        >>> scores = sd.ablate(model, "1", (inputs, model(inputs).argmax(1)), units=[[], [0], [3, 5], range(8)])
        >>> scores.units.sum(1).tolist(), int(scores.correct[0])
        ([0, 1, 2, 8], 50)
    """
    options = Options.of(locals())
    measured = measure(
        model,
        layers,
        data,
        lambda unit_counts: Sets(make_sets(units, unit_counts), unit_counts),
        options,
        called="ablate",
    )
    family = measured.family
    return AblationScores(units=family.masks, **measured.fields(family.configurations), bounds=measured.bounds)
