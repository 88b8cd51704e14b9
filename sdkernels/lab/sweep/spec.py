"""What a sweep is: networks, by their settings, times the conditions under which each is measured."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from sdkernels.engine.digest import Digest
from sdkernels.lab import models
from sdkernels.lab.datasets import NAMES
from sdkernels.lab.labelled import LabelledData
from sdkernels.lab.training import TrainingOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Of the keys; goes up when the same settings would mean something else.
FORMAT = 1

_FUNCTIONS = ("cumulative_ablation", "unit_importance", "noise_robustness")


@dataclass(frozen=True)
class NetworkSettings:
    """One network: everything that its weights depend on, but for the bytes of the data.

    Attributes:
        data: a data set's name; ``examples`` of its ``split``, the first so many, or all.
        standardise: every channel to mean 0 and standard deviation 1, by the training examples' statistics.
        corruption: the fraction of training labels that are permuted among themselves.
        corruption_seed: of that; None: one made from ``seed``. Networks that memorise the same labels share it.
        model: ``"mlp"``, ``"convnet"``, ``"resnet18"`` or ``"resnet50"``.
        options: what the model's function of ``sdkernels.lab.models`` takes beside the data's shapes and the seed.
        training: how.
        seed: of initialisation and shuffling, each by a seed of its own made from it.

    Raises:
        ValueError: a name or value that there is not.

    Example:
        >>> from sdkernels.lab.datasets import load
        >>> settings = NetworkSettings("digits", "mlp", {"hidden": [32, 32]}, TrainingOptions(epochs=1), corruption=0.5)
        >>> settings.build(load("digits"))[0]
        Linear(in_features=64, out_features=32, bias=True)
    """

    data: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(epochs=1))
    split: str = "train"
    examples: int | None = None
    standardise: bool = False
    corruption: float = 0.0
    corruption_seed: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("data", NAMES), ("split", ("train", "all")), ("model", tuple(_BUILDERS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if not (isinstance(self.corruption, (int, float)) and 0 <= self.corruption <= 1):
            raise ValueError(f"corruption={self.corruption!r} must be a number in 0..1")
        for name in ("seed", "corruption_seed", "examples"):
            value = getattr(self, name)
            optional = name != "seed" and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < (name == "examples")):
                raise ValueError(f"{name}={value!r} must be a whole number, at least {int(name == 'examples')}")

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "training": self.training.record(), "options": dict(self.options)}

    def key(self, untrained: nn.Module, *data_sha256: str) -> str:
        """A digest of everything that weights and accuracies depend on, the network as it was built among it."""
        return Digest(FORMAT, self.record(), untrained, data_sha256).hex

    def build(self, data: LabelledData) -> nn.Module:
        """The network, not yet trained, for this data.

        Raises:
            ValueError: an option that the model does not have.
        """
        from sdkernels.lab.seeds import seed_for

        try:
            return _BUILDERS[self.model](data, seed_for("initialisation", self.seed), **self.options)
        except TypeError as error:
            raise ValueError(f"model {self.model!r} with options {dict(self.options)}: {error}") from error


@dataclass(frozen=True)
class Condition:
    """How every network is measured: a function of the package and its arguments.

    Attributes:
        name: of the table's columns and of the condition's own table.
        function: ``"cumulative_ablation"``, ``"unit_importance"`` or ``"noise_robustness"``.
        layers: as people name them (``"hidden1"``, ``"conv9"``, ``"block3.2"``), or modules' names.
        on: ``"train"``, with the labels that the network was trained on, or ``"test"``.
        examples: the first so many of them, or all.
        arguments: further keyword arguments of the function, as ``orders``, ``points``, ``scales``, ``seed``.
    """

    name: str
    function: str
    layers: Sequence[str]
    on: str = "train"
    examples: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.function not in _FUNCTIONS:
            raise ValueError(
                f"measure {self.name!r}: function={self.function!r}: choose one of {', '.join(_FUNCTIONS)}"
            )
        if self.on not in ("train", "test"):
            raise ValueError(f"measure {self.name!r}: on={self.on!r}: choose 'train' or 'test'")
        if isinstance(self.layers, str) or not self.layers:
            raise ValueError(f"measure {self.name!r}: layers={self.layers!r} must be a list of names")
        object.__setattr__(self, "layers", tuple(self.layers))
        forbidden = {"store", "workers", "show_progress", "model", "data"} & {*self.arguments}
        if forbidden:
            raise ValueError(f"measure {self.name!r}: {', '.join(sorted(forbidden))} are the sweep's own")

    def key(self, network: str) -> str:
        """A digest of everything that the result on this network depends on."""
        return Digest(FORMAT, network, self.function, self.layers, self.on, self.examples, dict(self.arguments)).hex


@dataclass(frozen=True)
class Sweep:
    """Networks times conditions.

    Attributes:
        networks: each is trained once.
        conditions: each is measured on every network.
        name: for people.
        together: so many MLPs are trained side by side (:mod:`sdkernels.lab.ensemble`), several times sooner, with the
            same numbers but for rounding: those that follow one another and differ in seed, learning rate, weight
            decay and corruption alone. A network trained so is not taken for one that was trained by itself.
        checkpoint_seconds: at least so far apart are the states from which a killed training goes on; 0: every step.
    """

    networks: tuple[NetworkSettings, ...]
    conditions: tuple[Condition, ...] = ()
    name: str = "sweep"
    checkpoint_seconds: float = 10.0
    together: int = 1

    def __post_init__(self) -> None:
        if not self.networks:
            raise ValueError("a sweep needs at least one network")
        if isinstance(self.together, bool) or not isinstance(self.together, int) or self.together < 1:
            raise ValueError(f"together={self.together!r} must be a whole number of networks, at least 1")
        names = [condition.name for condition in self.conditions]
        if len({*names}) < len(names):
            raise ValueError(f"two measures have one name: {names}")

    @property
    def groups(self) -> list[list[int]]:
        """The networks that are trained together, by their places."""
        found: list[list[int]] = []
        for index, settings in enumerate(self.networks):
            last = found[-1] if found else []
            if last and len(last) < self.together and _go_together(self.networks[last[0]], settings):
                last.append(index)
            else:
                found.append([index])
        return found

    @property
    def varying(self) -> list[str]:
        """The settings that differ between networks; the table's first columns."""
        records = [flat(network) for network in self.networks]
        return [name for name in dict.fromkeys(key for r in records for key in r) if _differs(records, name)]


