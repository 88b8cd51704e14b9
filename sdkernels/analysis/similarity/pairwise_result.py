"""How alike many networks are: a distance for each pair at each layer, clusters, groups, table, plots, file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.scatter import MARKERS
from sdkernels.analysis.similarity.clustering import cut, leaf_order
from sdkernels.analysis.similarity.compared import ROUNDING, Compared, Label, check_labels, check_names
from sdkernels.analysis.similarity.distance_map import FIGURE, draw_boundaries, draw_distances
from sdkernels.analysis.similarity.names import legend_apart, name_across, name_down, name_runs
from sdkernels.analysis.similarity.pair_kinds import pair_kinds
from sdkernels.engine.arguments import is_one_of, whole_number


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

    Example:
        >>> import torch, sdkernels as sd
        >>> places = torch.tensor([0.0, 0.1, 0.7, 0.8])
        >>> distance = (places[:, None] - places).abs()[None]
        >>> result = sd.PairwiseSimilarity(distance=distance, names=("a", "b", "c", "d"), layers=("fc1",))
        >>> result.clusters(2)
        tensor([0, 0, 1, 1])
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
        own = float(self.distance.diagonal(dim1=1, dim2=2).nan_to_num(0.0).max())
        if own > ROUNDING:
            raise ValueError(
                f"distance {list(self.distance.shape)} has up to {own:.4g} on the diagonal, a network's distance from "
                "itself, which is 0; of similarities give 1 - similarity"
            )
        self._set_ranks("ranks", (layers, networks), "layers, and one for each of names")
        if self.groups is not None:
            self._set("groups", check_labels("groups", self.groups, networks, "networks"))

    @property
    def symmetrised(self) -> Tensor:
        """float64 [layers, M, M]: the mean of ``[l, i, j]`` and ``[l, j, i]``, of which clusters and groups are."""
        return (self.distance + self.distance.mT) / 2

    @property
    def is_symmetric(self) -> bool:
        """Whether ``[l, i, j]`` and ``[l, j, i]`` are the same, but for rounding."""
        return torch.allclose(self.distance, self.distance.mT, rtol=0, atol=1e-12, equal_nan=True)

    def of(self, names: str | Sequence[str]) -> "PairwiseSimilarity":
        """The same of some networks, in their order.

        Raises:
            ValueError: a network that is not among its own; lists those.
        """
        chosen = check_names("names", names)
        if unknown := [name for name in chosen if name not in self.names]:
            raise ValueError(f"names: {unknown} are not among the networks, {list(self.names)}")
        places = [self.names.index(name) for name in chosen]
        return replace(
            self,
            distance=self.distance[:, places][:, :, places],
            names=chosen,
            groups=None if self.groups is None else tuple(self.groups[place] for place in places),
            ranks=None if self.ranks is None else self.ranks[:, places],
        )

    def clusters(self, count: int, layer: str | None = None) -> Tensor:
        """The cluster of each network at one layer, int64 [M], numbered in the order of their first networks.

        Clusters that are nearest by the mean distance between their networks (:attr:`symmetrised`) are joined until
        ``count`` are left: average linkage.

        Args:
            count: 1 to M.
            layer: its name; needed if there are several.

        Raises:
            ValueError: ``count`` is out of range, there is no such layer or no saying which, or a distance is nan.
        """
        return self._clusters("count", count, layer)

    def _clusters(self, called: str, count: Any, layer: str | None) -> Tensor:
        at = self._layer(layer)
        count = whole_number(called, count, 1, len(self.names), what="an int, at most the number of networks")
        distance = self.symmetrised[at]
        if len(rows := distance.isnan().any(1).nonzero()):
            unknown = [self.names[row] for row in rows.flatten().tolist()]
            raise ValueError(
                f"at layer {self.layers[at]!r} some distances of {unknown} are nan: no clusters; take the networks of "
                "which all are known by .of(names)"
            )
        return cut(distance, count)

    def between(self, groups: Sequence[Label] | None = None) -> Any:
        """A table of mean distances within each group and between each two groups, by layer.

        Args:
            groups: a label for each network; None: the result's own, and if it has none, all pairs together.

        Returns:
            A ``DataFrame`` with a row for each layer and kind of pair: ``layer``; ``kind``, ``"within"``,
            ``"between"`` or ``"all"``; the groups ``first`` and ``second``; the mean ``distance`` and its standard
            deviation ``std`` over pairs (of :attr:`symmetrised`); and how many ``pairs``. A network is no pair with
            itself, and a pair whose distance is nan is none.

        Raises:
            ValueError, TypeError: the labels are not M strings and numbers.
        """
        pandas = require("pandas", "PairwiseSimilarity.between()")
        kinds = pair_kinds(self._groups(groups), len(self.names))
        numbers = [kind.over_layers(self.symmetrised) for kind in kinds]
        rows = []
        for at, layer in enumerate(self.layers):
            for kind, (mean, std, count) in zip(kinds, numbers, strict=True):
                labels = {"layer": layer, "kind": kind.kind, "first": kind.first, "second": kind.second}
                rows.append({**labels, "distance": float(mean[at]), "std": float(std[at]), "pairs": int(count[at])})
        return pandas.DataFrame(rows)

    def to_pandas(self) -> Any:
        """A long table, one row a layer and pair of networks: their names, groups and ranks, distance and similarity.

        Each pair stands there once if distances are symmetric, and in both orders otherwise; none with itself.
        """
        pandas = require("pandas", "PairwiseSimilarity.to_pandas()")
        networks = torch.ones(len(self.names), len(self.names), dtype=torch.bool)
        first, second = (networks.triu(1) if self.is_symmetric else ~networks.diag().diag()).nonzero().unbind(1)
        layers = len(self.layers)
        table: dict[str, Any] = {"layer": [layer for layer in self.layers for _ in range(len(first))]}
        for place, chosen in (("first", first), ("second", second)):
            table[place] = [self.names[network] for network in chosen.tolist()] * layers
            if self.groups is not None:
                table[f"{place}_group"] = [self.groups[network] for network in chosen.tolist()] * layers
            if self.ranks is not None:
                table[f"{place}_rank"] = self.ranks[:, chosen].flatten().numpy()
        table["distance"] = self.distance[:, first, second].flatten().numpy()
        table["similarity"] = self.similarity[:, first, second].flatten().numpy()
        return pandas.DataFrame(table)

    def plot(
        self,
        layer: str | None = None,
        ax: Any = None,
        *,
        by: Literal["clusters", "groups", "names"] = "clusters",
        clusters: int | None = None,
        groups: Sequence[Label] | None = None,
    ) -> Any:
        """Draw networks x networks at one layer: dark is near, light is far, grey is not known; returns the axes.

        Rows are first arguments of the comparison and columns second ones. Where there are groups, these are named
        beside their rows, and otherwise the networks.

        Args:
            layer: its name; needed if there are several.
            by: the order of rows and columns: along the tree of average linkage on :attr:`symmetrised`, where what is
                unknown counts as the largest distance; ``"groups"``: group after group, and along the tree within
                each; ``"names"``: as they are.
            clusters: draw lines between so many :meth:`clusters`. Without, lines are between groups if ``by`` is those.
            groups: a label for each network; None: the result's own.

        Raises:
            ValueError: there is no such layer or no saying which, no groups to order by, or lines between clusters are
                asked for in another order; and as :meth:`clusters`.
        """
        at, labels = self._layer(layer), self._groups(groups)
        if not is_one_of(by, ("clusters", "groups", "names")):
            raise ValueError(f"by={by!r}: choose 'clusters', 'groups' or 'names'")
        if by == "groups" and labels is None:
            raise ValueError("by='groups', and there are none; give groups=, a label for each network")
        if clusters is not None and by != "clusters":
            raise ValueError(f"clusters={clusters} of networks that stand by {by}; leave out by=")
        parts = None if clusters is None else self._clusters("clusters", clusters, layer)
        order = torch.arange(len(self.names)) if by == "names" else leaf_order(self.symmetrised[at])
        if by == "groups" and labels is not None:
            first = [*dict.fromkeys(labels)]
            parts = torch.tensor([first.index(label) for label in labels])
            order = order[parts[order].argsort(stable=True)]
        ax = axes(ax, "PairwiseSimilarity.plot()", figsize=FIGURE, layout="constrained")
        draw_distances(ax, self.distance[at][order][:, order], label=self._distance_label, has_own=True)
        if parts is not None:
            rows = [row for row, (one, other) in enumerate(pairwise(parts[order].tolist()), 1) if one != other]
            draw_boundaries(ax, rows, len(order))
        networks = order.tolist()
        if labels is None:
            name_down(ax, [self.names[network] for network in networks])
        else:
            kinds = [str(label) for label in dict.fromkeys(labels)]
            name_runs(ax, [str(labels[network]) for network in networks], kinds)
        ax.set_xticks([])
        ax.set_xlabel(f"{len(networks)} networks, in the order of the rows")
        ax.set_title(self.layers[at], fontsize=9, **LITERAL)
        return ax

    def plot_by_layer(self, groups: Sequence[Label] | None = None, ax: Any = None) -> Any:
        """Draw the mean distance over depth, a line for each kind of pair that there is; returns the matplotlib axes.

        Kinds are pairs within each group, drawn through, and pairs of two groups, dashed; without groups all pairs. A
        band is one standard deviation over pairs (of :attr:`symmetrised`).

        Args:
            groups: a label for each network; None: the result's own.

        Raises:
            ValueError, TypeError: there is one network alone, or the labels are not M strings and numbers.
        """
        if len(self.names) == 1:
            raise ValueError(f"{self.names[0]!r} is the only network: there is no pair to draw")
        kinds = [kind for kind in pair_kinds(self._groups(groups), len(self.names)) if len(kind.pairs)]
        ax = axes(ax, "PairwiseSimilarity.plot_by_layer()", layout="constrained")
        colour_map = require("matplotlib", "a plot").colormaps["viridis"]
        depth, lines = np.arange(len(self.layers)), []
        for place, kind in enumerate(kinds):
            alike = [other for other in kinds if other.is_within == kind.is_within]
            shade = (alike.index(kind) + (0 if kind.is_within else 0.5)) / max(len(alike) - kind.is_within, 1)
            colour = colour_map(0.85 * shade)
            mean, std, _ = (number.numpy() for number in kind.over_layers(self.symmetrised))
            style = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4, "color": colour, "linewidth": 1.4}
            lines += ax.plot(depth, mean, "-" if kind.is_within else "--", label=kind.name, **style)
            alpha = 0.2 if len(kinds) < 5 else 0.07
            ax.fill_between(depth, mean - std, mean + std, color=colour, alpha=alpha, linewidth=0)
        name_across(ax, self.layers)
        ax.set_ylim(bottom=-0.02 * ax.get_ylim()[1])
        ax.set_xlabel("layer")
        ax.set_ylabel(self._distance_label, **LITERAL)
        legend_apart(ax, lines, [kind.name for kind in kinds], "pairs")
        return ax

    def _groups(self, groups: Sequence[Label] | None) -> tuple[Label, ...] | None:
        return self.groups if groups is None else check_labels("groups", groups, len(self.names), "networks")

    def _layer(self, layer: str | None) -> int:
        if layer is None and len(self.layers) == 1:
            return 0
        if layer is None or not is_one_of(layer, self.layers):
            raise ValueError(f"layer={layer!r}: this is of one layer; say which of {list(self.layers)}")
        return self.layers.index(layer)
