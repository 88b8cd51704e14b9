r"""Class-conditional means and variances of units, minima, maxima and firing rates, in one streaming pass.

Maths
-----
Let :math:`\bar x_{n,c}` be the mean of unit c over the positions of example n. For every class :math:`l` and unit
:math:`c`, over the examples of that class,

.. math::

   \mu_{l,c} = \frac{1}{n_l} \sum_{n \in l} \bar x_{n,c} \qquad
   M_{l,c} = \sum_{n \in l} (\bar x_{n,c} - \mu_{l,c})^2

and for every unit the mean and M2 over all elements :math:`x_{n,c,s}`, the least and the greatest element, and how many
examples and elements are positive (a unit *fires* where it is). Moments are centred from the start, by Welford's update
for an example and Chan's merge for a map (Chan, Golub, LeVeque 1979),

.. math::

   \delta = \mu_B - \mu_A \qquad \mu = \mu_A + \delta \frac{n_B}{n_A + n_B} \qquad
   M = M_A + M_B + \delta^2 \frac{n_A n_B}{n_A + n_B}

in float64: raw sums of squares would lose all digits of a variance that is small beside the mean.

Floor: one read of ``x``; where they are asked for, one write of the :math:`\bar x_{n,c}`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.labels import check_activation, check_class_labels
from sdkernels.ops.layout import DTYPE_CODES, by_units

_COUNT, _NUMBER = torch.int64, torch.float64
_STATE = {
    "count": (_COUNT, "L"),
    "mean": (_NUMBER, "LC"),
    "m2": (_NUMBER, "LC"),
    "elements": (_COUNT, ""),
    "element_mean": (_NUMBER, "C"),
    "element_m2": (_NUMBER, "C"),
    "minimum": (_NUMBER, "C"),
    "maximum": (_NUMBER, "C"),
    "fired": (_COUNT, "C"),
    "fired_elements": (_COUNT, "C"),
}


@dataclass(frozen=True)
class ClassMoments:
    """Moments of C units over the examples seen so far, L classes; :meth:`update` adds a batch in place.

    All on one device: ``count`` int64 ``[L]``, examples; ``mean`` and ``m2`` float64 ``[L, C]``, of the units' means
    over positions; ``elements`` int64 ``[]``, elements a unit; ``element_mean`` and ``element_m2`` float64 ``[C]``;
    ``minimum`` and ``maximum`` float64 ``[C]``, infinite before the first batch; ``fired`` and ``fired_elements`` int64
    ``[C]``, how many examples and elements are positive. A nan makes the moments and extremes of its unit nan.

    Example:
        >>> moments = ClassMoments.empty(classes=2, units=1)
        >>> moments.update(torch.tensor([[1.0], [3.0], [0.0]]), torch.tensor([0, 0, 1]))
        >>> moments.mean, moments.variance(), moments.fired
        (tensor([[2.],
                [0.]], dtype=torch.float64), tensor([[1.],
                [0.]], dtype=torch.float64), tensor([2]))
    """

    count: Tensor  # [L]
    mean: Tensor  # [L, C]
    m2: Tensor  # [L, C]
    elements: Tensor  # []
    element_mean: Tensor  # [C]
    element_m2: Tensor  # [C]
    minimum: Tensor  # [C]
    maximum: Tensor  # [C]
    fired: Tensor  # [C]
    fired_elements: Tensor  # [C]

    @classmethod
    def empty(cls, classes: int, units: int, device: torch.device | str | None = None) -> "ClassMoments":
        """No examples yet."""
        sizes = {"L": classes, "C": units}
        state = {
            name: torch.zeros([sizes[letter] for letter in letters], dtype=dtype, device=device)
            for name, (dtype, letters) in _STATE.items()
        }
        state["minimum"] += torch.inf
        state["maximum"] -= torch.inf
        return cls(**state)

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields, in their order."""
        return tuple(getattr(self, name) for name in _STATE)

    def update(
        self,
        x: Tensor,  # [N, ...]
        labels: Tensor,  # [N]
        *,
        unit_dim: int = 1,
        means: Tensor | None = None,  # [N, C]
    ) -> None:
        """Add a batch, in place.

        Args:
            x: activations ``[N, ...]``, units in dimension ``unit_dim``; float64, float32, bfloat16 or float16.
            labels: int64 ``[N]``, 0 to L - 1.
            unit_dim: at least 1.
            means: where to write each example's mean over positions, contiguous float64 ``[N, C]``: the numbers that
                go into ``mean`` and ``m2``, nan or infinite where those are. From the same read of ``x``.

        Raises:
            TypeError: a dtype that is not listed.
            ValueError: shapes or devices that do not fit, an empty batch, labels out of range, ``means`` that are not
                contiguous.

        Example:
            >>> x = torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]], [[0.0, 5.0]]])  # [N, C, S]
            >>> means = torch.empty(3, 1, dtype=torch.float64)
            >>> ClassMoments.empty(classes=2, units=1).update(x, torch.tensor([0, 0, 1]), means=means)
            >>> means.flatten()
            tensor([1.5000, 2.0000, 2.5000], dtype=torch.float64)
        """
        torch.ops.sdkernels.class_moments(x.detach(), labels, *self.tensors(), means, unit_dim)

    def merge(self, other: "ClassMoments") -> None:
        """Add what another has seen, in place; the order of merges changes only the last digits."""
        _merge(self.count, self.mean, self.m2, other.count, other.mean, other.m2)
        _merge(self.elements, self.element_mean, self.element_m2, other.elements, other.element_mean, other.element_m2)
        self.minimum.copy_(torch.minimum(self.minimum, other.minimum))
        self.maximum.copy_(torch.maximum(self.maximum, other.maximum))
        self.fired.add_(other.fired)
        self.fired_elements.add_(other.fired_elements)

    def variance(self, correction: int = 0) -> Tensor:
        """Of the units' means over positions, class by class, ``[L, C]``; nan for classes of too few examples."""
        return self.m2 / _positive(self.count - correction)[:, None]

    def element_variance(self, correction: int = 0) -> Tensor:
        """Over all elements of a unit, ``[C]``."""
        return self.element_m2 / _positive(self.elements - correction)

    def over_classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count ``[]``, mean ``[C]`` and M2 ``[C]`` of the units' means over positions, all classes together."""
        count = self.count.sum()
        weight = self.count.double()[:, None] / _positive(count)
        mean = (self.mean * weight).sum(0)
        return count, mean, (self.m2 + self.count[:, None] * (self.mean - mean) ** 2).sum(0)

    def dead(self) -> Tensor:
        """Bool ``[C]``: units that were zero at every position of every example; none before the first batch."""
        return (self.minimum == 0) & (self.maximum == 0)


