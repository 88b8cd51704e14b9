"""CIFAR's batches, in the binary version and as pickles."""

import pickle
from pathlib import Path

import numpy as np

from sdkernels.lab.readers.cifar import CIFAR10, read_cifar
from tests.fuzz.readers.pickles import changed_pickle
from tests.fuzz.readers.reader import Reader


def _binary_seeds() -> list[bytes]:
    return [bytes([label]) + bytes(range(256)) * 12 for label in (0, 9)] + [(bytes(1) + bytes([7]) * 3072) * 2]


def _read_binary(path: Path) -> None:
    images, labels = read_cifar(path.parent, "test", layout=CIFAR10, hint="Get it")
    records = zip(labels.tolist(), images.flatten(1).numpy(), strict=True)
    assert b"".join(bytes([label]) + image.tobytes() for label, image in records) == path.read_bytes()


def _python_seeds() -> list[bytes]:
    pixels = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    batch = {b"batch_label": b"testing", b"labels": [3, 9], b"data": pixels, b"filenames": [b"a.png", b"b.png"]}
    return [pickle.dumps(batch, protocol) for protocol in (0, 2, 4)]


def _read_python(path: Path) -> None:
    images, labels = read_cifar(path.parent, "test", layout=CIFAR10, hint="Get it")
    assert images.shape == (len(labels), 3, 32, 32)
    assert len(labels)
    assert labels.max() < 10


BINARY = Reader("cifar_binary", "test_batch.bin", _binary_seeds, _read_binary)
PYTHON = Reader("cifar_python", "test_batch", _python_seeds, _read_python, changed_pickle)
