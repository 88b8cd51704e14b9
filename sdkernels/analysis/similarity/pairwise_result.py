"""How alike many networks are: a distance for each pair at each layer, clusters, groups, table, plots, file."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdkernels.analysis.similarity.compared import Compared, Label, check_labels, check_names


@dataclass(frozen=True, eq=False, kw_only=True)
class PairwiseSimilarity(Compared):
    """Distances between M networks, at each of several layers.

    Attributes:
        distance: float64 ``[layers, M, M]``; entry ``[l, i, j]`` has network i for the first argument of the
            comparison and j for the second, which differ for PWCCA with a fixed ``side``. The diagonal is 0.
        names: the networks' names, M of them.
        layers: the layers' names.
        groups: a label for each network, a string or a number, such as how it was trained; None if there are none.
        ranks: int64 ``[layers, M]``: how many directions of each network's layer entered; None if not known.
        examples, settings, versions: as :class:`~sdkernels.analysis.similarity.compared.Compared` says.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    groups: tuple[Label, ...] | None = None
    ranks: Tensor | None = None

    _FORMAT: ClassVar[str] = "sdkernels.PairwiseSimilarity/1"
    _OPTIONAL_TENSORS: ClassVar[tuple[str, ...]] = ("ranks",)
    _HEADER: ClassVar[tuple[str, ...]] = ("names", "layers", "groups")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("names", check_names("names", self.names))
        self._set("layers", check_names("layers", self.layers))
        layers, networks = len(self.layers), len(self.names)
        self._check_shape("distance", (layers, networks, networks), "layers, and twice a place for each of names")
        own = self.distance.diagonal(dim1=1, dim2=2)
        if own.nan_to_num(0.0).abs().max() > 1e-6:
            raise ValueError(
                f"distance {list(self.distance.shape)} has up to {float(own.nan_to_num(0.0).max()):.4g} on the diagonal, "
                "a network's distance from itself, which is 0; of similarities give 1 - similarity"
            )
        self._set_ranks("ranks", (layers, networks), "layers, and one for each of names")
        if self.groups is not None:
            self._set("groups", check_labels("groups", self.groups, networks, "networks"))
