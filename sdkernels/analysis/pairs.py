"""Pairs of units: how much more, or less, is lost with both than with each alone."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from sdkernels.analysis.measure import Options, measure
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.synergy import PairImportance
from sdkernels.engine.choices import PairsOfUnits, make_pairs
from sdkernels.engine.keeping import Workers
from sdkernels.engine.pairs import Pairs
from sdkernels.engine.scores import Metric, Metrics
from sdkernels.engine.sites import Layers
from sdkernels.engine.values import Value, Within


def pair_importance(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    pairs: PairsOfUnits = "all",
    value: Value = 0.0,
    baselines: Value | None = None,
    value_data: Any = None,
    within: Within | None = None,
    metrics: Metric | Metrics = ("accuracy", "loss"),
    outcomes: bool = False,
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
) -> PairImportance:
    r"""Clamp pairs of units, and each of their units alone: what do two do that neither does by itself?

    With :math:`D_S` how much worse the network is with the units :math:`S` clamped, a loss of accuracy or a gain of
    cross-entropy, the synergy of units i and j is what clamping both costs beyond what each costs alone:

    .. math:: S_{ij} = D_{ij} - D_i - D_j

    Zero: they act apart. Positive: they stand in for each other, so that the network feels it only when both are gone.
    Negative: they are of use only together, or do the same harm, so that without one the other matters less.

    Args:
        model, layers, data: as for :func:`sdkernels.cumulative_ablation`.
        pairs: ``"all"``, every i < j within each layer, layer after layer: C (C - 1) / 2 of a layer of C units. Or an
            integer tensor, array or list ``[P, 2]`` of pooled units of all ``layers``, which are numbered 0..U-1, layer
            after layer; the two may stand in different layers. Pairs stay as they are given, and each is given once,
            whichever of its units comes first.
        value, baselines, value_data, within: what a clamped unit becomes, and where; as there.
        metrics, outcomes: as there. ``"class_accuracy"`` gives a synergy a pair and class.
        seed: of ``value="resample"``.
        method, precision, unit_dim, select, batch_size, configs_per_batch, memory_fraction, show_progress, store,
            workers: as there. The total that progress is shown of is of pairs and of their units alone.

    Returns:
        A :class:`PairImportance`: int64 counts of correct predictions and float64 sums of losses, ``[P]`` with both
        units of a pair clamped and ``[V]`` with each unit alone; ``synergy()`` ``[P]`` and ``matrix()`` ``[C, C]``.

    Raises:
        ValueError, TypeError: ``pairs`` that are not two different units of 0..U-1, or the same ones twice, with the
            row that is wrong; and as :func:`sdkernels.cumulative_ablation`; each says what, where and the fix.

    Source:
        Grabisch, Roubens 1999, "An axiomatic approach to the concept of interaction among players in cooperative
        games": the second difference that their index averages over coalitions, here at the coalition of all other
        units, and with the opposite sign.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> first, second = ([[1.0], [1.0], [0.0]], [0.0, 0.0, 0.0]), ([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]], [1.0, 0.0])
        >>> for layer, (weight, bias) in ((model[0], first), (model[2], second)):
        ...     layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        >>> data = torch.tensor([[2.0], [3.0], [0.0], [0.5]]), torch.tensor([1, 1, 0, 0])
        >>> result = sd.pair_importance(model, "1", data)  # 0 and 1 say the same, and 2 nothing
        >>> result.pairs.tolist(), result.synergy().tolist()
        ([[0, 1], [0, 2], [1, 2]], [0.5, 0.0, 0.0])
    """
    options = Options.of({**locals(), "tolerance": None, "confidence": 0.95})
    measured = measure(
        model,
        layers,
        data,
        lambda unit_counts: Pairs(make_pairs(pairs, unit_counts), unit_counts),
        options,
        called="pair_importance",
    )
    family = measured.family
    alone = len(family.units)
    fields = measured.fields(family.configurations)
    sums, packed = fields.pop("sums"), fields.pop("outcomes")
    ambiguous = fields.pop("ambiguous")
    return PairImportance(
        pairs=family.pairs,
        units=family.units,
        sums={name: total[alone:] for name, total in sums.items()},
        single_sums={name: total[:alone] for name, total in sums.items()},
        ambiguous=ambiguous[alone:],
        single_ambiguous=ambiguous[:alone],
        outcomes=None if packed is None else packed[alone:],
        single_outcomes=None if packed is None else packed[:alone],
        **fields,
    )
