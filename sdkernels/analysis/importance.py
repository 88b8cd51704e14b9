"""Unit importance: what ablating every unit alone gives, its ranking, its table, its plot."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.analysis.scored import Scored, axis_label, check_plottable, columns


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitImportance(Scored):
    """Scores with each of U pooled units ablated alone; units are numbered layer after layer.

    Attributes:
        sums, ambiguous, value and the rest: as :class:`~sdkernels.analysis.scored.Scored` says, ``[...]`` being
            ``[U]``: entry u has unit u ablated.
    """

    _FORMAT: ClassVar[str] = "sdkernels.UnitImportance/1"

    @property
    def class_accuracy(self) -> Tensor:
        """float64 [U, L]: by class, correct / examples of the class."""
        return self.metric("class_accuracy")

    def importance(self, metric: str = "accuracy") -> Tensor:
        r"""How much worse the network is without each unit, float64 [U] ([U, L] for ``"class_accuracy"``).

        .. math:: I_u = m_{\text{intact}} - m_u

        with :math:`m_u` the metric's mean while unit :math:`u` is ablated; for ``"loss"``, which is better when small,
        :math:`m_u - m_{\text{intact}}`. Positive: the unit helps. A function given as a metric is taken for a score,
        better when large.

        Raises:
            KeyError: the metric was not measured.
        """
        if self.used is not None:  # each unit has its own number of examples
            lost = self.baseline[metric] - self.metric(metric)
            return -lost if metric == "loss" else lost
        ablated, intact = self._sum(metric), self.baseline_sums[metric]
        return self._mean(metric, ablated - intact if metric == "loss" else intact - ablated)

    def top(self, k: int, *, metric: str = "accuracy") -> Tensor:
        """The k most important pooled units, int64 [k], the most important first; equals in the order of their numbers.

        Raises:
            KeyError: the metric was not measured.
            ValueError: k is out of 0..U, the metric is one a class, or an importance is nan, which has no order.
        """
        importance = self.importance(metric)
        check_plottable(metric, importance.shape)
        if not 0 <= k <= len(importance):
            raise ValueError(f"k={k} must be within 0..{len(importance)}, the number of units")
        if importance.isnan().any():
            raise ValueError(f"{int(importance.isnan().sum())} of {len(importance)} importances are nan: no order")
        return importance.argsort(descending=True, stable=True)[:k]

    def to_pandas(self) -> Any:
        """A long table, one row a unit: its layer and index there, counts, means with it ablated, ``ambiguous``, and
        importances. The table's index is the pooled unit."""
        pandas = require("pandas", "UnitImportance.to_pandas()")
        table: dict[str, Any] = {
            "layer": [self.layers[layer] for layer in self.unit_layer.tolist()],
            "unit": self.unit_index.numpy(),
            "correct": self.correct.numpy(),
        }
        for name in self.sums:
            table |= columns(name, self.metric(name))
        table["ambiguous"] = self.ambiguous.numpy()
        table |= self._sampled_columns()
        for name in self.sums:
            importances = columns(name, self.importance(name))
            table |= {f"importance_{column}": importance for column, importance in importances.items()}
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, metric: str = "accuracy") -> Any:
        """Draw each layer's importances, the largest first; returns the matplotlib axes."""
        importance = self.importance(metric)
        check_plottable(metric, importance.shape)
        if ax is None:
            ax = require("matplotlib.pyplot", "UnitImportance.plot()").subplots()[1]
        ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        for layer, of_layer in zip(self.layers, importance.split(self.unit_counts), strict=True):
            ranks = torch.arange(1, len(of_layer) + 1)
            ax.plot(ranks.numpy(), of_layer.sort(descending=True).values.numpy(), marker=".", label=layer)
        ax.set_xlabel("units of a layer, the most important first")
        ax.set_ylabel(f"{axis_label(metric)} {'gained' if metric == 'loss' else 'lost'} without the unit")
        ax.legend()
        return ax
