"""The data of a sweep's networks, read once a process."""

from functools import lru_cache
from pathlib import Path

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import LabelledData, load
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.spec import NetworkSettings


@lru_cache(maxsize=4)
def _read(name: str, data_dir: Path | None, split: str) -> LabelledData:
    return load(name, data_dir, split=split)


def untouched(settings: NetworkSettings, data_dir: Path | None, split: str) -> LabelledData:
    """The examples of a split as read, shaped for the model; of the training split as many as the network sees."""
    data = _read(settings.data, data_dir, split)
    if split == settings.split and settings.examples is not None:
        data = data.first(settings.examples)
    return data.flattened() if settings.model == "mlp" else data.as_images()


def training_data(settings: NetworkSettings, data_dir: Path | None) -> LabelledData:
    """What the network is trained on: standardised and with corrupted labels, if it asks for that."""
    data = untouched(settings, data_dir, settings.split)
    seed = seed_for("corruption", settings.seed) if settings.corruption_seed is None else settings.corruption_seed
    labels = corrupt_labels(data.labels, settings.corruption, seed)
    inputs = data.standardised().inputs if settings.standardise else data.inputs
    return LabelledData(data.name, inputs, labels, data.classes, data.shape)


def test_data(settings: NetworkSettings, data_dir: Path | None) -> LabelledData | None:
    """The test split, treated as the training examples were; None where all examples are trained on."""
    if settings.split == "all":
        return None
    data = untouched(settings, data_dir, "test")
    if settings.standardise:
        data = data.standardised(*untouched(settings, data_dir, settings.split).statistics())
    return data
