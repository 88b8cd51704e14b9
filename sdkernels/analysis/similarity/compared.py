"""What all results of many comparisons share: distances, how they were taken, their checks, their file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from sdkernels.analysis.saved import Path_, load, write
from sdkernels.engine.arguments import dense

ComparedT = TypeVar("ComparedT", bound="Compared")
Label = str | int | float

# What rounding may leave of a distance of 0.
ROUNDING = 1e-6

_METHODS = {"cca": "mean CCA distance", "svcca": "SVCCA distance", "pwcca": "PWCCA distance", "cka": "CKA distance"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """Distances between activations, laid out as the subclass says; 0 is the same, and similarity is 1 - distance.

    Attributes:
        distance: float64; nan where it was not computed or is not defined.
        examples: how many rows of activations each comparison is of; None if not known.
        settings: how distances were taken, ``"method"`` first of all: what JSON holds, so that it can be saved.
        versions: of sdkernels, torch, numpy and Python; empty where nobody said.
    """

    distance: Tensor
    examples: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    # What a saved file says it is, and which other fields it holds as arrays and in its header.
    _FORMAT: ClassVar[str]
    _OPTIONAL_TENSORS: ClassVar[tuple[str, ...]] = ()
    _HEADER: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self._set("distance", numbers("distance", self.distance))
        if self.distance.isinf().any():
            raise ValueError(
                f"distance {list(self.distance.shape)} holds infinite numbers; give nan for what is unknown"
            )
        least = float(self.distance.nan_to_num(0.0).min()) if self.distance.numel() else 0.0
        if least < -ROUNDING:
            raise ValueError(f"distance {list(self.distance.shape)} goes down to {least:.4g}, and none is below 0")
        if self.examples is not None and (isinstance(self.examples, bool) or not isinstance(self.examples, int)):
            raise TypeError(f"examples is a {type(self.examples).__name__}; give an int, or None if not known")
        for name in ("settings", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}; give a mapping")
            try:  # and what comes back from a file is the same
                self._set(name, json.loads(json.dumps(dict(getattr(self, name)))))
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} must be a mapping of what JSON holds: strings, numbers, lists ({error})"
                ) from error

    @property
    def similarity(self) -> Tensor:
        """float64, laid out as ``distance``: 1 - distance."""
        return 1 - self.distance

    @property
    def method(self) -> str | None:
        """The method among ``settings``; None if they do not say."""
        return self.settings.get("method")

    def save(self, path: Path_) -> None:
        """Write everything to one NumPy ``.npz`` file, without pickle; a crash never leaves half a file."""
        optional = {name: held for name in self._OPTIONAL_TENSORS if (held := getattr(self, name)) is not None}
        header = {name: getattr(self, name) for name in (*self._HEADER, "examples", "settings", "versions")}
        write(path, self._FORMAT, header, {"distance": self.distance, **optional})

    @classmethod
    def load(cls: type[ComparedT], path: Path_) -> ComparedT:
        """Read what :meth:`save` wrote; runs no code from the file.

        Raises:
            ValueError: the file is no such saved result; names it.
        """

        def made(header: dict[str, Any], tensors: dict[str, Tensor]) -> ComparedT:
            names = (*cls._HEADER, "examples", "settings", "versions")
            fields: dict[str, Any] = {name: header[name] for name in names}
            fields |= {name: tensors.get(name) for name in cls._OPTIONAL_TENSORS}
            return cls(**fields, distance=tensors["distance"])

        return load(path, cls._FORMAT, made)

    @property
    def _distance_label(self) -> str:
        """The distance as a plot's axis names it."""
        if self.method is None:
            return "distance"
        return _METHODS.get(self.method, f"{self.method} distance")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_shape(self, name: str, shape: tuple[int, ...], what: str) -> None:
        """Refuse a field of another shape; ``what`` says what the sizes are."""
        given = getattr(self, name)
        if given.shape != shape:
            raise ValueError(f"{name} {list(given.shape)} must be {list(shape)}: {what}")

    def _set_ranks(self, name: str, shape: tuple[int, ...], what: str) -> None:
        """Make a field of counts int64, if it is given."""
        if getattr(self, name) is not None:
            ranks = numbers(name, getattr(self, name))
            if (ranks != ranks.round()).any() or (ranks < 0).any():
                raise ValueError(f"{name} must be counts, 0 or more: whole numbers")
            self._set(name, ranks.long())
            self._check_shape(name, shape, what)


def numbers(name: str, given: Any) -> Tensor:
    """A tensor, array or nested list as a tensor of its own, float64 on the CPU.

    Raises:
        TypeError: it is nothing of that kind; names it.
    """
    try:
        held = given.detach() if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a {type(given).__name__}; give a tensor or an array of numbers ({error})"
        ) from error
    return dense(name, held).to("cpu", torch.float64, copy=True)


def check_names(what: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of layers or networks, each there once.

    Raises:
        TypeError: some are no strings.
        ValueError: there are none, or one stands twice.
    """
    names = _several(what, given)
    if other := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"{what} holds {other[0]!r}, a {type(other[0]).__name__}; give strings")
    if not names:
        raise ValueError(f"{what} is empty; give a name for each")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} holds {twice[0]!r} twice; give each a name of its own")
    return names


def _several(what: str, given: Any) -> tuple[Any, ...]:
    """One name, or some, as a tuple."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise TypeError(f"{what} is a {type(given).__name__}; give a sequence of strings")
    return tuple(given)


def _is_single(label: Any) -> bool:
    return isinstance(label, Tensor) and label.numel() == 1


def check_labels(what: str, given: Any, count: int, of: str) -> tuple[Label, ...]:
    """Labels that a file can hold: strings and numbers, ``count`` of them.

    Raises:
        TypeError: some are something else.
        ValueError: there are more or fewer of them, or one is not finite.
    """
    is_row = given.ndim == 1 if isinstance(given, (np.ndarray, Tensor)) else isinstance(given, Sequence)
    if not is_row or isinstance(given, (str, bytes)):
        raise TypeError(f"{what} is a {type(given).__name__}; give a sequence of labels, one for each of the {of}")
    labels = tuple(label.item() if isinstance(label, np.generic) or _is_single(label) else label for label in given)
    if len(labels) != count:
        raise ValueError(f"{what} are {len(labels)} labels for {count} {of}; give one for each")
    for label in labels:
        if not isinstance(label, (str, int, float)):
            raise TypeError(f"{what} holds {label!r}, a {type(label).__name__}; give strings or numbers")
        if isinstance(label, float) and not np.isfinite(label):
            raise ValueError(f"{what} holds {label}; give finite numbers, or strings")
    return labels
