"""What a sweep is: networks, by their settings, times the conditions under which each is measured."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from sdkernels.lab.sweep.condition import Condition, is_file_name
from sdkernels.lab.sweep.settings import NetworkSettings, flat, is_whole
from sdkernels.lab.training import TrainingOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_NETWORKS = 100_000  # a grid is written out before anything is trained
_TABLES = ("network", "training", "grid")
_AT_THE_TOP = ("name", "checkpoint_seconds", "together")


@dataclass(frozen=True)
class Sweep:
    """Networks times conditions.

    Attributes:
        networks: each is trained once; those that differ in ``until`` alone are one training at several moments.
        conditions: each is measured on every network.
        name: for people; by default its tables' folder is called so.
        together: so many MLPs are trained side by side (:mod:`sdkernels.lab.ensemble`), several times sooner, with the
            same numbers but for rounding: those without dropout that follow one another and differ in seed, learning
            rate, weight decay and corruption alone. A network trained so is not taken for one that was trained by
            itself.
        checkpoint_seconds: at least so far apart are the states from which a killed training goes on; 0: every step, or
            every epoch of networks that are trained together.

    Raises:
        ValueError: two networks or measures that are the same, or a value that cannot be.
    """

    networks: tuple[NetworkSettings, ...]
    conditions: tuple[Condition, ...] = ()
    name: str = "sweep"
    checkpoint_seconds: float = 10.0
    together: int = 1

    def __post_init__(self) -> None:
        if not self.networks:
            raise ValueError("a sweep needs at least one network")
        if not isinstance(self.name, str) or not is_file_name(self.name):
            raise ValueError(f"name={self.name!r} names a folder: it cannot be empty or have slashes in it")
        if not is_whole(self.together, at_least=1):
            raise ValueError(f"together={self.together!r} must be a whole number of networks, at least 1")
        texts = [place for place, network in enumerate(self.networks) if network.is_text]
        if self.together > 1 and texts:
            raise ValueError(
                f"together={self.together} is of MLPs side by side; network {texts[0]}, {self.label(texts[0])}, is "
                "a language model, which is trained by itself: leave together out"
            )
        seconds = self.checkpoint_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise ValueError(f"checkpoint_seconds={seconds!r} must be a number, at least 0")
        names = [condition.name.lower() for condition in self.conditions]
        if len({*names}) < len(names):
            raise ValueError(f"two measures have one name: {', '.join(names)}")
        places: dict[str, int] = {}
        for place, network in enumerate(self.networks):
            same = places.setdefault(json.dumps(network.identity()), place)
            if same != place:
                raise ValueError(f"networks {same} and {place} are the same: {self.label(place)}")

    def label(self, index: int) -> str:
        """A network in words: what tells it from the others."""
        settings = flat(self.networks[index])
        return ", ".join(f"{name} {settings.get(name)}" for name in self.varying or ["data", "model", "seed"])

    @property
    def groups(self) -> list[list[int]]:
        """The networks that are trained together, by their places.

        Those of one training, which differ in ``until`` alone, are a group wherever they stand, and that training is
        run by itself; the others are side by side with those before them.
        """
        moments: dict[str, list[int]] = {}
        for index, settings in enumerate(self.networks):
            moments.setdefault(json.dumps(settings.training_run()), []).append(index)
        of_one = {group[0]: group for group in moments.values() if self._are_moments(group)}
        later = {index for group in of_one.values() for index in group[1:]}
        found: list[list[int]] = []
        beside: list[int] = []  # the group that the next network may join
        for index, settings in enumerate(self.networks):
            if index in later:
                beside = []
            elif index in of_one:
                found.append(of_one[index])
                beside = []
            elif beside and len(beside) < self.together and _go_together(self.networks[beside[0]], settings):
                beside.append(index)
            else:
                beside = [index]
                found.append(beside)
        return found

    def _are_moments(self, group: list[int]) -> bool:
        return any(self.networks[index].until is not None for index in group)

    @cached_property
    def varying(self) -> list[str]:
        """The settings that differ between networks; the table's first columns."""
        records = [flat(network) for network in self.networks]
        return [name for name in dict.fromkeys(key for r in records for key in r) if _differs(records, name)]


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep from a TOML file.

    ``[network]`` has the settings that all networks share (data, model, its options, seed, ...), ``[training]`` their
    :class:`~sdkernels.lab.training.TrainingOptions`, ``[grid]`` a list for each setting of either that varies: all
    combinations are trained, the last setting varying fastest. Each ``[[measure]]`` is a :class:`Condition`; what it
    does not know goes to the function. ``name``, ``checkpoint_seconds`` and ``together`` stand at the top.

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
    except RecursionError as error:
        raise ValueError(f"{path}: its lists or tables nest too deep to be read") from error


