"""Directions of a layer's activation space: random ones, principal ones, or given ones, checked."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sdkernels.analysis.passes import pass_over
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.states import WithoutRows
from sdkernels.analysis.subject import studied
from sdkernels.engine.arguments import whole_number
from sdkernels.engine.averages import average
from sdkernels.engine.batches import Batches
from sdkernels.engine.checks import check_default_device
from sdkernels.engine.memory import check_room
from sdkernels.engine.sites import Site

Basis = Tensor | Literal["random", "principal"]
Directions = Basis | Mapping[str, Basis]

WORDS = ("random", "principal")

# How far rows may be from orthonormal, by inner products, to be taken for rounded ones and made orthonormal; rows that
# are off by no more than float64's own rounding stay as they are.
TOLERANCE = 1e-4
ROUNDING = 1e-12

# What variance, as a part of the largest, is none but for rounding.
STILL = 1e-12

# A row of which less than this part is new, beside those before it, is linearly dependent on them.
LEAST_NEW = 1e-6


class PrincipalDirections(NamedTuple):
    """The principal directions of a layer's activations."""

    directions: Tensor  # float64 [K, C], orthonormal rows
    variances: Tensor  # float64 [K], descending: the variance of the coordinates along each


class Covariance(WithoutRows):
    """The covariance of a site's channels over examples and positions, ``[C, C]`` in float64, by one pass."""

    def __init__(self, site: Site, device: torch.device | None = None) -> None:
        self._dim = site.unit_dim
        self._moments = Moments([site.units], device=device, names=[f"layer {site.name!r}"])

    def add(self, output: Tensor, _labels: Tensor) -> None:
        """See a batch ``[N, ...]``."""
        self._moments.add([output.movedim(self._dim, -1).flatten(0, -2)])  # [N * S, C]

    def tensors(self) -> dict[str, Tensor]:
        """All that was seen, as :meth:`load` takes it."""
        kept = self._moments.tensors()
        return {name: kept[name] for name in ("count", "mean", "shift")} | {"scatter": kept["scatter/0"]}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See what another has seen, and nothing else."""
        mean = tensors["mean"]
        shift = tensors.get("shift", torch.zeros_like(mean))  # earlier versions had none
        resolution = torch.zeros(1, dtype=torch.float64)
        self._moments.load({**tensors, "shift": shift, "scatter/0": tensors["scatter"], "resolution": resolution})

    @property
    def matrix(self) -> Tensor:
        """``[C, C]``, of the population: divided by the number of elements."""
        return self._moments.scatter(0) / self._moments.count

    def principal(self) -> PrincipalDirections:
        """Its eigenvectors, each with its largest component (the first of equals) positive.

        Where nothing varies, any basis would do; so that one is taken that does not depend on rounding, of units that
        are constant the units themselves.
        """
        variances, vectors = torch.linalg.eigh(self.matrix.cpu())
        variances, vectors = variances.flip(0), vectors.flip(1)  # descending
        is_still = variances <= STILL * variances[0]
        if is_still.any():
            basis = vectors[:, is_still]
            numbers = torch.arange(len(basis), dtype=basis.dtype)
            vectors[:, is_still] = basis @ torch.linalg.eigh(basis.t() * numbers @ basis).eigenvectors
            variances = variances.masked_fill(is_still, 0)
        sizes = vectors.abs()
        first = (sizes >= 0.999999 * sizes.amax(0)).int().argmax(0, keepdim=True)
        return PrincipalDirections((vectors * vectors.gather(0, first).sign()).t().contiguous(), variances)


def random_directions(channels: int, count: int | None = None, seed: int = 0) -> Tensor:
    r"""The first rows of a random rotation: directions that favour no unit, to hold a network's own against.

    With a matrix :math:`G` ``[C, C]`` of independent normals and :math:`G^\top = Q R`, the rows of
    :math:`\operatorname{sign}(\operatorname{diag} R)\, Q^\top` are uniformly distributed over the orthogonal group;
    without the signs they are not.

    Args:
        channels: C.
        count: K, at most C; by default C.
        seed: of the normals. The global random state is left as it was.

    Returns:
        float64 ``[K, C]``, orthonormal rows; but for rounding, the first of them are the same at any ``count``.

    Raises:
        ValueError, TypeError: numbers that are none, or out of range.

    Source:
        Mezzadri 2007, "How to generate random matrices from the classical compact groups", section 5.

    Example:
        >>> import torch, sdkernels as sd
        >>> rotation = sd.random_directions(6, seed=1)
        >>> rotation.shape, bool(torch.allclose(rotation @ rotation.t(), torch.eye(6).double()))
        (torch.Size([6, 6]), True)
    """
    check_default_device()
    channels = whole_number("channels", channels, 1)
    check_room("channels", channels, channels * channels * 8)
    count = channels if count is None else count
    count = whole_number("count", count, 1, channels)
    seed = whole_number("seed", seed, 0)
    return _rotation(channels, torch.Generator().manual_seed(seed), count)


def principal_directions(
    model: nn.Module,
    layer: str | nn.Module,
    data: Any,
    count: int | None = None,
    *,
    unit_dim: int | None = None,
    select: int | None = None,
    batch_size: int = 256,
    store: Path_ | None = None,
) -> PrincipalDirections:
    r"""The directions along which a layer's activations vary most, and how much.

    They are the eigenvectors of the covariance of the layer's channels,

    .. math:: \Sigma = \frac{1}{M} \sum_{m=1}^{M} (z_m - \bar z)(z_m - \bar z)^\top

    over the M pairs of example and position, which one pass over the data sums in float64.

    Args:
        model: in evaluation mode. It is not changed.
        layer: a dotted name, or a module of ``model``.
        data: a ``DataLoader``, a ``Dataset``, or a pair of tensors; labels are not read.
        count: how many, K; by default all C.
        unit_dim, select, batch_size: as for :func:`sdkernels.cumulative_ablation`.
        store: a file, an SQLite database, in which the covariance so far is kept every now and then: the same call,
            made again after a crash or a kill, or with another ``count``, reads the data from the start and goes on
            where it was. It is found by a digest of the model's code and weights and the layer, and taken if the
            examples are the same, in the same order; ``batch_size`` may change. One of more than 0.9 GB, as of 10,600
            channels, is not kept. ``sdkernels runs`` shows it.

    Returns:
        ``(directions, variances)``: float64 ``[K, C]``, orthonormal rows, each with its largest component positive; and
        float64 ``[K]``, descending.

    Raises:
        ValueError, TypeError: a layer that does not exist, a model in train mode, empty data, non-finite activations,
            a count out of 1..C; each says what, where and the fix.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2)).eval()
        >>> inputs = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> directions, variances = sd.principal_directions(model, "0", (inputs, torch.zeros(4).long()))
        >>> variances.round(decimals=6).tolist(), directions[0].round(decimals=4).tolist()
        ([4.0, 1.0], [0.7071, 0.7071])
    """
    if not isinstance(layer, (str, nn.Module)):
        raise TypeError(f"layer is a {type(layer).__name__}; give one dotted name or one module")
    with studied(model, layer, data, unit_dim=unit_dim, select=select, batch_size=batch_size) as subject:
        (site,) = subject.sites
        count = site.units if count is None else count
        count = whole_number("count", count, 1, site.units)
        state = Covariance(site, subject.batches.device)
        with pass_over(subject, state, store, called="principal_directions", reads_labels=False) as passing:
            average(subject.model, subject.sites, passing, [[state]])
            passing.finish()
        found = state.principal()
    return PrincipalDirections(found.directions[:count].clone(), found.variances[:count].clone())


def resolve_directions(
    directions: Directions,
    sites: Sequence[Site],
    model: nn.Module,
    batches: Batches,
    *,
    seed: int,
    are_alone: bool,
    orthonormalize: bool,
) -> list[Tensor]:
    """For each site its directions, float64 [K, C], on the CPU.

    Args:
        directions: as :func:`sdkernels.ablate_directions` explains them.
        sites: of ``model``, by output.
        model, batches: whose activations have principal directions.
        seed: of random directions, drawn site after site.
        are_alone: each is ablated by itself, so that they need not be orthogonal to each other.
        orthonormalize: make them orthonormal in their order.

    Raises:
        ValueError: an unknown word, a dict that misses or invents a layer, a shape that does not fit, a row that is
            zero, not finite or linearly dependent, rows that are not orthonormal; names the layer and the row.
        TypeError: something else than words and tensors.
    """
    given = [_of_site(directions, site, sites) for site in sites]
    varying = [site for site, basis in zip(sites, given, strict=True) if isinstance(basis, str) and basis != "random"]
    principal = dict(zip((s.name for s in varying), _principal(varying, model, batches), strict=True))
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for site, basis in zip(sites, given, strict=True):
        if isinstance(basis, Tensor):
            rows = _check_rows(basis, site)
            found.append(_in_order(rows, site) if orthonormalize else _orthonormal(rows, site, are_alone))
        elif basis == "random":
            found.append(_rotation(site.units, generator))
        else:
            found.append(principal[site.name].directions)
    return found


def _of_site(directions: Directions, site: Site, sites: Sequence[Site]) -> Basis:
    if isinstance(directions, Mapping):
        names = {s.name for s in sites}
        if set(directions) != names:
            raise ValueError(
                f"directions is a dict of {sorted(map(str, directions))}; it must name the layers {sorted(names)}, "
                "each once"
            )
        directions = directions[site.name]
    if isinstance(directions, str) and directions not in WORDS:
        raise ValueError(
            f"directions={directions!r} for layer {site.name!r}: the words are {', '.join(map(repr, WORDS))}"
        )
    if not isinstance(directions, (str, Tensor)):
        raise TypeError(
            f"directions for layer {site.name!r} is a {type(directions).__name__}; give a tensor [K, {site.units}], "
            "'random', 'principal', or a dict of these by layer"
        )
    return directions


def _principal(sites: Sequence[Site], model: nn.Module, batches: Batches) -> list[PrincipalDirections]:
    covariances = [Covariance(site) for site in sites]
    if covariances:
        average(model, sites, batches, [[covariance] for covariance in covariances])
    return [covariance.principal() for covariance in covariances]


def _rotation(channels: int, generator: torch.Generator, count: int | None = None) -> Tensor:
    normals = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(normals[:count].t())
    return _with_signs(q, r)


def _check_rows(rows: Tensor, site: Site) -> Tensor:
    """Float64 [K, C] on the CPU, finite and not zero."""
    where, shape = f"directions for layer {site.name!r}", list(rows.shape)
    if rows.ndim != 2 or rows.shape[1] != site.units or len(rows) == 0:
        turned = rows.ndim == 2 and rows.shape[0] == site.units
        hint = "; columns are no directions, so give directions.T" if turned else ""
        raise ValueError(
            f"{where} {shape} must be [K, {site.units}]: a row a direction, at least one, and a column a channel of "
            f"the layer{hint}"
        )
    if rows.is_complex() or rows.dtype == torch.bool:
        raise ValueError(f"{where} {shape} are {rows.dtype}; give real numbers")
    rows = rows.detach().cpu().double().clone()
    for what, is_wrong in (("is not finite", ~rows.isfinite().all(1)), ("is zero", (rows == 0).all(1))):
        if is_wrong.any():
            at = int(is_wrong.nonzero()[0])
            raise ValueError(f"{where} {shape}: row {at} {what} ({int(is_wrong.sum())} of {len(rows)} rows)")
    return rows


def _orthonormal(rows: Tensor, site: Site, are_alone: bool) -> Tensor:
    """Rows that are orthonormal but for rounding, made so by moving them least; alone, rows of unit length will do."""
    where = f"directions for layer {site.name!r} {list(rows.shape)}"
    products = rows @ rows.t()
    off = (products - torch.eye(len(rows), dtype=rows.dtype)).abs()
    worst = float(off.max())
    if worst <= ROUNDING:
        return rows
    if worst <= TOLERANCE and len(rows) <= site.units:
        u, _, vh = torch.linalg.svd(rows, full_matrices=False)
        nearest: Tensor = u @ vh  # of all orthonormal rows, to these
        return nearest
    lengths = rows.norm(dim=1)
    at = int((lengths - 1).abs().argmax())
    if abs(float(lengths[at]) - 1) > TOLERANCE:
        raise ValueError(
            f"{where}: row {at} has length {float(lengths[at]):.6g}, and must have length 1 to within {TOLERANCE}; "
            "divide each row by its length: directions / directions.norm(dim=1, keepdim=True)"
        )
    if are_alone:
        unit: Tensor = rows / lengths[:, None]
        return unit
    if len(rows) > site.units:
        raise ValueError(
            f"{where}: {len(rows)} directions of {site.units} channels cannot be orthogonal to each other, as those "
            "that are ablated together must be; leave some out, or ablate each alone, without orders or subspaces"
        )
    first, second = divmod(int(off.argmax()), len(rows))
    raise ValueError(
        f"{where}: rows {first} and {second} are not orthogonal, their inner product is "
        f"{float(products[first, second]):.6g}; directions that are ablated together must be orthonormal to within "
        f"{TOLERANCE}. Give torch.linalg.qr(directions.T).Q.T, or orthonormalize=True, which does that in their order"
    )


def _in_order(rows: Tensor, site: Site) -> Tensor:
    """Each row less what those before it say, of unit length."""
    q, r = torch.linalg.qr(rows.t())
    new = torch.zeros(len(rows), dtype=rows.dtype)  # of each row: its length along no row before it
    new[: len(q.t())] = r.diagonal().abs()
    dependent = new < LEAST_NEW * rows.norm(dim=1)
    if dependent.any():
        raise ValueError(
            f"directions for layer {site.name!r} {list(rows.shape)}: row {int(dependent.nonzero()[0])} is linearly "
            f"dependent on the rows before it ({int(dependent.sum())} of {len(rows)} rows are); leave it out"
        )
    return _with_signs(q, r)


def _with_signs(q: Tensor, r: Tensor) -> Tensor:
    """The rows of q transposed, [K, C], each on the side of the row that it was made from."""
    rows: Tensor = q * r.diagonal().sign()
    return rows.t().contiguous()
