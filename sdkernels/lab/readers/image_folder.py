"""Folders of images, a folder a class, as ImageNet's training and validation sets are laid out."""

import os
import struct
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdkernels.analysis.extras import needed_by
from sdkernels.lab.readers.epoch_order import EpochOrder

with needed_by("a folder of images"):
    from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ENDINGS = (".jpeg", ".jpg", ".png")
PIXELS = ("standardised", "scaled", "bytes")
_FORMATS = ("JPEG", "PNG")  # of the others some are read by other programs, as EPS is by Ghostscript
_MOST_PIXELS = 2**26  # also of a resized image: one of a line and a million columns would take hundreds of gigabytes
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)  # Pillow raises all


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images decoded one at a time, the short side resized, the centre cut out.

    Every folder in ``root`` is a class, in the order of their names; its images are the files below it that end in
    ``.jpg``, ``.jpeg`` or ``.png``, in the order of their paths, and hold JPEG or PNG. Names that start with a dot are
    left out. The images' arithmetic is torchvision's on Pillow images: ``Resize(resize)``, bilinear with antialiasing,
    then ``CenterCrop(crop)``.

    Args:
        root: the folder, such as ``ILSVRC2012/val``.
        resize: the short side becomes this long and the other one in proportion, rounded down; None: no resizing.
        crop: side of the square that is cut out of the centre; None: no cropping.
        pixels: ``"standardised"``: float32, 0..1, then less ``mean`` and divided by ``std``; ``"scaled"``: float32 in
            0..1; ``"bytes"``: uint8.
        mean, std: of red, green and blue; ImageNet's by default.

    Attributes:
        labels: int64 ``[N]``.
        paths: N paths.
        class_names: L names; ``classes`` is L.
        root, resize, crop, pixels, mean, std: as given.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: no class or a class without images, sizes that do not fit, unknown ``pixels``. An image that cannot
            be decoded raises a ValueError with its name when it is read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("RGB", (64, 48)).save(Path(folder) / name / "1.png")
        ...     images = ImageFolder(folder, resize=40, crop=32)
        ...     images[1][0].shape, images[1][1], images.class_names
        (torch.Size([3, 32, 32]), 1, ('cat', 'dog'))
    """

    def __init__(
        self,
        root: str | Path,
        *,
        resize: int | None = 256,
        crop: int | None = 224,
        pixels: str = "standardised",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if pixels not in PIXELS:
            raise ValueError(f"pixels={pixels!r}: choose {', '.join(map(repr, PIXELS))}")
        for name, size in (("resize", resize), ("crop", crop)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1, or None")
        if resize is not None and crop is not None and crop > resize:
            raise ValueError(f"crop={crop} is larger than the short side, resize={resize}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={mean} and std={std} must be three numbers each, std positive")
        self.root, self.resize, self.crop, self.pixels = Path(root), resize, crop, pixels
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self._mean, self._std = (torch.tensor(given, dtype=torch.float32).view(3, 1, 1) for given in (mean, std))
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is no folder of images")
        self.class_names = class_folders(self.root)
        if not self.class_names:
            raise ValueError(
                f"{self.root} holds no folders: a folder a class is needed, as in {self.root}/n01440764/NAME.JPEG"
            )
        found = [_images_below(self.root / name) for name in self.class_names]
        empty = [name for name, paths in zip(self.class_names, found, strict=True) if not paths]
        if empty:
            raise ValueError(
                f"{self.root / empty[0]} holds no image ({', '.join(ENDINGS)}), as {len(empty)} of "
                f"{len(self.class_names)} folders: remove them, or fill them"
            )
        self.paths = [path for paths in found for path in paths]
        counts = torch.tensor([len(paths) for paths in found])
        self.labels = torch.arange(len(found)).repeat_interleave(counts)

    @property
    def classes(self) -> int:
        """L."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``[3, H, W]`` and label.

        Raises:
            ValueError: the image cannot be decoded, or is smaller than the crop; names the file.
        """
        return self._pixels(self._decode(self.paths[index])), int(self.labels[index])

    def with_labels(self, labels: Tensor) -> "ImageFolder":
        """The same images with other labels, such as corrupted ones.

        Args:
            labels: integers ``[N]`` in 0..L-1.

        Raises:
            ValueError: not one label an image, or one that is no class.
        """
        if labels.shape != self.labels.shape or labels.is_floating_point():
            raise ValueError(f"labels {labels.dtype} {list(labels.shape)} must be integers [{len(self)}]")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"labels {int(labels.min())}..{int(labels.max())} must be within 0..{self.classes - 1}")
        other = copy(self)
        other.labels = labels.long().cpu().clone()
        return other

    def subset(self, indices: Tensor) -> "ImageFolder":
        """Some of the images, with all classes, even those of which none is left.

        Args:
            indices: integers ``[n]`` in 0..N-1, in the order in which the images then stand.

        Raises:
            ValueError: no index, or one that is out of range.
        """
        if indices.ndim != 1 or indices.dtype.is_floating_point or indices.dtype == torch.bool or not len(indices):
            raise ValueError(f"indices {indices.dtype} {list(indices.shape)} must be integers [n], at least one")
        if indices.min() < 0 or indices.max() >= len(self):
            raise ValueError(f"indices {int(indices.min())}..{int(indices.max())} must be within 0..{len(self) - 1}")
        other = copy(self)
        other.paths, other.labels = [self.paths[i] for i in indices.tolist()], self.labels[indices.cpu().long()]
        return other

    def _decode(self, path: str) -> Image.Image:
        """RGB, resized and cropped."""
        try:
            with Image.open(path, formats=_FORMATS) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    raise ValueError(f"it is {opened.width} x {opened.height} pixels, more than {_MOST_PIXELS:,}")
                if opened.mode.startswith(("I", "F")):  # Pillow would clip them to white
                    raise ValueError(f"its pixels have more than 8 bits (Pillow's mode {opened.mode})")
                image = opened.convert("RGB")
        except _DAMAGED as error:
            raise ValueError(f"{path} cannot be read as an image: {error}. Mend it, or remove it") from error
        width, height = image.size
        if self.resize is not None:
            short = min(width, height)
            width, height = self.resize * width // short, self.resize * height // short
            if width * height > _MOST_PIXELS:
                raise ValueError(
                    f"{path} is {image.width} x {image.height} pixels, which resize={self.resize} would make {width} x "
                    f"{height}: too narrow to be resized. Cut it, or remove it"
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is not None:
            if min(width, height) < self.crop:
                raise ValueError(f"{path} is {width} x {height} pixels, smaller than crop={self.crop}; give resize=")
            left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
        if self.pixels == "bytes":
            return pixels.contiguous()
        scaled = pixels.float().div_(255)
        return (scaled if self.pixels == "scaled" else scaled.sub_(self._mean).div_(self._std)).contiguous()


def image_loader(
    images: ImageFolder,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    seed: int | None = None,
    pin_memory: bool = False,
) -> DataLoader[tuple[Tensor, int]]:
    """Batches of images, decoded in worker processes; the order does not depend on how many these are.

    Args:
        images: the folder.
        batch_size: the last batch may be smaller.
        workers: processes that decode; None: one a core, at most 16; 0: decode in this process.
        seed: None: the folder's own order, for evaluation; else a new random order each epoch, for training, from this
            seed and the epoch's number (:class:`~sdkernels.lab.readers.epoch_order.EpochOrder`, the loader's
            ``sampler``).
        pin_memory: for a GPU.

    Returns:
        A loader of images ``[B, 3, H, W]`` and labels int64 ``[B]``.

    Raises:
        ValueError: ``batch_size`` or ``workers`` out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"workers={workers} must not be negative")
    processes = reading_processes() if workers is None else workers
    return DataLoader(
        images,
        batch_size=batch_size,
        sampler=None if seed is None else EpochOrder(len(images), seed),
        num_workers=processes,
        persistent_workers=processes > 0,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # else it draws workers' seeds from the global state
    )


def reading_processes() -> int:
    """How many processes decode images, if nothing else is said: one a core, at most 16."""
    return min(16, _cores())


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the folders in ``root``, each a class, sorted; without those that start with a dot."""
    return tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and _visible(entry.name)))


def _images_below(folder: Path) -> list[str]:
    """Sorted; folders that links lead to are entered, as ImageNet's are often linked together."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = filter(_visible, folders)
        found += [os.path.join(place, file) for file in files if _visible(file) and file.lower().endswith(ENDINGS)]
    return sorted(found)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
