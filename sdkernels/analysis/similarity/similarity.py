"""The public function that compares two layers' activations."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdkernels.analysis.measure import versions
from sdkernels.analysis.similarity.activations import Positions, PositionsWord, paired_rows
from sdkernels.analysis.similarity.devices import named_device
from sdkernels.analysis.similarity.method import Method, MethodWord, SideWord, few_examples
from sdkernels.analysis.similarity.moments import Moments
from sdkernels.analysis.similarity.result import Similarity
from sdkernels.analysis.similarity.whitening import ILL_CONDITIONED, Solver, Whitening, dead_units, whiten_rows
from sdkernels.engine.checks import check_default_device, warn

Activations = Tensor | NDArray[Any]

# Numbers at once, of both layers together, as float64: 128 MiB.
_AT_ONCE = 2**24


def similarity(
    a: Activations,
    b: Activations,
    *,
    method: MethodWord = "cca",
    side: SideWord = "smaller",
    compat: Literal["svcca"] | None = None,
    variance: float = 0.99,
    reduce: int | None = None,
    debiased: bool = False,
    positions: PositionsWord = "mean",
    subsample: int | None = None,
    unit_dim: int | None = None,
    solver: Solver = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Similarity:
    r"""How alike two layers are, of one network or two, by their activations for the same examples.

    With centred activations X ``[N, C]`` and Y ``[N, D]``, :math:`\Sigma` their covariances, and

    .. math:: \Sigma_{xx}^{-1/2} \Sigma_{xy} \Sigma_{yy}^{-1/2} = U \Lambda V^\top ,

    the canonical correlations :math:`\rho_1 \ge \rho_2 \ge \dots` are the diagonal of :math:`\Lambda`: how well the
    best direction of one layer is a linear function of the other, then the best uncorrelated with it, and so on. There
    are as many as the smaller rank c: the smaller of C and D, unless units are dead or depend linearly on others. The
    distance of method

    ``"cca"`` is :math:`1 - \frac{1}{c} \sum_i \rho_i`. Invertible affine maps of either layer do not change it.

    ``"svcca"``: the same of the principal directions that hold ``variance`` of each layer's variance. Rotation, common
    scale and shift of a layer do not change it; other scales of single units do.

    ``"pwcca"``: :math:`1 - \sum_i \alpha_i \rho_i / \sum_i \alpha_i` with :math:`\alpha_i = \sum_j |\langle h_i, z_j
    \rangle|` over the neurons :math:`z_j` of one side, whose canonical variates the :math:`h_i` are. Invertible affine
    maps of the other side do not change it, nor do order, signs, common scale and shift of the neurons that weigh;
    their rotation does.

    ``"cka"``: :math:`1 - \lVert X^\top Y \rVert_F^2 / (\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F)`. Rotation,
    common scale and shift of a layer do not change it.

    Correlations of few examples are larger than true ones: of unrelated activations the mean :math:`\rho_i^2` is
    max(rank) / (N - 1). Fewer than 5 examples a direction give a warning, and as few as make some correlations 1 of
    themselves (rank_a + rank_b > N - 1) an error.

    Everything is summed centred, in float64. Units that do not vary, but for rounding, are left out, as are directions
    whose variance is 0 by ``tolerance``; see :mod:`sdkernels.analysis.similarity.whitening`.

    Args:
        a, b: activations of the same examples in the same order: ``[N, C]`` and ``[N, D]``, tensors or
            NumPy arrays of real numbers, C and D of any size; or with positions, as maps ``[N, C, H, W]``.
        method: ``"cca"``, ``"svcca"``, ``"pwcca"`` or ``"cka"``.
        side: of pwcca, whose neurons weigh: ``"first"``, ``"second"``, or ``"smaller"``: of the layer with fewer live
            units, the first of equals. PWCCA is not symmetric.
        compat: ``"svcca"``: pwcca with the weights that the widely used program of google/svcca gives, which are not
            the formula's; see :func:`~sdkernels.analysis.similarity.canonical.canonical`.
        variance: of svcca, which part of the variance (the squared singular values) to keep.
        reduce: keep at most so many principal directions of each layer first; not for cka.
        debiased: of cka, take off what chance gives.
        positions: of maps: ``"mean"``, the mean over positions, as the paper has it; ``"each"``, every position a data
            point; ``"resample"``, the same after maps were interpolated to a common size.
        subsample: at most so many positions of each example, drawn; the same ones of both.
        unit_dim: which dimension holds units, for both; by default 1. 3-dimensional activations, of which some have
            units in dimension 1 and others in 2, need it.
        solver: ``"auto"``, ``"cholesky"``, ``"eigh"`` or ``"svd"``. The first takes SVD of the activations where
            covariances would give less than eight digits. The result says what was used.
        tolerance: which part of the largest eigenvalue of the correlation matrix counts as 0; 1e-12 by default.
        seed: of ``subsample``. The global random state is left as it was.
        device: where they are summed, and decomposed; None: where both are. It takes float64.

    Returns:
        A :class:`~sdkernels.analysis.similarity.result.Similarity`: the distance, correlations, weights, ranks, dead
        units; ``.significant()``, ``.plot()``, ``.to_pandas()``, ``.save(path)``. On the CPU.

    Raises:
        ValueError, TypeError: another number of examples, shapes that do not fit, nan or inf, only dead units, too few
            examples, unknown words; each says what, where and the fix.

    Source:
        Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
        correlation", section 2; Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, "SVCCA"; Kornblith, Norouzi, Lee, Hinton
        2019, "Similarity of neural network representations revisited".

    Example:
        Two layers that share two of three directions:

        >>> import torch, sdkernels as sd
        >>> x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        >>> found = sd.similarity(x[:, :3] @ torch.tensor([[1.0, 2, 0], [0, 1, 0], [1, 0, 1]]), x[:, 1:] + 5)
        >>> found
        mean CCA 0.6713 of 3 units (rank 3) and 3 units (rank 3), 2000 examples
        >>> found.correlations.round(decimals=2).tolist(), found.significant().count
        ([1.0, 1.0, 0.01], 2)
    """
    check_default_device()
    how = Method(
        method=method,
        side=side,
        compat=compat,
        variance=variance,
        reduce=reduce,
        debiased=debiased,
        tolerance=tolerance,
        solver=solver,
    )
    at = Positions(positions, subsample, seed)
    both = _Both(_activations("a", a), _activations("b", b), at, unit_dim, named_device(device))
    moments = how.moments(both.widths, [(0, 1)])
    for rows in both:
        moments.add(rows)
    dead = [dead_units(moments, i, name).cpu() for i, name in enumerate("ab")]
    white = _whitened(how, moments, both)
    found = how.compare(moments, 0, 1, *white)
    if white and (warning := few_examples(*white)) is not None:
        warn(warning)
    return Similarity(
        method=method,
        distance=found.distance,
        correlations=None if found.correlations is None else found.correlations.cpu(),
        weights=None if found.weights is None else found.weights.cpu(),
        side=found.side,
        compat=compat,
        rank_a=white[0].rank if white else None,
        rank_b=white[1].rank if white else None,
        dead_a=dead[0],
        dead_b=dead[1],
        condition_a=white[0].condition if white else None,
        condition_b=white[1].condition if white else None,
        solver_a=white[0].solver if white else None,
        solver_b=white[1].solver if white else None,
        examples=moments.count,
        settings=how.settings | {"positions": positions, "subsample": subsample, "seed": seed},
        versions=versions(),
    )


class _Both:
    """The rows of two layers, some at a time, checked; iterate as often as wanted."""

    def __init__(
        self, a: Tensor, b: Tensor, positions: Positions, unit_dim: int | None, device: torch.device | None
    ) -> None:
        shapes = f"a {list(a.shape)}, b {list(b.shape)}"
        if len(a) != len(b):
            turned = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1]
            hint = (
                "; rows are examples and columns units, so give a.T and b.T if they are the other way" if turned else ""
            )
            raise ValueError(f"{shapes}: {len(a)} and {len(b)} examples; give activations of the same examples{hint}")
        if len(a) < 2:
            raise ValueError(f"{shapes}: {len(a)} examples; similarity needs at least 2, and many more than units")
        if device is None and a.device != b.device:
            raise ValueError(f"a is on {a.device} and b on {b.device}; give both on one device, or say device=")
        self._activations = a, b
        self._device = a.device if device is None else device
        self._positions = positions
        self._dims = _unit_dim("a", a, unit_dim), _unit_dim("b", b, unit_dim)
        self.widths = [x.shape[dim] for x, dim in zip(self._activations, self._dims, strict=True)]
        positions.size(a.shape[1:], self._dims[0], b.shape[1:], self._dims[1])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        a, b = self._activations
        examples = max(1, _AT_ONCE // (a[0].numel() + b[0].numel()))
        for start in range(0, len(a), examples):
            parts = [x[start : start + examples].to(self._device) for x in (a, b)]
            for name, part in zip("ab", parts, strict=True):
                _check_finite(name, part, start)
            yield paired_rows(parts[0], parts[1], self._positions, unit_dim=self._dims, start=start)


def _whitened(how: Method, moments: Moments, both: _Both) -> tuple[Whitening, Whitening] | tuple[()]:
    """Both layers whitened; none for cka."""
    if not how.is_whitened:
        return ()
    if how.solver != "svd":
        a, b = how.whiten(moments, 0, "a"), how.whiten(moments, 1, "b")
        is_ill = max(a.condition, b.condition) > ILL_CONDITIONED**0.5
        if how.solver != "auto" or not is_ill:
            return a, b
    white = []
    for i, name in enumerate("ab"):
        rows = torch.cat([pair[i].to(torch.float64) for pair in both]) - moments.mean(i)
        white.append(whiten_rows(rows, rounding=moments.rounding(i), name=name, **how.whitening))
    return white[0], white[1]


def _activations(name: str, given: Any) -> Tensor:
    """A tensor of real numbers, of two dimensions or more, none of them empty."""
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "fiub":
            raise TypeError(f"{name} {list(given.shape)} is an array of {given.dtype}; give real numbers")
        is_shared = given.dtype in (np.float16, np.float32, np.float64) and given.dtype.isnative
        given = torch.from_numpy(np.require(given, None if is_shared else np.float64, ["C", "W"]))
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is a {type(given).__name__}; give activations [N, C], a tensor or a NumPy array")
    shape = list(given.shape)
    if given.is_complex():
        raise TypeError(f"{name} {shape} is {given.dtype}; give real numbers")
    if given.ndim < 2:
        raise ValueError(
            f"{name} {shape} must be [N, C], a row an example; for a single unit [N, 1], by {name}[:, None]"
        )
    if 0 in shape[1:]:
        raise ValueError(f"{name} {shape} is empty; give activations of at least one unit at one position")
    return given.detach()


def _unit_dim(name: str, given: Tensor, unit_dim: int | None) -> int:
    if given.ndim == 2:
        return 1
    shape = list(given.shape)
    if unit_dim is None:
        if given.ndim > 3:
            return 1
        raise ValueError(f"{name} {shape}: are its units dimension 1, as [N, C, L], or 2, as [N, T, F]? Say unit_dim=")
    if isinstance(unit_dim, bool) or not isinstance(unit_dim, int):
        raise TypeError(f"unit_dim is a {type(unit_dim).__name__}; give an int")
    if not 1 <= (unit_dim % given.ndim if unit_dim < 0 else unit_dim) < given.ndim:
        raise ValueError(f"unit_dim={unit_dim} must be within 1..{given.ndim - 1} for {name} {shape}")
    return unit_dim % given.ndim


def _check_finite(name: str, part: Tensor, start: int) -> None:
    is_finite = part.isfinite()
    if not is_finite.all():
        row, *place = (~is_finite).nonzero()[0].tolist()
        value = float(part[(row, *place)])
        column = place[0] if len(place) == 1 else place
        raise ValueError(
            f"{name} [N, {', '.join(map(str, part.shape[1:]))}] holds {value} in row {start + row}, column {column}; "
            "activations must be finite. Leave such examples out of both"
        )
