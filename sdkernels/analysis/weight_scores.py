"""Scores of units by their weights: norms of what makes them or reads them, and scales of batch norms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdkernels.analysis.subject import studied
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.engine.arguments import flag, is_number, is_one_of
from sdkernels.engine.checks import PROBE_EXAMPLES
from sdkernels.engine.exported import find_graph
from sdkernels.engine.graph import UntraceableError
from sdkernels.engine.products import Product
from sdkernels.engine.reach import NONE, Walks
from sdkernels.engine.rules import Linear
from sdkernels.engine.sites import Layers, Site


def weight_norm(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    side: Literal["incoming", "outgoing"] = "incoming",
    p: float = 1,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
) -> UnitScore:
    r"""The norm of the weights that make each unit, or that read it.

    .. math:: \lVert w_u \rVert_p = \Bigl(\sum_{w \in W_u} |w|^p\Bigr)^{1/p}

    The weights :math:`W_u` of unit :math:`u` are found along the model's graph, from the layer back (``"incoming"``) or
    forward (``"outgoing"``) to the nearest linear maps: Linear and convolutions, grouped and depthwise ones included.
    In between there may be what keeps channels apart: pointwise functions, batch norm, dropout, pooling, means over
    positions, flatten, elementwise sums and products, concatenation of channels.

    * Incoming: the rows, or filters, whose output the unit is; without biases. Of a sum, as in a residual network, the
      rows of all maps that are summed: back to where the chain of identity shortcuts begins. A layer that is itself a
      linear map has its own rows.
    * Outgoing: the columns that multiply the unit, of all maps that read it, to where the chain of shortcuts ends.
      After flatten ``[N, C, H, W]`` to ``[N, C * H * W]``, each unit has :math:`H W` columns.

    Weights are taken as they are: a batch norm in between is not folded into them, nor does another scale count. A
    weight that several calls use counts once.

    Args:
        model: in evaluation mode. It is not changed.
        layers: as for :func:`sdkernels.cumulative_ablation`; name the ReLU, or the convolution, it is the same weights.
        data: a batch of inputs ``[N, ...]``, from which shapes are found; or a ``DataLoader``, a ``Dataset`` or a pair
            of tensors, of which the first batch is read and no labels.
        side: ``"incoming"`` or ``"outgoing"``.
        p: at least 1; ``math.inf`` for the largest weight.
        unit_dim, select: as for :func:`sdkernels.cumulative_ablation`.

    Returns:
        A :class:`UnitScore` named like ``"L1 norm of incoming weights"``.

    Raises:
        ValueError: units that are made of, or read by, something that mixes channels or is not known, the model's
            input, or the logits; names the layer and the node. A model that neither torch.fx nor torch.export can
            trace; weights that are not finite; layers that do not exist, a model in train mode.
        TypeError: arguments of a wrong type.

    Source:
        Li et al. 2017, "Pruning filters for efficient ConvNets", whose score of a filter is the incoming L1 norm;
        Morcos et al. 2018, "On the importance of single directions for generalization", figure A3.

    Example:
        >>> import torch, sdkernels as sd
        >>> fc1, relu1, fc2 = torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)
        >>> fc1.weight.data = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
        >>> fc2.weight.data = torch.tensor([[3.0, -4.0]])
        >>> model = torch.nn.Sequential(fc1, relu1, fc2).eval()
        >>> sd.weight_norm(model, "1", torch.zeros(1, 2)).values.tolist()
        [3.0, 0.5]
        >>> sd.weight_norm(model, "1", torch.zeros(1, 2), side="outgoing", p=2).values.tolist()
        [3.0, 4.0]
    """
    if not is_one_of(side, ("incoming", "outgoing")):
        raise ValueError(f"side={side!r}: choose 'incoming' or 'outgoing'")
    if not is_number(p):
        raise TypeError(f"p is a {type(p).__name__}; give a number")
    if not p >= 1:
        raise ValueError(f"p={p} must be at least 1")
    walks, sites = _walks(model, layers, data, unit_dim, select)
    norm = _incoming_norm if side == "incoming" else _outgoing_norm
    values = [norm(walks, index, site, float(p)) for index, site in enumerate(sites)]
    return _score(f"L{p:g} norm of {side} weights", sites, values)


def batch_norm_scale(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    signed: bool = False,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
) -> UnitScore:
    r"""The scale :math:`|\gamma_u|` that batch norm has learned for each unit.

    .. math:: y = \gamma\, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    The batch norm is the nearest one on the way back from the layer to the linear map that makes its units, as for
    :func:`weight_norm`; the layer may be the batch norm itself. One without ``affine`` has the scale 1.

    Args:
        model: in evaluation mode. It is not changed.
        layers, data, unit_dim, select: as for :func:`weight_norm`.
        signed: :math:`\gamma_u` itself.

    Returns:
        A :class:`UnitScore` named ``"batch norm scale"``.

    Raises:
        ValueError: units without a batch norm, or with several, as those of a residual sum; names the layer and the
            fix. Else as :func:`weight_norm`.

    Source:
        Liu et al. 2017, "Learning efficient convolutional networks through network slimming".

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.ReLU()).eval()
        >>> model[1].weight.data = torch.tensor([0.5, -2.0])
        >>> sd.batch_norm_scale(model, "2", torch.zeros(1, 3)).values.tolist()
        [0.5, 2.0]
    """
    signed = flag("signed", signed)
    walks, sites = _walks(model, layers, data, unit_dim, select)
    values: list[Tensor] = []
    for index, site in enumerate(sites):
        scale = torch.zeros(site.units, dtype=torch.float64)
        names: list[str | None] = [None] * site.units
        for name, rule, made in walks.batch_norms_above(index):
            weight = torch.ones_like(rule.scale) if rule.weight is None else rule.weight
            for unit in (made != NONE).nonzero().flatten().tolist():
                if names[unit] is not None:
                    raise ValueError(
                        f"layer {site.name!r}: unit {unit} is a sum behind several batch norms, {name} and "
                        f"{names[unit]}; name one of these as the layer"
                    )
                names[unit] = name
            scale = torch.where(made == NONE, scale, weight.double().cpu()[made.clamp_min(0)])
        values.append(scale if signed else scale.abs())
    return _score("signed batch norm scale" if signed else "batch norm scale", sites, values)


def _walks(
    model: nn.Module,
    layers: Layers,
    data: Any,
    unit_dim: int | Mapping[str, int] | None,
    select: int | Mapping[str, int] | None,
) -> tuple[Walks, list[Site]]:
    """The sites, and a graph to walk from them."""
    if isinstance(data, Tensor):
        data = (data, torch.zeros(data.shape[:1], dtype=torch.int64))  # whose labels nobody reads
    with studied(model, layers, data, unit_dim=unit_dim, select=select, batch_size=PROBE_EXAMPLES) as subject:
        model, sites, _, inputs, logits, _ = subject
        try:
            graph = find_graph(model, sites, inputs, logits)
        except UntraceableError as error:
            raise ValueError(
                f"weights of units are found along the model's graph, and {type(model).__name__} has none, because "
                f"{error}; a layer's own are its module's .weight"
            ) from error
        return Walks(graph, sites), sites


def _incoming_norm(walks: Walks, index: int, site: Site, p: float) -> Tensor:
    norms: list[Tensor] = []
    units: list[Tensor] = []
    for product, made in _each_once(walks.linear_above(index)):
        of_row = _norms(product.weight.flatten(1)[None, :, None], p)  # [D]
        is_made = made != NONE
        norms.append(of_row[made[is_made]])
        units.append(is_made.nonzero().flatten())
    return _joined(norms, units, site, p)


def _outgoing_norm(walks: Walks, index: int, site: Site, p: float) -> Tensor:
    norms: list[Tensor] = []
    units: list[Tensor] = []
    for product, of_input in _each_once(walks.linear_below(index)):
        weight, groups = product.weight, product.groups
        of_column = _norms(weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).transpose(1, 2), p)  # [C]
        is_read = of_input != NONE
        norms.append(of_column[is_read])
        units.append(of_input[is_read])
    return _joined(norms, units, site, p)


def _each_once(found: Sequence[tuple[Linear, Tensor]]) -> list[tuple[Product, Tensor]]:
    """The products, without what makes or reads a unit by weights that another call used for it already."""
    seen: dict[tuple[int, torch.Size], list[Tensor]] = {}
    once: list[tuple[Product, Tensor]] = []
    for rule, owners in found:
        weight = rule.product.weight
        before = seen.setdefault((weight.data_ptr(), weight.shape), [])
        new = owners
        for other in before:
            new = new.masked_fill(new == other, NONE)
        before.append(owners)
        once.append((rule.product, new))
    return once


def _norms(weight: Tensor, p: float) -> Tensor:
    """The p-norms of ``[G, M, A, B]`` over A and B, float64 ``[G * M]`` on the CPU."""
    if 2 < p < math.inf:  # powers of what is not about 1 may be too small or too large for a number
        weight = weight.double()
        largest = weight.abs().amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        norms: Tensor = torch.linalg.vector_norm(weight / largest, p, (2, 3)) * largest.flatten(2).squeeze(2)
    else:
        norms = torch.linalg.vector_norm(weight, p, (2, 3), dtype=torch.float64)
    return norms.flatten().cpu()


def _joined(norms: Sequence[Tensor], units: Sequence[Tensor], site: Site, p: float) -> Tensor:
    """The p-norms of all that belongs to each unit, float64 [C], of norms of its parts."""
    parts, owners = torch.cat([torch.empty(0).double(), *norms]), torch.cat([torch.empty(0).long(), *units])
    without = (owners.bincount(minlength=site.units) == 0).nonzero()
    if len(without):
        raise ValueError(f"layer {site.name!r}: unit {int(without[0])} has no weights; name another layer")
    wrong = (~parts.isfinite()).nonzero()
    if len(wrong):
        raise ValueError(
            f"layer {site.name!r}: weights of unit {int(owners[wrong[0]])} are not finite; look at the model's training"
        )
    largest = torch.zeros(site.units, dtype=torch.float64).scatter_reduce(0, owners, parts, "amax")
    if math.isinf(p):
        return largest
    shares = parts / largest[owners].clamp_min(torch.finfo(torch.float64).tiny)
    sums = torch.zeros_like(largest).index_add(0, owners, shares.pow(p))
    return largest * sums.pow(1 / p)


def _score(name: str, sites: Sequence[Site], values: Sequence[Tensor]) -> UnitScore:
    return UnitScore(
        name=name,
        values=torch.cat(list(values)),
        layers=tuple(site.name for site in sites),
        unit_counts=tuple(site.units for site in sites),
    )
