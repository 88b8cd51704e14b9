"""Networks of a sweep: trained, then measured under every condition, a message for each thing that is finished.

This is what a worker does, here or on another machine. It is told what is finished already, and it writes nothing: who
asked keeps the messages.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.analysis.scored import Scored
from sdkernels.engine.checks import warn
from sdkernels.engine.keeping import Workers
from sdkernels.lab.ensemble import EnsembleTrainer
from sdkernels.lab.labelled import LabelledData
from sdkernels.lab.models import layer_names
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.condition import Condition
from sdkernels.lab.sweep.data import measured_data, test_data, training_data
from sdkernels.lab.sweep.settings import NetworkSettings
from sdkernels.lab.training import DivergedError, Trainer, Training, evaluate

RESULTS: dict[str, type[Scored]] = {
    "cumulative_ablation": sd.AblationCurve,
    "unit_importance": sd.UnitImportance,
    "noise_robustness": sd.NoiseCurve,
}


# Beside a network's tensors: the labels that it was trained on, int64 [N], where some were corrupted.
LABELS = "training labels"


class Message(NamedTuple):
    """Something that is finished: bytes, and a record in JSON's types."""

    place: int  # of the network, in the sweep
    what: Literal["state", "network", "condition", "failure"]
    name: str  # the condition's; else ""
    record: dict[str, Any]
    content: bytes
    done: float = 1.0  # of the training, at most


@dataclass(frozen=True)
class Member:
    """A network, and what of it is not finished.

    Attributes:
        place: in the sweep, from 0.
        settings: of it.
        conditions: those that are not yet measured.
        network: content of the finished network; None: it is not yet trained.
    """

    place: int
    settings: NetworkSettings
    conditions: tuple[Condition, ...]
    network: bytes | None


@dataclass(frozen=True)
class Work:
    """Networks that are trained together, often one, and what of them is finished.

    Attributes:
        members: the networks.
        data_dir: where data files are, on the machine that does the work.
        checkpoint_seconds: at least so much time lies between two states of the training.
        state, record: content and record of the last one; None: the training begins.
        store: a ledger where tiles of conditions are kept; None where others may write no ledger.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        workers: who share each measurement's tiles; they are not sent with the work.
    """

    members: tuple[Member, ...]
    data_dir: Path | None
    checkpoint_seconds: float
    state: bytes | None
    record: dict[str, Any]
    store: Path | None
    device: str
    workers: Workers | None = None


class _Pause(Exception):  # noqa: N818 - no error: a training run is left after a step, to be saved
    pass


def work_on(work: Work) -> Iterator[Message]:
    """Train the networks and measure them, as far as that is not done.

    A network whose training diverges gives a message, and the others of the work go on.

    Raises:
        ValueError: a measure cannot be taken; names it.
    """
    device = work.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = [training_data(member.settings, work.data_dir) for member in work.members]
    models = [member.settings.build(own).to(device) for member, own in zip(work.members, data, strict=True)]
    failed = set()
    if any(member.network is None for member in work.members):
        train = _train_alone if len(models) == 1 else _train_together
        for message in train(work, models, data):
            if message.what == "failure":
                failed.add(message.place)
            yield message
    for member, model in zip(work.members, models, strict=True):
        if member.place in failed:
            continue
        if member.network is not None:  # as it is kept, if it was trained again beside others
            model.load_state_dict(weights_of(member.network))
        model.eval()
        for condition in member.conditions:
            yield _measure(work, member, condition, model)


def _train_alone(work: Work, models: list[nn.Module], data: list[LabelledData]) -> Iterator[Message]:
    ((member,), (model,), (own,)) = work.members, models, data
    settings = member.settings
    trainer = Trainer(model, own, settings.training, seed=seed_for("shuffling", settings.seed))
    _take_up(trainer, work)
    last = time.monotonic()

    def pause() -> None:
        if time.monotonic() - last >= work.checkpoint_seconds and not trainer.finished:
            raise _Pause

    try:
        while not trainer.finished:
            try:
                trainer.run_epoch(pause)
            except _Pause:
                yield _state(work, trainer)
                last = time.monotonic()
        training = trainer.result()
    except DivergedError as error:
        yield Message(member.place, "failure", "", {"error": str(error)}, b"")
        return
    yield _trained(work, member, model, own, training, [metrics.record() for metrics in trainer.history])


