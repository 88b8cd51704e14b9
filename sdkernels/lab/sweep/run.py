"""Runs a sweep: what is in the ledger is finished; the rest is done here or by workers, and kept as it comes."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import nn
from tqdm.auto import tqdm

from sdkernels.analysis.scored import Scored
from sdkernels.engine.digest import Digest
from sdkernels.engine.keeping import Workers
from sdkernels.engine.ledger import Item, Ledger
from sdkernels.lab.sweep.data import test_data, true_data
from sdkernels.lab.sweep.network import Member, Message, Work, from_bytes, work_on
from sdkernels.lab.sweep.spec import Condition, NetworkSettings, Sweep

NETWORK, STATE, CONDITION = "network", "training state", "condition"


class Here:
    """This process as the only worker."""

    count = 1

    def run(
        self, start: Callable[[], Callable[[Any], Iterator[Any]]], tasks: Iterable[tuple[Hashable, Callable[[], Any]]]
    ) -> Iterator[tuple[Hashable, Any]]:
        """Do tasks one after the other."""
        do = start()
        for name, argument in tasks:
            for message in do(argument()):
                yield name, message


@dataclass(frozen=True)
class Networks:
    """A sweep's finished networks and results, read from the ledger as they are asked for.

    Attributes:
        sweep: what was run.
        store: the ledger.
        keys: of the networks, in the sweep's order.
        data_dir: where data files are.
    """

    sweep: Sweep
    store: Path
    keys: tuple[str, ...]
    data_dir: Path | None

    def __len__(self) -> int:
        return len(self.keys)

    def record(self, index: int) -> dict[str, Any]:
        """How a network's training ended: accuracies, losses, its history."""
        return self._item(NETWORK, self.keys[index]).description

    def model(self, index: int) -> nn.Module:
        """A trained network, in evaluation mode."""
        settings = self.sweep.networks[index]
        model = settings.build(true_data(settings, self.data_dir))
        model.load_state_dict(load(self._item(NETWORK, self.keys[index]).content))
        return model.eval()

    def result(self, index: int, condition: str) -> Scored:
        """What a network's measurement gave."""
        (chosen,) = (c for c in self.sweep.conditions if c.name == condition)
        return from_bytes(chosen.function, self._item(CONDITION, chosen.key(self.keys[index])).content)

    def summary(self, index: int, condition: str) -> dict[str, float]:
        """A few numbers of it."""
        (chosen,) = (c for c in self.sweep.conditions if c.name == condition)
        found: dict[str, float] = self._item(CONDITION, chosen.key(self.keys[index])).description["summary"]
        return found

    def _item(self, kind: str, key: str) -> Item:
        with Ledger(self.store, must_exist=True) as ledger:
            item = ledger.item(kind, key)
        if item is None:
            raise KeyError(f"{self.store}: {kind} {key[:12]} is not there; run the sweep again")
        return item


def run_sweep(
    sweep: Sweep,
    store: str | Path,
    *,
    data_dir: str | Path | None = None,
    workers: Workers | None = None,
    device: str = "auto",
    show_progress: bool = False,
) -> Networks:
    """Train every network and measure it under every condition, unless the ledger has it.

    A network that is finished is never trained again, whichever sweep asks for it. A sweep that was killed, at any
    moment, goes on from the last training state or finished tile, and ends with the same numbers.

    Args:
        sweep: what to run.
        store: the ledger, an SQLite file; made if it is not there.
        data_dir: where data files are, on every machine that works.
        workers: processes that share the networks, as :class:`sdkernels.lab.cluster.RayWorkers`; None: this one.
        device: ``"auto"``: CUDA where a worker has it; or ``"cpu"``, ``"cuda"``.
        show_progress: a bar over networks and conditions, with the time left.

    Raises:
        ValueError: data, options or layers that there are not.
        LedgerError: a ledger that cannot be read or written.

    Example:
        >>> import tempfile
        >>> from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, run_sweep
        >>> from sdkernels.lab.training import TrainingOptions
        >>> options = TrainingOptions(epochs=2)
        >>> networks = [NetworkSettings("digits", "mlp", {"hidden": [16]}, options, seed=s) for s in (0, 1)]
        >>> ablation = Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 2, "points": 5})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = run_sweep(Sweep(tuple(networks), (ablation,)), Path(folder) / "sweep.sdk")
        ...     len(done), done.result(1, "ablation").correct.shape
        (2, torch.Size([2, 5]))
    """
    path, folder = Path(store), None if data_dir is None else Path(data_dir)
    everyone = Here() if workers is None else workers
    with Ledger(path) as ledger:
        keys = _keys(sweep, folder)
        here = path.resolve() if workers is None else None
        driver = _Driver(ledger, sweep, keys, folder, here, device)
        with tqdm(
            total=driver.pieces,
            initial=driver.finished(),
            desc=sweep.name,
            unit="piece",
            disable=not show_progress,
        ) as bar:
            for name, message in everyone.run(_Start(), driver.missing()):
                driver.keep(int(str(name)), message)
                if message.what != "state":
                    bar.update()
                if message.record.get("history"):
                    bar.set_postfix(network=message.place, epoch=len(message.record["history"]), refresh=False)
    return Networks(sweep, path, keys, folder)


