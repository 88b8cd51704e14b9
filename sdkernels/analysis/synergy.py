"""The result of pairs of units: importances, synergies, a matrix of them, its table, its plot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.heat_map import UNDEFINED
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.scored import Scored, axis_label, check_plottable, columns, largest
from sdkernels.engine.arguments import is_one_of


@dataclass(frozen=True, eq=False, kw_only=True)
class PairImportance(Scored):
    """Scores with both units of each of P pairs ablated, and with each of their V units alone.

    Attributes:
        pairs: int64 ``[P, 2]``, pooled units, which are numbered layer after layer.
        units: int64 ``[V]``, increasing: the units of all pairs.
        single_sums: as ``sums``, ``[V]``: entry v has ``units[v]`` alone ablated.
        single_ambiguous: as ``ambiguous``, int64 ``[V]``.
        single_outcomes: as ``outcomes``, uint8 ``[V, ceil(N / 8)]``, or None.
        sums, ambiguous, value and the rest: as :class:`~sdkernels.analysis.scored.Scored` says, ``[...]`` being
            ``[P]``: entry p has both units of ``pairs[p]`` ablated.
    """

    pairs: Tensor
    units: Tensor
    single_sums: Mapping[str, Tensor]
    single_ambiguous: Tensor
    single_outcomes: Tensor | None = None

    _FORMAT: ClassVar[str] = "sdkernels.PairImportance/1"
    _EACH: ClassVar[str] = "P"
    _LAYOUT: ClassVar[Mapping[str, str]] = {
        "pairs": "int64 P 2",
        "units": "int64 V",
        "single_ambiguous": "int64 V",
        "single_outcomes": "uint8 V B",
    }
    _TENSOR_FIELDS: ClassVar[tuple[str, ...]] = ("pairs", "units", "single_ambiguous", *Scored._TENSOR_FIELDS)
    _OPTIONAL_FIELDS: ClassVar[tuple[str, ...]] = ("single_outcomes", *Scored._OPTIONAL_FIELDS)
    _TENSORS_BY_LAYER: ClassVar[tuple[str, ...]] = ("single_sums", *Scored._TENSORS_BY_LAYER)

    def importance(self, metric: str = "accuracy") -> Tensor:
        r"""How much worse the network is without both units of a pair, float64 [P] ([P, L] for ``"class_accuracy"``).

        .. math:: D_{ij} = m_{\text{intact}} - m_{ij}

        with :math:`m_{ij}` the metric's mean while units i and j are ablated, and its negative for ``"loss"``, as of
        single units. A function given as a metric is taken for a score, better when large.

        Raises:
            KeyError: the metric was not measured.
        """
        both = self._sum(metric)
        return self._mean(metric, self._signed(metric, self.baseline_sums[metric] - both))

    def singles(self, metric: str = "accuracy") -> Tensor:
        """How much worse the network is without either unit of each pair alone, float64 [P, 2] ([P, 2, L] by class).

        Raises:
            KeyError: the metric was not measured.
        """
        self._sum(metric)  # or it was not measured
        alone = self._signed(metric, self.baseline_sums[metric] - self.single_sums[metric])
        return self._mean(metric, alone)[self._places]

    def synergy(self, metric: str = "accuracy") -> Tensor:
        r"""What ablating both units costs beyond what each costs alone, float64 [P] ([P, L] for ``"class_accuracy"``).

        .. math:: S_{ij} = D_{ij} - D_i - D_j

        Positive: the units stand in for each other. Negative: they are of use only together. Counts are combined as
        integers, so that the synergy of accuracies is exactly 0 where nothing is lost beyond.

        Raises:
            KeyError: the metric was not measured.
        """
        both, intact = self._sum(metric), self.baseline_sums[metric]
        first, second = self.single_sums[metric][self._places].unbind(1)
        return self._mean(metric, self._signed(metric, (first - intact) + (second - both)))

    def matrix(self, metric: str = "accuracy", layer: str | None = None) -> Tensor:
        """The synergies of the pairs within one layer, float64 [C, C], symmetric; nan on the diagonal and where no pair
        was measured.

        Args:
            metric: any but ``"class_accuracy"``.
            layer: its name; needed if there are several.

        Raises:
            KeyError: the metric was not measured.
            ValueError: the metric is one a class, or there is no such layer, or no saying which.
        """
        synergy = self.synergy(metric)
        check_plottable(metric, synergy.shape)
        at = self._layer(layer)
        here = (self.unit_layer[self.pairs] == at).all(1)
        first, second = self.unit_index[self.pairs[here]].unbind(1)
        found = torch.full((self.unit_counts[at],) * 2, torch.nan, dtype=torch.float64)
        found[first, second] = found[second, first] = synergy[here]
        return found

    def top(self, k: int, *, metric: str = "accuracy") -> Tensor:
        """Which k of the ``pairs`` have the largest synergies, int64 [k], the largest first; equals in their order.

        Raises:
            KeyError: the metric was not measured.
            ValueError: k is out of 0..P, the metric is one a class, or a synergy is nan, which has no order.
        """
        return largest(self.synergy(metric), k, metric, what="synergies", of="pairs")

    def to_pandas(self) -> Any:
        """A long table, one row a pair: layer and index there of each unit, counts, means with both ablated,
        ``ambiguous``, importances of both and of each, and synergies."""
        pandas = require("pandas", "PairImportance.to_pandas()")
        table: dict[str, Any] = {}
        for place, units in zip(("first", "second"), self.pairs.unbind(1), strict=True):
            table[f"{place}_layer"] = [self.layers[layer] for layer in self.unit_layer[units].tolist()]
            table[f"{place}_unit"] = self.unit_index[units].numpy()
        table["correct"] = self.correct.numpy()
        for name in self.sums:
            table |= columns(name, self.metric(name))
        table["ambiguous"] = self.ambiguous.numpy()
        for name in self.sums:
            first, second = self.singles(name).unbind(1)
            for what, scores in (
                ("importance", self.importance(name)),
                ("first_importance", first),
                ("second_importance", second),
                ("synergy", self.synergy(name)),
            ):
                table |= {f"{what}_{column}": values for column, values in columns(name, scores).items()}
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, metric: str = "accuracy", layer: str | None = None) -> Any:
        """Draw the :meth:`matrix` of one layer in colours that are symmetric about 0; returns the matplotlib axes.

        Raises:
            KeyError, ValueError: as :meth:`matrix`; and where no pair within the layer was measured.
        """
        matrix = self.matrix(metric, layer)
        name = self.layers[self._layer(layer)]
        measured = matrix[matrix.isfinite()]
        if not len(measured):
            raise ValueError(f"no pair within layer {name!r} has a finite synergy: nothing to draw")
        ax = axes(ax, "PairImportance.plot()", layout="constrained")
        most = float(measured.abs().max()) or 1.0
        colours = require("matplotlib", "PairImportance.plot()").colormaps["RdBu_r"].with_extremes(bad=UNDEFINED)
        image = ax.imshow(matrix.numpy(), cmap=colours, vmin=-most, vmax=most, interpolation="nearest")
        change = "cross-entropy gained (nats)" if metric == "loss" else f"{axis_label(metric)} lost"
        ax.figure.colorbar(image, ax=ax).set_label(f"synergy: {change} beyond both alone", **LITERAL)
        ax.set_xlabel(f"unit of layer {name}", **LITERAL)
        ax.set_ylabel(f"unit of layer {name}", **LITERAL)
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
        return ax

    @property
    def _places(self) -> Tensor:
        """int64 [P, 2]: where among ``units`` each unit of a pair stands."""
        return torch.searchsorted(self.units, self.pairs)

    def _layer(self, layer: str | None) -> int:
        if layer is None and len(self.layers) == 1:
            return 0
        if layer is None or not is_one_of(layer, self.layers):
            raise ValueError(f"layer={layer!r}: a matrix is of one layer; say which of {list(self.layers)}")
        return self.layers.index(layer)

    @staticmethod
    def _signed(metric: str, lost: Tensor) -> Tensor:
        """What is lost of a score, or gained of a loss."""
        return 0 - lost if metric == "loss" else lost  # and no -0.0
