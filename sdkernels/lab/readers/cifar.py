"""CIFAR-10 and CIFAR-100, in their publisher's binary version and in the python version (pickles, read safely)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdkernels.lab.readers.places import find_folder, read_whole
from sdkernels.lab.readers.safe_pickle import load_plain

_PIXELS = 3 * 32 * 32  # red, green, blue, each row after row


@dataclass(frozen=True)
class CifarLayout:
    """How a set is laid out.

    Attributes:
        folder: of the set, below which the publisher's folders are.
        folders: the publisher's, binary version first.
        train: names of the training files in the python version; the binary version's end in ``.bin``.
        test: of the test files.
        labels: the key of the labels in the python version.
        label_bytes: how many bytes stand before an image in the binary version.
        label_at: which of them is the label.
        classes: L.
    """

    folder: str
    folders: tuple[str, str]
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    label_bytes: int
    label_at: int
    classes: int


_HUNDRED = partial(
    CifarLayout, "cifar100", ("cifar-100-binary", "cifar-100-python"), ("train",), ("test",), label_bytes=2
)
CIFAR10 = CifarLayout(
    "cifar10",
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    ("test_batch",),
    "labels",
    label_bytes=1,
    label_at=0,
    classes=10,
)
CIFAR100 = _HUNDRED(labels="fine_labels", label_at=1, classes=100)
CIFAR100_COARSE = _HUNDRED(labels="coarse_labels", label_at=0, classes=20)


def read_cifar(data_dir: Path, split: str, *, layout: CifarLayout, hint: str) -> tuple[Tensor, Tensor]:
    """Read a split, in the publisher's order; the binary version if both are there.

    Args:
        data_dir: holds the files, or the publisher's folder, or a folder of the set's name with either.
        split: ``"train"`` or ``"test"``.
        layout: ``CIFAR10``, ``CIFAR100`` or ``CIFAR100_COARSE``.
        hint: where to get the files; ends every error.

    Returns:
        Images, uint8 ``[N, 3, 32, 32]``, and labels, uint8 ``[N]``.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a damaged file, a pickle that holds more than plain data, a label out of range.
    """
    names = layout.train if split == "train" else layout.test
    binary_names = [f"{name}.bin" for name in names]
    binary, python = layout.folders
    inner = [f"{layout.folder}/{binary}", binary, f"{layout.folder}/{python}", python, layout.folder, ""]
    place = find_folder(data_dir, inner, [*binary_names, *names], hint)
    if any((place / name).is_file() for name in binary_names):
        batches = [_read_binary(place / name, layout, hint) for name in binary_names]
    else:
        batches = [_read_python(place / name, layout, hint) for name in names]
    counts = [len(labels) for _, labels in batches]
    if len(set(counts)) > 1:  # all that tells a file that ends between two images
        raise ValueError(f"{place}: {', '.join(names)} hold {counts} images; all should hold as many. {hint}")
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def _read_binary(path: Path, layout: CifarLayout, hint: str) -> tuple[Tensor, Tensor]:
    """Records of the labels, a byte each, and an image."""
    raw, record = np.frombuffer(read_whole(path, hint), np.uint8), layout.label_bytes + _PIXELS
    if len(raw) == 0 or len(raw) % record:
        raise ValueError(
            f"{path} holds {len(raw)} bytes, which is no whole number of images, {record} bytes each: it is truncated "
            f"or another set's. {hint}"
        )
    records = raw.reshape(-1, record)
    return _checked(path, records[:, layout.label_bytes :], records[:, layout.label_at], layout, hint)


def _read_python(path: Path, layout: CifarLayout, hint: str) -> tuple[Tensor, Tensor]:
    """A dict with ``data``, uint8 ``[N, 3072]``, and a list of labels."""
    content = load_plain(path, hint)
    entries = {}
    if isinstance(content, dict):
        entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    missing = [key for key in ("data", layout.labels) if key not in entries]
    if missing:
        raise ValueError(f"{path} is no batch of {layout.folder}: it lacks {', '.join(missing)}. {hint}")
    data, labels = entries["data"], entries[layout.labels]
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == _PIXELS):
        raise ValueError(f"{path}: its data is {_describe(data)}, not bytes [N, {_PIXELS}]. {hint}")
    if not (isinstance(labels, list) and len(labels) == len(data) and all(type(label) is int for label in labels)):
        raise ValueError(f"{path}: its {layout.labels} are {_describe(labels)}, not {len(data)} whole numbers. {hint}")
    if not labels:
        raise ValueError(f"{path} holds no image. {hint}")
    return _checked(path, data, np.array(labels, dtype=object), layout, hint)


def _checked(
    path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], layout: CifarLayout, hint: str
) -> tuple[Tensor, Tensor]:
    outside = [int(label) for label in (labels.min(), labels.max()) if not 0 <= label < layout.classes]
    if outside:
        raise ValueError(f"{path} holds a label {outside[0]}; classes are 0..{layout.classes - 1}. {hint}")
    pixels = torch.from_numpy(images.copy()).view(-1, 3, 32, 32)
    return pixels, torch.from_numpy(labels.astype(np.uint8))


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list) else "")