def flat(network: NetworkSettings) -> dict[str, Any]:
    """A network's settings without folders: options and training options stand beside the others."""
    record = network.record()
    return {**record.pop("options"), **record.pop("training"), **record}


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep from a TOML file.

    ``[network]`` has the settings that all networks share (data, model, its options, seed, ...), ``[training]`` their
    :class:`~sdkernels.lab.training.TrainingOptions`, ``[grid]`` a list for each setting of either that varies: all
    combinations are trained, the last setting varying fastest. Each ``[[measure]]`` is a :class:`Condition`; what it
    does not know goes to the function. ``name``, ``checkpoint_seconds`` and ``together``
    stand at the top.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, or says what there is not; names the file and the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give a sweep's TOML file")
    try:
        with path.open("rb") as file:
            return parse_sweep(tomllib.load(file), path.stem)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_sweep(text: Mapping[str, Any], name: str) -> Sweep:
    """A sweep from TOML's tables."""
    unknown = {*text} - {"network", "training", "grid", "measure", "name", "checkpoint_seconds", "together"}
    if unknown:
        raise ValueError(f"there is no entry {', '.join(sorted(unknown))}; there are network, training, grid, measure")
    grid = text.get("grid", {})
    for setting, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {setting}={values!r} must be a list of values")
    networks = []
    for combination in product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        training = {f.name for f in fields(TrainingOptions)}
        networks.append(
            _network(
                {**text.get("network", {}), **{k: v for k, v in chosen.items() if k not in training}},
                {**text.get("training", {}), **{k: v for k, v in chosen.items() if k in training}},
            )
        )
    seconds = text.get("checkpoint_seconds", 10.0)
    conditions = tuple(_condition(measure) for measure in text.get("measure", []))
    return Sweep(tuple(networks), conditions, text.get("name", name), float(seconds), text.get("together", 1))


def _network(settings: Mapping[str, Any], training: Mapping[str, Any]) -> NetworkSettings:
    own = {f.name for f in fields(NetworkSettings)} - {"options", "training"}
    for needed in ("data", "model"):
        if needed not in settings:
            raise ValueError(f"network: there is no {needed}")
    options = {k: v for k, v in settings.items() if k not in own}
    return NetworkSettings(
        **{k: v for k, v in settings.items() if k in own},
        options=options,
        training=TrainingOptions.from_record(training),
    )


def _condition(measure: Mapping[str, Any]) -> Condition:
    own = {f.name for f in fields(Condition)} - {"arguments"}
    for needed in ("name", "function", "layers"):
        if needed not in measure:
            raise ValueError(f"measure: there is no {needed} in {dict(measure)}")
    arguments = {k: v for k, v in measure.items() if k not in own}
    return Condition(**{k: v for k, v in measure.items() if k in own}, arguments=arguments)


def _go_together(one: NetworkSettings, other: NetworkSettings) -> bool:
    alike = replace(one.training, learning_rate=other.training.learning_rate, weight_decay=other.training.weight_decay)
    same = replace(other, seed=one.seed, corruption=one.corruption, corruption_seed=one.corruption_seed)
    return one.model == "mlp" and replace(one, training=alike) == same


def _differs(records: list[dict[str, Any]], name: str) -> bool:
    return any(record.get(name) != records[0].get(name) for record in records)


def _mlp(data: LabelledData, seed: int, *, hidden: list[int]) -> nn.Module:
    return models.mlp(data.flattened().inputs.shape[1], hidden, data.classes, seed)


def _convnet(data: LabelledData, seed: int, **options: Any) -> nn.Module:
    channels, height, _ = data.shape
    return models.convnet(classes=data.classes, in_channels=channels, image_size=height, seed=seed, **options)


def _resnet18(data: LabelledData, seed: int, **options: Any) -> nn.Module:
    return models.resnet18(classes=data.classes, in_channels=data.shape[0], seed=seed, **options)


def _resnet50(data: LabelledData, seed: int, **options: Any) -> nn.Module:
    return models.resnet50(classes=data.classes, in_channels=data.shape[0], seed=seed, **options)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "resnet18": _resnet18,
    "resnet50": _resnet50,
}
