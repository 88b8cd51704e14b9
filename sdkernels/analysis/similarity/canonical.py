r"""Canonical correlations of two whitened layers, and projection weights.

With whitenings :math:`W_x, W_y` and the cross scatter, the singular values of
:math:`K = W_x^\top S_{xy} W_y = U \Lambda V^\top` are the canonical correlations, and
:math:`h_i = (X - \bar x) W_x u_i`, orthonormal, the canonical variates of the first layer.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sdkernels.analysis.similarity.whitening import Whitening

Side = Literal["first", "second"]

# A squared correlation, off by 1e-16, that leaves a correlation off by 1e-11.
_SQUARED = 1e-10

# Of float32 variates: how many are multiplied before the sum goes on in float64.
_ROWS = 1000

# How far above 1 rounding may lift a correlation.
ABOVE = 1e-6


class Canonical(NamedTuple):
    """Canonical correlations, and how much each counts."""

    correlations: Tensor  # float64 [c], descending, within 0..1; c is the smaller rank
    weights: Tensor | None  # float64 [c], which add up to 1; None where none were asked for


def canonical(
    white_a: Whitening,
    white_b: Whitening,
    cross_scatter: Tensor | None = None,
    *,
    weights: Side | None = None,
    compat: Literal["svcca"] | None = None,
) -> Canonical:
    r"""Canonical correlations, and the weights of PWCCA:

    .. math:: \alpha_i = \sum_j |\langle h_i, z_j \rangle|

    over the neurons of one side, :math:`z_j` being neuron j's centred activations in their own scale, and :math:`h_i`
    the canonical variates of that side; here they are divided by their sum. Variates of equal correlations may be
    rotated among each other, and their weights with them.

    ``compat="svcca"`` gives the weights of ``pwcca.py`` of github.com/google/svcca on centred activations. There the
    :math:`h_i` are not the canonical variates: with :math:`\Sigma_{xx}^{-1/2} \Sigma_{xy} \Sigma_{yy}^{-1/2} = U
    \Lambda V^\top`, symmetric roots in the units' own scale, the activations are multiplied by :math:`U` alone, without
    :math:`\Sigma_{xx}^{-1/2}`, and then made orthonormal in their order by a QR decomposition: the columns of :math:`Q`
    in :math:`(X - \bar x) U = Q R`. They agree with the canonical variates where units are uncorrelated and of one
    variance. Correlations are the same. (On activations that are not centred, that program adds the mean of unit i
    to its i-th direction, so that its weights depend on signs that the SVD leaves open; centre them to compare.)

    Args:
        white_a, white_b: of the two layers, over the same examples.
        cross_scatter: float64 ``[C_a, C_b]``; not needed if both were whitened by SVD.
        weights: whose neurons weigh; None: no weights, and no singular vectors.
        compat: whose weights: None, the paper's; or ``"svcca"``.

    Returns:
        ``(correlations, weights)``.

    Raises:
        ValueError: a correlation above 1 by more than rounding; says where that comes from.

    Source:
        Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
        correlation", section 2.

    Example:
        >>> import torch
        >>> from sdkernels.analysis.similarity.canonical import canonical
        >>> from sdkernels.analysis.similarity.whitening import whiten
        >>> scatter, cross = torch.eye(2).double() * 4, torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
        >>> white = whiten(scatter, 10)
        >>> found = canonical(white, white, cross, weights="first")
        >>> found.correlations.tolist(), found.weights.tolist()
        ([0.5, 0.25], [0.5, 0.5])
    """
    if weights is None:
        product = _between(white_a, white_b, cross_scatter)
        return Canonical(_within(_singular_values(product), white_a, white_b), None)
    correlations, found = canonical_with_weights(white_a, white_b, cross_scatter, sides=(weights,), compat=compat)
    return Canonical(correlations, found[0])


def canonical_with_weights(
    white_a: Whitening,
    white_b: Whitening,
    cross_scatter: Tensor | None = None,
    *,
    sides: Sequence[Side],
    compat: Literal["svcca"] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Canonical correlations, and weights by the neurons of each of ``sides``, by one decomposition.

    Arguments and errors as for :func:`canonical`.
    """
    left, correlations, right = torch.linalg.svd(_between(white_a, white_b, cross_scatter), full_matrices=False)
    found = []
    for side in sides:
        white, vectors = (white_a, left) if side == "first" else (white_b, right.t())
        shares = white.parts @ vectors if compat is None else _shares_without_root(white, vectors)  # [C, c]
        sums = shares.abs().sum(0)
        found.append(sums / sums.sum())
    return _within(correlations, white_a, white_b), found


def _between(white_a: Whitening, white_b: Whitening, cross_scatter: Tensor | None) -> Tensor:
    """The scatter of the variates of both, ``[rank_a, rank_b]``."""
    if white_a.variates is not None and white_b.variates is not None:
        return _products(white_a.variates, white_b.variates)
    if cross_scatter is None or cross_scatter.shape != (white_a.units, white_b.units):
        given = "missing" if cross_scatter is None else str(list(cross_scatter.shape))
        raise ValueError(f"the cross scatter is {given} and must be [{white_a.units}, {white_b.units}]")
    return white_a.basis.t() @ cross_scatter @ white_b.basis


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of columns, float64; of float32 ones in float32, so many rows at a time, added up in float64."""
    if a.dtype == b.dtype == torch.float64:
        exact: Tensor = a.t() @ b
        return exact
    total = a.new_zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for rows_a, rows_b in zip(a.split(_ROWS), b.split(_ROWS), strict=True):
        own = torch.promote_types(a.dtype, b.dtype)
        total += rows_a.to(own).t() @ rows_b.to(own)
    return total


def _singular_values(product: Tensor) -> Tensor:
    """Descending; by eigenvalues of the product with itself where these have digits enough, which takes two thirds."""
    square = product.t() @ product if product.shape[0] >= product.shape[1] else product @ product.t()
    eigenvalues = torch.linalg.eigvalsh(square)
    if float(eigenvalues[0]) < _SQUARED:
        values: Tensor = torch.linalg.svdvals(product)
        return values
    roots: Tensor = eigenvalues.flip(0).sqrt()
    return roots


def _within(correlations: Tensor, white_a: Whitening, white_b: Whitening) -> Tensor:
    if float(correlations[0]) > 1 + ABOVE:
        raise ValueError(
            f"a canonical correlation is {float(correlations[0]):.8g}, above 1: either the scatters and the cross "
            f"scatter are not of the same examples, or the activations, with condition numbers {white_a.condition:.2g} "
            f"and {white_b.condition:.2g}, are too ill for covariances: give solver='svd', or a larger tolerance"
        )
    return correlations.clamp(0, 1)


def _shares_without_root(white: Whitening, vectors: Tensor) -> Tensor:
    """Inner products of the neurons with what the variant takes for canonical variates, ``[C, c]``.

    With S^(1/2), the symmetric root of the scatter, the vectors are S^(1/2) W u; and with activations H S^(1/2), H
    orthonormal, the Q of all N examples is H times that of S^(1/2) S^(1/2) W u: N is not needed.
    """
    left, roots, _ = torch.linalg.svd(white.parts, full_matrices=False)  # S = parts parts'
    root = (left * roots) @ left.t()
    directions, _ = torch.linalg.qr(root @ ((left / roots) @ (left.t() @ white.parts) @ vectors))
    shares: Tensor = root @ directions
    return shares
