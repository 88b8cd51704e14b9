"""The data of a sweep's networks, read and prepared once a process."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import LabelledData, load
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.settings import NetworkSettings


def true_data(settings: NetworkSettings, data_dir: Path | None) -> LabelledData:
    """What the network is trained on, before labels are corrupted."""
    return _prepared(settings, data_dir, settings.split)


def training_data(settings: NetworkSettings, data_dir: Path | None) -> LabelledData:
    """What the network is trained on."""
    data = true_data(settings, data_dir)
    seed = seed_for("corruption", settings.seed) if settings.corruption_seed is None else settings.corruption_seed
    return replace(data, labels=corrupt_labels(data.labels, settings.corruption, seed))


def test_data(settings: NetworkSettings, data_dir: Path | None) -> LabelledData | None:
    """The test split, scaled as the training examples are; None where all examples are trained on."""
    return None if settings.split == "all" else _prepared(settings, data_dir, "test")


def measured_data(settings: NetworkSettings, on: str, examples: int | None, data_dir: Path | None) -> LabelledData:
    """What a trained network is measured on: examples as it was trained on them, or of the test split.

    Raises:
        ValueError: all examples are trained on, or there are fewer.
    """
    chosen = training_data(settings, data_dir) if on == "train" else test_data(settings, data_dir)
    if chosen is None:
        raise ValueError("on='test': the network is trained on all examples, split='all', and none are left")
    return chosen if examples is None else chosen.first(examples)


def _prepared(settings: NetworkSettings, data_dir: Path | None, split: str) -> LabelledData:
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
