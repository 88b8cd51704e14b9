r"""Histograms of units' activations, class by class, with a bin of its own for zero: for mutual information.

Maths
-----
Let :math:`\bar x_{n,c}` be the mean of unit c over the positions of example n, in float64, and
:math:`e_{c,1} \le \dots \le e_{c,E}` the unit's edges. The bin of an example is

.. math::

   b_{n,c} = \begin{cases} 0 & \bar x_{n,c} = 0 \\ 1 + |\{i : e_{c,i} \le \bar x_{n,c}\}| & \text{otherwise}
   \end{cases}

so there are E + 2 bins: zero, below the first edge, between the edges (a value on an edge is above it), above the last.
A nan counts as above the last. The op adds to :math:`h_{l,c,b} = |\{n : y_n = l,\, b_{n,c} = b\}|`.

Floor: one read of ``x``.
"""

import torch
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.labels import check_activation, check_class_labels
from sdkernels.ops.layout import DTYPE_CODES, by_units


def class_histogram(
    x: Tensor,  # [N, ...]
    labels: Tensor,  # [N]
    edges: Tensor,  # [C, E]
    counts: Tensor,  # [L, C, E + 2]
    *,
    unit_dim: int = 1,
) -> None:
    """Add a batch to per-class, per-unit histograms of the units' means over positions, in place.

    Args:
        x: activations ``[N, ...]``, units in dimension ``unit_dim``; float64, float32, bfloat16 or float16.
        labels: int64 ``[N]``, 0 to L - 1.
        edges: float64 ``[C, E]``, each row ascending.
        counts: int64 ``[L, C, E + 2]``, examples so far: bin 0 is exact zeros, bin 1 what is below the first edge.
        unit_dim: at least 1.

    Raises:
        TypeError: a dtype that is not listed.
        ValueError: shapes or devices that do not fit, an empty batch, labels out of range, edges that descend.

    Example:
        >>> counts = torch.zeros(1, 1, 4, dtype=torch.int64)
        >>> x, labels = torch.tensor([[0.0], [0.5], [1.0], [9.0]]), torch.tensor([0, 0, 0, 0])
        >>> class_histogram(x, labels, torch.tensor([[1.0, 2.0]], dtype=torch.float64), counts)
        >>> counts
        tensor([[[1, 1, 1, 1]]])
    """
    torch.ops.sdkernels.class_histogram(x.detach(), labels, edges, counts, unit_dim)


def reference(x: Tensor, labels: Tensor, edges: Tensor, counts: Tensor, unit_dim: int) -> None:
    """The specification, in pure torch."""
    means = by_units(x, unit_dim).double().mean((1, 3))  # [N, C]
    bins = 1 + torch.searchsorted(edges.contiguous(), means.t().contiguous(), right=True).t()  # [N, C]
    bins[means == 0] = 0
    units = torch.arange(len(edges), device=x.device)
    counts.index_put_((labels[:, None], units, bins), counts.new_ones(()), accumulate=True)


def native(x: Tensor, labels: Tensor, edges: Tensor, counts: Tensor, unit_dim: int) -> None:
    """The C++ version for CPU tensors, the CUDA version for CUDA tensors."""
    view, labels, edges = by_units(x, unit_dim), labels.contiguous(), edges.contiguous()
    native_function("class_histogram", x)(
        view.data_ptr(),
        labels.data_ptr(),
        edges.data_ptr(),
        counts.data_ptr(),
        list(view.shape),
        list(view.stride()),
        counts.shape[0],
        edges.shape[1],
        DTYPE_CODES[x.dtype],
    )


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("class_histogram")}


def _check(x: Tensor, labels: Tensor, edges: Tensor, counts: Tensor, unit_dim: int) -> None:
    units = check_activation("class_histogram", x, unit_dim)
    if edges.dtype != torch.float64 or counts.dtype != torch.int64:
        raise TypeError(f"class_histogram: edges are float64 and counts int64; got {edges.dtype} and {counts.dtype}")
    if edges.device != x.device or counts.device != x.device:
        raise ValueError(f"class_histogram: x is on {x.device}, edges on {edges.device}, counts on {counts.device}")
    if edges.ndim != 2 or len(edges) != units:
        raise ValueError(f"class_histogram: edges {list(edges.shape)} must be [C, E] with C = {units}")
    if counts.ndim != 3 or counts.shape[1:] != (units, edges.shape[1] + 2) or not counts.is_contiguous():
        raise ValueError(
            f"class_histogram: counts {list(counts.shape)} must be a contiguous [L, C, E + 2] = "
            f"[L, {units}, {edges.shape[1] + 2}]"
        )
    check_class_labels("class_histogram", labels, len(x), counts.shape[0], x.device)
    if not bool((edges.diff() >= 0).all()) or bool(edges.isnan().any()):
        raise ValueError("class_histogram: the edges of a unit must ascend, and none be nan")


torch.library.define(
    "sdkernels::class_histogram",
    "(Tensor x, Tensor labels, Tensor edges, Tensor(a!) counts, int unit_dim) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::class_histogram", ("cpu", "cuda"))(
    dispatcher("class_histogram", IMPLEMENTATIONS, _check)
)
torch.library.register_fake("sdkernels::class_histogram")(lambda *_: None)
