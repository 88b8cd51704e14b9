r"""Class-conditional means of units over one batch, with a gradient.

Maths
-----
Let :math:`\bar x_{n,c}` be the mean of unit c over the S positions of example n, and :math:`n_l` the number of examples
of class :math:`l`. Then

.. math::

   \mu_{l,c} = \frac{1}{n_l} \sum_{n \in l} \bar x_{n,c} \qquad
   \frac{\partial}{\partial x_{n,c,s}} = \frac{1}{n_{l(n)} S} \frac{\partial}{\partial \mu_{l(n),c}}

and :math:`\mu_{l,c} = 0` for a class without examples, which has no gradient. The gradient is the same at all positions
of a unit in an example: it is a view of N C numbers, and needs no kernel. It is linear in
:math:`\partial / \partial \mu`, so it has a gradient again.

The means are those of :mod:`sdkernels.ops.class_moments`, taken in float64.

Floor: one read of ``x``; backwards nothing.
"""

import torch
from torch import Tensor

from sdkernels.ops.class_moments import ClassMoments
from sdkernels.ops.labels import check_activation, check_class_labels
from sdkernels.ops.layout import computed_in


def class_means(
    x: Tensor,  # [N, ...]
    labels: Tensor,  # [N]
    num_classes: int,
    *,
    unit_dim: int = 1,
) -> tuple[Tensor, Tensor]:  # [L, C], [L]
    """Average each unit over the positions and examples of every class; differentiable in ``x``.

    ``means[l, c]`` is the mean of ``x[n, c, s]`` over all positions s of all examples n of class l.

    Args:
        x: activations ``[N, ...]``, units (C) in dimension ``unit_dim``; float64, float32, bfloat16 or float16.
        labels: int64 ``[N]``, 0 to L - 1.
        num_classes: L.
        unit_dim: at least 1.

    Returns:
        The means ``[L, C]``, float64 for float64, else float32, and how many examples each class has, int64 ``[L]``.
        A class without examples has the mean 0: ask its count.

    Raises:
        TypeError: a dtype that is not listed.
        ValueError: shapes or devices that do not fit, an empty batch, no classes, labels out of range.

    Example:
        >>> x = torch.tensor([[1.0], [3.0], [5.0]], requires_grad=True)
        >>> means, count = class_means(x, torch.tensor([0, 0, 2]), 3)
        >>> means.squeeze(1).tolist(), count.tolist()
        ([2.0, 0.0, 5.0], [2, 0, 1])
        >>> means.sum().backward()
        >>> x.grad.squeeze(1).tolist()
        [0.5, 0.5, 1.0]
    """
    means, count = torch.ops.sdkernels.class_means(x, labels, num_classes, unit_dim)
    return means, count


def _means(x: Tensor, labels: Tensor, classes: int, unit_dim: int) -> tuple[Tensor, Tensor]:
    units = check_activation("class_means", x, unit_dim)
    if classes < 1:
        raise ValueError(f"class_means: {classes} classes; there is at least one")
    check_class_labels("class_means", labels, len(x), classes, x.device)
    moments = ClassMoments.empty(classes, units, x.device)
    moments.update(x, labels, unit_dim=unit_dim)
    return moments.mean.to(computed_in(x.dtype)), moments.count


def _fake(x: Tensor, labels: Tensor, classes: int, unit_dim: int) -> tuple[Tensor, Tensor]:
    means = x.new_empty([classes, x.shape[unit_dim]], dtype=computed_in(x.dtype))
    return means, labels.new_empty([classes])


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, labels, _, ctx.unit_dim = inputs
    ctx.save_for_backward(labels, output[1])
    ctx.shape, ctx.dtype = x.shape, x.dtype


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    labels, count = ctx.saved_tensors
    units = ctx.shape[ctx.unit_dim]
    positions = ctx.shape[1:].numel() // units
    elements = (count.clamp(min=1) * positions).to(grad.dtype)  # [L]; a class without examples is never picked
    rows = (grad / elements[:, None])[labels].to(ctx.dtype)  # [N, C]
    per_unit = [units if d == ctx.unit_dim else n if d == 0 else 1 for d, n in enumerate(ctx.shape)]
    return rows.view(per_unit).expand(ctx.shape), None, None, None


torch.library.define(
    "sdkernels::class_means",
    "(Tensor x, Tensor labels, int classes, int unit_dim) -> (Tensor means, Tensor count)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::class_means", ("cpu", "cuda"))(_means)
torch.library.register_fake("sdkernels::class_means")(_fake)
torch.library.register_autograd("sdkernels::class_means", _backward, setup_context=_setup_context)
