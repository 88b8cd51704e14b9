"""Folders of images: order, sizes and pixels, loaders whose order is known, and files that cannot be read."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.readers.image_folder import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, image_loader


def noise(width, height, seed=0):
    """Smooth colours, [H, W, 3] uint8, so that JPEG keeps them nearly."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).round().byte().numpy()


def save(path, width=40, height=30, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(width, height, seed)).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """Three classes; the file's seed is its place in the expected order."""
    names = ["ant/10.png", "ant/2.JPEG", "ant/deep/er.jpg", "bee/x.PNG", "cat/1.png", "cat/2.png", "cat/3.png"]
    for seed, name in enumerate(names):
        save(tmp_path / name, 24 + seed, 20, seed)
    for other in ("ant/notes.txt", "ant/.hidden.png", "readme.png", ".git/x.png"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"no image")
    return tmp_path, names


def test_order_and_labels(root):
    folder, names = root
    images = ImageFolder(str(folder), resize=16, crop=16)
    assert images.class_names == ("ant", "bee", "cat")
    assert images.classes == 3
    assert images.paths == [str(folder / name) for name in names]
    assert images.labels.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert images.labels.dtype == torch.int64
    assert [images[i][1] for i in range(len(images))] == images.labels.tolist()
    assert type(images[0][1]) is int


def test_links_are_followed(root, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "dog").symlink_to(root[0] / "cat", target_is_directory=True)
    (linked / "all").mkdir()
    (linked / "all" / "ants").symlink_to(root[0] / "ant", target_is_directory=True)
    assert ImageFolder(linked).labels.tolist() == [0, 0, 0, 1, 1, 1]


class TestPixels:
    @pytest.mark.parametrize("pixels", ["bytes", "scaled", "standardised"])
    def test_as_they_are_in_the_file(self, root, pixels):
        folder, _ = root
        images = ImageFolder(folder, resize=None, crop=None, pixels=pixels)
        expected = torch.from_numpy(noise(27, 20, 3)).permute(2, 0, 1)  # bee/x.PNG
        if pixels != "bytes":
            expected = expected.double() / 255
        if pixels == "standardised":
            for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
                expected[channel] = (expected[channel] - mean) / std
        read = images[3][0]
        assert read.dtype == (torch.uint8 if pixels == "bytes" else torch.float32)
        assert read.is_contiguous()
        torch.testing.assert_close(read.double(), expected.double(), rtol=0, atol=1e-6)

    def test_other_statistics(self, root):
        images = ImageFolder(root[0], resize=None, crop=None, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
        scaled = ImageFolder(root[0], resize=None, crop=None, pixels="scaled")[3][0]
        centre, scale = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2, 4]).view(3, 1, 1)
        assert torch.equal(images[3][0], (scaled - centre) / scale)

    def test_jpeg_is_decoded(self, tmp_path):
        save(tmp_path / "a" / "1.jpeg", 64, 48, quality=98, subsampling=0)
        read = ImageFolder(tmp_path, resize=None, crop=None, pixels="bytes")[0][0]
        expected = torch.from_numpy(noise(64, 48)).permute(2, 0, 1)
        assert (read.int() - expected.int()).abs().max() <= 4

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
    def test_every_kind_of_colour_becomes_rgb(self, tmp_path, mode):
        (tmp_path / "a").mkdir()
        image = Image.fromarray(noise(20, 20)).convert("L").convert(mode)
        image.save(tmp_path / "a" / ("1.jpg" if mode == "CMYK" else "1.png"), quality=100)
        read = ImageFolder(tmp_path, resize=None, crop=None, pixels="bytes")[0][0]
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        assert read.shape == (3, 20, 20)
        assert (read.int() - expected.int()).abs().max() <= (6 if mode == "CMYK" else 0)

    def test_sixteen_bits_are_refused_as_pillow_would_clip_them(self, tmp_path):
        (tmp_path / "a").mkdir()
        Image.fromarray(np.full((20, 20), 1000, np.uint16)).save(tmp_path / "a" / "1.png")
        with pytest.raises(ValueError, match=r"1\.png cannot be read.*more than 8 bits \(Pillow's mode I;16\)"):
            ImageFolder(tmp_path)[0]


