r"""Coordinates in which a layer's activations have unit variance and no correlation: half of every comparison by CCA.

A layer is whitened once, however many layers it is compared with. What is whitened is the correlation matrix, not the
covariance: canonical correlations do not change when units are scaled, but digits are lost where scales differ.

**Dead units** are those whose spread rounding explains: a standard deviation of at most two units in the last place of
the unit's mean, in float32 or the coarser dtype in which activations came (:meth:`Moments.rounding`): 2.4e-7 of the
mean. float64 activations count as float32: most are copies of such, or means over positions, and a unit with a mean of
4 million standard deviations is none. How far other units vary does not count: a unit of small variance is as good as
any. Dead units are left out.

**Rank.** Duplicate and linearly dependent units leave directions of the correlation matrix whose eigenvalue is 0 but
for rounding: those of at most ``tolerance`` times the largest one are left out. By default that is 1e-12, standard
deviations of a millionth: above what float64 sums and the rounding of float32 activations around 0 leave, and below
what anybody would call a direction.

**Solvers.** The correlation matrix R is the square of the standardised activations, and so is its condition number.
``"cholesky"`` is the fastest, and takes a matrix of full rank; ``"eigh"`` finds the rank; with both, correlations are
off by about cond(R) 1e-17. ``"svd"`` decomposes the activations themselves, which it needs all at once, and is off by
about sqrt(cond(R)) 1e-17. ``"auto"`` takes Cholesky where an upper bound of cond(R), which costs nothing beside the
factor's inverse, says that the rank is full, else eigh; and SVD, if it has the activations, where cond(R) is above 1e9,
so that covariances would give less than eight digits.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sdkernels.analysis.similarity.moments import Moments
from sdkernels.engine.arguments import is_one_of

Solver = Literal["auto", "eigh", "cholesky", "svd"]

TOLERANCE = 1e-12

# Of the correlation matrix: from here on its square root, the activations themselves, are worth being decomposed.
ILL_CONDITIONED = 1e9

# They come close enough to a condition number: it is to say how many digits are lost.
POWER_ITERATIONS = 12


@dataclass(frozen=True, eq=False, kw_only=True)
class Whitening:
    r"""How a layer's activations become r uncorrelated variates.

    Attributes:
        basis: float64 ``[C, r]``: :math:`(X - \bar x)` basis has orthonormal columns; zero rows for dead units.
        parts: float64 ``[C, r]``: :math:`S` basis, the inner product of each unit's centred activations, in their own
            scale, with each variate.
        scale: float64 ``[C]``, the units' standard deviations; 0 for dead ones.
        dead: bool ``[C]``.
        variances: float64 ``[r]``, descending: of the kept directions, the eigenvalues of the correlation matrix, or
            the variances along principal directions; None for Cholesky, which has neither.
        condition: sqrt(largest / smallest eigenvalue) of the kept directions; for Cholesky by some power iterations,
            which come close from below.
        solver: which one was used.
        examples: N.
        variates: ``[N, r]``, orthonormal columns: float64 of ``"svd"``; of pairs among many layers float32 too; else
            none.
    """

    basis: Tensor
    parts: Tensor
    scale: Tensor
    dead: Tensor
    variances: Tensor | None
    condition: float
    solver: Literal["eigh", "cholesky", "svd"]
    examples: int
    variates: Tensor | None = None

    @property
    def rank(self) -> int:
        """r, the number of variates."""
        return self.basis.shape[1]

    @property
    def units(self) -> int:
        """C, dead units included."""
        return len(self.basis)

    @property
    def live(self) -> int:
        """The number of units that are not dead."""
        return self.units - int(self.dead.sum())


def whiten(
    scatter: Tensor,
    count: int,
    *,
    rounding: Tensor | None = None,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    variance: float | None = None,
    reduce: int | None = None,
    name: str = "a",
) -> Whitening:
    r"""Whiten by the scatter :math:`S = \sum_n (x_n - \bar x)(x_n - \bar x)^\top`: find W with :math:`W^\top S W = I`.

    Args:
        scatter: float64 ``[C, C]``.
        count: N, of the examples it is of.
        rounding: float64 ``[C]``, the standard deviation that rounding may give a constant unit,
            :meth:`Moments.rounding`; without, only a unit that does not vary at all is dead.
        solver: ``"auto"``, ``"cholesky"`` or ``"eigh"``; ``"svd"`` is for :func:`whiten_rows`.
        tolerance: which part of the largest eigenvalue is 0.
        variance: keep as many principal directions of the activations in their own scale as hold this part of the
            variance (SVCCA).
        reduce: keep at most so many principal directions.
        name: of the layer, for messages.

    Returns:
        A :class:`Whitening`, on the scatter's device.

    Raises:
        ValueError: all units are dead, or the solver cannot do it; says what would.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.whitening import whiten
        >>> scatter = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 9.0]]).double()
        >>> white = whiten(scatter, 10)  # the first two units are one
        >>> white.rank, white.solver
        (2, 'eigh')
        >>> bool(torch.allclose(white.basis.t() @ scatter @ white.basis, torch.eye(2).double()))
        True
    """
    if not is_one_of(solver, get_args(Solver)) or solver == "svd":
        raise ValueError(
            f"solver={solver!r} cannot whiten {name} from a scatter: 'auto', 'cholesky' and 'eigh' can; 'svd' "
            "decomposes activations, which sdkernels.similarity has all at once"
        )
    units = _Units.of(scatter.diagonal(), count, rounding, name, scaled=variance is None and reduce is None)
    among = scatter[units.live][:, units.live] if units.dead.any() else scatter
    matrix = among / units.lengths / units.lengths[:, None]
    if solver != "eigh" and units.scaled:
        found = _by_cholesky(matrix, tolerance, must=solver == "cholesky", name=name)
        if found is not None:
            basis, parts, condition = found
            return units.whitening(basis, parts, variances=None, condition=condition, solver="cholesky")
    elif solver == "cholesky":
        raise ValueError(
            f"solver='cholesky' finds no principal directions of {name}, which svcca and reduce= keep: give 'auto' or "
            "'eigh'"
        )
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)  # descending
    rounded = len(matrix) * torch.finfo(matrix.dtype).eps
    rank = kept(eigenvalues, max(tolerance, rounded), variance, reduce)
    return units.principal(eigenvalues[:rank].sqrt(), vectors[:, :rank], solver="eigh")


def whiten_rows(
    rows: Tensor,
    *,
    rounding: Tensor | None = None,
    tolerance: float = TOLERANCE,
    variance: float | None = None,
    reduce: int | None = None,
    name: str = "a",
) -> Whitening:
    """Whiten by the singular values of activations that are held all at once; no digits are lost to squaring them.

    Args:
        rows: float64 ``[N, C]``, centred.
        rounding, tolerance, variance, reduce, name: as for :func:`whiten`.

    Returns:
        A :class:`Whitening` with variates.

    Raises:
        ValueError: all units are dead.
    """
    units = _Units.of(rows.square().sum(0), len(rows), rounding, name, scaled=variance is None and reduce is None)
    variates, roots, vectors = torch.linalg.svd(rows[:, units.live] / units.lengths, full_matrices=False)
    rounded = max(rows.shape) * torch.finfo(rows.dtype).eps
    rank = kept(roots.square(), max(tolerance, rounded**2), variance, reduce)
    return units.principal(roots[:rank], vectors[:rank].t(), solver="svd", variates=variates[:, :rank])


def kept(eigenvalues: Tensor, tolerance: float, variance: float | None, reduce: int | None) -> int:
    """How many of the descending eigenvalues to keep: at least one."""
    rank = int((eigenvalues > tolerance * eigenvalues[0]).sum())
    if variance is not None:
        parts = eigenvalues[:rank].cumsum(0) / eigenvalues[:rank].sum()
        rank = min(rank, int((parts < variance).sum()) + 1)
    return rank if reduce is None else min(rank, reduce)


def dead_units(moments: Moments, i: int, name: str) -> Tensor:
    """Which units of a block are dead, bool ``[C]``.

    Raises:
        ValueError: all are.
    """
    return _scales(moments.scatter(i).diagonal(), moments.count, moments.rounding(i), name)[1]


@dataclass(frozen=True)
class _Units:
    """A layer's units, and the scale in which its live ones are decomposed.

    Attributes:
        count: N, of examples.
        scale: ``[C]``, standard deviations; 0 for dead units.
        dead: bool ``[C]``.
        scaled: whether live units are given length 1, for a correlation matrix, or keep their own, for a covariance.
        lengths: what live units are divided by.
    """

    count: int
    scale: Tensor
    dead: Tensor
    scaled: bool
    lengths: Tensor

    @property
    def live(self) -> Tensor:
        return ~self.dead

    @classmethod
    def of(cls, squares: Tensor, count: int, rounding: Tensor | None, name: str, *, scaled: bool) -> "_Units":
        """The units of these sums of squares around the mean, at least one of which is not dead."""
        scale, dead = _scales(squares, count, rounding, name)
        live = scale[~dead]
        return cls(count, scale, dead, scaled, live * count**0.5 if scaled else torch.ones_like(live))

    def principal(
        self, roots: Tensor, vectors: Tensor, *, solver: Literal["eigh", "svd"], variates: Tensor | None = None
    ) -> Whitening:
        """By descending singular values ``[r]`` and principal directions ``[live, r]`` of the divided activations."""
        variances = roots.square()
        return self.whitening(
            vectors / roots,
            vectors * roots,
            variances=variances if self.scaled else variances / self.count,
            condition=float(roots[0] / roots[-1]),
            solver=solver,
            variates=variates,
        )

    def whitening(
        self,
        basis: Tensor,
        parts: Tensor,
        *,
        variances: Tensor | None,
        condition: float,
        solver: Literal["eigh", "cholesky", "svd"],
        variates: Tensor | None = None,
    ) -> Whitening:
        """By basis and parts ``[live, r]`` of the divided activations."""
        return Whitening(
            basis=_among(basis / self.lengths[:, None], self.live),
            parts=_among(parts * self.lengths[:, None], self.live),
            scale=self.scale,
            dead=self.dead,
            variances=variances,
            condition=condition,
            solver=solver,
            examples=self.count,
            variates=variates,
        )


def _scales(squares: Tensor, count: int, rounding: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Standard deviations, and which units are dead."""
    scale = (squares / count).sqrt()
    dead = scale <= (0.0 if rounding is None else rounding)
    if not scale.isfinite().all():
        raise ValueError(f"the variance of units of {name} [N, {len(scale)}] overflows float64: scale them down")
    if dead.all():
        raise ValueError(
            f"{name} [N, {len(scale)}]: all units are dead, each is the same at all {count} examples but for rounding; "
            "there is nothing to compare. Take another layer, or examples on which it varies"
        )
    return scale.masked_fill(dead, 0), dead


