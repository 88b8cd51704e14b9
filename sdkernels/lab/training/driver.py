"""A whole training run: progress, checkpoints, and going on where an earlier one stopped."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from sdkernels.lab.training import checkpoints as disk
from sdkernels.lab.training.feeds import Data
from sdkernels.lab.training.metrics import Training
from sdkernels.lab.training.options import TrainingOptions
from sdkernels.lab.training.state import MODEL
from sdkernels.lab.training.trainer import Trainer


def train(
    model: nn.Module,
    data: Data,
    options: TrainingOptions,
    *,
    seed: int,
    validation: Data | None = None,
    workers: int = 0,
    checkpoints: str | Path | None = None,
    keep_epochs: Collection[int] = (),
    every: int = 1,
    every_steps: int | None = None,
    show_progress: bool = False,
    description: str = "training",
) -> Training:
    """Train a model on cross-entropy; ends in evaluation mode.

    With ``checkpoints``, a run that was stopped at any moment goes on from its last checkpoint when the same call is
    made again, on the CPU to the same weights bit for bit; a run that is over is only evaluated.

    Args:
        model, data, options, seed, validation, workers: as for :class:`Trainer`.
        checkpoints: a folder for ``latest.safetensors``, the whole run, and the epochs that are kept; each with a
            ``.json`` beside it to be read by people.
        keep_epochs: epochs, 0 being before the first, after which the model's tensors are kept under the model's own
            names as ``epoch-NNNNNN.safetensors``; :func:`load_checkpoint` loads them.
        every: epochs between checkpoints.
        every_steps: also write one every so many steps, for long epochs.
        show_progress: a bar over steps with accuracy, loss and time left.
        description: what the bar says.

    Returns:
        How the training ended.

    Raises:
        ValueError: options of the run or of its checkpoints that make no sense, data that cannot be trained on, or a
            folder that holds another run or a damaged file.
        DivergedError: the loss or a weight is not finite; the last checkpoint is from before.

    Example:
        >>> from sdkernels.lab.datasets import load
        >>> from sdkernels.lab.models import mlp
        >>> options = TrainingOptions(epochs=30, learning_rate=1e-3, batch_size=64, stop_when_memorised=True)
        >>> train(mlp(64, (64, 64), 10, seed=0), load("digits"), options, seed=0).accuracy > 0.98
        True
    """
    trainer = Trainer(model, data, options, seed=seed, validation=validation, workers=workers)
    last = -(-trainer.total_steps // trainer.steps_per_epoch)
    _check(checkpoints, keep_epochs, every, every_steps, last)
    folder = None if checkpoints is None else Path(checkpoints)
    if folder is not None:
        _take_up(trainer, folder, keep_epochs)
    with tqdm(
        total=trainer.total_steps,
        initial=trainer.step,
        desc=description,
        unit="step",
        disable=not show_progress,
    ) as bar:

        def after_step() -> None:
            if bar.update():  # it was shown: what it says next time
                bar.set_postfix(_shown(trainer), refresh=False)
            if folder is not None and every_steps is not None and trainer.step % every_steps == 0:
                _save(trainer, folder)

        while not trainer.finished:
            trainer.run_epoch(after_step)
            bar.set_postfix(_shown(trainer), refresh=False)
            if folder is not None:
                if trainer.epoch in keep_epochs:
                    _keep(trainer, folder)
                if trainer.epoch % every == 0 or trainer.finished:
                    _save(trainer, folder)
        bar.total = trainer.step  # the bar ends full: the work is done
        result = trainer.result()
        bar.set_postfix(_shown(trainer, accuracy=result.accuracy, loss=result.loss))
    return result


def _take_up(trainer: Trainer, folder: Path, keep_epochs: Collection[int]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoints={folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    latest = folder / disk.LATEST
    if latest.exists():
        tensors, record = disk.read(latest)
        try:
            trainer.restore(tensors, record)
        except ValueError as error:
            raise ValueError(f"{latest}: {error}. Give another folder, or remove this one to start again") from error
        missed = [e for e in keep_epochs if e <= trainer.epoch and not (folder / disk.epoch_file(e)).exists()]
        if missed:
            raise ValueError(
                f"keep_epochs holds {missed[0]}, but the run in {folder} is past it and did not keep it; give another "
                "folder, or remove this one to start again"
            )
    elif 0 in keep_epochs:
        _keep(trainer, folder)


def _save(trainer: Trainer, folder: Path) -> None:
    tensors, record = trainer.state()
    disk.write(folder / disk.LATEST, tensors, {**record, "holds": "run"})


def _keep(trainer: Trainer, folder: Path) -> None:
    tensors, record = trainer.state()
    weights = {name.removeprefix(MODEL): t for name, t in tensors.items() if name.startswith(MODEL)}
    disk.write(folder / disk.epoch_file(trainer.epoch), weights, {**record, "holds": "model"})


def _shown(trainer: Trainer, **numbers: float) -> dict[str, Any]:
    numbers = numbers or trainer.progress()
    rounded = {name: f"{value:.4f}" if name == "accuracy" else f"{value:.4g}" for name, value in numbers.items()}
    return {"epochs": trainer.epoch, **rounded}


def _check(
    checkpoints: str | Path | None, keep_epochs: Collection[int], every: int, every_steps: int | None, last: int
) -> None:
    if every < 1 or (every_steps is not None and every_steps < 1):
        raise ValueError(f"every={every}, every_steps={every_steps}: checkpoints are at least one apart")
    if checkpoints is None and (len(keep_epochs) or every_steps is not None or every != 1):
        raise ValueError("keep_epochs, every and every_steps are of checkpoints; give checkpoints=FOLDER")
    beyond = [epoch for epoch in keep_epochs if not 0 <= epoch <= last]
    if beyond:
        raise ValueError(f"keep_epochs holds {beyond[0]}; the run has epochs 0 (before the first) to {last}")