class TestSizes:
    @pytest.mark.parametrize(
        ("width", "height", "resize", "resized"),
        [
            (500, 375, 256, (341, 256)),  # 341.33
            (375, 500, 256, (256, 341)),
            (40, 40, 32, (32, 32)),
            (30, 20, 40, (60, 40)),  # enlarged
            (401, 200, 100, (200, 100)),  # 200.5
            (256, 300, 256, (256, 300)),
            (1000, 3, 2, (666, 2)),
        ],
        ids=str,
    )
    def test_the_short_side_is_resized(self, tmp_path, width, height, resize, resized):
        save(tmp_path / "a" / "1.png", width, height)
        read = ImageFolder(tmp_path, resize=resize, crop=None, pixels="bytes")[0][0]
        assert tuple(read.shape) == (3, resized[1], resized[0])
        plain = torch.from_numpy(noise(width, height)).permute(2, 0, 1)[None].double()
        expected = F.interpolate(plain, (resized[1], resized[0]), mode="bilinear", antialias=True)[0]
        assert (read - expected).abs().max() < 1.5  # Pillow rounds to bytes twice, after rows and after columns

    @pytest.mark.parametrize(
        ("width", "height", "crop", "left", "top"),
        [(8, 8, 4, 2, 2), (9, 6, 4, 2, 1), (11, 4, 4, 4, 0), (7, 10, 4, 2, 3), (4, 4, 4, 0, 0), (5, 9, 4, 0, 2)],
        ids=str,
    )
    def test_the_centre_is_cut_out(self, tmp_path, width, height, crop, left, top):
        save(tmp_path / "a" / "1.png", width, height)
        read = ImageFolder(tmp_path, resize=None, crop=crop, pixels="bytes")[0][0]
        whole = torch.from_numpy(noise(width, height)).permute(2, 0, 1)
        assert torch.equal(read, whole[:, top : top + crop, left : left + crop])

    def test_as_usual(self, tmp_path):
        save(tmp_path / "a" / "1.jpg", 500, 375)
        image, whole = ImageFolder(tmp_path)[0][0], ImageFolder(tmp_path, crop=None)[0][0]
        assert (image.shape, image.dtype) == ((3, 224, 224), torch.float32)
        assert torch.equal(image, whole[:, 16:240, 58:282])  # (256 - 224) / 2 and (341 - 224) / 2 = 58.5, to even
        assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TestLabels:
    def test_corrupted_ones(self, root):
        images = ImageFolder(root[0], resize=16, crop=16)
        other = images.with_labels(corrupt_labels(images.labels, 1.0, seed=1))
        assert not torch.equal(other.labels, images.labels)
        assert other.labels.bincount().tolist() == images.labels.bincount().tolist()
        assert [other[i][1] for i in range(7)] == other.labels.tolist()
        assert torch.equal(other[4][0], images[4][0])
        assert images.labels.tolist() == [0, 0, 0, 1, 2, 2, 2]

    @pytest.mark.parametrize("labels", [[0] * 6, [0.0] * 7, [3] * 7, [-1] * 7, [[0]] * 7], ids=str)
    def test_others_are_refused(self, root, labels):
        with pytest.raises(ValueError, match=r"must be integers \[7\]|must be within 0\.\.2"):
            ImageFolder(root[0]).with_labels(torch.tensor(labels))


