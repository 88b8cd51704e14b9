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
from sdkernels.engine.keeping import Workers
from sdkernels.engine.ledger import Item, Ledger
from sdkernels.lab.sweep.data import test_data, training_data, untouched
from sdkernels.lab.sweep.network import Message, Work, from_bytes, work_on
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
        model = settings.build(untouched(settings, self.data_dir, settings.split))
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
        keys = tuple(_key(settings, folder) for settings in sweep.networks)
        here = path.resolve() if workers is None else None
        driver = _Driver(ledger, sweep, folder, here, device, keys)
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
                    bar.set_postfix(network=int(str(name)), epoch=len(message.record["history"]), refresh=False)
    return Networks(sweep, path, keys, folder)


class _Start:
    """What a worker is sent: nothing is prepared once for all networks, but their data, which it keeps."""

    def __call__(self) -> Callable[[Work], Iterator[Message]]:
        return work_on


def _key(settings: NetworkSettings, data_dir: Path | None) -> str:
    """Of all that a network's weights and accuracies depend on."""
    data, held_out = training_data(settings, data_dir), test_data(settings, data_dir)
    return settings.key(settings.build(data), data.sha256, "" if held_out is None else held_out.sha256)


class _Driver:
    """Knows what is finished, and keeps what comes; ``store`` is None where others may not write it."""

    def __init__(
        self,
        ledger: Ledger,
        sweep: Sweep,
        data_dir: Path | None,
        store: Path | None,
        device: str,
        keys: tuple[str, ...],
    ) -> None:
        self._ledger, self._sweep, self._data_dir, self._store = ledger, sweep, data_dir, store
        self._device, self._keys = device, keys

    @property
    def pieces(self) -> int:
        """Networks, and results."""
        return len(self._keys) * (1 + len(self._sweep.conditions))

    def finished(self) -> int:
        """How many of them are in the ledger."""
        trained = sum(self._ledger.has_item(NETWORK, key) for key in self._keys)
        return trained + self.pieces - len(self._keys) - sum(len(self._open(key)) for key in self._keys)

    def missing(self) -> Iterator[tuple[int, Callable[[], Work]]]:
        """The networks of which something is not finished, when they are about to be begun."""
        for index, key in enumerate(self._keys):
            if not self._ledger.has_item(NETWORK, key) or self._open(key):
                yield index, partial(self._work, index)

    def keep(self, index: int, message: Message) -> None:
        """Put a message into the ledger."""
        key, settings = self._keys[index], self._sweep.networks[index]
        if message.what == "state":
            self._ledger.keep_item(STATE, key, message.record, message.content)
        elif message.what == "network":
            self._ledger.keep_item(NETWORK, key, message.record, message.content)
            self._ledger.drop_item(STATE, key)
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

    def _open(self, key: str) -> tuple[Condition, ...]:
        return tuple(c for c in self._sweep.conditions if not self._ledger.has_item(CONDITION, c.key(key)))

    def _work(self, index: int) -> Work:
        key = self._keys[index]
        state, network = self._ledger.item(STATE, key), self._ledger.item(NETWORK, key)
        return Work(
            self._sweep.networks[index],
            self._open(key),
            self._data_dir,
            self._sweep.checkpoint_seconds,
            None if state is None else state.content,
            None if network is None else network.content,
            self._store,
            self._device,
            {} if state is None else state.description,
        )
