"""The data of a sweep's networks, read and prepared once a process: in memory, folders of images, or texts."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import LabelledData, TextData, load, load_text
from sdkernels.lab.folders import IMAGE_SIZE, IMAGENET, FolderData, load_imagenet
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep.settings import Examples, NetworkSettings, SweepData
from sdkernels.lab.tokens import TokenData


def read_data(settings: NetworkSettings, data_dir: Path | None) -> SweepData:
    """What the network is trained on, before labels are corrupted."""
    return _prepared(settings, data_dir, settings.split)


def true_data(settings: NetworkSettings, data_dir: Path | None) -> Examples:
    """What a classifier is trained on, before labels are corrupted.

    Raises:
        ValueError: a language model's text.
    """
    data = read_data(settings, data_dir)
    if isinstance(data, TokenData):
        raise ValueError(f"{settings.model} reads {settings.data}, a text: it has tokens, and no labels")
    return data


def training_data(settings: NetworkSettings, data_dir: Path | None) -> SweepData:
    """What the network is trained on."""
    data = read_data(settings, data_dir)
    if isinstance(data, TokenData) or not settings.corruption:
        return data
    seed = seed_for("corruption", settings.seed) if settings.corruption_seed is None else settings.corruption_seed
    labels = corrupt_labels(data.labels, settings.corruption, seed)
    return data.with_labels(labels) if isinstance(data, FolderData) else replace(data, labels=labels)


def test_data(settings: NetworkSettings, data_dir: Path | None) -> SweepData | None:
    """The test split, scaled as the training examples are; None where there is none beside what is trained on."""
    return held_out_data(settings, data_dir).get("test")


def held_out_data(settings: NetworkSettings, data_dir: Path | None) -> dict[str, SweepData]:
    """What the network is evaluated on beside its training data: ``"test"``, of texts ``"validation"`` too; or less."""
    if settings.is_text:
        there = _read_text(settings.data, data_dir, settings.split).present
        others = [part for part in ("validation", "test") if part in there and part != settings.split]
        return {part: _prepared(settings, data_dir, part) for part in others}
    return {} if settings.split == "all" else {"test": _prepared(settings, data_dir, "test")}


def measured_data(settings: NetworkSettings, on: str, examples: int | None, data_dir: Path | None) -> Examples:
    """What a trained network is measured on: examples as it was trained on them, or of the test split.

    Raises:
        ValueError: all examples are trained on, or there are fewer; a language model, which is no classifier.
    """
    chosen = training_data(settings, data_dir) if on == "train" else test_data(settings, data_dir)
    if settings.is_text or isinstance(chosen, TokenData):
        raise ValueError(
            f"a sweep measures classifiers, and {settings.model} on {settings.data} is a language model: leave the "
            "measure out, and give networks.model(i), wrapped in NextToken, to the function itself, with windows of "
            "text (sdkernels.lab.tokens.token_windows) as data and select=0"
        )
    if chosen is None:
        raise ValueError("on='test': the network is trained on all examples, split='all', and none are left")
    return chosen if examples is None else _part(chosen, examples)


def for_analysis(data: Examples, batch_size: int) -> tuple[Tensor, Tensor] | DataLoader[tuple[Tensor, int]]:
    """What analyses take: tensors, which they cut into batches, or a loader of such batches."""
    return data.loader(batch_size) if isinstance(data, FolderData) else (data.inputs, data.labels)


def reading_workers(data: SweepData) -> int:
    """Processes that read it while a network is trained or evaluated."""
    return data.workers if isinstance(data, FolderData) else 0


def _prepared(settings: NetworkSettings, data_dir: Path | None, split: str) -> SweepData:
    if settings.is_text:
        return _text(settings, data_dir, split)
    if settings.data == IMAGENET:
        examples = settings.examples if split == settings.split else None
        size = settings.image_size or IMAGE_SIZE
        return _read_folder(data_dir, examples, settings.standardise, size, split)
    flat = settings.model == "mlp"
    return _read(settings.data, data_dir, settings.split, settings.examples, settings.standardise, flat, split)


def _text(settings: NetworkSettings, data_dir: Path | None, part: str) -> TokenData:
    text = _read_text(settings.data, data_dir, settings.split)
    data = TokenData(f"{settings.data}'s {part} text", getattr(text, part), text.vocabulary)
    if part == settings.split and settings.examples is not None:
        data = data.first(settings.examples)
    pieces = settings.training.batch_size  # of which a model is trained, and evaluated, on each side by side
    if len(data.tokens) < 2 * pieces:
        raise ValueError(
            f"{data.name} of {len(data.tokens)} tokens is too short for {pieces} pieces of at least 2 each: lower "
            "batch_size"
        )
    return data


@lru_cache(maxsize=4)
def _read_text(name: str, data_dir: Path | None, trained: str) -> TextData:
    return load_text(name, data_dir, words_of=trained)


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


def _part(data: Examples, examples: int) -> Examples:
    """So many examples: the first; of folders, which are sorted by class, some of each class."""
    return data.spread(examples) if isinstance(data, FolderData) else data.first(examples)
