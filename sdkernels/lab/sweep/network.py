"""One network of a sweep: trained, then measured under every condition, a message for each thing that is finished.

This is what a worker does, here or on another machine. It is told what is finished already, and it writes nothing: who
asked keeps the messages.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.analysis.scored import Scored
from sdkernels.lab.labelled import LabelledData
from sdkernels.lab.models import layer_names
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.data import test_data, training_data
from sdkernels.lab.sweep.spec import Condition, NetworkSettings
from sdkernels.lab.training import Trainer, evaluate

RESULTS: dict[str, type[Scored]] = {
    "cumulative_ablation": sd.AblationCurve,
    "unit_importance": sd.UnitImportance,
    "noise_robustness": sd.NoiseCurve,
}


class Message(NamedTuple):
    """Something of a network that is finished: bytes, and a record in JSON's types."""

    what: Literal["state", "network", "condition"]
    name: str  # the condition's; else ""
    record: dict[str, Any]
    content: bytes


@dataclass(frozen=True)
class Work:
    """A network, and what of it is finished.

    Attributes:
        settings: the network's.
        conditions: those that are not yet measured.
        data_dir: where data files are, on the machine that does the work.
        checkpoint_seconds: at least so much time lies between two states.
        state: content of the last one; None: the training begins.
        network: content of the finished network; None: it is not yet trained.
        store: a ledger where tiles of conditions are kept; None where others may write no ledger.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """

    settings: NetworkSettings
    conditions: tuple[Condition, ...]
    data_dir: Path | None
    checkpoint_seconds: float
    state: bytes | None = None
    network: bytes | None = None
    store: Path | None = None
    device: str = "auto"
    record: dict[str, Any] = field(default_factory=dict)  # that came with the state


class _Pause(Exception):  # noqa: N818 - no error: a training run is left after a step, to be saved
    pass


def work_on(work: Work) -> Iterator[Message]:
    """Train the network and measure it, as far as that is not done."""
    device = work.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = training_data(work.settings, work.data_dir)
    model = work.settings.build(data).to(device)
    if work.network is None:
        yield from _train(work, model, data)
    else:
        model.load_state_dict(load(work.network))
    model.eval()
    held_out = test_data(work.settings, work.data_dir)
    for condition in work.conditions:
        yield _measure(work, condition, model, data, held_out)


def _train(work: Work, model: nn.Module, data: LabelledData) -> Iterator[Message]:
    settings = work.settings
    held_out = test_data(settings, work.data_dir)
    trainer = Trainer(model, data, settings.training, seed=seed_for("shuffling", settings.seed))
    if work.state is not None:
        trainer.restore(load(work.state), work.record)
    last = time.monotonic()

    def pause() -> None:
        if time.monotonic() - last >= work.checkpoint_seconds and not trainer.finished:
            raise _Pause

    while not trainer.finished:
        try:
            trainer.run_epoch(pause)
        except _Pause:
            tensors, record = trainer.state()
            yield Message("state", "", record, save(tensors))
            last = time.monotonic()
    training = trainer.result()
    record = {
        "settings": settings.record(),
        "epochs": training.epochs,
        "train_accuracy": training.accuracy,
        "train_loss": training.loss,
        "memorised": training.memorised,
        "history": [metrics.record() for metrics in trainer.history],
        "seconds": sum(metrics.seconds for metrics in trainer.history),
        "labels_sha256": data.sha256,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    if held_out is not None:
        tested = evaluate(model, held_out)
        record |= {"test_accuracy": tested.accuracy, "test_loss": tested.loss}
    yield Message("network", "", record, save(_tensors(model)))


def _measure(
    work: Work, condition: Condition, model: nn.Module, data: LabelledData, held_out: LabelledData | None
) -> Message:
    if condition.on == "test" and held_out is None:
        raise ValueError(f"measure {condition.name!r} is on test examples, but the network is trained on all of them")
    chosen = data if condition.on == "train" or held_out is None else held_out
    if condition.examples is not None:
        chosen = chosen.first(condition.examples)
    function = getattr(sd, condition.function)
    layers = layer_names(model, condition.layers)
    pair = (chosen.inputs, chosen.labels)
    result: Scored = function(model, layers, pair, store=work.store, **condition.arguments)
    return Message("condition", condition.name, summary(result), to_bytes(result))


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


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