class _Start:
    """What a worker is sent: nothing is prepared once for all networks, but their data, which it keeps."""

    def __call__(self) -> Callable[[Work], Iterator[Message]]:
        return work_on


def _keys(sweep: Sweep, data_dir: Path | None) -> tuple[str, ...]:
    """Of each network, a digest of all that its weights and accuracies depend on."""
    found: list[str] = []
    for group in sweep.groups:
        alone = [_key(sweep.networks[index], data_dir) for index in group]
        found += alone if len(group) == 1 else [Digest(key, alone).hex for key in alone]
    return tuple(found)


def _key(settings: NetworkSettings, data_dir: Path | None) -> str:
    data, held_out = true_data(settings, data_dir), test_data(settings, data_dir)
    return settings.key(settings.build(data), data.sha256, "" if held_out is None else held_out.sha256)


class _Driver:
    """Knows what is finished, and keeps what comes; ``store`` is None where others may not write it."""

    def __init__(
        self,
        ledger: Ledger,
        sweep: Sweep,
        keys: tuple[str, ...],
        data_dir: Path | None,
        store: Path | None,
        device: str,
    ) -> None:
        self._ledger, self._sweep, self._keys = ledger, sweep, keys
        self._data_dir, self._store, self._device = data_dir, store, device

    @property
    def pieces(self) -> int:
        """Networks, and results."""
        return len(self._keys) * (1 + len(self._sweep.conditions))

    def finished(self) -> int:
        """How many of them are in the ledger."""
        return self.pieces - sum(len(self._open(key)) + (not self._is_trained(key)) for key in self._keys)

    def missing(self) -> Iterator[tuple[int, Callable[[], Work]]]:
        """The groups of networks of which something is not finished, when they are about to be begun."""
        for number, group in enumerate(self._sweep.groups):
            if any(not self._is_trained(self._keys[i]) or self._open(self._keys[i]) for i in group):
                yield number, partial(self._work, number)

    def keep(self, number: int, message: Message) -> None:
        """Put a group's message into the ledger."""
        key, settings = self._keys[message.place], self._sweep.networks[message.place]
        if message.what == "state":
            self._ledger.keep_item(STATE, self._state_key(number), message.record, message.content)
        elif message.what == "network":
            self._ledger.keep_item(NETWORK, key, message.record, message.content)
            if all(self._is_trained(self._keys[i]) for i in self._sweep.groups[number]):
                self._ledger.drop_item(STATE, self._state_key(number))
        else:
            (condition,) = (c for c in self._sweep.conditions if c.name == message.name)
            about = {
                "name": condition.name,
                "function": condition.function,
                "layers": list(condition.layers),
                "on": condition.on,
                "network": key,
                "settings": settings.record(),
                "summary": message.record,
            }
            self._ledger.keep_item(CONDITION, condition.key(key), about, message.content)

    def _is_trained(self, key: str) -> bool:
        return self._ledger.has_item(NETWORK, key)

    def _open(self, key: str) -> tuple[Condition, ...]:
        return tuple(c for c in self._sweep.conditions if not self._ledger.has_item(CONDITION, c.key(key)))

    def _state_key(self, number: int) -> str:
        keys = [self._keys[i] for i in self._sweep.groups[number]]
        return keys[0] if len(keys) == 1 else Digest(keys).hex

    def _work(self, number: int) -> Work:
        members = []
        for index in self._sweep.groups[number]:
            key = self._keys[index]
            network = self._ledger.item(NETWORK, key)
            content = None if network is None else network.content
            members.append(Member(index, self._sweep.networks[index], self._open(key), content))
        state = self._ledger.item(STATE, self._state_key(number))
        return Work(
            tuple(members),
            self._data_dir,
            self._sweep.checkpoint_seconds,
            None if state is None else state.content,
            {} if state is None else state.description,
            self._store,
            self._device,
        )
