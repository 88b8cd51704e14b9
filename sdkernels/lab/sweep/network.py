"""Networks of a sweep: trained, then measured under every condition, a message for each thing that is finished.

This is what a worker does, here or on another machine. It is told what is finished already, and it writes nothing: who
asked keeps the messages.
"""

import inspect
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.engine.checks import warn
from sdkernels.engine.keeping import Workers
from sdkernels.engine.stopping import is_asked
from sdkernels.lab.ensemble import EnsembleTrainer
from sdkernels.lab.labelled import LabelledData
from sdkernels.lab.models import layer_names
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.condition import Condition
from sdkernels.lab.sweep.data import for_analysis, held_out_data, measured_data, reading_workers, training_data
from sdkernels.lab.sweep.results import Result, summary, to_bytes
from sdkernels.lab.sweep.settings import NetworkSettings, SweepData, are_of_one_training
from sdkernels.lab.tokens import TokenData
from sdkernels.lab.training import DivergedError, Trainer, Training, evaluate
from sdkernels.lab.training.evaluation import device_of
from sdkernels.lab.training.state import copied

# Beside a network's tensors: the labels that it was trained on, int64 [N], where some were corrupted.
LABELS = "training labels"


class Message(NamedTuple):
    """Something that is finished: bytes, and a record in JSON's types."""

    place: int  # of the network, in the sweep
    what: Literal["state", "network", "condition", "failure"]
    name: str  # the condition's; else ""
    record: dict[str, Any]
    content: bytes
    done: float = 1.0  # of a training under way: as which part of the group's networks it counts


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
        members: the networks: side by side in one ensemble, or moments of one training.
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
    alone = are_of_one_training([member.settings for member in work.members])
    trained = work.members[:1] if alone else work.members  # the others are moments of its training
    data = [training_data(member.settings, work.data_dir) for member in trained]
    models = [member.settings.build(own).to(device) for member, own in zip(trained, data, strict=True)]
    measured = {member.place: member.network for member in work.members if member.conditions}
    if any(member.network is None for member in work.members):
        train = _train_alone if alone else _train_together
        for message in train(work, models, data):
            if message.what == "network" and message.place in measured:
                measured[message.place] = message.content
            yield message
    for index, member in enumerate(work.members):
        content = measured.pop(member.place, None)
        if content is None:  # nothing is to be measured, or its training has failed
            continue
        model = models[0 if alone else index]
        model.load_state_dict(weights_of(content))  # as they are kept, whatever was trained since
        model.eval()
        for condition in member.conditions:
            yield _measure(work, member, condition, model)


def _train_alone(work: Work, models: list[nn.Module], data: list[SweepData]) -> Iterator[Message]:
    ((model,), (own,), settings) = models, data, work.members[0].settings
    missing = [member for member in work.members if member.network is None]
    seed = seed_for("shuffling", settings.seed)
    trainer = Trainer(model, own, settings.training, seed=seed, workers=reading_workers(own))
    _take_up(trainer, work)
    last = time.monotonic()

    def pause() -> None:
        if (time.monotonic() - last >= work.checkpoint_seconds or is_asked()) and not trainer.finished:
            raise _Pause

    try:
        while missing:
            try:
                trainer.run_epoch(pause)
            except _Pause:
                yield _state(work, trainer, len(missing))
                last = time.monotonic()
                continue
            # Before the next state: whoever goes on from a state finds the networks of the epochs before it.
            due = [member for member in missing if trainer.finished or member.settings.until == trainer.epoch]
            missing = [member for member in missing if member not in due]
            history = [metrics.record() for metrics in trainer.history]
            for member in due:
                begin = time.perf_counter()
                yield _trained(work, member, model, own, trainer.result(), history, begin)
    except DivergedError as error:
        for member in missing:
            yield Message(member.place, "failure", "", {"error": str(error)}, b"")


def _train_together(work: Work, models: list[nn.Module], data: list[SweepData]) -> Iterator[Message]:
    trainer = EnsembleTrainer(
        models,
        cast(LabelledData, data[0]).inputs,  # MLPs alone are trained together, and theirs is in memory
        torch.stack([cast(LabelledData, own).labels for own in data]),
        [member.settings.training for member in work.members],
        seeds=[seed_for("shuffling", member.settings.seed) for member in work.members],
        drop_diverged=True,
    )
    _take_up(trainer, work)
    last = time.monotonic()
    while not trainer.finished:
        trainer.run_epoch()
        if (time.monotonic() - last >= work.checkpoint_seconds or is_asked()) and not trainer.finished:
            yield _state(work, trainer, len(models))
            last = time.monotonic()
    begin = time.perf_counter()
    results = trainer.result()
    share = (time.perf_counter() - begin) / len(results)
    for place, (member, training) in enumerate(zip(work.members, results, strict=True)):
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
        yield _trained(work, member, models[place], data[place], training, history, time.perf_counter() - share)


