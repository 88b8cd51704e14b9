r"""Linear centred kernel alignment (CKA), biased and debiased, from streaming moments.

With centred activations :math:`X` ``[n, p]`` and :math:`Y` ``[n, q]`` and scatter matrices :math:`S_{xy} = X^\top Y`,
the kernels :math:`X X^\top` and :math:`Y Y^\top` need not be written out:

.. math:: \langle X X^\top, Y Y^\top \rangle = \lVert S_{xy} \rVert_F^2

Biased CKA is the cosine of the two kernels. Unrelated activations have one above 0, the more so the more units there
are beside examples. Debiased CKA takes, in place of the inner product, Song et al.'s unbiased estimator of HSIC, which
leaves out the kernels' diagonals. Shifting X or Y changes nothing in it, so both may be centred; the rows of their
kernels then add up to zero, and without the diagonal to :math:`-\lVert x_n \rVert^2`. What remains of its terms is

.. math:: h(x, y) = \lVert S_{xy} \rVert_F^2 - \frac{n}{n - 2} \sum_n \lVert x_n \rVert^2 \lVert y_n \rVert^2
                    + \frac{\operatorname{tr} S_{xx} \operatorname{tr} S_{yy}}{(n - 1)(n - 2)}

n (n - 3) times the estimator. It is an inner product too, of *U-centred* kernels: no quotient is above 1.
"""

import torch
from torch import Tensor

from sdkernels.analysis.similarity.moments import Moments

# An h(x, x) of this part of its first term is rounding.
NOTHING_LEFT = 1e-10

LEAST_EXAMPLES = 4  # the unbiased estimator divides by n - 3


def linear_cka(
    moments: Moments, i: int, j: int, *, debiased: bool = False, names: tuple[str, str] = ("a", "b")
) -> Tensor:
    r"""Linear CKA of two blocks of columns: 1 where one is a rotated, scaled and shifted copy of the other.

    .. math:: \text{CKA} = \frac{\lVert S_{xy} \rVert_F^2}{\lVert S_{xx} \rVert_F \lVert S_{yy} \rVert_F}
              \qquad \text{debiased: } \frac{h(x, y)}{\sqrt{h(x, x)\, h(y, y)}}

    with h as in the module's text. Unlike canonical correlations it changes with invertible maps: a direction counts by
    its variance.

    Args:
        moments: of the examples; for ``debiased`` made with ``row_norms=True``.
        i, j: which blocks.
        debiased: whether chance is taken off: of independent activations, h is 0 on average. The value is returned as
            it is, which may be below 0, or above 1 by rounding. Examples are taken for independent, which positions of
            one image are not.
        names: of the two, for messages.

    Returns:
        float64, a scalar; biased within 0..1.

    Raises:
        ValueError: too few examples; one of the two has no variance, or, debiased, nothing but chance.

    Source:
        Kornblith, Norouzi, Lee, Hinton 2019, "Similarity of neural network representations revisited"; debiased: Song,
        Smola, Gretton, Borgwardt, Bedo 2007, "Supervised feature selection via dependence estimation"; Nguyen, Raghu,
        Kornblith 2020, "Do wide and deep networks learn the same things?".

    Example:
        Unrelated activations of few examples:

        >>> import torch
        >>> from sdkernels.analysis.similarity.kernel_alignment import linear_cka
        >>> from sdkernels.analysis.similarity.moments import Moments
        >>> moments = Moments([50, 50], [(0, 1)], row_norms=True)
        >>> generator = torch.Generator().manual_seed(1)
        >>> moments.add([torch.randn(100, 50, generator=generator) for _ in range(2)])
        >>> [round(float(linear_cka(moments, 0, 1, debiased=debiased)), 2) for debiased in (False, True)]
        [0.35, 0.02]
    """
    needed = LEAST_EXAMPLES if debiased else 2
    if moments.count < needed:
        kind = "debiased" if debiased else "biased"
        raise ValueError(f"{kind} CKA takes at least {needed} examples; these are {moments.count}")
    for block, name in ((i, names[0]), (j, names[1])):
        _check_variance(moments, block, name)
    if debiased:
        sizes = (_own(moments, i, names[0]), _own(moments, j, names[1]))
        return _unbiased(moments, i, j) / (sizes[0].sqrt() * sizes[1].sqrt())
    lengths = (torch.linalg.matrix_norm(moments.scatter(k, k)) for k in (i, j))
    cosine = moments.scatter(i, j)
    for length in lengths:
        cosine = cosine / length.sqrt()
    return cosine.square().sum().clamp(max=1)


def _unbiased(moments: Moments, i: int, j: int) -> Tensor:
    """h(x, y): n (n - 3) times the unbiased estimator of HSIC with linear kernels."""
    n = moments.count
    traces = [moments.scatter(k, k).trace() for k in (i, j)]
    inner = moments.scatter(i, j).square().sum()
    return inner - n / (n - 2) * moments.norm_products(i, j) + traces[0] * traces[1] / ((n - 1) * (n - 2))


def _own(moments: Moments, block: int, name: str) -> Tensor:
    """h(x, x), above 0.

    Raises:
        ValueError: it is 0.
    """
    own = _unbiased(moments, block, block)
    if own <= NOTHING_LEFT * moments.scatter(block, block).square().sum():
        raise ValueError(
            f"debiased CKA is not defined: nothing in how the {moments.count} examples of {name} lie to each other is "
            "more than chance gives, as where all are equally far apart, or all but one are equal. Give more examples, "
            "or take debiased=False"
        )
    return own


def _check_variance(moments: Moments, block: int, name: str) -> None:
    """Refuse a block of which every unit is constant but for rounding."""
    deviations = (moments.scatter(block).diagonal() / moments.count).sqrt()
    if (deviations <= moments.rounding(block)).all():
        raise ValueError(
            f"CKA is not defined: {name} has no variance, each of its {moments.mean(block).numel()} units is the same "
            f"at all {moments.count} examples"
        )
