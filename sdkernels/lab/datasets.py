"""Data sets by name: scikit-learn's handwritten digits (embedded), MNIST and Fashion-MNIST (the publishers' files)."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sdkernels.lab.readers.idx import read_idx


@dataclass(frozen=True)
class LabelledData:
    """A classification data set in memory.

    Attributes:
        name: as asked for.
        inputs: float32 ``[N, D]``, pixels scaled to 0..1.
        labels: int64 ``[N]``.
        classes: L.
    """

    name: str
    inputs: Tensor
    labels: Tensor
    classes: int

    def first(self, examples: int) -> "LabelledData":
        """The first ``examples`` examples.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= examples <= len(self.labels):
            raise ValueError(f"{self.name} has {len(self.labels)} examples; asked for {examples}")
        return LabelledData(self.name, self.inputs[:examples], self.labels[:examples], self.classes)

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of inputs and labels."""
        digest = hashlib.sha256(self.inputs.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _IdxSource:
    folder: str
    hint: str


_IDX_SOURCES = {
    "mnist": _IdxSource(
        "mnist",
        "MNIST's four files are at yann.lecun.com/exdb/mnist; put them into DIR or DIR/mnist and give --data-dir DIR",
    ),
    "fashion_mnist": _IdxSource(
        "fashion_mnist",
        "Fashion-MNIST's four files are at github.com/zalandoresearch/fashion-mnist, data/fashion; put them into DIR "
        "or DIR/fashion_mnist and give --data-dir DIR",
    ),
}
NAMES = ("digits", *_IDX_SOURCES)


def load(name: str, data_dir: Path | None = None, *, split: str = "train") -> LabelledData:
    """Load a data set by name.

    Args:
        name: ``"digits"`` (1,797 images of 8x8, comes with scikit-learn, no split), ``"mnist"`` or ``"fashion_mnist"``
            (60,000 + 10,000 images of 28x28, from the publishers' IDX files, gzipped or not).
        data_dir: where the files are, in it or in a folder of the data set's name.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: an unknown name or split, no ``data_dir``, or a damaged file; names the file and where to get it.
        FileNotFoundError: a missing file.
    """
    if name not in NAMES:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(NAMES)}")
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: choose 'train' or 'test'")
    return _digits() if name == "digits" else _idx(name, data_dir, split)


def _digits() -> LabelledData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return LabelledData(
        "digits", torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target).long(), 10
    )


def _idx(name: str, data_dir: Path | None, split: str) -> LabelledData:
    source = _IDX_SOURCES[name]
    if data_dir is None:
        raise ValueError(f"{name} is read from files: {source.hint}")
    folder = data_dir / source.folder if (data_dir / source.folder).is_dir() else data_dir
    prefix = "train" if split == "train" else "t10k"
    image_file = _gzipped_or_plain(folder / f"{prefix}-images-idx3-ubyte")
    label_file = _gzipped_or_plain(folder / f"{prefix}-labels-idx1-ubyte")
    images = read_idx(image_file, 3, source.hint)
    labels = read_idx(label_file, 1, source.hint)
    if len(images) != len(labels):
        raise ValueError(
            f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels: they belong to different "
            f"sets. Get both again: {source.hint}"
        )
    if len(images) == 0:
        raise ValueError(f"{image_file} holds no image. Get it again: {source.hint}")
    if labels.max() > 9:
        raise ValueError(
            f"{label_file} holds a label {int(labels.max())}; classes are 0..9. Get it again: {source.hint}"
        )
    return LabelledData(name, images.flatten(1).float() / 255, labels.long(), 10)


def _gzipped_or_plain(path: Path) -> Path:
    """The plain file if it is there, else the gzipped one (which an error then names)."""
    return path if path.is_file() else path.with_name(path.name + ".gz")
