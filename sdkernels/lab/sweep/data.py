"""The data of a sweep's networks, read and prepared once a process: in memory, or folders of images."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import LabelledData, load
from sdkernels.lab.folders import IMAGE_SIZE, IMAGENET, FolderData, load_imagenet
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.settings import NetworkSettings, SweepData


def true_data(settings: NetworkSettings, data_dir: Path | None) -> SweepData:
    """What the network is trained on, before labels are corrupted."""
    return _prepared(settings, data_dir, settings.split)


def training_data(settings: NetworkSettings, data_dir: Path | None) -> SweepData:
    """What the network is trained on."""
    data = true_data(settings, data_dir)
    if not settings.corruption:
        return data
    seed = seed_for("corruption", settings.seed) if settings.corruption_seed is None else settings.corruption_seed
    labels = corrupt_labels(data.labels, settings.corruption, seed)
    return data.with_labels(labels) if isinstance(data, FolderData) else replace(data, labels=labels)


def test_data(settings: NetworkSettings, data_dir: Path | None) -> SweepData | None:
    """The test split, scaled as the training examples are; None where all examples are trained on."""
    return None if settings.split == "all" else _prepared(settings, data_dir, "test")


def measured_data(settings: NetworkSettings, on: str, examples: int | None, data_dir: Path | None) -> SweepData:
    """What a trained network is measured on: examples as it was trained on them, or of the test split.

    Raises:
        ValueError: all examples are trained on, or there are fewer.
    """
    chosen = training_data(settings, data_dir) if on == "train" else test_data(settings, data_dir)
    if chosen is None:
        raise ValueError("on='test': the network is trained on all examples, split='all', and none are left")
    return chosen if examples is None else _part(chosen, examples)


def for_analysis(data: SweepData, batch_size: int) -> tuple[Tensor, Tensor] | DataLoader[tuple[Tensor, int]]:
    """What analyses take: tensors, which they cut into batches, or a loader of such batches."""
    return data.loader(batch_size) if isinstance(data, FolderData) else (data.inputs, data.labels)


def reading_workers(data: SweepData) -> int:
    """Processes that read it while a network is trained or evaluated."""
    return data.workers if isinstance(data, FolderData) else 0


def _prepared(settings: NetworkSettings, data_dir: Path | None, split: str) -> SweepData:
    if settings.data == IMAGENET:
        examples = settings.examples if split == settings.split else None
        size = settings.image_size or IMAGE_SIZE
        return _read_folder(data_dir, examples, settings.standardise, size, split)
    flat = settings.model == "mlp"
    return _read(settings.data, data_dir, settings.split, settings.examples, settings.standardise, flat, split)


@lru_cache(maxsize=4)
def _read(
    name: str, data_dir: Path | None, trained: str, examples: int | None, standardise: bool, flat: bool, split: str
) -> LabelledData:
    def shaped(split: str) -> LabelledData:
        data = load(name, data_dir, split=split)
        if split == trained and examples is not None:
            data = data.first(examples)
        return data.flattened() if flat else data.as_images()

    data = shaped(split)
    return data.standardised(*shaped(trained).statistics()) if standardise else data


@lru_cache(maxsize=4)
def _read_folder(
    data_dir: Path | None, examples: int | None, standardise: bool, image_size: int, split: str
) -> FolderData:
    data = load_imagenet(data_dir, split, image_size=image_size, standardise=standardise)
    return data if examples is None else data.spread(examples)


def _part(data: SweepData, examples: int) -> SweepData:
    """So many examples: the first; of folders, which are sorted by class, some of each class."""
    return data.spread(examples) if isinstance(data, FolderData) else data.first(examples)
