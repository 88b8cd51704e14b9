"""ImageNet's folders as labelled data: layout, classes, crops, parts of them, and what tells them apart."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdkernels.lab import folders
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.folders import FolderData, has_imagenet, load_imagenet
from sdkernels.lab.readers.image_folder import ImageFolder, reading_processes
from tests.lab.small_folders import CLASSES, make_imagenet


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own(made, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(made / "imagenet", tmp_path / "imagenet")
    return tmp_path


def small(data_dir, split="train", **options):
    return load_imagenet(data_dir, split, **{"image_size": 28} | options)


def by_pillow(path, resize, crop):
    """The centre, float64 [3, crop, crop] in 0..1."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    factor = resize / min(width, height)
    image = image.resize((int(width * factor + 1e-9), int(height * factor + 1e-9)), Image.Resampling.BILINEAR)
    left, top = round((image.size[0] - crop) / 2), round((image.size[1] - crop) / 2)
    return np.asarray(image)[top : top + crop, left : left + crop].transpose(2, 0, 1) / 255


class TestReading:
    @pytest.mark.parametrize(("split", "folder", "count"), [("train", "train", 6), ("test", "val", 3)])
    def test_images_by_class_and_name(self, made, split, folder, count):
        data = small(made, split)
        names = [f"{name}/{name}_{i}.JPEG" for name in CLASSES for i in range(count)]
        assert data.images.paths == [str(made / "imagenet" / folder / name) for name in names]
        assert data.labels.tolist() == [label for label in range(6) for _ in range(count)]
        assert (len(data), data.classes, data.shape, data.name) == (6 * count, 6, (3, 28, 28), "imagenet")

    @pytest.mark.parametrize(
        ("size", "resize"), [(28, 32), (32, 37), (64, 73), (224, 256), (1, 1)], ids=str
    )  # 36.57, 73.14, 1.14
    @pytest.mark.parametrize("standardise", [True, False])
    def test_pixels_are_those_of_the_centre(self, made, size, resize, standardise):
        data = load_imagenet(made, image_size=size, standardise=standardise)
        expected = by_pillow(data.images.paths[7], resize, size)
        if standardise:
            mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
            expected = (expected - mean[:, None, None]) / std[:, None, None]
        image, label = data[7]
        assert (image.dtype, tuple(image.shape), label) == (torch.float32, data.shape, 1)
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)

    def test_as_published(self, made):
        images = load_imagenet(made).images
        assert (images.resize, images.crop, images.pixels) == (256, 224, "standardised")

    def test_any_size_has_no_shape(self, made):
        data = FolderData("mine", ImageFolder(made / "imagenet" / "train", crop=None))
        with pytest.raises(ValueError, match="mine has images of any size; give its ImageFolder crop="):
            _ = data.shape


