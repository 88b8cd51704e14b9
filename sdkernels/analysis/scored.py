"""What all results of ablation functions share: sums over examples, their means, the units, the file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from sdkernels.analysis.axes import look
from sdkernels.analysis.saved import by_prefix, check_header, check_layout, check_units, load, with_prefix, write
from sdkernels.analysis.units import PooledUnits
from sdkernels.engine.arguments import whole_number
from sdkernels.engine.outcomes import unpack

PER_CLASS = ("class_accuracy",)

_COUNTED = ("accuracy", "top5", "agreement", *PER_CLASS)
_HEADER: Mapping[str, tuple[type, ...]] = {
    "examples": (int,),
    "layers": (list,),
    "unit_counts": (list,),
    "seed": (int, type(None)),
    **dict.fromkeys(("value", "precision", "method", "plan"), (str,)),
}

ScoredT = TypeVar("ScoredT", bound="Scored")


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored(PooledUnits):
    """Scores of configurations of ablated units, laid out ``[...]`` as the subclass says; U pooled units, L classes.

    Attributes:
        sums: by metric, sums over examples: int64 ``[...]`` counts for ``"accuracy"``, ``"top5"``, ``"agreement"``;
            float64 ``[...]`` for ``"loss"`` (nats) and functions; int64 ``[..., L]`` for ``"class_accuracy"``.
        baseline_sums: the same of the intact model, ``[]`` or ``[L]``.
        ambiguous: int64 ``[...]``: examples whose two largest logits are so close that rounding may swap them; counts
            of two methods or machines may differ on these only.
        examples: N.
        class_examples: int64 ``[L]``.
        layers: the sites' names; ``unit_counts`` their numbers of units.
        seed, value, precision, method: as the call ran; no seed where nothing is drawn.
        outcomes: uint8 ``[..., ceil(N / 8)]``, a bit an example: whether the prediction is correct, the first example
            in the lowest bit; None if it was not asked for. :meth:`outcome_matrix` unpacks it.
        used: int64 ``[...]``, how many examples each configuration was scored on where ``tolerance`` let it stop; None:
            all N. Then N is the largest of them, and the intact model was scored on as many.
        bounds: float64 ``[..., 2]``, of each accuracy over the whole data set, by the confidence that was asked for,
            whenever it stopped; None where no tolerance was given for accuracies.
        directions: by layer, what was ablated instead of units, float64 ``[K, C]``; None where units were.
        plan: the executed plan as a table.
        versions: of sdkernels, torch, numpy and Python.
    """

    sums: Mapping[str, Tensor]
    baseline_sums: Mapping[str, Tensor]
    ambiguous: Tensor
    examples: int
    class_examples: Tensor
    layers: tuple[str, ...]
    unit_counts: tuple[int, ...]
    seed: int | None
    value: str
    precision: str
    method: str
    plan: str
    versions: Mapping[str, str]
    outcomes: Tensor | None = None
    directions: Mapping[str, Tensor] | None = None
    used: Tensor | None = None
    bounds: Tensor | None = None

    # What a saved file says it is, and which fields beside the sums it holds as arrays.
    _FORMAT: ClassVar[str]
    _TENSOR_FIELDS: ClassVar[tuple[str, ...]] = ("ambiguous", "class_examples")
    _OPTIONAL_FIELDS: ClassVar[tuple[str, ...]] = ("outcomes", "used", "bounds")
    _TENSORS_BY_LAYER: ClassVar[tuple[str, ...]] = ("directions",)
    _EACH: ClassVar[str]  # the sizes that a score has one number for each of, as "R T"
    _LAYOUT: ClassVar[Mapping[str, str]] = {}  # of the subclass's own fields, as in check_layout

    @property
    def correct(self) -> Tensor:
        """int64 [...]: correct predictions."""
        return self.sums["accuracy"]

    @property
    def accuracy(self) -> Tensor:
        """float64 [...]: correct / examples."""
        return self.metric("accuracy")

    @property
    def loss(self) -> Tensor:
        """float64 [...]: mean cross-entropy, nats."""
        return self.metric("loss")

    @property
    def baseline(self) -> dict[str, Tensor]:
        """By metric, the intact model's mean per example, float64 [] (``"class_accuracy"``: [L])."""
        return {name: self._mean(name, total) for name, total in self.baseline_sums.items()}

    def metric(self, name: str) -> Tensor:
        """float64 [...] ([..., L] for ``"class_accuracy"``): a metric's mean per example.

        Raises:
            KeyError: it was not measured; lists those that were.
        """
        total = self._sum(name)
        return self._mean(name, total) if self.used is None else total.double() / self.used

    def outcome_matrix(self) -> Tensor:
        """bool [..., N]: whether each prediction is correct, by configuration and example.

        Raises:
            ValueError: the call did not keep outcomes.
        """
        if self.outcomes is None:
            raise ValueError("no outcomes were kept; ask for them by outcomes=True")
        return unpack(self.outcomes.flatten(0, -2), self.examples).view(*self.outcomes.shape[:-1], self.examples)

    def to_pandas(self) -> Any:
        """The scores in long form, one row a configuration: a ``DataFrame`` whose columns the subclass says."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one NumPy ``.npz`` file, without pickle; a crash never leaves half a file."""
        tensors = {
            **{name: getattr(self, name) for name in self._TENSOR_FIELDS},
            **{name: held for name in self._OPTIONAL_FIELDS if (held := getattr(self, name)) is not None},
            **{
                name: tensor
                for field in ("sums", "baseline_sums", *self._TENSORS_BY_LAYER)
                for name, tensor in with_prefix(field, getattr(self, field)).items()
            },
        }
        header = {
            "metrics": list(self.sums),
            **{name: getattr(self, name) for name in _HEADER},
            "versions": dict(self.versions),
        }
        write(path, self._FORMAT, header, tensors)

    @classmethod
    def load(cls: type[ScoredT], path: str | os.PathLike[str]) -> ScoredT:
        """Read what :meth:`save` wrote; runs no code from the file.

        Raises:
            ValueError: the file is no such saved result; names it.
        """

        def made(header: dict[str, Any], tensors: dict[str, Tensor]) -> ScoredT:
            check_header(header, {**_HEADER, "metrics": (list,), "versions": (dict,)})
            units = check_units(header["layers"], header["unit_counts"])
            fields: dict[str, Any] = {name: header[name] for name in (*_HEADER, "versions")}
            fields |= {name: tuple(fields[name]) for name in ("layers", "unit_counts")}
            fields |= {name: tensors[name] for name in cls._TENSOR_FIELDS}
            fields |= {name: tensors.get(name) for name in cls._OPTIONAL_FIELDS}
            fields |= {field: by_prefix(tensors, field) or None for field in cls._TENSORS_BY_LAYER}
            for field in ("sums", "baseline_sums"):  # by the order in which metrics were asked for
                fields[field] = {name: tensors[f"{field}/{name}"] for name in header["metrics"]}
            if "accuracy" not in header["metrics"]:
                raise ValueError("accuracy is not among its metrics")
            check_layout(tensors, cls._layout(header["metrics"]), U=units, B=-(-header["examples"] // 8))
            return cls(**fields)

        return load(path, cls._FORMAT, made)

    @classmethod
    def _layout(cls, metrics: Sequence[str]) -> dict[str, str]:
        """How a file's tensors are laid out: L classes, U pooled units, B bytes of outcomes."""
        each = cls._EACH
        found = {"ambiguous": f"int64 {each}", "class_examples": "int64 L", "outcomes": f"uint8 {each} B"}
        found |= {"used": f"int64 {each}", "bounds": f"float64 {each} 2", **cls._LAYOUT}
        for metric in metrics:
            dtype, classes = "int64" if metric in _COUNTED else "float64", " L" if metric in PER_CLASS else ""
            found |= {f"sums/{metric}": f"{dtype} {each}{classes}", f"baseline_sums/{metric}": f"{dtype}{classes}"}
            found |= {f"single_sums/{metric}": f"{dtype} V{classes}"}
        return found

    def _sampled_columns(self) -> dict[str, Any]:
        """A table's columns: examples of each configuration, and accuracies' bounds; none without a tolerance."""
        found: dict[str, Any] = {} if self.used is None else {"examples": self.used.flatten().numpy()}
        if self.bounds is not None:
            low, high = self.bounds.flatten(0, -2).unbind(1)
            found |= {"accuracy_low": low.numpy(), "accuracy_high": high.numpy()}
        return found

    def _sum(self, name: str) -> Tensor:
        if not isinstance(name, str):
            raise TypeError(f"metric is a {type(name).__name__}; give a string, as 'accuracy'")
        if name not in self.sums:
            measured = ", ".join(self.sums)
            raise KeyError(f"metric {name!r} was not measured; this result has {measured}. Ask for it by metrics=(...)")
        return self.sums[name]

    def _mean(self, name: str, total: Tensor) -> Tensor:
        return total.double() / (self.class_examples if name in PER_CLASS else self.examples)


def columns(name: str, means: Tensor) -> dict[str, Any]:
    """A table's columns for a metric's means [...]: one, flattened; or one a class, for [..., L]."""
    if name in PER_CLASS:
        by_class = means.flatten(0, -2).unbind(1)
        return {f"{name}_{label}": column.numpy() for label, column in enumerate(by_class)}
    return {name: means.flatten().numpy()}


def check_plottable(metric: str, shape: tuple[int, ...]) -> None:
    """Refuse to draw or rank a score a class.

    Raises:
        ValueError: the metric is one; says its shape.
    """
    if metric in PER_CLASS:
        raise ValueError(f"{metric!r} is a score a class, {list(shape)}: take one class at a time, by hand")


def largest(values: Tensor, k: int, metric: str, *, what: str, of: str) -> Tensor:
    """Places of the k largest of ``values`` [n], int64 [k], the largest first; equals in their order.

    Raises:
        ValueError: k is out of 0..n, the metric is one a class, or a value is nan; ``what`` and ``of`` name them.
    """
    check_plottable(metric, values.shape)
    k = whole_number("k", k, 0, len(values), what=f"at most the number of {of}")
    if values.isnan().any():
        raise ValueError(f"{int(values.isnan().sum())} of {len(values)} {what} are nan: no order")
    return values.argsort(descending=True, stable=True)[:k]


def axis_label(metric: str) -> str:
    """A metric as a plot's axis names it."""
    return "cross-entropy (nats)" if metric == "loss" else metric.replace("_", " ")


def draw_band(ax: Any, x: Tensor, scores: Tensor, *, label: str | None = None, color: Any = None) -> Any:
    """Draw the mean of scores [R, T] over R against x [T], with a band of one standard deviation; gives the line."""
    mean = scores.mean(0).numpy()
    (line,) = ax.plot(x.numpy(), mean, **look(label, color))
    if len(scores) > 1:
        spread = scores.std(0).numpy()
        ax.fill_between(x.numpy(), mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
    return line