class TestLoader:
    def labels_of(self, loader):
        return [int(label) for _, labels in loader for label in labels]

    def images(self, root, count=7):
        """With a label of its own an image, by which it is known."""
        images = ImageFolder(root[0], resize=16, crop=16, pixels="bytes")
        images.class_names = tuple("abcdefg")
        return images.with_labels(torch.arange(count))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_evaluation_keeps_the_order(self, root, workers):
        images = self.images(root)
        loader = image_loader(images, batch_size=3, workers=workers)
        for _ in range(2):
            batches = list(loader)
            assert [tuple(x.shape) for x, _ in batches] == [(3, 3, 16, 16), (3, 3, 16, 16), (1, 3, 16, 16)]
            assert torch.equal(torch.cat([x for x, _ in batches]), torch.stack([images[i][0] for i in range(7)]))
            assert torch.cat([y for _, y in batches]).tolist() == list(range(7))
            assert batches[0][1].dtype == torch.int64

    def test_training_has_an_order_by_seed_and_epoch(self, root):
        images = self.images(root)
        one, same, other = (image_loader(images, batch_size=2, workers=0, seed=seed) for seed in (3, 3, 4))
        epochs = [self.labels_of(one) for _ in range(3)]
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert [self.labels_of(same) for _ in range(3)] == epochs
        assert self.labels_of(other) != epochs[0]
        resumed = image_loader(images, batch_size=3, workers=1, seed=3)  # other workers and batches, the same order
        resumed.sampler.epoch = 1
        assert [self.labels_of(resumed) for _ in range(2)] == epochs[1:]

    def test_defaults(self, root):
        loader = image_loader(self.images(root))
        assert loader.batch_size == 256
        assert 1 <= loader.num_workers <= min(16, os.cpu_count())
        assert loader.persistent_workers

    @pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("workers", -1)])
    def test_refuses(self, root, option, value):
        with pytest.raises(ValueError, match=f"{option}={value}"):
            image_loader(self.images(root), **{option: value})

    def test_a_broken_image_is_named(self, root):
        (root[0] / "cat" / "2.png").write_bytes(b"broken")
        loader = image_loader(self.images(root), batch_size=2, workers=0)  # torch passes on what a worker raises
        with pytest.raises(ValueError, match=r"cat/2\.png cannot be read as an image"):
            self.labels_of(loader)


class TestBroken:
    def refuses(self, tmp_path, path, says="cannot be read as an image"):
        with pytest.raises(ValueError, match=says) as raised:
            ImageFolder(tmp_path, resize=16, crop=16)[0]
        assert str(path) in str(raised.value)

    @pytest.mark.parametrize("ending", ["png", "jpg"])
    def test_truncated_at_any_place(self, tmp_path, ending):
        path = save(tmp_path / "a" / f"1.{ending}", 60, 50)
        whole = path.read_bytes()
        for keep in (0, 1, 8, 20, 33, 41, 45, len(whole) // 2, len(whole) - len(whole) // 5):
            path.write_bytes(whole[:keep])
            self.refuses(tmp_path, path)

    def test_changed_bytes_are_read_or_named(self, tmp_path):
        path = save(tmp_path / "a" / "1.png", 20, 20)
        whole = path.read_bytes()
        refusals = []
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                ImageFolder(tmp_path, resize=16, crop=16)[0]
            except ValueError as error:
                refusals.append(str(error))
        assert refusals
        assert all(str(path) in refusal for refusal in refusals)

    def test_other_files(self, tmp_path):
        path = save(tmp_path / "a" / "1.png")
        for content in (b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
            path.write_bytes(content)
            self.refuses(tmp_path, path)
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
        self.refuses(tmp_path, path)

    def test_too_large_to_be_an_image(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a" / "1.png", 60, 50)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        self.refuses(tmp_path, path)

    def test_smaller_than_the_crop(self, tmp_path):
        path = save(tmp_path / "a" / "1.png", 60, 15)
        with pytest.raises(ValueError, match=r"1\.png is 60 x 15 pixels, smaller than crop=16; give resize=") as raised:
            ImageFolder(tmp_path, resize=None, crop=16)[0]
        assert str(path) in str(raised.value)

    def test_folders_that_are_none(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere is no folder of images"):
            ImageFolder(tmp_path / "nowhere")
        save(tmp_path / "1.png")
        with pytest.raises(ValueError, match="holds no folders: a folder a class is needed"):
            ImageFolder(tmp_path)
        save(tmp_path / "cat" / "1.png")
        (tmp_path / "dog").mkdir()
        with pytest.raises(ValueError, match=r"dog holds no image \(\.jpeg, \.jpg, \.png\), as 1 of 2 folders"):
            ImageFolder(tmp_path)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"pixels": "float"}, "pixels='float': choose 'standardised', 'scaled', 'bytes'"),
            ({"resize": 0}, "resize=0 must be at least 1"),
            ({"crop": 0}, "crop=0 must be at least 1"),
            ({"resize": 16, "crop": 17}, "crop=17 is larger than the short side, resize=16"),
            ({"mean": (0, 0)}, "three numbers each"),
            ({"std": (1, 1, 0)}, "std positive"),
        ],
        ids=str,
    )
    def test_options_that_do_not_fit(self, root, options, says):
        with pytest.raises(ValueError, match=says):
            ImageFolder(root[0], **options)