def parse_sweep(text: Mapping[str, Any], name: str) -> Sweep:
    """A sweep from TOML's tables.

    Raises:
        ValueError: it says what there is not; names the entry.
    """
    entries = (*_TABLES, "measure", *_AT_THE_TOP)
    unknown = sorted({*text} - {*entries})
    if unknown:
        raise ValueError(f"there is no entry {', '.join(unknown)}; there are {', '.join(entries)}")
    for entry in _TABLES:
        if not isinstance(text.get(entry, {}), Mapping):
            raise ValueError(f"{entry}={text[entry]!r} must be a table: write [{entry}], and below it its settings")
    measures = text.get("measure", [])
    if not isinstance(measures, list) or not all(isinstance(measure, Mapping) for measure in measures):
        raise ValueError("measure must be a list of tables: write [[measure]], with two brackets, above each")
    network, training, grid = (text.get(entry, {}) for entry in _TABLES)
    for setting, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {setting}={values!r} must be a list of values, at least one")
        if setting in network or setting in training:
            raise ValueError(f"{setting} stands in grid, and in network or training too; say it once")
    if (count := math.prod(map(len, grid.values()))) > MOST_NETWORKS:
        raise ValueError(f"grid: {count:,} networks are more than {MOST_NETWORKS:,}; give fewer values")
    networks = []
    of_training = {f.name for f in fields(TrainingOptions)}
    for combination in product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        networks.append(
            _network(
                {**network, **{k: v for k, v in chosen.items() if k not in of_training}},
                {**training, **{k: v for k, v in chosen.items() if k in of_training}},
            )
        )
    conditions = tuple(_condition(measure) for measure in measures)
    return Sweep(tuple(networks), conditions, **{"name": name} | {k: text[k] for k in _AT_THE_TOP if k in text})


def _network(settings: Mapping[str, Any], training: Mapping[str, Any]) -> NetworkSettings:
    own = {f.name for f in fields(NetworkSettings)} - {"options", "training"}
    for needed in ("data", "model"):
        if needed not in settings:
            raise ValueError(f"network: there is no {needed}")
    options = {k: v for k, v in settings.items() if k not in own}
    misplaced = sorted({*options} & {f.name for f in fields(TrainingOptions)})
    if misplaced:
        raise ValueError(f"network: {', '.join(misplaced)} stands in [training]")
    return NetworkSettings(
        **{k: v for k, v in settings.items() if k in own},
        options=options,
        training=TrainingOptions.from_record(training),
    )


def _condition(measure: Mapping[str, Any]) -> Condition:
    own = {f.name for f in fields(Condition)} - {"arguments"}
    for needed in ("name", "function", "layers"):
        if needed not in measure:
            raise ValueError(f"measure {measure.get('name', '')!r}: there is no {needed}")
    arguments = {k: v for k, v in measure.items() if k not in own}
    return Condition(**{k: v for k, v in measure.items() if k in own}, arguments=arguments)


def _go_together(one: NetworkSettings, other: NetworkSettings) -> bool:
    """Whether an ensemble can train both; it has no dropout."""
    alike = replace(one.training, learning_rate=other.training.learning_rate, weight_decay=other.training.weight_decay)
    same = replace(other, seed=one.seed, corruption=one.corruption, corruption_seed=one.corruption_seed)
    is_plain = one.model == "mlp" and not one.options.get("dropout")
    return is_plain and replace(one, training=alike) == same


def _differs(records: list[dict[str, Any]], name: str) -> bool:
    return any(record.get(name) != records[0].get(name) for record in records)
