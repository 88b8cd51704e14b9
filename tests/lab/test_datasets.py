"""Data by name, its splits, its shapes, and a set scaled by its own or another's statistics."""

import gzip
import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sdkernels.lab.datasets import NAMES, LabelledData, load
from sdkernels.lab.readers.places import find_folder
from tests.lab.test_idx import idx_bytes


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(11, 3, 4, 5, generator=generator) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    return LabelledData("pictures", inputs, torch.arange(11) % 3, 3)


class TestDigits:
    def test_splits(self):
        train, test, every = (load("digits", split=split) for split in ("train", "test", "all"))
        assert [len(part.labels) for part in (train, test, every)] == [1437, 360, 1797]
        assert torch.equal(torch.cat([train.inputs, test.inputs]), every.inputs)
        assert torch.equal(torch.cat([train.labels, test.labels]), every.labels)
        published = load_digits()
        assert torch.equal(every.inputs.double() * 16, torch.tensor(published.data))
        assert every.labels.tolist() == published.target.tolist()
        assert torch.equal(load("digits").inputs, train.inputs)

    def test_shapes(self):
        digits = load("digits", split="all")
        assert (digits.inputs.shape, digits.shape) == ((1797, 64), (1, 8, 8))
        assert (digits.inputs.min(), digits.inputs.max()) == (0, 1)
        images = digits.as_images()
        assert images.inputs.shape == (1797, 1, 8, 8)
        assert torch.equal(images.inputs[5, 0] * 16, torch.tensor(load_digits().images[5]).float())
        assert digits.first(10).labels.tolist() == list(range(10))
        assert digits.first(10).shape == (1, 8, 8)
        for wrong in (0, 1798):
            with pytest.raises(ValueError, match=f"has 1797 examples; asked for {wrong}"):
                digits.first(wrong)


def test_other_names_and_splits():
    listed = "digits, mnist, fashion_mnist, cifar10, cifar100, cifar100_coarse"
    with pytest.raises(ValueError, match=f"no data set 'svhn'; there are {listed}"):
        load("svhn")
    assert ", ".join(NAMES) == listed
    with pytest.raises(ValueError, match="split='valid': choose 'train', 'test' or 'all'"):
        load("digits", split="valid")


def test_all_is_train_then_test(tmp_path):
    for prefix, count in (("train", 3), ("t10k", 2)):
        images = torch.arange(count * 6, dtype=torch.uint8).view(count, 2, 3) + (100 if prefix == "t10k" else 0)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        labels = torch.arange(count, dtype=torch.uint8) + (5 if prefix == "t10k" else 0)
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    every = load("mnist", str(tmp_path), split="all")
    assert every.labels.tolist() == [0, 1, 2, 5, 6]
    assert (every.inputs[:, 0] * 255).round().tolist() == [0, 6, 12, 100, 106]
    assert every.shape == (1, 2, 3)


class TestShapes:
    def test_there_and_back(self, pictures):
        flat = pictures.flattened()
        assert (flat.inputs.shape, flat.shape) == ((11, 60), (3, 4, 5))
        assert torch.equal(flat.as_images().inputs, pictures.inputs)
        assert torch.equal(flat.flattened().inputs, flat.inputs)
        assert pictures.as_images().shape == pictures.shape == (3, 4, 5)
        assert flat.first(2).as_images().inputs.shape == (2, 3, 4, 5)

    def test_a_shape_that_is_not_known(self):
        data = LabelledData("rows", torch.zeros(2, 16), torch.zeros(2, dtype=torch.long), 2)
        assert data.flattened().inputs.shape == (2, 16)
        for ask in (data.as_images, data.statistics, data.standardised, lambda: data.shape):
            with pytest.raises(ValueError, match=r"rows has inputs \[2, 16\]: .*image_shape=\(C, H, W\)"):
                ask()
        with pytest.raises(ValueError, match=r"image_shape=\(1, 4, 5\) does not fit inputs \[2, 16\]"):
            LabelledData("rows", data.inputs, data.labels, 2, (1, 4, 5))

    def test_fingerprint(self, pictures):
        digest = hashlib.sha256(pictures.inputs.numpy().tobytes() + pictures.labels.numpy().tobytes()).hexdigest()
        assert pictures.sha256 == pictures.flattened().sha256 == digest
        assert pictures.first(10).sha256 != digest
        turned = LabelledData("t", pictures.inputs.transpose(2, 3), pictures.labels, 3)
        assert turned.sha256 != digest