def _take_up(trainer: Trainer | EnsembleTrainer, work: Work) -> None:
    """Go on from the last state, unless it was made on another kind of device, by other code, or is too late."""
    if work.state is None:
        return
    try:
        epochs = len(work.record.get("history", ()))
        for member in work.members:
            if member.network is None and member.settings.until is not None and member.settings.until <= epochs:
                raise ValueError(
                    f"its state is of epoch {epochs + 1}, and the network after epoch {member.settings.until} is not "
                    "there any more"
                )
        trainer.restore(load(work.state), work.record)
    except ValueError as error:  # it is refused before anything is changed
        warn(f"the training of network {work.members[0].place} begins anew: {error}")


def _state(work: Work, trainer: Trainer | EnsembleTrainer, missing: int) -> Message:
    tensors, record = trainer.state()
    done = trainer.step / trainer.total_steps * missing / len(work.members)
    return Message(work.members[0].place, "state", "", record, save(tensors), done)


def _trained(
    work: Work,
    member: Member,
    model: nn.Module,
    data: SweepData,
    training: Training,
    history: list[dict[str, Any]],
    begin: float,
) -> Message:
    """A network with how well it was trained, which was begun to be looked at by then."""
    record = {
        "settings": member.settings.record(),
        "epochs": training.epochs,
        "train_accuracy": training.accuracy,
        "train_loss": training.loss,
        "memorised": training.memorised,
        "history": history,
        "seconds": sum(epoch["seconds"] for epoch in history),
        "data_sha256": data.sha256,
        "together": 1 if are_of_one_training([own.settings for own in work.members]) else len(work.members),
        **_place(model),
        "torch": str(torch.__version__),
    }
    outcomes = {"train": training}
    for part, held_out in held_out_data(member.settings, work.data_dir).items():
        pieces = {"batch_size": member.settings.training.batch_size, "unroll": member.settings.training.unroll}
        outcomes[part] = evaluate(model, held_out, workers=reading_workers(held_out), **pieces)  # pieces are of texts
        record |= {f"{part}_accuracy": outcomes[part].accuracy, f"{part}_loss": outcomes[part].loss}
    if member.settings.is_text:
        record |= {f"{part}_perplexity": outcome.perplexity for part, outcome in outcomes.items()}
    record["evaluation_seconds"] = time.perf_counter() - begin
    tensors = {name: copied(tensor) for name, tensor in model.state_dict().items()}  # tied weights share their memory
    if member.settings.corruption and not isinstance(data, TokenData):
        tensors[LABELS] = data.labels
    return Message(member.place, "network", "", record, save(tensors))


def _measure(work: Work, member: Member, condition: Condition, model: nn.Module) -> Message:
    chosen = measured_data(member.settings, condition.on, condition.examples, work.data_dir)
    function = getattr(sd, condition.function)
    layers, how = layer_names(model, condition.layers), {"store": work.store, **condition.arguments}
    if "workers" in inspect.signature(function).parameters:  # a pass for statistics is not shared
        how["workers"] = work.workers
    batch_size = condition.arguments.get("batch_size", 256)  # of a loader, which makes the batches itself
    begin = time.perf_counter()
    try:
        result: Result = function(model, layers, for_analysis(chosen, batch_size), **how)
    except (TypeError, ValueError) as error:  # of an argument's value, as the function alone knows what it takes
        raise ValueError(f"measure {condition.name!r} of network {member.place}: {error}") from error
    record = {"seconds": time.perf_counter() - begin, **_place(model), "summary": summary(result)}
    return Message(member.place, "condition", condition.name, record, to_bytes(result))


def _place(model: nn.Module) -> dict[str, Any]:
    """Where the work was done."""
    device = device_of(model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}


def weights_of(content: bytes) -> dict[str, Tensor]:
    """A finished network's tensors, by their names in the model."""
    return {name: tensor for name, tensor in load(content).items() if name != LABELS}
