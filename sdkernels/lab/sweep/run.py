"""Runs a sweep: what is in the ledger is finished; the rest is done here or by workers, and kept as it comes."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor, nn

from sdkernels.engine.keeping import Workers
from sdkernels.engine.ledger import Item, Ledger
from sdkernels.engine.stopping import heed, is_asked
from sdkernels.lab.sweep.condition import Condition
from sdkernels.lab.sweep.data import held_out_data, read_data, true_data
from sdkernels.lab.sweep.driver import CONDITION, NETWORK, Driver, Way
from sdkernels.lab.sweep.network import LABELS, Message, Work, weights_of, work_on
from sdkernels.lab.sweep.progress import Progress
from sdkernels.lab.sweep.results import Result, from_bytes
from sdkernels.lab.sweep.settings import are_of_one_training
from sdkernels.lab.sweep.spec import Sweep
from sdkernels.lab.tokens import TokenData


class Here:
    """This process as the only worker."""

    count = 1
    sharing = 1

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
        failed: why the training of some networks ended without a result, by their places; those have nothing else.
    """

    sweep: Sweep
    store: Path
    keys: tuple[str, ...]
    data_dir: Path | None
    failed: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def record(self, index: int) -> dict[str, Any]:
        """How a network's training ended: accuracies, losses, its history."""
        return self._item(NETWORK, self.keys[index]).description

    def model(self, index: int) -> nn.Module:
        """A trained network, in evaluation mode."""
        settings = self.sweep.networks[index]
        model = settings.build(read_data(settings, self.data_dir))
        model.load_state_dict(weights_of(self._item(NETWORK, self.keys[index]).content))
        return model.eval()

    def labels(self, index: int) -> Tensor:
        """The labels that a network was trained on, int64 [N]: where some were corrupted, as they were kept with it."""
        kept = load(self._item(NETWORK, self.keys[index]).content).get(LABELS)
        return true_data(self.sweep.networks[index], self.data_dir).labels if kept is None else kept

    def text(self, index: int, part: str = "test") -> TokenData:
        """A text in the numbers that a language model knows its words by.

        Args:
            index: of the network.
            part: ``"test"``, ``"validation"``, or the part that it was trained on, of which it has what was trained on.

        Raises:
            ValueError: a classifier, or a text that is not there.
        """
        settings = self.sweep.networks[index]
        data = {settings.split: read_data(settings, self.data_dir), **held_out_data(settings, self.data_dir)}
        texts = {name: own for name, own in data.items() if isinstance(own, TokenData)}
        if part not in texts:
            raise ValueError(
                f"network {index}, {settings.model} on {settings.data}, has no {part} text; it has "
                f"{', '.join(texts) or 'none'}"
            )
        return texts[part]

    def result(self, index: int, condition: str) -> Result:
        """What a network's measurement gave."""
        chosen = self._condition(condition)
        found: Result = from_bytes(chosen.function, self._item(CONDITION, chosen.key(self.keys[index])).content)
        return found

    def summary(self, index: int, condition: str) -> dict[str, float]:
        """A few numbers of it."""
        chosen = self._condition(condition)
        found: dict[str, float] = self._item(CONDITION, chosen.key(self.keys[index])).description["summary"]
        return found

    def seconds(self) -> float:
        """What training, evaluating and measuring all this took, wherever and whenever it was done.

        A training counts once, however many of its networks there are; each of them is evaluated. Of a measurement that
        was killed, what came after it was begun again counts alone; of a training that has diverged, nothing does.
        """
        with Ledger(self.store, must_exist=True) as ledger:
            about = {
                kind: {item.key: item.description for item in ledger.items_without_content(kind)}
                for kind in (NETWORK, CONDITION)
            }

        def took(kind: str, key: str, what: str = "seconds") -> float:
            return float(about[kind].get(key, {}).get(what, 0.0))

        parts = [took(NETWORK, key, "evaluation_seconds") for key in self.keys]
        for group in self.sweep.groups:
            found = [took(NETWORK, self.keys[i]) for i in group]
            one = are_of_one_training([self.sweep.networks[i] for i in group])
            parts.append(max(found) if one else sum(found))
        measured = {condition.key(key) for key in self.keys for condition in self.sweep.conditions}
        return math.fsum([*parts, *(took(CONDITION, key) for key in measured)])

    def _condition(self, name: str) -> Condition:
        for condition in self.sweep.conditions:
            if condition.name == name:
                return condition
        raise ValueError(f"there is no measure {name!r}; there are {[c.name for c in self.sweep.conditions]}")

    def _item(self, kind: str, key: str) -> Item:
        with Ledger(self.store, must_exist=True) as ledger:
            item = ledger.item(kind, key)
        if item is None:
            place = self.keys.index(key) if key in self.keys else -1
            why = self.failed.get(place, "run the sweep again")
            raise LookupError(f"{self.store}: {kind} {key[:12]} is not there: {why}")
        return item


class NetworksFailedError(RuntimeError):
    """The training of some networks has diverged; all else that could be done is done and kept.

    Attributes:
        networks: what there is.
    """

    def __init__(self, networks: Networks) -> None:
        failed = [f"network {i} ({networks.sweep.label(i)}): {why}" for i, why in sorted(networks.failed.items())]
        rest = len(networks) - len(failed)
        super().__init__("; ".join(failed) + f". The other {rest} of {len(networks)} networks are finished and kept")
        self.networks = networks


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
    moment, goes on from the last training state or finished tile, and ends with the same numbers. What a sweep asks for
    and cannot be (options, layers, measures, examples) shows before anything is trained.

    Args:
        sweep: what to run.
        store: the ledger, an SQLite file; made if it is not there.
        data_dir: where data files are, on every machine that works.
        workers: processes that share the networks, as :class:`sdkernels.lab.cluster.RayWorkers`, or, where there are
            fewer networks than workers, each measurement's tiles; None: this one does it all.
        device: ``"auto"``: CUDA where a worker has it; or ``"cpu"``, ``"cuda"``.
        show_progress: a bar over networks and conditions, with the time left.

    Raises:
        ValueError: data, options or layers that there are not; names the network and the measure.
        NetworksFailedError: the training of some networks has diverged, and the others are done.
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
    with Ledger(path) as ledger:
        driver = Driver(ledger, sweep, folder, device)
        with Progress(sweep, driver.pieces, driver.finished(), show_progress) as progress:

            def finish(everyone: Workers, way: Way) -> None:
                while any(True for _ in driver.missing(way)):  # again, where another process has trained one meanwhile
                    for name, message in everyone.run(_Start(), driver.missing(way)):
                        driver.keep(int(str(name)), message)
                        progress.see(int(str(name)), message)
                        if is_asked():
                            done = f"{driver.finished()} of {driver.pieces} networks and results"
                            heed(f"{done}, and the state of what was being trained, are kept in {path}")

            if workers is None:
                finish(Here(), Way(store=path.resolve()))
            elif len(sweep.groups) >= workers.count:
                finish(workers, Way())
            else:  # too few to keep all workers busy: they share the tiles of each measurement
                finish(workers, Way(measures=False))
                finish(Here(), Way(store=path.resolve(), workers=workers))
    done = Networks(sweep, path, driver.keys, folder, driver.failed)
    if done.failed:
        raise NetworksFailedError(done)
    return done


class _Start:
    """What a worker is sent: nothing is prepared once for all networks, but their data, which it keeps."""

    def __call__(self) -> Callable[[Work], Iterator[Message]]:
        return work_on
