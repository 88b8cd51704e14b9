"""Training of many small perceptrons side by side: the numbers of one after the other, in a fraction of the time."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sdkernels.lab.ensemble.checks import check_data, check_options
from sdkernels.lab.ensemble.optimiser import StackedOptimiser
from sdkernels.lab.ensemble.stacked import StackedMLP
from sdkernels.lab.training import DivergedError, Training, TrainingOptions, evaluate
from sdkernels.lab.training.schedules import learning_rate, total_steps
from sdkernels.lab.training.state import copied, differences, model_identity

# As for one network: a pass over its training set is spent only when its mini-batches were nearly all right.
_WORTH_EVALUATING = 0.98

FORMAT = "sdkernels.ensemble/1"


@dataclass(frozen=True)
class EnsembleMetrics:
    """One epoch of the networks that were still in training.

    Attributes:
        epoch: from 1.
        step: mini-batches since the beginning.
        networks: which networks, by their places among the models.
        loss, accuracy: of each, over its examples as they were trained on.
        learning_rate: of each, in the epoch's last step.
        seconds: what the epoch took, for all together; comparisons leave it out.
    """

    epoch: int
    step: int
    networks: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    learning_rate: tuple[float, ...]
    seconds: float = field(default=0.0, compare=False)


class EnsembleTrainer:
    """M training runs side by side, which can be left after any epoch, saved, and taken up again, bit for bit.

    Each network is trained as :class:`sdkernels.lab.training.Trainer` would train it alone, with its own shuffling,
    labels, learning rate and weight decay; the results differ by rounding. A network that has memorised its labels
    leaves the others and costs nothing more. After every epoch the models hold their networks' weights.

    Args:
        models: M perceptrons ``nn.Sequential(Linear, ReLU, ..., Linear)`` of one architecture, dtype and device;
            trained in place.
        inputs: ``[N, D]`` of the models' dtype, the same for all.
        labels: int64 ``[N]``, or ``[M, N]``, each network's own.
        options: one for all, or M; they may differ in ``learning_rate`` and ``weight_decay`` alone.
        seeds: M seeds of the shuffling.
        drop_diverged: a network whose loss or weights are no longer finite leaves the others, and its result has loss
            nan; otherwise it ends the training of all.

    Raises:
        ValueError: networks, data or options that cannot be trained so; says which.

    Example:
        >>> from sdkernels.lab.datasets import load
        >>> from sdkernels.lab.models import mlp
        >>> digits = load("digits")
        >>> models = [mlp(64, (32, 32), 10, seed=seed) for seed in range(4)]
        >>> options = TrainingOptions(epochs=2, learning_rate=1e-2)
        >>> trainer = EnsembleTrainer(models, digits.inputs, digits.labels, options, seeds=range(4))
        >>> while not trainer.finished:
        ...     metrics = trainer.run_epoch()
        >>> metrics.networks, min(metrics.accuracy) > 0.5
        ((0, 1, 2, 3), True)
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        inputs: Tensor,
        labels: Tensor,
        options: TrainingOptions | Sequence[TrainingOptions],
        *,
        seeds: Sequence[int],
        drop_diverged: bool = False,
    ) -> None:
        self.models, self.seeds, self.drop_diverged = list(models), list(seeds), drop_diverged
        M = len(self.models)
        self.options = [options] * M if isinstance(options, TrainingOptions) else list(options)
        self._stack = StackedMLP(self.models)
        check_options(self.options, self.seeds, M)
        device = self._stack.parameters.device
        self._inputs, self._labels = inputs.to(device).contiguous(), labels.to(device)
        check_data(self._inputs, self._labels, self._stack, M)
        self._batch_size = self.options[0].batch_size
        self.steps_per_epoch = -(-len(inputs) // self._batch_size)
        self.total_steps = total_steps(self.options[0], self.steps_per_epoch)
        self._shuffles = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self._results: list[Training | None] = [None] * M
        self.history: list[EnsembleMetrics] = []
        self.step, self._torn = 0, False
        # Networks with equal options side by side, so that the optimiser takes them at once.
        self._networks = sorted(range(M), key=lambda m: (self.options[m].learning_rate, self.options[m].weight_decay))
        self._stack.keep(self._networks)
        self._optimiser = self._new_optimiser()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return not self._networks or self.step >= self.total_steps

    @property
    def active(self) -> tuple[int, ...]:
        """The networks that have not left: neither memorised nor diverged."""
        return tuple(sorted(self._networks))

    def run_epoch(self) -> EnsembleMetrics:
        """Train every network that is not finished for one epoch.

        Raises:
            DivergedError: a network's loss or weights are not finite, and ``drop_diverged`` is False.
            RuntimeError: all are finished, or an earlier epoch was broken off in its middle.
        """
        if self.finished:
            raise RuntimeError(f"training is over after {self.epoch} epochs; there is none left to run")
        self._refuse_torn()
        self._torn = True
        start = time.perf_counter()
        loss, accuracy = self._train(min(self.steps_per_epoch, self.total_steps - self.step))
        for row, network in enumerate(self._networks):
            self._stack.write(row, self.models[network])
        order = sorted(range(len(self._networks)), key=self._networks.__getitem__)
        metrics = EnsembleMetrics(
            self.epoch + 1,
            self.step,
            tuple(self._networks[row] for row in order),
            tuple(loss[row] for row in order),
            tuple(accuracy[row] for row in order),
            tuple(
                learning_rate(self.options[self._networks[row]], self.step - 1, self.steps_per_epoch) for row in order
            ),
            time.perf_counter() - start,
        )
        gone = self._diverged(loss) | self._memorised(accuracy)
        self.history.append(replace(metrics, seconds=time.perf_counter() - start))
        if gone:
            self._go_on_without(gone)
        self._torn = False
        return self.history[-1]

    def result(self) -> list[Training]:
        """Each network on the whole training set as it stands; the models are left in evaluation mode."""
        for network in self._networks:
            self._results[network] = self._evaluated(network, self.epoch)
        for model in self.models:
            model.eval()
        return [result for result in self._results if result is not None]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the training depends on, in copies: tensors on the CPU, and what JSON can hold.

        Raises:
            RuntimeError: an epoch was broken off in its middle.
        """
        self._refuse_torn()
        tensors = {"parameters": StackedMLP(self.models).parameters} | {
            f"optimiser.{name}": value for name, value in self._optimiser.state().items()
        }
        states = torch.stack([shuffle.get_state() for shuffle in self._shuffles])
        record = {
            "format": FORMAT,
            "versions": {"torch": torch.__version__},
            **self.identity(),
            "step": self.step,
            "networks": self._networks,
            "results": [None if result is None else asdict(result) for result in self._finished()],
            "history": [asdict(metrics) for metrics in self.history],
        }
        return {**{name: copied(tensor) for name, tensor in tensors.items()}, "generators": states}, record

    def identity(self) -> dict[str, Any]:
        """What a state must have been made with to be taken up here."""
        return {
            "options": [own.record() for own in self.options],
            "seeds": self.seeds,
            "device": self._inputs.device.type,
            "model": model_identity(self.models[0]),
            "data": {"inputs": [*self._inputs.shape], "labels": [*self._labels.shape], "sha256": self._sha256},
        }

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self._inputs, self._labels):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            ValueError: a state of other networks, options, seeds or data; names what differs.
        """
        if record.get("format") != FORMAT:
            raise ValueError(f"this is no state of an ensemble's training in the format {FORMAT}")
        here = self.identity()
        if found := differences({name: record.get(name) for name in here}, here):
            raise ValueError(f"this is the state of another ensemble; it differs in {', '.join(found[:5])}")
        everything = StackedMLP(self.models)
        everything.parameters.copy_(tensors["parameters"])
        for network, model in enumerate(self.models):
            everything.write(network, model)
        self._networks = list(record["networks"])
        self._stack = everything
        if self._networks:
            self._stack.keep(self._networks)
            self._optimiser = self._new_optimiser()
            device = self._inputs.device
            self._optimiser.load(
                {n.removeprefix("optimiser."): t.to(device) for n, t in tensors.items() if n.startswith("optimiser.")}
            )
        for shuffle, state in zip(self._shuffles, tensors["generators"], strict=True):
            shuffle.set_state(state.clone())  # torch 2.13 crashes on a row of a larger tensor
        self._results = [None if result is None else Training(**result) for result in record["results"]]
        self.history = [_metrics(own) for own in record["history"]]
        self.step, self._torn = record["step"], False

    def _train(self, steps: int) -> tuple[list[float], list[float]]:
        """An epoch's mini-batches; mean loss and accuracy of each row."""
        M, size = len(self._networks), self._batch_size
        seen = min(steps * size, len(self._inputs))
        loss = torch.zeros(M, dtype=torch.float64, device=self._inputs.device)
        right = torch.zeros_like(loss)
        with torch.no_grad():
            orders = [torch.randperm(len(self._inputs), generator=self._shuffles[m]) for m in self._networks]
            order = torch.stack(orders).to(self._inputs.device)[:, :seen]
            own = self._labels[self._networks].gather(1, order) if self._labels.ndim == 2 else self._labels[order]
            whole = seen // size * size
            for part in (slice(0, whole), slice(whole, seen)):  # the last batch may be smaller
                count = part.stop - part.start
                if count == 0:
                    continue
                batch = min(size, count)
                chosen, labels = (t[:, part].view(M, -1, batch).transpose(0, 1).contiguous() for t in (order, own))
                guesses, losses = torch.empty_like(labels), self._inputs.new_empty(labels.shape)
                for k in range(len(chosen)):
                    self._stack.step(self._inputs, chosen[k], labels[k], guesses[k], losses[k])
                    self._optimiser.step(self.step)
                    self.step += 1
                loss += losses.double().sum((0, 2))
                right += (guesses == labels).sum((0, 2))
        return (loss / seen).tolist(), (right / seen).tolist()

    def _diverged(self, loss: Sequence[float]) -> set[int]:
        finite = torch.tensor(loss).isfinite() & self._stack.parameters.isfinite().all(1).cpu()
        gone = [network for network, fine in zip(self._networks, finite.tolist(), strict=True) if not fine]
        if gone and not self.drop_diverged:
            rates = ", ".join(f"{network} (learning_rate={self.options[network].learning_rate:g})" for network in gone)
            raise DivergedError(
                f"after epoch {self.epoch + 1} the loss or the weights of network {rates} are not finite: lower the "
                "learning rate, give clip_norm=1.0 or warmup=, or go on without such networks by drop_diverged=True"
            )
        for network in gone:
            self._results[network] = replace(self._evaluated(network, self.epoch + 1), loss=float("nan"))
        return set(gone)

    def _memorised(self, accuracy: Sequence[float]) -> set[int]:
        gone = set()
        for network, own in zip(self._networks, accuracy, strict=True):
            if self.options[network].stop_when_memorised and own >= _WORTH_EVALUATING:
                result = self._evaluated(network, self.epoch + 1)
                if result.memorised:
                    self._results[network] = result
                    gone.add(network)
        return gone

    def _go_on_without(self, gone: set[int]) -> None:
        rows = [row for row, network in enumerate(self._networks) if network not in gone]
        self._networks = [self._networks[row] for row in rows]
        if rows:
            remembered = {name: t[rows] if t.ndim else t for name, t in self._optimiser.state().items()}
            self._stack.keep(rows)
            self._optimiser = self._new_optimiser()
            self._optimiser.load(remembered)

    def _new_optimiser(self) -> StackedOptimiser:
        own = [self.options[network] for network in self._networks]
        return StackedOptimiser(self._stack.parameters, self._stack.gradients, own, self.steps_per_epoch)

    def _evaluated(self, network: int, epochs: int) -> Training:
        labels = self._labels[network] if self._labels.ndim == 2 else self._labels
        return evaluate(self.models[network], (self._inputs, labels), epochs=epochs)

    def _finished(self) -> list[Training | None]:
        return [None if network in self._networks else result for network, result in enumerate(self._results)]

    def _refuse_torn(self) -> None:
        if self._torn:
            raise RuntimeError("an earlier epoch was broken off in its middle; restore a state, or start again")


def train_ensemble(
    models: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    options: TrainingOptions | Sequence[TrainingOptions],
    *,
    seeds: Sequence[int],
    drop_diverged: bool = False,
    show_progress: bool = False,
    description: str = "training",
) -> list[Training]:
    """Train perceptrons of one architecture side by side; they end in evaluation mode.

    The numbers are those of :func:`sdkernels.lab.training.train` on one network after the other, but for rounding.

    Args:
        models, inputs, labels, options, seeds, drop_diverged: as for :class:`EnsembleTrainer`.
        show_progress: a bar over epochs, with how many networks are still in training.
        description: what the bar says.

    Returns:
        How each network's training ended.

    Raises:
        ValueError: networks, data or options that cannot be trained so; says which.
        DivergedError: a network's loss or weights are not finite, and ``drop_diverged`` is False.

    Example:
        >>> from sdkernels.lab.corruption import corrupt_labels
        >>> from sdkernels.lab.datasets import load
        >>> from sdkernels.lab.models import mlp
        >>> digits = load("digits")
        >>> labels = torch.stack([corrupt_labels(digits.labels, level, seed=0) for level in (0.0, 0.5)])
        >>> models = [mlp(64, (64, 64), 10, seed=0) for _ in labels]
        >>> options = TrainingOptions(epochs=40, learning_rate=3e-3, stop_when_memorised=True)
        >>> clean, corrupted = train_ensemble(models, digits.inputs, labels, options, seeds=(0, 0))
        >>> clean.memorised, corrupted.memorised
        (True, False)
    """
    trainer = EnsembleTrainer(models, inputs, labels, options, seeds=seeds, drop_diverged=drop_diverged)
    epochs = -(-trainer.total_steps // trainer.steps_per_epoch)
    with tqdm(total=epochs, desc=description, unit="epoch", disable=not show_progress) as bar:
        while not trainer.finished:
            metrics = trainer.run_epoch()
            bar.set_postfix(training=len(trainer.active), accuracy=f"{min(metrics.accuracy):.4f}", refresh=False)
            bar.update()
        bar.total = trainer.epoch  # the bar ends full: the work is done
        return trainer.result()


def _metrics(record: Mapping[str, Any]) -> EnsembleMetrics:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return EnsembleMetrics(**values)