def _by_cholesky(matrix: Tensor, tolerance: float, *, must: bool, name: str) -> tuple[Tensor, Tensor, float] | None:
    """Basis and parts of a correlation matrix, and its condition's root; None where its rank may not be full."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    bound = torch.inf
    inverse = torch.empty_like(matrix)
    if not failed:
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        # The largest eigenvalue is at most the norm; one over the smallest is at most the trace of the inverse.
        bound = float(torch.linalg.matrix_norm(matrix) * inverse.square().sum())
    rounded = len(matrix) * torch.finfo(matrix.dtype).eps
    if not bound * max(tolerance, rounded) < 1:
        if not must:
            return None
        eigenvalues = torch.linalg.eigvalsh(matrix)
        rank = int((eigenvalues > max(tolerance, rounded) * eigenvalues[-1]).sum())
        if failed or rank < len(matrix):
            raise ValueError(
                f"solver='cholesky' cannot whiten {name}: the correlation matrix of its {len(matrix)} live units has "
                f"rank {rank}. Give solver='auto' or 'eigh', which leave dependent directions out"
            )
    return inverse.t(), factor, _spectral_norm(factor) * _spectral_norm(inverse)


def _spectral_norm(matrix: Tensor) -> float:
    """About the largest singular value, and never more."""
    vector = matrix[matrix.square().sum(1).argmax()]
    for _ in range(POWER_ITERATIONS):
        image = matrix @ (vector / torch.linalg.vector_norm(vector))
        vector = matrix.t() @ image
    return float(torch.linalg.vector_norm(image))


def _among(rows: Tensor, live: Tensor) -> Tensor:
    """Rows of live units, with zeros for the dead between them."""
    if live.all():
        return rows
    found = rows.new_zeros(len(live), rows.shape[1])
    found[live] = rows
    return found
