"""Scores of explicit sets of ablated units, their table, their plot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.scored import Scored, axis_label, check_plottable, columns


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationScores(Scored):
    """Scores with each of K sets of units ablated; U pooled units are numbered layer after layer.

    Attributes:
        units: bool ``[K, U]``, True where a unit was ablated.
        sums, ambiguous, value and the rest: as :class:`~sdkernels.analysis.scored.Scored` says, ``[...]`` being
            ``[K]``.
    """

    units: Tensor

    _FORMAT: ClassVar[str] = "sdkernels.AblationScores/1"
    _EACH: ClassVar[str] = "K"
    _LAYOUT: ClassVar[Mapping[str, str]] = {"units": "bool K U"}
    _TENSOR_FIELDS: ClassVar[tuple[str, ...]] = ("units", *Scored._TENSOR_FIELDS)

    def to_pandas(self) -> Any:
        """A long table, one row a set: its number, how many units it ablates, counts, means, ``ambiguous``."""
        pandas = require("pandas", "AblationScores.to_pandas()")
        table: dict[str, Any] = {
            "set": np.arange(len(self.units)),
            "ablated": self.units.sum(1).numpy(),
            "correct": self.correct.numpy(),
        }
        for name in self.sums:
            table |= columns(name, self.metric(name))
        table["ambiguous"] = self.ambiguous.numpy()
        table |= self._sampled_columns()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, metric: str = "accuracy") -> Any:
        """Draw a bar a set, and the intact model as a dashed line; returns the matplotlib axes."""
        scores = self.metric(metric)
        check_plottable(metric, scores.shape)
        ax = axes(ax, "AblationScores.plot()")
        ax.bar(np.arange(len(scores)), scores.numpy())
        ax.axhline(float(self.baseline[metric]), color="black", linestyle="--", linewidth=0.8, label="intact")
        ax.set_xlabel("set of ablated units")
        ax.set_ylabel(axis_label(metric), **LITERAL)
        ax.legend()
        return ax
