"""How a sweep's networks are measured."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import sdkernels as sd
from sdkernels.engine.digest import Digest
from sdkernels.lab.sweep.settings import FORMAT, canonical, is_whole

FUNCTIONS = ("cumulative_ablation", "unit_importance", "noise_robustness", "unit_statistics")

# Of every call of a sweep, which has the model, says where work is kept, and shows progress.
_OWN = ("model", "data", "store", "workers", "show_progress")

# The network's own columns of the table begin so, and its file is called so.
_RESERVED = ("network", "networks", "train", "trained", "test")


@dataclass(frozen=True)
class Condition:
    """How every network is measured: a function of the package and its arguments.

    Attributes:
        name: of the table's columns and of the condition's own table.
        function: ``"cumulative_ablation"``, ``"unit_importance"``, ``"noise_robustness"`` or ``"unit_statistics"``.
        layers: as people name them (``"hidden1"``, ``"conv9"``, ``"block3.2"``), or modules' names.
        on: ``"train"``, with the labels that the network was trained on, or ``"test"``.
        examples: so many of them, the first, or of folders of images spread evenly over all; None: all.
        arguments: further keyword arguments of the function, as ``orders``, ``points``, ``scales``, ``seed``.

    Raises:
        ValueError: a name or value that there is not; names the measure.

    Example:
        >>> Condition("noise", "noise_robustness", ["hidden1"], on="test", arguments={"repeats": 3}).arguments
        {'repeats': 3}
    """

    name: str
    function: str
    layers: Sequence[str]
    on: str = "train"
    examples: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not is_file_name(self.name) or self.name.lower() in _RESERVED:
            raise ValueError(
                f"measure {self.name!r}: it names a file and columns, and cannot be empty, have slashes in it, or be "
                f"one of {', '.join(_RESERVED)}"
            )
        if self.function not in FUNCTIONS:
            raise ValueError(f"measure {self.name!r}: function={self.function!r}: choose one of {', '.join(FUNCTIONS)}")
        if self.on not in ("train", "test"):
            raise ValueError(f"measure {self.name!r}: on={self.on!r}: choose 'train' or 'test'")
        names = [] if isinstance(self.layers, str) or not isinstance(self.layers, Sequence) else list(self.layers)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"measure {self.name!r}: layers={self.layers!r} must be a list of names")
        object.__setattr__(self, "layers", tuple(names))
        if self.examples is not None and not is_whole(self.examples, at_least=1):
            raise ValueError(f"measure {self.name!r}: examples={self.examples!r} must be a whole number, at least 1")
        self._check_arguments()

    def key(self, network: str) -> str:
        """A digest of everything that the result on this network depends on."""
        arguments = canonical(self.arguments)
        return Digest(FORMAT, network, self.function, self.layers, self.on, self.examples, arguments).hex

    def _check_arguments(self) -> None:
        known = {*inspect.signature(getattr(sd, self.function)).parameters} - {*_OWN}
        forbidden = {*_OWN} & {*self.arguments}
        if forbidden:
            raise ValueError(f"measure {self.name!r}: {', '.join(sorted(forbidden))} are the sweep's own")
        for name in sorted({*self.arguments} - known):
            close = get_close_matches(name, sorted(known | {"examples", "on"}), n=3)
            hint = f"close: {', '.join(close)}" if close else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"measure {self.name!r}: {self.function} has no argument {name!r}; {hint}")
        for name, value in self.arguments.items():
            try:
                Digest(canonical(value))
            except TypeError as error:  # a date, of which there is no digest
                raise ValueError(f"measure {self.name!r}: {name}={value!r} cannot be an argument") from error


def is_file_name(name: str) -> bool:
    """Whether it is one on every system, and cannot lead out of a folder."""
    return bool(name) and name.strip(". ") == name and not re.search(r'[/\\:*?"<>|\x00-\x1f]', name)
