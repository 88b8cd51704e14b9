"""Ablation curves: what cumulative ablation gives, its areas, its table, its plot, its file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdkernels.analysis.extras import require

FORMAT = "sdkernels.AblationCurve/1"

_HIGHER_DIMENSIONAL = ("class_accuracy",)
_COUNTS_EXAMPLES = ("accuracy", "top5", "agreement")


@dataclass(frozen=True, eq=False)
class AblationCurve:
    """Scores along cumulative ablations: R orders, T points, U pooled units.

    Attributes:
        orders: int64 ``[R, U]``: pooled units, the first to be clamped first.
        points: int64 ``[T]``: how many units are clamped.
        sums: by metric, sums over examples: int64 ``[R, T]`` counts for ``"accuracy"``, ``"top5"``, ``"agreement"``;
            float64 ``[R, T]`` for ``"loss"`` (nats) and functions; int64 ``[R, T, L]`` for ``"class_accuracy"``.
        baseline_sums: the same of the intact model, ``[]`` or ``[L]``.
        ambiguous: int64 ``[R, T]``: examples whose two largest logits are so close that rounding may swap them; counts
            of two methods or machines may differ on these only.
        examples: N.
        class_examples: int64 ``[L]``.
        layers: the sites' names; ``unit_counts`` their numbers of units.
        seed, value, precision, method: as the call ran.
        plan: the executed plan as a table.
        versions: of sdkernels, torch, numpy and Python.
    """

    orders: Tensor
    points: Tensor
    sums: Mapping[str, Tensor]
    baseline_sums: Mapping[str, Tensor]
    ambiguous: Tensor
    examples: int
    class_examples: Tensor
    layers: tuple[str, ...]
    unit_counts: tuple[int, ...]
    seed: int
    value: str
    precision: str
    method: str
    plan: str
    versions: Mapping[str, str]

    @property
    def fraction(self) -> Tensor:
        """float64 [T]: the fraction of units clamped, 0..1."""
        return self.points.double() / self.orders.shape[1]

    @property
    def correct(self) -> Tensor:
        """int64 [R, T]: correct predictions."""
        return self.sums["accuracy"]

    @property
    def accuracy(self) -> Tensor:
        """float64 [R, T]: correct / examples."""
        return self.metric("accuracy")

    @property
    def loss(self) -> Tensor:
        """float64 [R, T]: mean cross-entropy, nats."""
        return self.metric("loss")

    @property
    def baseline(self) -> dict[str, Tensor]:
        """By metric, the intact model's mean per example, float64 [] (``"class_accuracy"``: [L])."""
        return {name: self._mean(name, total) for name, total in self.baseline_sums.items()}

    @property
    def unit_layer(self) -> Tensor:
        """int64 [U]: which of ``layers`` each pooled unit stands in."""
        return torch.arange(len(self.unit_counts)).repeat_interleave(torch.tensor(self.unit_counts))

    @property
    def unit_index(self) -> Tensor:
        """int64 [U]: each pooled unit's index within its layer."""
        return torch.cat([torch.arange(count) for count in self.unit_counts])

    def metric(self, name: str) -> Tensor:
        """float64 [R, T] ([R, T, L] for ``"class_accuracy"``): a metric's mean per example.

        Raises:
            KeyError: it was not measured; lists those that were.
        """
        if name not in self.sums:
            measured = ", ".join(self.sums)
            raise KeyError(f"{name!r} was not measured; this curve has {measured}. Ask for it by metrics=(...)")
        return self._mean(name, self.sums[name])

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
        columns: dict[str, Any] = {
            "order": np.repeat(np.arange(orders), points),
            "ablated": np.tile(self.points.numpy(), orders),
            "fraction": np.tile(self.fraction.numpy(), orders),
            "correct": self.correct.flatten().numpy(),
        }
        for name in self.sums:
            if name in _HIGHER_DIMENSIONAL:
                for label, column in enumerate(self.metric(name).flatten(0, 1).unbind(1)):
                    columns[f"{name}_{label}"] = column.numpy()
            else:
                columns[name] = self.metric(name).flatten().numpy()
        columns["ambiguous"] = self.ambiguous.flatten().numpy()
        return pandas.DataFrame(columns)

    def plot(self, ax: Any = None, *, metric: str = "accuracy", label: str | None = None, color: Any = None) -> Any:
        """Draw the mean over orders and a band of one standard deviation; returns the matplotlib axes."""
        if ax is None:
            ax = require("matplotlib.pyplot", "AblationCurve.plot()").subplots()[1]
        curves = self.metric(metric)
        if curves.ndim != 2:
            raise ValueError(f"{metric!r} is a score a class, {list(curves.shape)}: plot one class at a time by hand")
        mean, fraction = curves.mean(0).numpy(), self.fraction.numpy()
        (line,) = ax.plot(fraction, mean, label=label, color=color)
        if len(curves) > 1:
            spread = curves.std(0).numpy()
            ax.fill_between(fraction, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set_xlabel("fraction of units ablated")
        ax.set_ylabel("cross-entropy (nats)" if metric == "loss" else metric.replace("_", " "))
        ax.set_xlim(0, 1)
        return ax

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one NumPy ``.npz`` file, without pickle; a crash never leaves half a file."""
        tensors = {
            **{name: getattr(self, name) for name in _TENSOR_FIELDS},
            **{f"sums/{name}": total for name, total in self.sums.items()},
            **{f"baseline_sums/{name}": total for name, total in self.baseline_sums.items()},
        }
        header = {
            "format": FORMAT,
            "metrics": list(self.sums),
            **{name: getattr(self, name) for name in _HEADER_FIELDS},
            "versions": dict(self.versions),
        }
        target = Path(path)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
        partial.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AblationCurve":
        """Read what :meth:`save` wrote; runs no code from the file.

        Raises:
            ValueError: the file is no saved curve; names it.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: torch.from_numpy(file[name].copy()) for name in file.files if name != "header"}
        except FileNotFoundError:
            raise
        except Exception as error:  # numpy and json raise several kinds for a file that is something else
            raise ValueError(f"{path}: not a saved AblationCurve ({error})") from error
        if header.get("format") != FORMAT:
            raise ValueError(f"{path}: its format is {header.get('format')!r}; this version reads {FORMAT!r}")
        fields: dict[str, Any] = {name: header[name] for name in (*_HEADER_FIELDS, "versions")}
        fields |= {name: tuple(fields[name]) for name in ("layers", "unit_counts")}
        fields |= {name: arrays[name] for name in _TENSOR_FIELDS}
        return cls(
            **fields,
            sums={name: arrays[f"sums/{name}"] for name in header["metrics"]},
            baseline_sums={name: arrays[f"baseline_sums/{name}"] for name in header["metrics"]},
        )

    def _mean(self, name: str, total: Tensor) -> Tensor:
        return total.double() / (self.class_examples if name == "class_accuracy" else self.examples)


_TENSOR_FIELDS = ("orders", "points", "ambiguous", "class_examples")
_HEADER_FIELDS = ("examples", "layers", "unit_counts", "seed", "value", "precision", "method", "plan")
