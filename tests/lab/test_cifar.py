"""CIFAR in its binary and its python version: pixels where they belong, and every damage named with the file."""

import os
import pickle

import numpy as np
import pytest
import torch

from sdkernels.lab.datasets import load

FIRST = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
TEN = [[1], [9], [0]]  # labels of a record
HUNDRED = [[19, 99], [0, 7], [4, 0]]  # coarse, fine
FILES = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch"),
    "cifar100": ("cifar-100-binary", "cifar-100-python", ["train"], "test"),
}


def records(labels, images):
    """The binary version, from its description: the labels' bytes, then 1,024 red, green and blue ones, by rows."""
    return b"".join(
        bytes(label) + b"".join(bytes(int(v) for v in image[c].flatten()) for c in range(3))
        for label, image in zip(labels, images, strict=True)
    )


def batch(name, labels, images, keys=bytes):
    """The python version."""
    data = np.stack([np.concatenate([image[c].reshape(-1) for c in range(3)]) for image in images])
    content = {"data": data, "filenames": [b"a.png"] * len(labels), "batch_label": b"batch 1 of 5"}
    names = ["labels"] if name == "cifar10" else ["coarse_labels", "fine_labels"]
    content |= {key: [label[at] for label in labels] for at, key in enumerate(names)}
    return {(key.encode() if keys is bytes else key): value for key, value in content.items()}


def images_of(number):
    """Three images, other ones for every file."""
    return [np.roll(FIRST[i], number, axis=2) for i in range(3)]


def write(folder, name, version):
    """A folder as the publisher packs it; the number of a file says which images it holds."""
    binary, python, train, test = FILES[name]
    place = folder / (binary if version == "binary" else python)
    place.mkdir(parents=True)
    for number, file in enumerate([*train, test]):
        labels, images = (TEN if name == "cifar10" else HUNDRED), images_of(number)
        if version == "binary":
            (place / f"{file}.bin").write_bytes(records(labels, images))
        else:
            (place / file).write_bytes(pickle.dumps(batch(name, labels, images), 2))
    return place


@pytest.fixture(params=["binary", "python"])
def version(request):
    return request.param


@pytest.mark.parametrize(
    ("name", "labels", "classes"),
    [("cifar10", [1, 9, 0], 10), ("cifar100", [99, 7, 0], 100), ("cifar100_coarse", [19, 0, 4], 20)],
    ids=str,
)
class TestReads:
    @pytest.mark.parametrize("below", ["", "cifar"])
    def test_pixels_labels_and_order(self, tmp_path, name, labels, classes, version, below):
        packed = name.removesuffix("_coarse")
        write(tmp_path / below.replace("cifar", packed), packed, version)
        train, test = load(name, tmp_path), load(name, tmp_path, split="test")
        files = len(FILES[packed][2])
        assert (train.name, train.classes, train.shape) == (name, classes, (3, 32, 32))
        assert train.inputs.dtype == torch.float32
        expected = np.stack([image for number in range(files) for image in images_of(number)])
        assert torch.equal(train.inputs, torch.from_numpy(expected).float() / 255)
        assert torch.equal(test.inputs, torch.from_numpy(np.stack(images_of(files))).float() / 255)
        assert train.labels.tolist() == labels * files
        assert test.labels.tolist() == labels
        assert train.labels.dtype == torch.int64

    def test_files_directly_in_the_folder(self, tmp_path, name, labels, classes, version):
        packed = name.removesuffix("_coarse")
        place = write(tmp_path, packed, version)
        whole = load(name, tmp_path).sha256
        assert load(name, place).sha256 == whole
        place.rename(tmp_path / packed)
        assert load(name, tmp_path).sha256 == whole


def test_the_binary_version_is_taken_if_both_are_there(tmp_path):
    write(tmp_path, "cifar10", "binary")
    place = write(tmp_path, "cifar10", "python")
    for file in place.iterdir():
        file.write_bytes(b"damaged")
    assert len(load("cifar10", tmp_path).labels) == 15


def test_keys_as_text(tmp_path):
    place = write(tmp_path, "cifar10", "python")
    whole = load("cifar10", tmp_path).sha256
    for number in range(5):
        content = batch("cifar10", TEN, images_of(number), keys=str)
        (place / f"data_batch_{number + 1}").write_bytes(pickle.dumps(content, 2))
    assert load("cifar10", tmp_path).sha256 == whole


