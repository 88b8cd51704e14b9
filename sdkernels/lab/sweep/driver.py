"""What of a sweep is finished, and what is to be done: it alone reads and writes the ledger's items."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sdkernels.engine.digest import Digest
from sdkernels.engine.keeping import Workers
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.models import layer_names
from sdkernels.lab.sweep.condition import Condition
from sdkernels.lab.sweep.data import held_out_data, measured_data, read_data
from sdkernels.lab.sweep.network import Member, Message, Work
from sdkernels.lab.sweep.settings import are_of_one_training
from sdkernels.lab.sweep.spec import Sweep

NETWORK, STATE, CONDITION = "network", "training state", "condition"


class Way(NamedTuple):
    """How what is missing is done.

    Attributes:
        measures: networks are trained and measured, and not trained alone.
        store: the ledger's file, for tiles of measurements; None where others do the work, who may not write it.
        workers: who share each measurement's tiles; None: who measures does it all.
    """

    measures: bool = True
    store: Path | None = None
    workers: Workers | None = None


class Driver:
    """Knows what is finished, and keeps what comes.

    Args:
        ledger: where finished things are.
        sweep: what is asked for.
        data_dir: where data files are.
        device: of the work.

    Attributes:
        keys: of the networks, digests of all that weights and accuracies depend on.
        failed: why the training of networks ended without a result, by their places.

    Raises:
        ValueError: a network that cannot be built, or a measure that cannot be taken of it; says which.
    """

    def __init__(self, ledger: Ledger, sweep: Sweep, data_dir: Path | None, device: str) -> None:
        self._ledger, self._sweep, self._groups = ledger, sweep, sweep.groups
        self._data_dir, self._device = data_dir, device
        self._conditions = {condition.name: condition for condition in sweep.conditions}
        self.keys = self._all_keys()
        self.failed: dict[int, str] = {}
        self._of_others: set[int] = set()  # places of networks that another process has trained meanwhile
        for number, group in enumerate(self._groups):  # killed after the last network was kept, and before this
            if all(self._is_trained(i) for i in group):
                ledger.drop_item(STATE, self._state_key(number))

    @property
    def pieces(self) -> int:
        """Networks, and results."""
        return len(self.keys) * (1 + len(self._conditions))

    def finished(self) -> int:
        """How many of them are in the ledger."""
        return sum(self._is_trained(i) + len(self._conditions) - len(self._open(i)) for i in range(len(self.keys)))

    def missing(self, way: Way) -> Iterator[tuple[int, Callable[[], Work]]]:
        """The groups of networks of which something is not finished, when they are about to be begun."""
        for number, group in enumerate(self._groups):
            if any(i not in self.failed and (not self._is_trained(i) or self._asked(i, way)) for i in group):
                yield number, partial(self._work, number, way)

    def keep(self, number: int, message: Message) -> None:
        """Put a group's message into the ledger. What is there stays as it is: results belong to those weights."""
        place, key = message.place, self.keys[message.place]
        if message.what == "failure":
            self.failed[place] = message.record["error"]
        elif message.what == "state":
            self._ledger.keep_item(STATE, self._state_key(number), message.record, message.content)
        elif message.what == "network":
            kept = self._ledger.item(NETWORK, key)
            if kept is None:
                self._ledger.keep_item(NETWORK, key, message.record, message.content)
            elif kept.content != message.content:
                self._of_others.add(place)
            if all(self._is_trained(i) for i in self._groups[number]):
                self._ledger.drop_item(STATE, self._state_key(number))
        elif place not in self._of_others:  # else it is measured again, on the weights that are kept
            self._keep_condition(self._conditions[message.name], message)

    def _keep_condition(self, condition: Condition, message: Message) -> None:
        network = self.keys[message.place]
        about = {
            "name": condition.name,
            "function": condition.function,
            "layers": list(condition.layers),
            "on": condition.on,
            "network": network,
            "settings": self._sweep.networks[message.place].record(),
            **message.record,
        }
        if not self._ledger.has_item(CONDITION, condition.key(network)):
            self._ledger.keep_item(CONDITION, condition.key(network), about, message.content)

    def _is_trained(self, place: int) -> bool:
        return self._ledger.has_item(NETWORK, self.keys[place])

    def _open(self, place: int) -> tuple[Condition, ...]:
        key = self.keys[place]
        return tuple(c for c in self._conditions.values() if not self._ledger.has_item(CONDITION, c.key(key)))

    def _state_key(self, number: int) -> str:
        return Digest(STATE, [self.keys[i] for i in self._groups[number]]).hex

    def _asked(self, place: int, way: Way) -> tuple[Condition, ...]:
        return self._open(place) if way.measures else ()

    def _work(self, number: int, way: Way) -> Work:
        members = []
        for place in self._groups[number]:
            self._of_others.discard(place)
            network = self._ledger.item(NETWORK, self.keys[place])
            content = None if network is None else network.content
            members.append(Member(place, self._sweep.networks[place], self._asked(place, way), content))
        state = self._ledger.item(STATE, self._state_key(number))
        return Work(
            tuple(members),
            self._data_dir,
            self._sweep.checkpoint_seconds,
            None if state is None else state.content,
            {} if state is None else state.description,
            way.store,
            self._device,
            way.workers,
        )

    def _all_keys(self) -> tuple[str, ...]:
        found: dict[int, str] = {}
        for group in self._groups:
            alone = [self._key(place) for place in group]
            one = are_of_one_training([self._sweep.networks[place] for place in group])
            found |= zip(group, alone if one else [Digest(key, alone).hex for key in alone], strict=True)
        return tuple(found[place] for place in range(len(found)))

    def _key(self, place: int) -> str:
        """Of a network that is trained by itself; all that is wrong with it, or its measures, shows before any work."""
        settings = self._sweep.networks[place]
        data, held_out = read_data(settings, self._data_dir), held_out_data(settings, self._data_dir)
        try:
            model = settings.build(data)
        except ValueError as error:
            raise ValueError(f"network {place} ({self._sweep.label(place)}): {error}") from error
        for condition in self._conditions.values():
            try:
                measured_data(settings, condition.on, condition.examples, self._data_dir)
                layer_names(model, condition.layers)
            except ValueError as error:
                raise ValueError(f"measure {condition.name!r} of network {place}: {error}") from error
        test, validation = held_out.get("test"), held_out.get("validation")
        others = ["" if test is None else test.sha256, *([] if validation is None else [validation.sha256])]
        return settings.key(model, data.sha256, *others)
