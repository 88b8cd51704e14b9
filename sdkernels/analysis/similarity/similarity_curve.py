"""How layers come to be what they are, over training or over the steps of a sequence: table, plot, file."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.scatter import MARKERS
from sdkernels.analysis.similarity.compared import Compared, Label, check_labels, check_names
from sdkernels.analysis.similarity.names import legend_apart, name_across
from sdkernels.engine.arguments import flag, is_one_of

_AXES = {"training": "checkpoint", "steps": "step"}
_FEW = 10  # so many lines are told apart by markers too


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityCurve(Compared):
    """Distances of each layer at T moments from the same layer at one of them, or from another reference.

    Attributes:
        distance: float64 ``[layers, T]``.
        layers: the layers' names, from the bottom to the top.
        moments: T labels, numbers or strings: the checkpoints, or the steps of a sequence.
        what: ``"training"`` or ``"steps"``.
        reference: the label of the moment from which distances are; None if not known.
        ranks: int64 ``[layers, T]``: how many directions of each layer entered; None if not known.
        examples, settings, versions: as :class:`~sdkernels.analysis.similarity.compared.Compared` says.

    Example:
        >>> import torch, sdkernels as sd
        >>> distance = torch.tensor([[0.5, 0.125, 0.0], [0.75, 0.5, 0.0]])
        >>> curve = sd.SimilarityCurve(distance=distance, layers=("fc1", "fc2"), moments=(0, 10, 20), reference=20)
        >>> curve.similarity[0]
        tensor([0.5000, 0.8750, 1.0000], dtype=torch.float64)
    """

    layers: tuple[str, ...]
    moments: tuple[Label, ...]
    what: Literal["training", "steps"] = "training"
    reference: Label | None = None
    ranks: Tensor | None = None

    _FORMAT: ClassVar[str] = "sdkernels.SimilarityCurve/1"
    _OPTIONAL_TENSORS: ClassVar[tuple[str, ...]] = ("ranks",)
    _HEADER: ClassVar[tuple[str, ...]] = ("layers", "moments", "what", "reference")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_one_of(self.what, ("training", "steps")):
            raise ValueError(f"what={self.what!r}: choose 'training' or 'steps'")
        self._set("layers", check_names("layers", self.layers))
        shape = len(self.layers), self.distance.shape[-1] if self.distance.ndim else 0
        self._check_shape("distance", shape, "a row for each of layers, a column for each of moments")
        if not shape[1]:
            raise ValueError(f"distance {list(shape)} is of no moment at all; give a column for each")
        self._set("moments", check_labels("moments", self.moments, shape[1], "columns of distance"))
        if twice := [label for place, label in enumerate(self.moments) if label in self.moments[:place]]:
            raise ValueError(f"moments holds {twice[0]!r} twice; give each a label of its own")
        if self.reference is not None:
            self._set("reference", check_labels("reference", (self.reference,), 1, "reference")[0])
        self._set_ranks("ranks", shape, "layers, and one for each of moments")

    def to_pandas(self) -> Any:
        """A long table, one row a layer and moment: their names, distance, similarity, and rank if it is known."""
        pandas = require("pandas", "SimilarityCurve.to_pandas()")
        count = len(self.moments)
        table: dict[str, Any] = {
            "layer": [layer for layer in self.layers for _ in range(count)],
            "moment": [*self.moments] * len(self.layers),
            "distance": self.distance.flatten().numpy(),
            "similarity": self.similarity.flatten().numpy(),
        }
        if self.ranks is not None:
            table["rank"] = self.ranks.flatten().numpy()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, log: bool = False) -> Any:
        """Draw a line a layer, from dark, the bottom, to light, the top; returns the matplotlib axes.

        Moments that are numbers stand at their places on the axis, and others in their order.

        Args:
            log: a logarithmic axis, for moments that are numbers; below the least one above 0 it goes on linearly to 0.

        Raises:
            ValueError: a logarithmic axis is asked for of strings or of numbers below 0.
        """
        log = flag("log", log)
        is_numeric = not any(isinstance(moment, str) for moment in self.moments)
        if log and not is_numeric:
            raise ValueError(f"log=True is for moments that are numbers; these are {list(self.moments)[:3]}, ...")
        places = np.array(self.moments if is_numeric else range(len(self.moments)), dtype=np.float64)
        if log and (places.min() < 0 or places.max() <= 0):
            raise ValueError(f"log=True is for moments of 0 or more, and some above; these go from {places.min():g}")
        ax = axes(ax, "SimilarityCurve.plot()", layout="constrained")
        colours = require("matplotlib", "a plot").colormaps["viridis"](np.linspace(0, 0.87, max(len(self.layers), 2)))
        order = places.argsort(kind="stable")
        lines = []
        for place, (layer, distance) in enumerate(zip(self.layers, self.distance.numpy(), strict=True)):
            sign = {"marker": MARKERS[place % len(MARKERS)], "markersize": 3.5} if len(self.layers) <= _FEW else {}
            sign |= {
                "markevery": max(1, len(places) // 25),
                "linestyle": ("-", "--", ":")[place % 3] if not sign else "-",
            }
            lines += ax.plot(places[order], distance[order], color=colours[place], linewidth=1.3, label=layer, **sign)
        if log:
            ax.set_xscale("symlog", linthresh=places[places > 0].min())
        elif not is_numeric:
            name_across(ax, [str(moment) for moment in self.moments])
        ax.set_ylim(bottom=-0.02 * ax.get_ylim()[1])
        ax.set_xlabel("step of the sequence" if self.what == "steps" else "checkpoint")
        start = "" if self.reference is None else f"\nfrom {_AXES[self.what]} {self.reference}"
        ax.set_ylabel(f"{self._distance_label}{start}", **LITERAL)
        legend_apart(ax, lines, self.layers, "layer")
        return ax