class TestParts:
    @pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 20, 35, 36])
    def test_spread_over_the_classes(self, made, count):
        data, part = small(made), small(made).spread(count)
        kept = [int(i * 36 / count + 1e-9) for i in range(count)]
        assert len({*kept}) == count
        assert part.images.paths == [data.images.paths[i] for i in kept]
        assert part.labels.tolist() == [i // 6 for i in kept]
        assert part.classes == 6
        assert part.labels.bincount(minlength=6).diff().abs().max() <= 1
        assert part[count // 2][0].equal(data[kept[count // 2]][0])

    @pytest.mark.parametrize("count", [0, 37])
    def test_not_more_than_there_are(self, made, count):
        with pytest.raises(ValueError, match=f"imagenet has 36 examples; asked for {count}"):
            small(made).spread(count)

    @pytest.mark.parametrize(
        "indices",
        [torch.zeros(0, dtype=torch.int64), *map(torch.tensor, ([0.0], [[0]], [36], [-1], [True]))],
        ids=str,
    )
    def test_indices_that_are_none(self, made, indices):
        with pytest.raises(ValueError, match=r"must be integers \[n\], at least one|must be within 0\.\.35"):
            small(made).images.subset(indices)

    def test_subset_keeps_the_order_asked_for(self, made):
        images = small(made).images
        part = images.subset(torch.tensor([30, 2, 2], dtype=torch.int32))
        assert part.labels.tolist() == [5, 0, 0]
        assert part.paths == [images.paths[30], images.paths[2], images.paths[2]]
        assert part[0][0].equal(images[30][0])
        assert len(images) == 36

    def test_other_labels(self, made):
        data = small(made)
        labels = corrupt_labels(data.labels, 1.0, seed=1)
        other = data.with_labels(labels)
        assert other.labels.equal(labels)
        assert [other[i][1] for i in range(36)] == labels.tolist()
        assert other.spread(6).labels.equal(labels[::6])
        assert data.labels.equal(torch.arange(6).repeat_interleave(6))


class TestLoader:
    @pytest.mark.parametrize("few", [1000, 1], ids=["in this process", "in others"])
    def test_all_in_order_in_every_pass(self, made, few, monkeypatch):
        data = small(made)
        monkeypatch.setattr(folders, "_FEW", few)
        loader = data.loader(batch_size=10)
        assert loader.num_workers == data.workers == (0 if few == 1000 else reading_processes())
        for _ in range(2):
            batches = list(loader)
            assert [len(labels) for _, labels in batches] == [10, 10, 10, 6]
            assert torch.cat([inputs for inputs, _ in batches]).equal(torch.stack([data[i][0] for i in range(36)]))
            assert torch.cat([labels for _, labels in batches]).equal(data.labels)

    @pytest.mark.parametrize(("few", "none"), [(36, False), (37, True)])
    def test_few_images_are_read_here(self, made, few, none, monkeypatch):
        monkeypatch.setattr(folders, "_FEW", few)
        assert (small(made).workers == 0) == none


class TestFingerprint:
    def test_of_the_same(self, made, own):
        assert small(made).sha256 == small(own).sha256 == small(made).sha256  # wherever the folder is
        assert len(small(made).sha256) == 64

    def test_of_another_way_to_name_the_folder(self, made, monkeypatch):
        monkeypatch.chdir(made / "imagenet" / "train")
        here, there = ImageFolder(".", crop=28), ImageFolder(made / "imagenet" / "train", crop=28)
        assert FolderData("x", here).sha256 == FolderData("x", there).sha256

    @pytest.mark.parametrize(
        "changed",
        [
            lambda folder: (folder / "n02" / "n02_1.JPEG").unlink(),
            lambda folder: (folder / "n02" / "n02_1.JPEG").rename(folder / "n02" / "n02_10.JPEG"),
            lambda folder: os.truncate(folder / "n02" / "n02_1.JPEG", 20),
            lambda folder: (folder / "n06" / "n06_5.JPEG").rename(folder / "n06" / "n06_5.jpeg"),
        ],
        ids=["one less", "renamed", "shorter", "another ending"],
    )
    def test_of_other_files(self, made, own, changed):
        changed(own / "imagenet" / "train")
        assert small(own).sha256 != small(made).sha256
        assert small(own, "test").sha256 == small(made, "test").sha256

    def test_of_other_classes(self, made, own):
        for split in ("train", "val"):
            os.rename(own / "imagenet" / split / "n06", own / "imagenet" / split / "n07")
        assert small(own).sha256 != small(made).sha256
        assert small(own).spread(1).sha256 != small(made).spread(1).sha256  # though all that is left is of n01

    def test_of_other_labels_parts_and_pixels(self, made):
        data = small(made)
        others = [
            data.with_labels(corrupt_labels(data.labels, 0.5, seed=0)),
            data.with_labels(corrupt_labels(data.labels, 0.5, seed=1)),
            data.spread(12),
            small(made, "test"),
            small(made, image_size=29),
            small(made, standardise=False),
            replace(data, images=ImageFolder(data.images.root, resize=32, crop=28, mean=(0.5, 0.5, 0.5))),
            replace(data, images=ImageFolder(data.images.root, resize=33, crop=28)),
        ]
        assert len({data.sha256, *(other.sha256 for other in others)}) == 9


class TestLayout:
    def test_no_folder_is_given(self):
        with pytest.raises(ValueError, match=r"DIR/imagenet/train/CLASS/\*\.JPEG and DIR/imagenet/val/CLASS/\*\.JPEG"):
            load_imagenet(None)

    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("missing", ["train", "val"])
    def test_one_of_them_is_missing(self, own, split, missing):
        assert has_imagenet(own)
        shutil.rmtree(own / "imagenet" / missing)
        assert not has_imagenet(own)
        says = rf"imagenet/{missing} is not there: imagenet is read from folders.*cannot be fetched; see image-net\.org"
        with pytest.raises(FileNotFoundError, match=says):
            load_imagenet(own, split)

    def test_whether_it_is_there(self, made, tmp_path):
        assert has_imagenet(made)
        assert has_imagenet(str(made))
        assert not has_imagenet(tmp_path)
        assert not has_imagenet(None)
        (tmp_path / "imagenet").mkdir()
        for name in ("train", "val"):
            (tmp_path / "imagenet" / name).write_text("a file")
        assert not has_imagenet(tmp_path)

    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize(
        ("before", "after", "says"),
        [
            (("n03",), (), "it lacks n03. Both"),
            ((), ("n07",), "it adds n07. Both"),
            (("n01", "n02", "n03", "n04", "n05"), ("m1",), "it lacks n01, n02, n03 and 2 more and adds m1. Both"),
            (CLASSES, (), "it lacks n01, n02, n03 and 3 more. Both"),
        ],
        ids=["one less", "one more", "others", "none"],
    )
    def test_other_classes_are_told(self, own, split, before, after, says):
        val = own / "imagenet" / "val"
        for name in before:
            shutil.rmtree(val / name)
        for name in after:
            (val / name).mkdir()
        with pytest.raises(ValueError, match=r"val has not the classes of .*train: ") as raised:
            load_imagenet(own, split)
        assert says in str(raised.value)

    @pytest.mark.parametrize("split", ["all", "val"])
    def test_other_splits(self, made, split):
        with pytest.raises(ValueError, match=f"split='{split}': of folders of images, choose 'train' or 'test'"):
            load_imagenet(made, split)

    def test_no_classes_at_all(self, tmp_path):
        for name in ("train", "val"):
            (tmp_path / "imagenet" / name).mkdir(parents=True)
        with pytest.raises(ValueError, match="holds no folders: a folder a class is needed"):
            load_imagenet(tmp_path)
