"""One number a unit: the form in which selectivity, importance, weight norms and the like are compared and sorted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.saved import check_header, check_layout, check_units, load, write
from sdkernels.analysis.units import PooledUnits
from sdkernels.engine.arguments import dense, is_one_of, whole_number

MOST_BINS = 10_000  # more than a plot has pixels

_FORMAT = "sdkernels.UnitScore/1"


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitScore(PooledUnits):
    """A number for each of U pooled units, which are numbered layer after layer.

    :func:`sdkernels.rank_correlation` compares two of them, and ``orders=(score, "descending")`` of
    :func:`sdkernels.cumulative_ablation` sorts by one.

    Attributes:
        name: what it is, as a plot's axis names it, with its measure: ``"mutual information (bits)"``.
        values: float64 ``[U]``; nan where it is not defined.
        layers: the sites' names; ``unit_counts`` their numbers of units.
        dead: bool ``[U]``, units that are zero at every position of every example; None where nobody looked.

    Example:
        >>> import torch, sdkernels as sd
        >>> values = torch.tensor([0.5, 0.1, 0.9])
        >>> score = sd.UnitScore(name="selectivity", values=values, layers=("fc1", "fc2"), unit_counts=(2, 1))
        >>> score.split()
        {'fc1': tensor([0.5000, 0.1000], dtype=torch.float64), 'fc2': tensor([0.9000], dtype=torch.float64)}
    """

    name: str
    values: Tensor
    layers: tuple[str, ...]
    unit_counts: tuple[int, ...]
    dead: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name is a {type(self.name).__name__}; give a string")
        for field in ("layers", "unit_counts"):
            given = getattr(self, field)
            if not isinstance(given, (tuple, list)):
                raise TypeError(f"{field} is a {type(given).__name__}; give a tuple, with an item a layer")
            object.__setattr__(self, field, tuple(given))
        if not all(isinstance(layer, str) for layer in self.layers):
            raise TypeError(f"layers={self.layers} must be names")
        for count in self.unit_counts:
            whole_number("unit_counts", count, 0, what="the number of a layer's units, for each layer")
        if len(self.layers) != len(self.unit_counts):
            raise ValueError(
                f"{len(self.layers)} layers {list(self.layers)} need as many unit_counts={self.unit_counts}"
            )
        self._set("values", torch.float64)
        if self.dead is not None:
            self._set("dead", torch.bool)

    def _set(self, field: str, dtype: torch.dtype) -> None:
        given, units = getattr(self, field), sum(self.unit_counts)
        if not isinstance(given, Tensor):
            raise TypeError(f"{field} is a {type(given).__name__}; give a tensor [{units}]")
        if given.shape != (units,):
            counts = f"layers {list(self.layers)} with unit_counts {list(self.unit_counts)}"
            raise ValueError(f"{field} {list(given.shape)} must be [{units}], one a unit of {counts}")
        object.__setattr__(self, field, dense(field, given).detach().to("cpu", dtype))

    def __len__(self) -> int:
        return len(self.values)

    def split(self) -> dict[str, Tensor]:
        """By layer, float64 [C]."""
        return dict(zip(self.layers, self.values.split(self.unit_counts), strict=True))

    def of(self, layers: str | Sequence[str]) -> "UnitScore":
        """The same of some layers, in their order.

        Raises:
            ValueError: a layer that is not among its own; lists those.
        """
        if not isinstance(layers, Sequence) or not layers:
            raise TypeError(f"layers={layers!r}; give some of {list(self.layers)}")
        chosen = (layers,) if isinstance(layers, str) else tuple(layers)
        if unknown := [layer for layer in chosen if not is_one_of(layer, self.layers)]:
            raise ValueError(f"the {self.name} is of layers {list(self.layers)}, not of {unknown}")
        places = [self.layers.index(layer) for layer in chosen]
        units = torch.cat([(self.unit_layer == place).nonzero().squeeze(1) for place in places])
        return replace(
            self,
            values=self.values[units],
            layers=chosen,
            unit_counts=tuple(self.unit_counts[place] for place in places),
            dead=None if self.dead is None else self.dead[units],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one NumPy ``.npz`` file, without pickle; a crash never leaves half a file."""
        tensors = {"values": self.values} | ({} if self.dead is None else {"dead": self.dead})
        header = {"name": self.name, "layers": self.layers, "unit_counts": self.unit_counts}
        write(path, _FORMAT, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "UnitScore":
        """Read what :meth:`save` wrote; runs no code from the file.

        Raises:
            ValueError: the file is no such saved score; names it.
        """

        def made(header: dict[str, Any], tensors: dict[str, Tensor]) -> "UnitScore":
            check_header(header, {"name": (str,)})
            units = check_units(header["layers"], header["unit_counts"])
            check_layout(tensors, {"values": "float64 U", "dead": "bool U"}, U=units)
            return cls(
                name=header["name"],
                values=tensors["values"],
                layers=tuple(header["layers"]),
                unit_counts=tuple(header["unit_counts"]),
                dead=tensors.get("dead"),
            )

        return load(path, _FORMAT, made)

    def to_pandas(self) -> Any:
        """A long table, one row a unit: its layer, its index there, the number, and whether it is dead."""
        pandas = require("pandas", "UnitScore.to_pandas()")
        table: dict[str, Any] = {
            "layer": self.unit_layers(),
            "unit": self.unit_index.numpy(),
            self.name: self.values.numpy(),
        }
        if self.dead is not None:
            table["dead"] = self.dead.numpy()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, bins: int = 30) -> Any:
        """Draw each layer's distribution, the first layer on top; returns the matplotlib axes.

        All layers share their bins and their scale, fractions of a layer's units. A dot is a layer's median, and the
        number beside it how many units have a score. What is not finite is left out.
        """
        ax = axes(ax, "UnitScore.plot()", layout="constrained")
        bins = whole_number("bins", bins, 1, MOST_BINS)
        layers = [values[values.isfinite()].numpy() for values in self.split().values()]
        edges = np.histogram_bin_edges(np.concatenate(layers), bins=bins)
        shares = [np.histogram(values, bins=edges)[0] / max(len(values), 1) for values in layers]
        scale = 0.85 / max(*(share.max() for share in shares), 1e-12)
        for row, (values, share) in enumerate(zip(layers, shares, strict=True)):
            ax.stairs(scale * share - row, edges, baseline=-row, fill=True, color="#9ecae1", zorder=2 + row)
            ax.stairs(scale * share - row, edges, baseline=-row, color="#08519c", linewidth=0.8, zorder=2 + row)
            if len(values):
                ax.plot(np.median(values), -row, "o", color="black", markersize=3, clip_on=False, zorder=3 + row)
            beside = ("axes fraction", "data")
            ax.annotate(f" {len(values)} units", (1, -row), xycoords=beside, va="bottom", fontsize=7)
        ax.set_yticks(-np.arange(len(layers)), self.layers, **LITERAL)
        ax.set_ylim(-len(layers) + 0.9, 0.95)
        ax.set_xlabel(self.name, **LITERAL)
        return ax