class TestStandardised:
    @pytest.mark.parametrize("flat", [False, True])
    def test_by_its_own_statistics(self, pictures, flat, monkeypatch):
        monkeypatch.setattr("sdkernels.lab.labelled._AT_ONCE", 200)  # several parts
        data = pictures.flattened() if flat else pictures
        x = pictures.inputs.double().numpy()
        mean, std = data.statistics()
        assert mean.dtype == std.dtype == torch.float64
        np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(std, x.std((0, 2, 3)), rtol=1e-12)
        scaled = data.standardised()
        assert scaled.inputs.shape == data.inputs.shape
        assert scaled.inputs.dtype == torch.float32
        assert (scaled.shape, scaled.name, scaled.classes) == ((3, 4, 5), "pictures", 3)
        expected = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
        np.testing.assert_allclose(scaled.as_images().inputs, expected, atol=2e-6)

    def test_by_anothers(self, pictures):
        train, test = pictures.first(7), LabelledData("t", pictures.inputs[7:], pictures.labels[7:], 3)
        together = LabelledData("both", pictures.inputs, pictures.labels, 3).standardised(*train.statistics())
        assert torch.equal(test.standardised(*train.statistics()).inputs, together.inputs[7:])
        by_numbers = pictures.standardised(mean=[0.5, 1, 2], std=(1, 2, 4))
        centre, scale = torch.tensor([0.5, 1, 2]).view(3, 1, 1), torch.tensor([1.0, 2, 4]).view(3, 1, 1)
        assert torch.equal(by_numbers.inputs, (pictures.inputs - centre) / scale)

    def test_refuses(self, pictures):
        with pytest.raises(ValueError, match="both mean and std"):
            pictures.standardised(mean=[0, 0, 0])
        with pytest.raises(ValueError, match=r"mean \[2\] and std \[3\] must be \[3\], one number a channel"):
            pictures.standardised([0, 0], [1, 1, 1])
        for wrong in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="must be positive"):
                pictures.standardised([0, 0, 0], [1, wrong, 1])
        blank = LabelledData("blank", torch.full((4, 1, 2, 2), 0.5), pictures.labels[:4], 3)
        with pytest.raises(ValueError, match=r"blank: standard deviations \[0\.0\].*never changes"):
            blank.standardised()
        with pytest.raises(ValueError, match="blank has no example"):
            LabelledData("blank", blank.inputs[:0], blank.labels[:0], 3).statistics()


def test_the_first_folder_with_any_of_the_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").mkdir(parents=True)  # a folder of a file's name is no file
    (tmp_path / "b" / "y").touch()
    assert find_folder(tmp_path, ("a", "b", ""), ("x", "y"), "") == tmp_path / "b"
    (tmp_path / "x").touch()
    assert find_folder(tmp_path, ("", "b"), ("x", "y"), "") == tmp_path
    with pytest.raises(FileNotFoundError, match=r"x, z: none is in .*/a, .*/b\. hint"):
        find_folder(tmp_path, ("a", "b"), ("x", "z"), "hint")


def test_the_publishers_files(data_dir):
    for name, statistics in {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}.items():
        if not (data_dir / name).is_dir():
            continue
        train, every = load(name, data_dir), load(name, data_dir, split="all")
        assert (len(train.labels), len(every.labels)) == (60_000, 70_000)
        assert tuple(round(float(value), 4) for value in train.statistics()) == statistics
        if name == "fashion_mnist":
            assert train.labels.bincount().tolist() == [6_000] * 10
            assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]
