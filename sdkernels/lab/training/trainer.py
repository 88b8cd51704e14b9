"""The training loop: one for all kinds of data, which can stop after any step and go on elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdkernels.lab.seeds import seed_for
from sdkernels.lab.training.augmentation import crop_flip
from sdkernels.lab.training.compiled import CompiledForward
from sdkernels.lab.training.draws import Draws
from sdkernels.lab.training.evaluation import device_of, evaluate_feed
from sdkernels.lab.training.feeds import Data, Feed, feed_for
from sdkernels.lab.training.metrics import EpochMetrics, Training
from sdkernels.lab.training.optimisers import make_optimiser
from sdkernels.lab.training.options import TrainingOptions
from sdkernels.lab.training.restored import check_record, check_tensors
from sdkernels.lab.training.schedules import learning_rate, total_steps
from sdkernels.lab.training.state import (
    copied,
    differences,
    model_identity,
    pack_model,
    pack_optimiser,
    unpack_model,
    unpack_optimiser,
)
from sdkernels.lab.training.tally import DivergedError, Tally, diverged
from sdkernels.lab.training.token_stream import TokenStreamFeed, flatten, unflatten

# A pass over the whole training set is spent only when the epoch's own mini-batches were nearly all right.
_WORTH_EVALUATING = 0.98

FORMAT = "sdkernels.training/1"


class Trainer:
    """A training run that can be left after any step, saved, and taken up again to the same weights, bit for bit.

    All random draws come from generators that belong to the run: the shuffling starts at ``seed`` itself, dropout and
    augmentation at seeds made from it, and the global random state is left as it was. Bit for bit means: on the CPU,
    by the same version of torch and with the same number of threads.

    Args:
        model: trained in place; its device decides where. Gives logits ``[N, L]``; with a token stream,
            ``model(tokens [B, T], state) -> (logits [B, T, V], state)``.
        data: ``(inputs [N, ...], labels int64 [N])``, a ``LabelledData``, a ``torch.utils.data.Dataset`` of (input,
            label), or a token stream int64 ``[M]``.
        options: how.
        seed: of everything that is random.
        validation: data of the same kinds, evaluated after each epoch.
        workers: processes that read a ``Dataset``'s items; the numbers do not depend on it.

    Raises:
        ValueError, TypeError: data or a model that cannot be trained so.

    Example:
        >>> from sdkernels.lab.datasets import load
        >>> from sdkernels.lab.models import mlp
        >>> options = TrainingOptions(epochs=2, batch_size=64, learning_rate=1e-2)
        >>> trainer = Trainer(mlp(64, (32, 32), 10, seed=0), load("digits"), options, seed=0)
        >>> while not trainer.finished:
        ...     metrics = trainer.run_epoch()
        >>> metrics.epoch, metrics.step, metrics["accuracy"] > 0.5
        (2, 46, True)
        >>> tensors, record = trainer.state()  # what a checkpoint holds
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        options: TrainingOptions,
        *,
        seed: int,
        validation: Data | None = None,
        workers: int = 0,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must be at least 0 and below 2**63")
        self.model, self.options, self.seed = model, options, seed
        self.device = device_of(model)
        shape = {"batch_size": options.batch_size, "unroll": options.unroll, "seed": seed, "workers": workers}
        self._feed: Feed = feed_for(data, self.device, **shape)
        self._validation = None if validation is None else feed_for(validation, self.device, **shape)
        if options.warmup >= self.total_steps:
            raise ValueError(f"warmup={options.warmup} takes the whole run of {self.total_steps} steps; give less")
        if options.augmentation != "none" and isinstance(self._feed, TokenStreamFeed):
            raise ValueError(f"augmentation={options.augmentation!r} is of images, not of a token stream")
        self._identity: dict[str, Any] = {"model": model_identity(model)}
        self._optimiser = make_optimiser(model, options)
        self._forward = CompiledForward(model) if options.compile else model
        self._shuffle = torch.Generator().manual_seed(seed)
        self._augment = torch.Generator().manual_seed(seed_for("augmentation", seed))
        self._draws = Draws(seed_for("dropout", seed), self.device)
        self.history: list[EpochMetrics] = []
        self.step = 0
        self._position, self._tally, self._seconds, self._carried = 0, Tally(), 0.0, None
        self._rate = 0.0
        self._shuffle_before = self._shuffle.get_state()  # as the current epoch began
        self._memorised, self._torn = False, False
        self._evaluated: Training | None = None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches of a whole epoch."""
        return self._feed.steps

    @property
    def total_steps(self) -> int:
        """Mini-batches of the whole run, if nothing ends it before."""
        return total_steps(self.options, self._feed.steps)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self._memorised or (self.step >= self.total_steps and self._position == 0)

    def run_epoch(self, on_step: Callable[[], Any] | None = None) -> EpochMetrics:
        """Train one epoch, or what is left of the one that was begun.

        Args:
            on_step: called after every step; the run may be saved there, or left by an exception.

        Raises:
            DivergedError: the loss or a weight is not finite.
            RuntimeError: the run is over, or an earlier step was broken off in its middle.
        """
        if self.finished:
            raise RuntimeError(f"training is over after {self.epoch} epochs; there is none left to run")
        self._refuse_torn()
        start = time.perf_counter() - self._seconds
        stop = min(self._feed.steps, self._position + self.total_steps - self.step)
        self._shuffle.set_state(self._shuffle_before)
        with self._draws.inside():
            self.model.train()
            for inputs, labels in self._feed.batches(self._shuffle, self.epoch, self._position, stop):
                self._torn = True
                self._take_step(inputs, labels)
                self._torn = False
                self._seconds = time.perf_counter() - start
                if on_step is not None:
                    on_step()
            return self._end_epoch(start)

    def _take_step(self, inputs: Tensor, labels: Tensor) -> None:
        if self.options.augmentation == "crop_flip":
            inputs = crop_flip(inputs, self._augment)
        with self._autocast():
            logits, carried = self._feed.forward(self._forward, inputs, self._carried)
        targets = labels.flatten()
        if self.step == 0 and logits.shape[1] < self._feed.classes_needed:
            raise ValueError(
                f"the model tells {logits.shape[1]} classes apart, but labels go up to {self._feed.classes_needed - 1}"
            )
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        loss = F.cross_entropy(logits, targets)
        self._rate = learning_rate(self.options, self.step, self._feed.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate
        right = (logits.detach().argmax(1) == targets).sum()
        self._tally.add(self.epoch + 1, self.step + 1, loss.detach(), right, len(targets))
        self._optimiser.zero_grad()
        loss.backward()
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self._optimiser.step()
        self._carried = carried
        self.step += 1
        self._position += 1
        self._evaluated = None

    def _autocast(self) -> Any:
        if self.options.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _end_epoch(self, start: float) -> EpochMetrics:
        self._settle()
        accuracy = self._tally.right / self._tally.examples
        if self.options.stop_when_memorised and accuracy >= _WORTH_EVALUATING:
            self._evaluated = evaluate_feed(self.model, self._feed, self.epoch + 1)
            self._memorised = self._evaluated.memorised
        held_out = None if self._validation is None else evaluate_feed(self.model, self._validation, 0)
        metrics = EpochMetrics(
            self.epoch + 1,
            self.step,
            self._tally.loss / self._tally.examples,
            accuracy,
            self._rate,
            None if held_out is None else held_out.loss,
            None if held_out is None else held_out.accuracy,
            time.perf_counter() - start,
        )
        self.history.append(metrics)
        self._position, self._tally, self._seconds, self._carried = 0, Tally(), 0.0, None
        self._shuffle_before = self._shuffle.get_state()
        return metrics

    def _settle(self) -> None:
        """Wait for all steps, and see that the weights are numbers: a last step may have spoilt them unseen."""
        self._tally.settle(self.epoch + 1)
        weights = [p.detach() for p in self.model.parameters()]
        if not bool(torch.stack([w.isfinite().all() for w in weights]).all()):
            name = next(name for name, p in self.model.named_parameters() if not bool(p.isfinite().all()))
            raise DivergedError(diverged(f"{name} is not finite", self.epoch + 1, self.step))

    def result(self) -> Training:
        """The whole training set evaluated as the model stands, which is left in evaluation mode."""
        if self._evaluated is None:
            with self._draws.inside():
                self._evaluated = evaluate_feed(self.model, self._feed, self.epoch)
        self.model.eval()
        return self._evaluated

    def progress(self) -> dict[str, float]:
        """Accuracy and loss so far in this epoch; before its first step, of the epoch before."""
        if self._tally.examples:
            return {
                "accuracy": self._tally.right / self._tally.examples,
                "loss": self._tally.loss / self._tally.examples,
            }
        return {"accuracy": self.history[-1].accuracy, "loss": self.history[-1].loss} if self.history else {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the run depends on, in copies: tensors on the CPU, and what JSON can hold.

        Raises:
            DivergedError: a weight is not finite; such a state is not worth keeping.
            RuntimeError: a step was broken off in its middle.
        """
        self._refuse_torn()
        self._settle()
        leaves, structure = flatten(self._carried)
        tensors = {
            **self._always(),
            **pack_optimiser(self._optimiser),
            **{f"carried.{i}": copied(leaf) for i, leaf in enumerate(leaves)},
        }
        record = {
            "format": FORMAT,
            "versions": {"torch": torch.__version__},
            **self.identity(),
            "step": self.step,
            "position": self._position,
            "tally": self._tally.record(),
            "seconds": self._seconds,
            "learning_rate": self._rate,
            "carried": structure,
            "memorised": self._memorised,
            "history": [metrics.record() for metrics in self.history],
        }
        return tensors, record

    def identity(self) -> dict[str, Any]:
        """What a state must have been made with to be taken up here."""
        if "data" not in self._identity:  # a fingerprint takes a moment: only for those who ask
            self._identity = {
                "options": self.options.record(),
                "seed": self.seed,
                "device": self.device.type,
                "data": self._feed.identity(),
                "validation": None if self._validation is None else self._validation.identity(),
                "model": self._identity["model"],
            }
        return self._identity

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            ValueError: a state of other options, another seed, model, device or other data; names what differs.
        """
        if record.get("format") != FORMAT:
            raise ValueError(f"this is no state of a training run in the format {FORMAT}")
        here = self.identity()
        found = differences({name: record.get(name) for name in here}, here)
        if found:
            more = f", and {len(found) - 6} more" if len(found) > 6 else ""
            raise ValueError(f"this is the state of another training run; it differs in {', '.join(found[:6])}{more}")
        check_tensors(tensors, self._always(), self.options.optimiser, self._optimiser.param_groups[0]["params"])
        check_record(record, tensors, self.total_steps)
        unpack_model(self.model, tensors)
        unpack_optimiser(self._optimiser, tensors)
        leaves: Iterator[Tensor] = (tensors[f"carried.{i}"].to(self.device) for i in range(len(tensors)))
        self._carried = unflatten(leaves, record["carried"])
        self._draws.set_states({n.removeprefix("draws."): t for n, t in tensors.items() if n.startswith("draws.")})
        self._shuffle_before = tensors["generator.shuffle"].clone()
        self._augment.set_state(tensors["generator.augmentation"])
        self.step, self._position = record["step"], record["position"]
        self._tally, self._seconds, self._rate = Tally(**record["tally"]), record["seconds"], record["learning_rate"]
        self._memorised, self._torn, self._evaluated = record["memorised"], False, None
        self.history = [EpochMetrics(**metrics) for metrics in record["history"]]

    def _always(self) -> dict[str, Tensor]:
        """The tensors that every state has."""
        return {
            **pack_model(self.model),
            **{f"draws.{name}": state for name, state in self._draws.states().items()},
            "generator.shuffle": self._shuffle_before.clone(),
            "generator.augmentation": self._augment.get_state(),
        }

    def _refuse_torn(self) -> None:
        if self._torn:
            raise RuntimeError(
                "an earlier step was broken off in its middle, so the weights are neither those before nor those after "
                "it; restore a state, or start again"
            )
