"""Data by name: digits (embedded), MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and texts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sdkernels.analysis.extras import require
from sdkernels.lab.labelled import LabelledData
from sdkernels.lab.readers.cifar import CIFAR10, CIFAR100, CIFAR100_COARSE, read_cifar
from sdkernels.lab.readers.digits_tokens import TRAINING_IMAGES
from sdkernels.lab.readers.idx import read_idx_split
from sdkernels.lab.readers.text import TEXT_NAMES, TextData, load_text

__all__ = ["NAMES", "SPLITS", "TEXT_NAMES", "LabelledData", "TextData", "load", "load_text"]

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class _Source:
    """A set that is read from files.

    Attributes:
        folder: which may hold the files; also the name to fetch it by.
        publisher: whose files they are.
        classes: L.
        read: images uint8 ``[N, ...]`` and labels uint8 ``[N]`` of a folder and ``"train"`` or ``"test"``.
        flat: inputs are ``[N, D]``.
    """

    folder: str
    publisher: str
    classes: int
    read: Callable[..., tuple[Tensor, Tensor]]
    flat: bool

    @property
    def hint(self) -> str:
        """Where to get the files; ends every error."""
        return (
            f"Get it by `sdkernels data fetch {self.folder} --data-dir DIR`, or put the files of {self.publisher} into "
            f"DIR/{self.folder}; then give --data-dir DIR"
        )


def _idx_source(name: str, publisher: str) -> _Source:
    return _Source(name, publisher, 10, partial(read_idx_split, folder=name, classes=10), flat=True)


_TORONTO = "www.cs.toronto.edu/~kriz/cifar.html"
_SOURCES = {
    "mnist": _idx_source("mnist", "yann.lecun.com/exdb/mnist"),
    "fashion_mnist": _idx_source("fashion_mnist", "github.com/zalandoresearch/fashion-mnist, data/fashion,"),
    "cifar10": _Source("cifar10", _TORONTO, 10, partial(read_cifar, layout=CIFAR10), flat=False),
    "cifar100": _Source("cifar100", _TORONTO, 100, partial(read_cifar, layout=CIFAR100), flat=False),
    "cifar100_coarse": _Source("cifar100", _TORONTO, 20, partial(read_cifar, layout=CIFAR100_COARSE), flat=False),
}
NAMES = ("digits", *_SOURCES)


def load(name: str, data_dir: Path | None = None, *, split: str = "train") -> LabelledData:
    """Load a data set by name.

    ==================  ==========  =================  =================================================
    name                classes L   inputs             examples, and where they come from
    ==================  ==========  =================  =================================================
    digits              10          ``[N, 64]``        1,437 + 360, comes with scikit-learn
    mnist               10          ``[N, 784]``       60,000 + 10,000, IDX files, gzipped or not
    fashion_mnist       10          ``[N, 784]``       as MNIST
    cifar10             10          ``[N, 3, 32, 32]`` 50,000 + 10,000, the binary or the python version
    cifar100            100         ``[N, 3, 32, 32]`` as CIFAR-10; ``cifar100_coarse`` has its 20 classes
    ==================  ==========  =================  =================================================

    Args:
        name: as in the table.
        data_dir: where the files are, in it or in a folder of the data set's name.
        split: ``"train"``, ``"test"``, or ``"all"``: the first, then the second. Digits have no published split: the
            first 1,437 are ``"train"``, the other 360 ``"test"``.

    Returns:
        Inputs in 0..1, in the publisher's order.

    Raises:
        ValueError: an unknown name or split, no ``data_dir``, or a damaged file; names the file and where to get it.
        FileNotFoundError: a missing file.

    Example:
        >>> digits = load("digits")
        >>> digits.inputs.shape, digits.shape, len(load("digits", split="all").labels)
        (torch.Size([1437, 64]), (1, 8, 8), 1797)
    """
    if name not in NAMES:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose 'train', 'test' or 'all'")
    return _digits(split) if name == "digits" else _from_files(name, data_dir, split)


def _digits(split: str) -> LabelledData:
    digits = require("sklearn.datasets", 'load("digits")').load_digits()
    part = {"train": slice(TRAINING_IMAGES), "test": slice(TRAINING_IMAGES, None), "all": slice(None)}[split]
    inputs = torch.tensor(digits.data[part] / 16, dtype=torch.float32)
    return LabelledData("digits", inputs, torch.tensor(digits.target[part]).long(), 10, (1, 8, 8))


def _from_files(name: str, data_dir: Path | None, split: str) -> LabelledData:
    source = _SOURCES[name]
    if data_dir is None:
        raise ValueError(f"{name} is read from files. {source.hint}")
    splits = ("train", "test") if split == "all" else (split,)
    parts = [source.read(Path(data_dir), part, hint=source.hint) for part in splits]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if images.ndim == 3:
        images = images[:, None]  # one channel
    data = LabelledData(name, images.float().div_(255), labels.long(), source.classes)
    return data.flattened() if source.flat else data
