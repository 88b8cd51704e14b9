"""How alike the layers of two networks are: a distance for each pair of layers, its table, its plots, its file."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdkernels.analysis.axes import axes, look
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.similarity.compared import Compared, check_names
from sdkernels.analysis.similarity.distance_map import FIGURE, draw_distances
from sdkernels.analysis.similarity.names import name_across, name_down


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerSimilarity(Compared):
    """Distances between A layers of one network and B layers of another, or of the same.

    Attributes:
        distance: float64 ``[A, B]``; nan where it was not computed.
        layers_a, layers_b: the layers' names, A and B of them.
        rank_a, rank_b: int64 ``[A]`` and ``[B]``: how many directions of each layer entered; None if not known.
        name_a, name_b: the networks' names, for plots.
        examples, settings, versions: as :class:`~sdkernels.analysis.similarity.compared.Compared` says.

    Example:
        >>> import torch, sdkernels as sd
        >>> layers = ("fc1", "fc2")
        >>> distance = torch.tensor([[0.125, 0.5], [0.5, 0.25]])
        >>> result = sd.LayerSimilarity(distance=distance, layers_a=layers, layers_b=layers)
        >>> result.distance[result.matched[:, 0], result.matched[:, 1]]
        tensor([0.1250, 0.2500], dtype=torch.float64)
    """

    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    rank_a: Tensor | None = None
    rank_b: Tensor | None = None
    name_a: str = "first network"
    name_b: str = "second network"

    _FORMAT: ClassVar[str] = "sdkernels.LayerSimilarity/1"
    _OPTIONAL_TENSORS: ClassVar[tuple[str, ...]] = ("rank_a", "rank_b")
    _HEADER: ClassVar[tuple[str, ...]] = ("layers_a", "layers_b", "name_a", "name_b")

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in "ab":
            self._set(f"layers_{side}", check_names(f"layers_{side}", getattr(self, f"layers_{side}")))
        layers_a, layers_b = len(self.layers_a), len(self.layers_b)
        self._check_shape("distance", (layers_a, layers_b), "a row for each of layers_a, a column for each of layers_b")
        self._set_ranks("rank_a", (layers_a,), "one for each of layers_a")
        self._set_ranks("rank_b", (layers_b,), "one for each of layers_b")

    @property
    def matched(self) -> Tensor:
        """int64 [L, 2]: the places in ``layers_a`` and ``layers_b`` of layers that answer to each other.

        Those are layers of the same name; or, where no name stands at different places and there are as many layers of
        one network as of the other, layers at the same place.

        Raises:
            ValueError: the numbers of layers differ and no name is in both.
        """
        common = [(a, self.layers_b.index(name)) for a, name in enumerate(self.layers_a) if name in self.layers_b]
        if len(self.layers_a) == len(self.layers_b) and all(a == b for a, b in common):
            common = [(place, place) for place in range(len(self.layers_a))]
        if not common:
            raise ValueError(
                f"no layer of {list(self.layers_a)} has the name of one of {list(self.layers_b)}, and their numbers "
                "differ: no saying which answer to each other"
            )
        return torch.tensor(common)

    def to_pandas(self) -> Any:
        """A long table, one row a pair of layers whose distance is known: names, distance, similarity, and ranks."""
        pandas = require("pandas", "LayerSimilarity.to_pandas()")
        places = self.distance.isfinite().nonzero()
        first, second = places.unbind(1)
        table: dict[str, Any] = {
            "layer_a": [self.layers_a[place] for place in first.tolist()],
            "layer_b": [self.layers_b[place] for place in second.tolist()],
            "distance": self.distance[first, second].numpy(),
            "similarity": self.similarity[first, second].numpy(),
        }
        for name, ranks, at in (("rank_a", self.rank_a, first), ("rank_b", self.rank_b, second)):
            if ranks is not None:
                table[name] = ranks[at].numpy()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None) -> Any:
        """Draw layers x layers: dark is near, light is far, and grey is not known; returns the matplotlib axes.

        Rows are ``layers_a``, the first at the top, and columns ``layers_b``. Distances stand in their cells where
        there is room.
        """
        ax = axes(ax, "LayerSimilarity.plot()", figsize=FIGURE, layout="constrained")
        draw_distances(ax, self.distance, label=self._distance_label)
        name_across(ax, self.layers_b, beside=name_down(ax, self.layers_a))
        ax.set_ylabel(f"layer of {self.name_a}", **LITERAL)
        ax.set_xlabel(f"layer of {self.name_b}", **LITERAL)
        return ax

    def plot_by_layer(self, ax: Any = None, *, label: str | None = None, color: Any = None) -> Any:
        """Draw the distance of :attr:`matched` layers over depth; returns the matplotlib axes.

        Raises:
            ValueError: as :attr:`matched`.
        """
        first, second = self.matched.unbind(1)
        ax = axes(ax, "LayerSimilarity.plot_by_layer()", layout="constrained")
        distance = self.distance[first, second].numpy()
        ax.plot(range(len(distance)), distance, marker="o", markersize=4, **look(label, color))
        pairs = [(self.layers_a[a], self.layers_b[b]) for a, b in self.matched.tolist()]
        name_across(ax, [a if a == b else f"{a} / {b}" for a, b in pairs])
        ax.set_ylim(bottom=-0.02 * ax.get_ylim()[1])
        ax.set_xlabel("layer")
        ax.set_ylabel(self._distance_label, **LITERAL)
        return ax
