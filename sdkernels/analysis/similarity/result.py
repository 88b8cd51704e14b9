"""The similarity of two layers: its distance, the canonical correlations that it is made of, and their significance."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.saved import Path_, check_header, check_layout, load, write
from sdkernels.analysis.similarity.significance import Significance, bartlett

_TENSORS = ("correlations", "weights", "dead_a", "dead_b")
_LAYOUT = {"correlations": "float64 c", "weights": "float64 c", "dead_a": "bool C", "dead_b": "bool D"}
_HEADER: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "distance": (float, int),
    **dict.fromkeys(("side", "compat", "solver_a", "solver_b"), (str, type(None))),
    **dict.fromkeys(("rank_a", "rank_b"), (int, type(None))),
    **dict.fromkeys(("condition_a", "condition_b"), (float, int, type(None))),
    "examples": (int,),
    "settings": (dict,),
    "versions": (dict,),
}
_NAMES = {"cca": "mean CCA", "svcca": "SVCCA", "pwcca": "PWCCA", "cka": "CKA"}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Similarity:
    r"""How alike two layers' activations are, by :func:`sdkernels.similarity`; printing it says it in a line.

    Attributes:
        method: ``"cca"``, ``"svcca"``, ``"pwcca"`` or ``"cka"``.
        distance: 1 - similarity.
        correlations: float64 ``[c]``, the canonical correlations :math:`\rho_i`, descending, within 0..1; c is the
            smaller rank. None for cka.
        weights: float64 ``[c]``, which add up to 1; for pwcca alone.
        side: of pwcca, whose neurons weigh: ``"first"`` or ``"second"``.
        compat: of pwcca, ``"svcca"`` or None.
        rank_a, rank_b: of how many directions the correlations are; None for cka.
        dead_a, dead_b: bool ``[C]`` and ``[D]``, units that vary by no more than rounding, which are left out.
        condition_a, condition_b: of the kept directions, sqrt(largest / smallest eigenvalue) of the correlation matrix
            (svcca and ``reduce``: of the covariance). Its logarithm says how many digits are lost: twice as many, with
            ``"svd"`` once. None for cka.
        solver_a, solver_b: what was used: ``"cholesky"``, ``"eigh"``, ``"svd"``. None for cka.
        examples: N, how many rows were compared; with ``positions="each"`` every position is one.
        settings: of the call: ``variance``, ``reduce``, ``debiased``, ``tolerance``, ``positions``, ``subsample``,
            ``seed``, those that count.
        versions: of sdkernels, torch, numpy and Python.
    """

    method: str
    distance: float
    correlations: Tensor | None
    weights: Tensor | None
    side: str | None
    compat: str | None
    rank_a: int | None
    rank_b: int | None
    dead_a: Tensor
    dead_b: Tensor
    condition_a: float | None
    condition_b: float | None
    solver_a: str | None
    solver_b: str | None
    examples: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    _FORMAT: ClassVar[str] = "sdkernels.Similarity/1"

    @property
    def similarity(self) -> float:
        """1 - distance: the mean correlation, weighted or not, or CKA."""
        return 1 - self.distance

    @property
    def units_a(self) -> int:
        """C, dead units included."""
        return len(self.dead_a)

    @property
    def units_b(self) -> int:
        """D, dead units included."""
        return len(self.dead_b)

    def significant(self, level: float = 0.05) -> Significance:
        """How many correlations are above what chance gives, by Bartlett's sequential test.

        It takes examples for independent and about normal, and knows nothing of a choice of directions: after svcca or
        ``reduce``, which look at each layer alone, it is right as well.

        Raises:
            ValueError: CKA has no correlations; a level out of range; examples too few for the test.
        """
        correlations, rank_a, rank_b = self._canonical("test for significance")
        return bartlett(correlations, self.examples, rank_a, rank_b, level)

    def to_pandas(self) -> Any:
        """A table, one row a canonical correlation, and its weight if it has one; for cka one row, the similarity."""
        pandas = require("pandas", "Similarity.to_pandas()")
        if self.correlations is None:
            return pandas.DataFrame({"method": [self.method], "similarity": [self.similarity]})
        table: dict[str, Any] = {"correlation": self.correlations.numpy()}
        if self.weights is not None:
            table["weight"] = self.weights.numpy()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None) -> Any:
        """Draw the correlations, descending, and the similarity as a line; with weights, as bars of their own scale.

        Returns the matplotlib axes.

        Raises:
            ValueError: CKA has no correlations.
        """
        correlations, _, _ = self._canonical("plot")
        ax = axes(ax, "Similarity.plot()", layout="constrained")
        ranks = range(1, len(correlations) + 1)
        if self.weights is not None:
            beside = ax.twinx()
            beside.bar(ranks, self.weights.numpy(), width=1.0, color="0.85")
            beside.set_ylabel(f"weight by the {self.side} layer's neurons")
            ax.set_zorder(beside.get_zorder() + 1)  # curves before bars
            ax.patch.set_visible(False)
        ax.plot(ranks, correlations.numpy(), marker=".", label="canonical correlations")
        ax.axhline(self.similarity, color="0.4", linestyle="--", label=f"{_NAMES[self.method]} {self.similarity:.3f}")
        ax.set_ylim(0, 1.03)
        ax.set_xlabel("canonical variates")
        ax.set_ylabel("correlation")
        ax.legend()
        return ax

    def save(self, path: Path_) -> None:
        """Write everything to one NumPy ``.npz`` file, without pickle; a crash never leaves half a file."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: held.pop(name) for name in _TENSORS}
        header = held | {name: dict(held[name]) for name in ("settings", "versions")}
        write(path, self._FORMAT, header, {name: tensor for name, tensor in tensors.items() if tensor is not None})

    @classmethod
    def load(cls, path: Path_) -> "Similarity":
        """Read what :meth:`save` wrote; runs no code from the file.

        Raises:
            ValueError: the file is no such saved result; names it.
        """

        def made(header: dict[str, Any], tensors: dict[str, Tensor]) -> "Similarity":
            check_header(header, _HEADER)
            check_layout(tensors, _LAYOUT)
            if header["method"] not in _NAMES:
                raise ValueError(f"its method is {header['method'][:100]!r}")
            fields: dict[str, Any] = {name: header[name] for name in _HEADER} | {"correlations": None, "weights": None}
            return cls(**(fields | {name: tensors[name] for name in ("dead_a", "dead_b")} | tensors))

        return load(path, cls._FORMAT, made)

    def __repr__(self) -> str:
        sides = []
        for dead, rank in ((self.dead_a, self.rank_a), (self.dead_b, self.rank_b)):
            notes = [] if rank is None else [f"rank {rank}"]
            notes += [f"{int(dead.sum())} dead"] if dead.any() else []
            sides.append(f"{len(dead)} units" + (f" ({', '.join(notes)})" if notes else ""))
        return f"{_NAMES[self.method]} {self.similarity:.4f} of {' and '.join(sides)}, {self.examples} examples"

    def _canonical(self, what: str) -> tuple[Tensor, int, int]:
        """Correlations and ranks.

        Raises:
            ValueError: there are none.
        """
        if self.correlations is None or self.rank_a is None or self.rank_b is None:
            raise ValueError(f"cka is one number, {self.similarity:.4g}; there are no canonical correlations to {what}")
        return self.correlations, self.rank_a, self.rank_b