class TestDamage:
    def refuses(self, folder, name, path, says, error=ValueError):
        with pytest.raises(error, match=says) as raised:
            load(name, folder)
        assert str(path) in str(raised.value)
        assert f"sdkernels data fetch {name} --data-dir DIR" in str(raised.value)

    def file_of(self, folder, name, version):
        ending = ".bin" if version == "binary" else ""
        return write(folder, name, version) / (FILES[name][2][-1] + ending)

    @pytest.mark.parametrize("name", FILES)
    def test_missing(self, tmp_path, name, version):
        with pytest.raises(ValueError, match=f"{name} is read from files.*fetch {name}"):
            load(name)
        self.refuses(tmp_path, name, tmp_path / name, "none is in", FileNotFoundError)
        self.refuses(tmp_path / "no", name, tmp_path / "no", "is no folder", FileNotFoundError)
        path = self.file_of(tmp_path, name, version)
        path.unlink()
        says = "is missing" if name == "cifar10" else "none is in"
        self.refuses(tmp_path, name, path if name == "cifar10" else path.parent, says, FileNotFoundError)

    @pytest.mark.parametrize("name", FILES)
    def test_truncated(self, tmp_path, name, version):
        path = self.file_of(tmp_path, name, version)
        whole = path.read_bytes()
        for keep in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:keep])
            self.refuses(tmp_path, name, path, "truncated" if version == "binary" else "no pickle, or damaged")

    def test_a_file_that_ends_between_two_images(self, tmp_path):
        path = self.file_of(tmp_path, "cifar10", "binary")
        path.write_bytes(path.read_bytes()[:3073])
        self.refuses(tmp_path, "cifar10", path.parent, r"hold \[3, 3, 3, 3, 1\] images; all should hold as many")

    def test_the_other_sets_file(self, tmp_path):
        path = self.file_of(tmp_path, "cifar10", "binary")
        path.write_bytes(records(HUNDRED, images_of(0)))
        self.refuses(tmp_path, "cifar10", path, "no whole number of images, 3073 bytes each")

    @pytest.mark.parametrize(
        ("name", "labels"), [("cifar10", [[10], [0], [0]]), ("cifar100", [[0, 0], [0, 100], [0, 0]])]
    )
    def test_labels_beyond_the_classes(self, tmp_path, name, labels, version):
        path = self.file_of(tmp_path, name, version)
        images = images_of(0)
        path.write_bytes(
            records(labels, images) if version == "binary" else pickle.dumps(batch(name, labels, images), 2)
        )
        self.refuses(tmp_path, name, path, r"holds a label 100?; classes are 0\.\.99?")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({b"labels": None}, r"its labels are a NoneType, not 3 whole numbers"),
            ({b"labels": [1, 2]}, r"its labels are a list of 2, not 3 whole numbers"),
            ({b"labels": [1, 2, b"3"]}, r"not 3 whole numbers"),
            ({b"labels": [1, 2, True]}, r"not 3 whole numbers"),
            ({b"labels": [1, 2, -1]}, r"holds a label -1"),
            ({b"labels": [1, 2, 256]}, r"holds a label 256"),
            ({b"labels": [1, 2, 2**70]}, r"holds a label 1180591620717411303424"),
            ({b"data": [1, 2, 3]}, r"its data is a list of 3, not bytes \[N, 3072\]"),
            ({b"data": np.zeros((3, 3071), np.uint8)}, r"its data is uint8 \[3, 3071\]"),
            ({b"data": np.zeros((3, 3072), np.float32)}, r"its data is float32"),
            ({b"data": np.zeros((3, 3, 1024), np.uint8)}, r"its data is uint8 \[3, 3, 1024\]"),
            ({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, r"holds no image"),
        ],
        ids=str,
    )
    def test_entries_of_other_kinds(self, tmp_path, change, says):
        path = self.file_of(tmp_path, "cifar10", "python")
        path.write_bytes(pickle.dumps(batch("cifar10", TEN, images_of(0)) | change, 2))
        self.refuses(tmp_path, "cifar10", path, says)

    @pytest.mark.parametrize("content", [[1, 2], {b"labels": [1]}, {}, b"data"], ids=str)
    def test_pickles_of_something_else(self, tmp_path, content):
        path = self.file_of(tmp_path, "cifar10", "python")
        path.write_bytes(pickle.dumps(content, 2))
        self.refuses(tmp_path, "cifar10", path, r"no batch of cifar10: it lacks data")

    def test_fine_and_coarse_labels_are_told_apart(self, tmp_path):
        path = self.file_of(tmp_path, "cifar100", "python")
        path.write_bytes(pickle.dumps(batch("cifar10", TEN, images_of(0)), 2))
        self.refuses(tmp_path, "cifar100", path, r"it lacks fine_labels")

    def test_a_pickle_that_would_run_something(self, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "run"),)

        path = self.file_of(tmp_path, "cifar10", "python")
        path.write_bytes(pickle.dumps(batch("cifar10", TEN, images_of(0)) | {b"labels": Attack()}, 2))
        self.refuses(tmp_path, "cifar10", path, r"tries to load (posix|nt)\.mkdir")
        assert not (tmp_path / "run").exists()


def test_the_publishers_files(data_dir):
    if not (data_dir / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not there")
    train, test = load("cifar10", data_dir), load("cifar10", data_dir, split="test")
    assert (train.inputs.shape, test.inputs.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # frog, truck, truck, deer, ...
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert train.labels.bincount().tolist() == [5_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert (train.inputs[0, :, 0, 0] * 255).tolist() == [59, 62, 63]
    mean, std = train.statistics()
    assert [round(float(m), 4) for m in mean] == [0.4914, 0.4822, 0.4465]
    assert [round(float(s), 4) for s in std] == [0.2470, 0.2435, 0.2616]
