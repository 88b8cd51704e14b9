"""Unit importance: what ablating every unit alone gives, its ranking, its table, its plot."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.heat_map import draw_heat_map
from sdkernels.analysis.literal import LITERAL, legend_of
from sdkernels.analysis.scored import PER_CLASS, Scored, axis_label, columns, largest
from sdkernels.analysis.unit_score import UnitScore


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitImportance(Scored):
    """Scores with each of U pooled units ablated alone; units are numbered layer after layer.

    Attributes:
        sums, ambiguous, value and the rest: as :class:`~sdkernels.analysis.scored.Scored` says, ``[...]`` being
            ``[U]``: entry u has unit u ablated.
    """

    _FORMAT: ClassVar[str] = "sdkernels.UnitImportance/1"
    _EACH: ClassVar[str] = "U"

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

    def score(self, metric: str = "accuracy", *, label: int | None = None) -> UnitScore:
        """The importance as a score, to correlate it with others and to order units by it.

        Args:
            metric: what was measured.
            label: the class, for ``"class_accuracy"`` and for nothing else.

        Returns:
            A :class:`~sdkernels.UnitScore` of :meth:`importance`; nan for a class without examples. Which units are
            dead it does not know.

        Raises:
            KeyError: the metric was not measured.
            ValueError: ``label`` is missing, out of range, or given with another metric.

        Example:
            >>> import torch, sdkernels as sd
            >>> from sdkernels.lab.models import mlp
            >>> data = torch.ones(3, 2), torch.tensor([0, 1, 0])
            >>> metrics = ("loss", "class_accuracy")
            >>> model = mlp(2, (5, 4), 2, seed=0).eval()
            >>> importance = sd.unit_importance(model, ["relu1", "relu2"], data, metrics=metrics)
            >>> importance.score("loss").name
            'cross-entropy gained (nats)'
            >>> importance.score("class_accuracy", label=1).name
            'accuracy of class 1 lost'
        """
        values, name = self.importance(metric), _change(metric)
        if metric in PER_CLASS:
            classes = values.shape[1]
            if label is None:
                raise ValueError(f"{metric!r} is a score a class: say which by label=0..{classes - 1}")
            if not 0 <= label < classes:
                raise ValueError(f"label={label} must be within 0..{classes - 1}: the data has {classes} classes")
            values, name = values[:, label], f"accuracy of class {label} lost"
        elif label is not None:
            raise ValueError(f"label={label} is for 'class_accuracy' alone; {metric!r} is of all examples")
        return UnitScore(name=name, values=values, layers=self.layers, unit_counts=self.unit_counts)

    def top(self, k: int, *, metric: str = "accuracy") -> Tensor:
        """The k most important pooled units, int64 [k], the most important first; equals in the order of their numbers.

        Raises:
            KeyError: the metric was not measured.
            ValueError: k is out of 0..U, the metric is one a class, or an importance is nan, which has no order.
        """
        return largest(self.importance(metric), k, metric, what="importances", of="units")

    def to_pandas(self) -> Any:
        """A long table, one row a unit: its layer and index there, counts, means with it ablated, ``ambiguous``, and
        importances. The table's index is the pooled unit."""
        pandas = require("pandas", "UnitImportance.to_pandas()")
        table: dict[str, Any] = {
            "layer": self.unit_layers(),
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
        """Draw each layer's importances, the largest first; of ``"class_accuracy"``, a heat map of units and classes.

        Returns the matplotlib axes.
        """
        importance = self.importance(metric)
        ax = axes(ax, "UnitImportance.plot()", layout="constrained")
        label = _change(metric, " without the unit")
        if metric in PER_CLASS:
            draw_heat_map(ax, importance, self.layers, self.unit_counts, label=label, diverging=True)
            return ax
        ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        lines: list[Any] = []
        for layer, of_layer in zip(self.layers, importance.split(self.unit_counts), strict=True):
            ranks = torch.arange(1, len(of_layer) + 1)
            lines += ax.plot(ranks.numpy(), of_layer.sort(descending=True).values.numpy(), marker=".", label=layer)
        ax.set_xlabel("units of a layer, the most important first")
        ax.set_ylabel(label, **LITERAL)
        legend_of(ax, lines, self.layers)
        return ax


def _change(metric: str, how: str = "") -> str:
    """What a unit's importance is of, the measure last: ``"cross-entropy gained (nats)"``."""
    return f"cross-entropy gained{how} (nats)" if metric == "loss" else f"{axis_label(metric)} lost{how}"