def _positive(count: Tensor) -> Tensor:
    """A count to divide by, float64: nan where it is none."""
    return torch.where(count > 0, count.double(), torch.nan)


def _merge(count: Tensor, mean: Tensor, m2: Tensor, count_b: Tensor, mean_b: Tensor, m2_b: Tensor) -> None:
    """Chan's merge, in place; counts [L] stand before means [L, C], or [] before [C]."""
    share = (count_b.double() / (count + count_b).clamp(min=1))[..., None]  # torch divides ints in float32
    delta = mean_b - mean
    delta = torch.where(count_b[..., None] > 0, delta, 0)
    m2.add_(m2_b + delta**2 * share * count[..., None])
    mean.add_(delta * share)
    count.add_(count_b)


def reference(x: Tensor, labels: Tensor, *others: Any) -> None:
    """The specification, in pure torch: two passes over a batch in float64, then a merge."""
    *state, means, unit_dim = others
    moments = ClassMoments(*state)
    wide = by_units(x, unit_dim).double()  # [N, A, C, B]
    positions = wide.shape[1] * wide.shape[3]
    of_examples = wide.mean((1, 3))  # [N, C]
    if means is not None:
        means.copy_(of_examples)
    batch = ClassMoments.empty(len(moments.count), of_examples.shape[1], x.device)
    for label in labels.unique().tolist():
        own = of_examples[labels == label]
        batch.count[label] = len(own)
        batch.mean[label] = own.mean(0)
        batch.m2[label] = ((own - own.mean(0)) ** 2).sum(0)
    batch.elements.fill_(len(x) * positions)
    batch.element_mean.copy_(wide.mean((0, 1, 3)))
    batch.element_m2.copy_(((wide - batch.element_mean[:, None]) ** 2).sum((0, 1, 3)))
    batch.minimum.copy_(wide.amin((0, 1, 3)))
    batch.maximum.copy_(wide.amax((0, 1, 3)))
    batch.fired.copy_((wide > 0).any(3).any(1).sum(0))
    batch.fired_elements.copy_((wide > 0).sum((0, 1, 3)))
    moments.merge(batch)


def native(x: Tensor, labels: Tensor, *others: Any) -> None:
    """The C++ version for CPU tensors, the CUDA version for CUDA tensors."""
    *state, means, unit_dim = others
    view, labels = by_units(x, unit_dim), labels.contiguous()
    native_function("class_moments", x)(
        view.data_ptr(),
        labels.data_ptr(),
        [0 if t is None else t.data_ptr() for t in (*state, means)],
        list(view.shape),
        list(view.stride()),
        state[0].shape[0],
        DTYPE_CODES[x.dtype],
    )


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("class_moments")}


def _check(x: Tensor, labels: Tensor, *others: Any) -> None:
    *state, means, unit_dim = others
    units = check_activation("class_moments", x, unit_dim)
    classes = state[0].numel()
    for (name, (dtype, letters)), tensor in zip(_STATE.items(), state, strict=True):
        shape = [{"L": classes, "C": units}[letter] for letter in letters]
        if tensor.dtype != dtype or list(tensor.shape) != shape or tensor.device != x.device:
            raise ValueError(
                f"class_moments: with {classes} classes and {units} units, {name} is {dtype} {shape} on {x.device}; "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"class_moments: {name} must be contiguous; make all by ClassMoments.empty")
    if means is not None:
        _check_means(means, x, units)
    check_class_labels("class_moments", labels, len(x), classes, x.device)


def _check_means(means: Tensor, x: Tensor, units: int) -> None:
    if means.dtype != torch.float64:
        raise TypeError(f"class_moments: means are written in torch.float64; got {means.dtype}")
    if list(means.shape) != [len(x), units] or means.device != x.device:
        raise ValueError(
            f"class_moments: with {len(x)} examples and {units} units, means are [{len(x)}, {units}] on {x.device}; "
            f"got {list(means.shape)} on {means.device}"
        )
    if not means.is_contiguous():
        raise ValueError("class_moments: means must be contiguous; make them by x.new_empty")


torch.library.define(
    "sdkernels::class_moments",
    "(Tensor x, Tensor labels, Tensor(a!) count, Tensor(b!) mean, Tensor(c!) m2, Tensor(d!) elements, "
    "Tensor(e!) element_mean, Tensor(f!) element_m2, Tensor(g!) minimum, Tensor(h!) maximum, Tensor(i!) fired, "
    "Tensor(j!) fired_elements, Tensor(k!)? means, int unit_dim) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::class_moments", ("cpu", "cuda"))(dispatcher("class_moments", IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::class_moments")(lambda x, *_: None)