def _train_together(work: Work, models: list[nn.Module], data: list[LabelledData]) -> Iterator[Message]:
    trainer = EnsembleTrainer(
        models,
        data[0].inputs,
        torch.stack([own.labels for own in data]),
        [member.settings.training for member in work.members],
        seeds=[seed_for("shuffling", member.settings.seed) for member in work.members],
        drop_diverged=True,
    )
    _take_up(trainer, work)
    last = time.monotonic()
    while not trainer.finished:
        trainer.run_epoch()
        if time.monotonic() - last >= work.checkpoint_seconds and not trainer.finished:
            yield _state(work, trainer)
            last = time.monotonic()
    for place, (member, training) in enumerate(zip(work.members, trainer.result(), strict=True)):
        if member.network is not None:
            continue
        if not math.isfinite(training.loss):
            error = (
                f"its loss or weights are not finite after epoch {training.epochs}: training has diverged. Lower "
                "learning_rate, or give clip_norm or warmup"
            )
            yield Message(member.place, "failure", "", {"error": error}, b"")
            continue
        history = [
            {
                "epoch": metrics.epoch,
                "step": metrics.step,
                "loss": metrics.loss[metrics.networks.index(place)],
                "accuracy": metrics.accuracy[metrics.networks.index(place)],
                "learning_rate": metrics.learning_rate[metrics.networks.index(place)],
                "seconds": metrics.seconds / len(metrics.networks),
            }
            for metrics in trainer.history
            if place in metrics.networks
        ]
        yield _trained(work, member, models[place], data[place], training, history)


def _take_up(trainer: Trainer | EnsembleTrainer, work: Work) -> None:
    """Go on from the last state, unless it was made on another kind of device, or by other code."""
    if work.state is None:
        return
    try:
        trainer.restore(load(work.state), work.record)
    except ValueError as error:  # it is refused before anything is changed
        warn(f"the training of network {work.members[0].place} begins anew: {error}")


def _state(work: Work, trainer: Trainer | EnsembleTrainer) -> Message:
    tensors, record = trainer.state()
    done = trainer.step / trainer.total_steps
    return Message(work.members[0].place, "state", "", record, save(tensors), done)


def _trained(
    work: Work,
    member: Member,
    model: nn.Module,
    data: LabelledData,
    training: Training,
    history: list[dict[str, Any]],
) -> Message:
    record = {
        "settings": member.settings.record(),
        "epochs": training.epochs,
        "train_accuracy": training.accuracy,
        "train_loss": training.loss,
        "memorised": training.memorised,
        "history": history,
        "seconds": sum(epoch["seconds"] for epoch in history),
        "data_sha256": data.sha256,
        "together": len(work.members),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    held_out = test_data(member.settings, work.data_dir)
    if held_out is not None:
        tested = evaluate(model, held_out)
        record |= {"test_accuracy": tested.accuracy, "test_loss": tested.loss}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if member.settings.corruption:
        tensors[LABELS] = data.labels
    return Message(member.place, "network", "", record, save(tensors))


def _measure(work: Work, member: Member, condition: Condition, model: nn.Module) -> Message:
    chosen = measured_data(member.settings, condition.on, condition.examples, work.data_dir)
    function = getattr(sd, condition.function)
    layers = layer_names(model, condition.layers)
    try:
        result: Scored = function(
            model,
            layers,
            (chosen.inputs, chosen.labels),
            store=work.store,
            workers=work.workers,
            **condition.arguments,
        )
    except (TypeError, ValueError) as error:  # of an argument's value, as the function alone knows what it takes
        raise ValueError(f"measure {condition.name!r} of network {member.place}: {error}") from error
    return Message(member.place, "condition", condition.name, summary(result), to_bytes(result))


def weights_of(content: bytes) -> dict[str, Tensor]:
    """A finished network's tensors, by their names in the model."""
    return {name: tensor for name, tensor in load(content).items() if name != LABELS}


def summary(result: Scored) -> dict[str, float]:
    """A few numbers that say what came out."""
    found = {"accuracy": float(result.baseline["accuracy"])}
    if isinstance(result, sd.AblationCurve):
        auc = result.auc()
        found |= {"auc": float(auc.mean()), "auc_sd": float(auc.std()) if len(auc) > 1 else 0.0}
    elif isinstance(result, sd.NoiseCurve):
        found |= {"lowest": float(result.accuracy.mean(0).min())}
    elif isinstance(result, sd.UnitImportance):
        importance = result.importance("accuracy")
        found |= {"importance": float(importance.mean()), "importance_sd": float(importance.std())}
    return found


def to_bytes(result: Scored) -> bytes:
    """The file that ``result.save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        result.save(path)
        return path.read_bytes()


def from_bytes(function: str, content: bytes) -> Scored:
    """The opposite of :func:`to_bytes`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        path.write_bytes(content)
        return RESULTS[function].load(path)
