"""Ablation curves: what cumulative ablation gives, its areas, its table, its plot, its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.scored import Scored, axis_label, check_plottable, columns, draw_band


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationCurve(Scored):
    """Scores along cumulative ablations: R orders, T points, U pooled units.

    Attributes:
        orders: int64 ``[R, U]``: pooled units, the first to be clamped first.
        points: int64 ``[T]``: how many units are clamped.
        auc_bounds: float64 ``[R, 2]``, of each order's area over the whole data set, where a tolerance was given for
            areas.
        sums, ambiguous, seed and the rest: as :class:`~sdkernels.analysis.scored.Scored` says, ``[...]`` being
            ``[R, T]``.
    """

    orders: Tensor
    points: Tensor
    auc_bounds: Tensor | None = None

    _FORMAT: ClassVar[str] = "sdkernels.AblationCurve/1"
    _EACH: ClassVar[str] = "R T"
    _LAYOUT: ClassVar[Mapping[str, str]] = {"orders": "int64 R U", "points": "int64 T", "auc_bounds": "float64 R 2"}
    _OPTIONAL_FIELDS: ClassVar[tuple[str, ...]] = ("auc_bounds", *Scored._OPTIONAL_FIELDS)
    _TENSOR_FIELDS: ClassVar[tuple[str, ...]] = ("orders", "points", *Scored._TENSOR_FIELDS)

    @property
    def fraction(self) -> Tensor:
        """float64 [T]: the fraction of units clamped, 0..1."""
        return self.points.double() / self.orders.shape[1]

    def auc(self, metric: str = "accuracy") -> Tensor:
        r"""The area under each order's curve, float64 [R] ([R, L] for ``"class_accuracy"``).

        .. math:: \sum_t \tfrac12 (m_t + m_{t+1}) (f_{t+1} - f_t)

        by the trapezoid rule, over the fraction :math:`f` of units clamped, from 0 to 1 (Morcos et al. 2018, figure 3).

        Raises:
            KeyError: the metric was not measured.
            ValueError: the points do not reach from 0 to all units, so the area is not known.
        """
        units = self.orders.shape[1]
        if int(self.points[0]) != 0 or int(self.points[-1]) != units:
            raise ValueError(
                f"the area needs a curve from 0 to all {units} units; this one's points are "
                f"{int(self.points[0])}..{int(self.points[-1])}"
            )
        points_last = self.metric(metric).movedim(1, -1)
        return torch.trapezoid(points_last, self.fraction, dim=-1)

    def to_pandas(self) -> Any:
        """A long table, one row an (order, point): the clamped count and fraction, counts, means, ``ambiguous``."""
        pandas = require("pandas", "AblationCurve.to_pandas()")
        orders, points = self.correct.shape
        table: dict[str, Any] = {
            "order": np.repeat(np.arange(orders), points),
            "ablated": np.tile(self.points.numpy(), orders),
            "fraction": np.tile(self.fraction.numpy(), orders),
            "correct": self.correct.flatten().numpy(),
        }
        for name in self.sums:
            table |= columns(name, self.metric(name))
        table["ambiguous"] = self.ambiguous.flatten().numpy()
        table |= self._sampled_columns()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, metric: str = "accuracy", label: str | None = None, color: Any = None) -> Any:
        """Draw the mean over orders and a band of one standard deviation; returns the matplotlib axes."""
        ax = axes(ax, "AblationCurve.plot()")
        curves = self.metric(metric)
        check_plottable(metric, curves.shape)
        draw_band(ax, self.fraction, curves, label=label, color=color)
        ax.set_xlabel("fraction of units ablated")
        ax.set_ylabel(axis_label(metric), **LITERAL)
        ax.set_xlim(0, 1)
        return ax
