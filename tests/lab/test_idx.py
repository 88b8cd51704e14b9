"""IDX files: read right, and every damage named with the file and where to get it."""

import gzip

import pytest
import torch

from sdkernels.lab.datasets import load
from sdkernels.lab.readers.idx import read_idx


def idx_bytes(array: torch.Tensor) -> bytes:
    """An IDX file of unsigned bytes, written out from the format's description."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + bytes(array.flatten().tolist())


@pytest.fixture
def folder(tmp_path):
    images = torch.arange(5 * 4 * 3, dtype=torch.uint8).view(5, 4, 3)
    labels = torch.tensor([3, 0, 9, 1, 1], dtype=torch.uint8)
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path


def test_reads_gzipped_plain_and_in_a_folder_of_its_name(folder):
    data = load("mnist", folder)
    assert data.inputs.shape == (5, 12)
    assert data.inputs[1, 0] == 12 / 255
    assert data.labels.tolist() == [3, 0, 9, 1, 1]
    inner = folder / "fashion_mnist"
    inner.mkdir()
    for path in folder.glob("train-*.gz"):
        (inner / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    plain = load("fashion_mnist", folder)
    assert torch.equal(plain.inputs, data.inputs)
    assert torch.equal(load("mnist", folder, split="test").labels, data.labels)


def test_the_folder_of_its_name_comes_first(folder):
    own = folder / "fashion_mnist"
    own.mkdir()
    for path in folder.glob("train-*.gz"):
        (own / path.name).write_bytes(path.read_bytes())
    (own / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(torch.tensor([5, 5, 5, 5, 5], dtype=torch.uint8)))
    assert load("fashion_mnist", folder).labels.tolist() == [5] * 5
    assert load("mnist", folder).labels.tolist() == [3, 0, 9, 1, 1]


def test_no_folder_given():
    with pytest.raises(ValueError, match=r"mnist is read from files\. .*data fetch mnist --data-dir"):
        load("mnist")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"])
class TestDamage:
    def refuses(self, folder, name, says, error=ValueError):
        with pytest.raises(error, match=says) as raised:
            load("mnist", folder)
        assert str(folder / name) in str(raised.value)
        assert "yann.lecun.com/exdb/mnist" in str(raised.value)

    def test_missing(self, folder, name):
        (folder / name).unlink()
        self.refuses(folder, name, "is missing", FileNotFoundError)

    def test_wrong_magic(self, folder, name):
        other = "labels-idx1" if "images" in name else "images-idx3"
        (folder / name).write_bytes((folder / f"train-{other}-ubyte.gz").read_bytes())
        self.refuses(folder, name, r"starts with 0x0000080[13], not 0x0000080[13]. Are image and label files mixed up")

    def test_empty(self, folder, name):
        (folder / name).write_bytes(b"")
        self.refuses(folder, name, "no IDX file")

    def test_truncated_gzip(self, folder, name):
        whole = (folder / name).read_bytes()
        for keep in (len(whole) - 1, len(whole) - 9, len(whole) // 2):
            (folder / name).write_bytes(whole[:keep])
            self.refuses(folder, name, "is truncated: its gzip stream ends early")

    def test_corrupt_gzip(self, folder, name):
        whole = bytearray((folder / name).read_bytes())
        whole[-6] ^= 0xFF  # within the checksum
        (folder / name).write_bytes(whole)
        self.refuses(folder, name, "is corrupt")

    def test_truncated_within_the_header(self, folder, name):
        (folder / name).write_bytes(gzip.decompress((folder / name).read_bytes())[:6])
        self.refuses(folder, name, "truncated within its header")

    @pytest.mark.parametrize("change", [-1, 1])
    def test_wrong_length(self, folder, name, change):
        whole = gzip.decompress((folder / name).read_bytes())
        (folder / name).write_bytes(whole[:-1] if change < 0 else whole + b"\0")
        self.refuses(folder, name, "bytes where its header says")


def test_counts_that_differ(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(torch.zeros(4, dtype=torch.uint8))))
    with pytest.raises(ValueError, match=r"holds 5 images but .*train-labels.* 4 labels.*yann"):
        load("mnist", folder)


def test_labels_beyond_the_classes(folder):
    labels = torch.tensor([0, 1, 2, 3, 10], dtype=torch.uint8)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError, match="holds a label 10"):
        load("mnist", folder)


def test_no_images(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx_bytes(torch.zeros(0, 4, 3, dtype=torch.uint8)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(torch.zeros(0, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="holds no image"):
        load("mnist", folder)


def test_the_publishers_files(data_dir):
    train, test = load("mnist", data_dir), load("mnist", data_dir, split="test")
    assert (train.inputs.shape, test.inputs.shape) == ((60_000, 784), (10_000, 784))
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (train.inputs.min(), train.inputs.max()) == (0, 1)
    assert read_idx(data_dir / "mnist" / "t10k-labels-idx1-ubyte.gz", 1, "").tolist() == test.labels.tolist()
