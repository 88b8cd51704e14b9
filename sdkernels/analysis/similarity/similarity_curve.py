"""How layers come to be what they are, over training or over the steps of a sequence: table, plot, file."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.analysis.similarity.compared import Compared, Label, check_labels, check_names


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
        if self.what not in ("training", "steps"):
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
        """A long table, one row a layer and moment: layer, moment, distance, similarity, and ranks if they are known."""
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
