"""Figure 1a of Morcos et al. 2018: cumulative ablation of MLPs that memorised more or less corrupted labels."""

import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import nn

from sdkernels.analysis.ablation import cumulative_ablation
from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.measure import versions
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import LabelledData, load
from sdkernels.lab.models import mlp
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.training import TrainingOptions, train
from sdkernels.paper.run_folder import RunFolder

TITLE = "Cumulative ablation by label corruption (Morcos et al. 2018, figure 1a)"


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers depend on, but for versions and the processor."""

    preset: str
    dataset: str
    examples: int
    hidden: tuple[int, int]
    split: str = "train"
    levels: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    epochs: int = 1000
    stop_when_memorised: bool = True
    learning_rate: float = 1e-3
    batch_size: int = 128
    orders: int = 10
    points: int | str = 33
    seed: int = 0


PRESETS = {
    "quick": Settings("quick", "digits", 1797, (256, 256), split="all"),
    "small": Settings("small", "mnist", 10_000, (512, 512), epochs=400),
    "paper": Settings("paper", "mnist", 60_000, (512, 512), epochs=640, stop_when_memorised=False, points="all"),
}

FILES = ("figure.png", "curves.csv", "report.json", "corruption-*/*")

# What the paper leaves open, and what stands here instead.
CHOICES = {
    "optimiser": "unpublished; Adam at torch's defaults but for the learning rate",
    "learning rate, batch size": "unpublished; options",
    "end of training": "published: 640 epochs (preset paper); else the first epoch that leaves every example memorised",
    "seeds": "one network a level; all levels share initialisation, shuffling and orders, each by a seed of its own",
    "points": "unpublished; evenly spaced counts of ablated units, or all of them (preset paper)",
}


def reproduce(
    preset: str = "quick",
    *,
    data_dir: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    fresh: bool = False,
    show_progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Train a network a corruption level, ablate it, and write the run folder.

    The folder holds ``figure.png``, ``curves.csv`` (one row a level, order and point), ``report.json`` and, a level,
    the labels, the trained network and its curve. A run that was stopped goes on with the first unfinished level.

    Args:
        preset: ``"quick"`` (digits, seconds), ``"small"`` (10,000 MNIST images), ``"paper"`` (the published protocol).
        data_dir: where MNIST's files are.
        out: the run folder, by default ``runs/fig1a-PRESET``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        fresh: throw away an earlier run in the folder.
        changes: settings other than the preset's, by the names of :class:`Settings`; None leaves one as it is.

    Returns:
        The report, as in ``report.json``.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    settings = replace(PRESETS[preset], **{name: change for name, change in changes.items() if change is not None})
    if settings.seed < 0:
        raise ValueError(f"seed={settings.seed} must not be negative")
    place = _choose_device(device)
    data = load(settings.dataset, data_dir, split=settings.split).first(settings.examples)
    everything = {**asdict(settings), "device": str(place), "data_sha256": data.sha256}
    folder = RunFolder(out or Path("runs") / f"fig1a-{preset}", everything, FILES, fresh=fresh)
    levels = [_run_level(level, settings, data, folder, place, show_progress) for level in settings.levels]
    curves = {level: AblationCurve.load(folder.path / _level_file(level, "curve.npz")) for level in settings.levels}
    report = {
        "figure": "fig1a",
        "title": TITLE,
        "settings": asdict(settings),
        "data": {"name": data.name, "examples": len(data.labels), "sha256": data.sha256},
        "choices": CHOICES,
        "device": str(place),
        "levels": levels,
    }
    table = pd.concat([c.to_pandas().assign(corruption=level) for level, c in curves.items()], ignore_index=True)
    table.insert(0, "corruption", table.pop("corruption"))
    folder.write("curves.csv", lambda path: table.to_csv(path, index=False))
    folder.write("figure.png", lambda path: _draw(curves, data, settings).savefig(path, dpi=150, format="png"))
    folder.write_json("report.json", report)
    return {**report, "folder": str(folder.path)}


def auc_table(report: dict[str, Any]) -> str:
    """The AUC of every level as text."""
    lines = ["corrupted  training accuracy  epochs  AUC (mean ± sd over orders)"]
    for level in report["levels"]:
        training = level["training"]
        note = "" if training["memorised"] else "   not memorised"
        lines.append(
            f"{level['corruption']:>9.1f}  {training['accuracy']:>17.4f}  {training['epochs']:>6}  "
            f"{level['auc_mean']:.3f} ± {level['auc_std']:.3f}{note}"
        )
    return "\n".join(lines)


def _run_level(
    level: float, settings: Settings, data: LabelledData, folder: RunFolder, device: torch.device, show_progress: bool
) -> dict[str, Any]:
    """Train and ablate one level, each unless it is there already."""
    finished = folder.read_json(_level_file(level, "result.json"))
    if finished is not None:
        return dict(finished)
    labels = corrupt_labels(data.labels, level, seed_for("corruption", settings.seed))
    folder.write(_level_file(level, "labels.safetensors"), lambda path: save_file({"labels": labels}, path))
    inputs, targets = data.inputs.to(device), labels.to(device)
    model = mlp(inputs.shape[1], settings.hidden, data.classes, seed_for("initialisation", settings.seed)).to(device)
    training = _train_or_load(model, level, settings, inputs, targets, folder, show_progress)
    start = time.perf_counter()
    curve = cumulative_ablation(
        model,
        ["relu1", "relu2"],
        (inputs, targets),
        orders=settings.orders,
        points=settings.points,
        seed=seed_for("orders", settings.seed),
        show_progress=show_progress,
    )
    seconds = time.perf_counter() - start
    auc = curve.auc()
    result = {
        "corruption": level,
        "labels_changed": float((labels != data.labels).double().mean()),
        "training": training,
        "auc_mean": float(auc.mean()),
        "auc_std": float(auc.std()) if len(auc) > 1 else 0.0,
        "auc": auc.tolist(),
        "ambiguous_most": int(curve.ambiguous.max()),
        "seconds": seconds,
        "versions": versions(),
        "machine": _describe_machine(device),
    }
    folder.write(_level_file(level, "curve.npz"), curve.save)
    folder.write_json(_level_file(level, "result.json"), result)
    return result


def _train_or_load(
    model: nn.Module,
    level: float,
    settings: Settings,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    folder: RunFolder,
    show_progress: bool,
) -> dict[str, Any]:
    """Leave the level's trained network in ``model``; how its training ended, where and in how many seconds."""
    record = folder.read_json(_level_file(level, "training.json"))
    network = _level_file(level, "network.safetensors")
    if record is not None:
        model.load_state_dict(load_file(folder.path / network))
        model.eval()
        return dict(record)
    start = time.perf_counter()
    training = train(
        model,
        (inputs, labels),
        TrainingOptions(
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            stop_when_memorised=settings.stop_when_memorised,
        ),
        seed=seed_for("shuffling", settings.seed),
        description=f"corruption {level:.1f}: training",
        show_progress=show_progress,
    )
    folder.write(network, lambda path: save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path))
    record = {
        **asdict(training),
        "seconds": time.perf_counter() - start,
        "versions": versions(),
        "machine": _describe_machine(inputs.device),
    }
    folder.write_json(_level_file(level, "training.json"), record)
    return record


def _choose_device(device: str) -> torch.device:
    """The device by name, seen to work."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); try auto or cpu"
        ) from error


def _level_file(level: float, name: str) -> str:
    return f"corruption-{level}/{name}"


def _describe_machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _draw(curves: dict[float, AblationCurve], data: LabelledData, settings: Settings) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    ax = figure.subplots()
    shades = colormaps["viridis"]
    for level, curve in curves.items():
        curve.plot(ax, label=f"{level:.1f}", color=shades(0.92 * level / max(1.0, *curves)))
    chance = float(data.labels.bincount().max()) / len(data.labels)
    ax.axhline(chance, color="0.5", linestyle=":", linewidth=1, label="chance")
    ax.set_ylabel("training accuracy")
    ax.set_ylim(0, 1.02)
    figure.legend(title="labels\ncorrupted", frameon=False, loc="outside right center")
    units = " + ".join(map(str, settings.hidden))
    ax.set_title(
        f"{data.name}, {len(data.labels):,} images, {units} units: mean ± sd over {settings.orders} orders", fontsize=10
    )
    return figure
