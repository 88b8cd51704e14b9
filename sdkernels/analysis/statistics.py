"""What is known of every unit after one pass over a data set, its derived scores, its table, its plot, its file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.heat_map import draw_heat_map
from sdkernels.analysis.information import Correction, bits_about_class
from sdkernels.analysis.saved import by_prefix, check_header, check_layout, check_units, load, with_prefix, write
from sdkernels.analysis.selectivity import Kind, Negative, class_selectivity
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.analysis.units import PooledUnits
from sdkernels.engine.arguments import is_one_of

_FORMAT = "sdkernels.UnitStatistics/1"
_TENSORS = (
    *("class_examples", "class_mean", "class_variance", "mean", "variance", "elements", "element_variance", "minimum"),
    *("maximum", "fired", "fired_elements"),
)
_OPTIONAL = ("edges", "histogram")
_HEADER = ("layers", "unit_counts", "rank_error", "precision")
_LAYOUT = {
    **dict.fromkeys(("mean", "variance", "element_variance", "minimum", "maximum"), "float64 U"),
    **dict.fromkeys(("elements", "fired", "fired_elements"), "int64 U"),
    **dict.fromkeys(("class_mean", "class_variance"), "float64 L U"),
    "class_examples": "int64 L",
    "edges": "float64 U E",
    "histogram": "int64 L U Z",
}
_SCORES = {
    "mean": "mean activation",
    "variance": "variance of the activation",
    "std": "standard deviation of the activation",
    "element_variance": "variance over elements",
    "element_std": "standard deviation over elements",
    "minimum": "least activation",
    "maximum": "greatest activation",
    "firing_rate": "fraction of examples that fire",
    "element_firing_rate": "fraction of elements that fire",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitStatistics(PooledUnits):
    r"""Statistics of U pooled units over N examples of L classes, as :func:`sdkernels.unit_statistics` takes them.

    An example's *activation* of a unit is the mean over the unit's positions, :math:`\bar x_{n,u}`; *elements* are the
    single positions. Variances are the population's: divided by the count.

    Attributes:
        class_examples: int64 ``[L]``.
        class_mean, class_variance: float64 ``[L, U]``, of the activations in each class; nan for a class without
            examples.
        mean, variance: float64 ``[U]``, of the activations in all examples.
        elements: int64 ``[U]``: examples times positions.
        element_variance, minimum, maximum: float64 ``[U]``, over all elements. Their mean is ``mean``.
        fired, fired_elements: int64 ``[U]``: how many examples have an element above 0, and how many elements are.
        edges: float64 ``[U, cells - 1]``: they cut each unit's non-zero activations into cells of equal mass. None if
            ``cells=0`` was asked for.
        histogram: int64 ``[L, U, cells + 1]``: examples by class and cell, the first being activations of exactly 0. An
            activation on an edge is counted above it.
        rank_error: by which part of all examples an edge may stand off its place: 0 where all activations were held.
        mean_maps: by layer, the mean example, float64 of its shape without N; None if it was not asked for.
        layers: the sites' names; ``unit_counts`` their numbers of units.
        precision, versions: as the call ran.
    """

    class_examples: Tensor
    class_mean: Tensor
    class_variance: Tensor
    mean: Tensor
    variance: Tensor
    elements: Tensor
    element_variance: Tensor
    minimum: Tensor
    maximum: Tensor
    fired: Tensor
    fired_elements: Tensor
    edges: Tensor | None
    histogram: Tensor | None
    rank_error: float
    mean_maps: Mapping[str, Tensor] | None
    layers: tuple[str, ...]
    unit_counts: tuple[int, ...]
    precision: str
    versions: Mapping[str, str]

    @property
    def examples(self) -> int:
        """N."""
        return int(self.class_examples.sum())

    @property
    def std(self) -> Tensor:
        """float64 [U]: standard deviation of the activations."""
        return self.variance.sqrt()

    @property
    def element_std(self) -> Tensor:
        """float64 [U]: standard deviation over all elements."""
        return self.element_variance.sqrt()

    @property
    def firing_rate(self) -> Tensor:
        """float64 [U]: the fraction of examples with an element above 0."""
        return self.fired.double() / self.examples

    @property
    def element_firing_rate(self) -> Tensor:
        """float64 [U]: the fraction of elements above 0."""
        return self.fired_elements.double() / self.elements

    @property
    def dead(self) -> Tensor:
        """bool [U]: units that are 0 at every position of every example."""
        return (self.minimum == 0) & (self.maximum == 0)

    @property
    def preferred_class(self) -> Tensor:
        """int64 [U]: the class of the largest mean activation, the first of equals; -1 for dead units."""
        preferred = self.class_mean.nan_to_num(-torch.inf).argmax(0)
        return torch.where(self.dead, -1, preferred)

    def score(self, name: str) -> UnitScore:
        """One of the statistics ``[U]`` as a score to sort and compare by: ``"mean"``, ``"firing_rate"``, ...

        Raises:
            ValueError: no such statistic; lists them.
        """
        if not is_one_of(name, _SCORES):
            raise ValueError(f"name={name!r}: there is no such score; choose one of {', '.join(_SCORES)}")
        return self._score(_SCORES[name], getattr(self, name))

    def selectivity(self, kind: Kind = "macro", *, negative: Negative = "raise") -> UnitScore:
        r"""The class selectivity index of each unit, 0 to 1.

        .. math:: (\mu_{\max} - \mu_{-\max}) / (\mu_{\max} + \mu_{-\max})

        with the largest class-conditional mean activation, and the mean of the others. It is nan for dead units.

        Args:
            kind: the others are the ``"macro"`` mean of the other classes' means, or the ``"micro"`` mean of the other
                classes' examples. Classes without examples are none.
            negative: what becomes of units with a class mean below 0, of which the index makes no sense: ``"raise"``,
                ``"nan"``, or ``"shift"``, which measures their activations from the least element, so that an index is
                0 to 1 again; it then depends on that element.

        Raises:
            ValueError: examples of fewer than two classes, or a negative class mean, with its layer, unit and class.

        Source:
            Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
            section 2.3.
        """
        if not is_one_of(negative, ("raise", "nan", "shift")):
            raise ValueError(f"negative={negative!r}: choose 'raise', 'nan' or 'shift'")
        means = self.class_mean.nan_to_num(0.0)
        below = (means < 0).any(0)
        if negative == "raise" and below.any():
            unit = int(below.nonzero()[0])
            label = int((means[:, unit] < 0).nonzero()[0])
            raise ValueError(
                f"{self.named(unit)} has a mean activation of {float(means[label, unit]):.4g} in class {label} "
                f"({int(below.sum())} of {len(below)} units have a negative one), and selectivity is of activations "
                "that are not negative: name the layer's ReLU, or leave such units out by negative='nan', or measure "
                "them from their least element by negative='shift'"
            )
        if negative == "shift":
            means = torch.where(below, means - self.minimum, means)
        index = class_selectivity(means, self.class_examples, kind)
        return self._score(
            "class selectivity", torch.where(self.dead | (below & (negative == "nan")), torch.nan, index)
        )

    def mutual_information(self, bins: int = 20, *, correction: Correction = "none") -> UnitScore:
        r"""What a unit's activation says of the class, in bits.

        .. math:: I = \sum_{l,b} p(l, b) \log_2 \frac{p(l, b)}{p(l)\, p(b)}

        over classes and bins of the activation: one for exactly 0, and ``bins`` of equal mass for the others.

        Args:
            bins: at most as many as cells were kept. Edges are among those of the cells, the nearest ones, so bins are
                of equal mass where ``bins`` divides ``cells``, but for ties, rounding and ``rank_error``.
            correction: ``"miller-madow"`` takes off the bias of few examples, as far as it is known, and may leave
                less than 0.

        Raises:
            ValueError: no cells were kept, or fewer.

        Source:
            Morcos et al. 2018, section 2.3; Miller 1955, "Note on the bias of information estimates".
        """
        _, counts = self.binned(bins)
        bits = bits_about_class(counts, correction)
        return self._score("mutual information (bits)", bits)

    def binned(self, bins: int) -> tuple[Tensor, Tensor]:
        """Coarser histograms: edges float64 [U, bins - 1], and counts int64 [L, U, bins + 1], the first of exactly 0.

        Raises:
            ValueError: no cells were kept, or fewer.
        """
        if isinstance(bins, bool) or not isinstance(bins, int):
            raise TypeError(f"bins is a {type(bins).__name__}; give an int")
        if self.edges is None or self.histogram is None:
            raise ValueError("no histograms were kept: call unit_statistics with cells=60, or as many as are wanted")
        cells = self.edges.shape[1] + 1
        if not 1 <= bins <= cells:
            raise ValueError(f"bins={bins} must be within 1..{cells}, the cells that were kept; ask for more by cells=")
        cuts = (torch.arange(1, bins) * cells + bins // 2) // bins  # the cell that begins each bin but the first
        sums = torch.cat([torch.zeros_like(self.histogram[:, :, :1]), self.histogram[:, :, 1:].cumsum(2)], 2)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), cuts, torch.tensor([cells])])
        return self.edges[:, cuts - 1], torch.cat([self.histogram[:, :, :1], sums[:, :, ends].diff(dim=2)], 2)

    def class_correlation(self) -> Tensor:
        r"""float64 [L, U]: Pearson's correlation of the activation with "is of class l", 0 or 1.

        .. math:: r_{l,u} = \frac{\mu_{l,u} - \mu_u}{\sigma_u} \sqrt{\frac{p_l}{1 - p_l}}

        nan for units that never change, and for classes without examples or with all of them.
        """
        part = self.class_examples.double() / self.examples
        odds = (part / (1 - part)).sqrt()[:, None]
        found: Tensor = (self.class_mean - self.mean) / self.std * odds
        return torch.where((self.std > 0) & odds.isfinite(), found, torch.nan)

    def sparsity(self) -> UnitScore:
        r"""Lifetime sparseness: 0 where all examples activate a unit alike, 1 where just one does; nan for dead units.

        .. math:: S = \frac{1 - (\sum_n \bar x_n / N)^2 / (\sum_n \bar x_n^2 / N)}{1 - 1 / N}

        Source:
            Vinje, Gallant 2000, "Sparse coding and decorrelation in primary visual cortex during natural vision", after
            Rolls, Tovee 1995.
        """
        square = self.variance + self.mean**2
        part = torch.where(square > 0, self.variance / square, torch.nan)
        return self._score(
            "lifetime sparseness", part / (1 - 1 / self.examples) if self.examples > 1 else part * torch.nan
        )

    def to_pandas(self) -> Any:
        """A table, one row a unit: layer, index there, the statistics, whether it is dead, its preferred class,
        selectivity (nan where means are negative), and mutual information if histograms were kept."""
        pandas = require("pandas", "UnitStatistics.to_pandas()")
        table: dict[str, Any] = {"layer": self.unit_layers(), "unit": self.unit_index.numpy()}
        table |= {name: getattr(self, name).numpy() for name in _SCORES}
        table |= {"dead": self.dead.numpy(), "preferred_class": self.preferred_class.numpy()}
        if int((self.class_examples > 0).sum()) > 1:
            table["selectivity"] = self.selectivity(negative="nan").values.numpy()
        if self.edges is not None:
            table["mutual_information"] = self.mutual_information(min(20, self.edges.shape[1] + 1)).values.numpy()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None) -> Any:
        """Draw units x classes: each class's mean activation as a part of the unit's largest; returns the axes.

        Each layer's units stand by their preferred class, the most selective first, and dead ones last, in grey.
        """
        ax = axes(ax, "UnitStatistics.plot()", layout="constrained")
        means = self.class_mean.t()
        largest, others = means.nan_to_num(0.0).abs().amax(1), means.nan_to_num(0.0).sum(1)
        part = torch.where(largest[:, None] > 0, means / largest[:, None], torch.nan)
        by_class = torch.where(self.dead, len(self.class_examples), self.preferred_class)
        order = (others / largest).nan_to_num(0.0).argsort(stable=True)
        for key in (by_class, self.unit_layer):  # the most important key comes last
            order = order[key[order].argsort(stable=True)]
        label = "mean activation / the unit's largest"
        is_signed = bool((part < 0).any())
        draw_heat_map(ax, part[order], self.layers, self.unit_counts, label=label, diverging=is_signed)
        ax.set_ylabel("units, by preferred class")
        return ax

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one NumPy ``.npz`` file, without pickle; a crash never leaves half a file."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {name: held for name in _OPTIONAL if (held := getattr(self, name)) is not None}
        tensors |= with_prefix("mean_maps", self.mean_maps)
        header = {name: getattr(self, name) for name in _HEADER} | {"versions": dict(self.versions)}
        write(path, _FORMAT, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "UnitStatistics":
        """Read what :meth:`save` wrote; runs no code from the file.

        Raises:
            ValueError: the file is no such saved result; names it.
        """

        def made(header: dict[str, Any], tensors: dict[str, Tensor]) -> "UnitStatistics":
            check_header(header, {"rank_error": (int, float), "precision": (str,), "versions": (dict,)})
            units = check_units(header["layers"], header["unit_counts"])
            fields: dict[str, Any] = {name: header[name] for name in (*_HEADER, "versions")}
            fields |= {name: tuple(fields[name]) for name in ("layers", "unit_counts")}
            fields |= {name: tensors[name] for name in _TENSORS} | {name: tensors.get(name) for name in _OPTIONAL}
            cells = sum(tensors["edges"].shape[-1:]) + 2 if "edges" in tensors else 0
            check_layout(tensors, _LAYOUT, U=units, Z=cells)
            if ("edges" in tensors) != ("histogram" in tensors):
                raise ValueError("of edges and histogram there is one without the other")
            return cls(**fields, mean_maps=by_prefix(tensors, "mean_maps") or None)

        return load(path, _FORMAT, made)

    def _score(self, name: str, values: Tensor) -> UnitScore:
        return UnitScore(name=name, values=values, layers=self.layers, unit_counts=self.unit_counts, dead=self.dead)
