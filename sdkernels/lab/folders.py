"""ImageNet as folders of images: labelled data that does not fit into memory, and is decoded as it is read."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdkernels.engine.digest import Digest
from sdkernels.lab.readers.image_folder import ImageFolder, class_folders, image_loader, reading_processes

IMAGENET = "imagenet"
IMAGE_SIZE = 224
_RESIZED = 256 / 224  # the short side, to the side of the crop
_SPLITS = {"train": "train", "test": "val"}  # ImageNet's own test labels are not published
_FEW = 1000  # images that are read before other processes would have started

_LAYOUT = (
    "imagenet is read from folders of images, DIR/imagenet/train/CLASS/*.JPEG and DIR/imagenet/val/CLASS/*.JPEG; give "
    "DIR as data directory (--data-dir DIR). It cannot be fetched; see image-net.org"
)


@dataclass(frozen=True, eq=False)
class FolderData(Dataset[tuple[Tensor, int]]):
    """A classification data set in files: what :class:`~sdkernels.lab.labelled.LabelledData` is in memory.

    Attributes:
        name: as asked for.
        images: N of them.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        ...         (Path(folder) / name).parent.mkdir(exist_ok=True)
        ...         Image.new("RGB", (64, 48)).save(Path(folder) / name)
        ...     data = FolderData("pets", ImageFolder(folder, resize=40, crop=32))
        ...     [tuple(inputs.shape) for inputs, _ in data.loader(batch_size=3)]
        [(3, 3, 32, 32), (1, 3, 32, 32)]
        >>> data.shape, data.spread(2).labels.tolist()
        ((3, 32, 32), [0, 1])
    """

    name: str
    images: ImageFolder

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``[3, H, W]`` and label."""
        return self.images[index]

    @property
    def labels(self) -> Tensor:
        """int64 ``[N]``."""
        return self.images.labels

    @property
    def classes(self) -> int:
        """L."""
        return self.images.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one example.

        Raises:
            ValueError: images that are not cropped have sizes of their own.
        """
        side = self.images.crop
        if side is None:
            raise ValueError(f"{self.name} has images of any size; give its ImageFolder crop=")
        return 3, side, side

    @property
    def workers(self) -> int:
        """Processes that decode: none beside this one where there are few images. No number depends on it."""
        return 0 if len(self) < _FEW else reading_processes()

    def loader(self, batch_size: int = 256) -> DataLoader[tuple[Tensor, int]]:
        """Batches in the folder's order, decoded anew in each pass, for analyses."""
        return image_loader(self.images, batch_size=batch_size, workers=self.workers)

    def with_labels(self, labels: Tensor) -> "FolderData":
        """The same images with other labels, int64 ``[N]``."""
        return replace(self, images=self.images.with_labels(labels))

    def spread(self, examples: int) -> "FolderData":
        r"""So many examples, spread evenly over all, which are sorted by class: the ``examples`` = n images

        .. math:: \lfloor i N / n \rfloor, \quad i = 0 .. n - 1

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= examples <= len(self):
            raise ValueError(f"{self.name} has {len(self)} examples; asked for {examples}")
        return replace(self, images=self.images.subset(torch.arange(examples) * len(self) // examples))

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of the labels, the classes' names, and each file's size and path in the folder, which may move.

        Of what the files hold, nothing: reading a hundred gigabytes would take an hour. Files that are changed and keep
        their names and sizes are not noticed. How images are resized, cropped and scaled is in it.
        """
        images, root = self.images, str(self.images.root)
        made = (images.resize, images.crop, images.pixels, images.mean, images.std)
        files = "\0".join(_within(root, path) for path in images.paths)  # as one string: there are a million
        sizes = torch.tensor([os.path.getsize(path) for path in images.paths])
        return Digest("folder of images", made, images.class_names, files, sizes, images.labels).hex


def load_imagenet(
    data_dir: Path | None, split: str = "train", *, image_size: int = IMAGE_SIZE, standardise: bool = True
) -> FolderData:
    """ImageNet, or any other set in its layout: ``DIR/imagenet/train/CLASS/*.JPEG`` and ``DIR/imagenet/val/...``.

    Args:
        data_dir: DIR.
        split: ``"train"``, or ``"test"``: the folder ``val``.
        image_size: side of the centre crop; the short side is resized to ``round(image_size * 256 / 224)`` before.
        standardise: less ImageNet's mean and divided by its standard deviation, by colour; else pixels in 0..1.

    Returns:
        Images ``[3, image_size, image_size]``, sorted by class and name.

    Raises:
        ValueError: no ``data_dir``, an unknown split, classes that differ between the two folders.
        FileNotFoundError: the folders are not there; says how they must look.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r}: of folders of images, choose 'train' or 'test' (their folder val)")
    if data_dir is None:
        raise ValueError(_LAYOUT)
    folders = {name: Path(data_dir) / IMAGENET / name for name in _SPLITS.values()}
    for folder in folders.values():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there: {_LAYOUT}")
    _check_classes(folders["train"], folders["val"])
    resize, pixels = round(image_size * _RESIZED), "standardised" if standardise else "scaled"
    return FolderData(IMAGENET, ImageFolder(folders[_SPLITS[split]], resize=resize, crop=image_size, pixels=pixels))


def has_imagenet(data_dir: str | Path | None) -> bool:
    """Whether both of ImageNet's folders are there."""
    return data_dir is not None and all((Path(data_dir) / IMAGENET / name).is_dir() for name in _SPLITS.values())


def _check_classes(train: Path, val: Path) -> None:
    """Labels are places among the classes' names: they mean the same only where the names are the same."""
    ours, theirs = set(class_folders(train)), set(class_folders(val))
    parts = [f"{what} {_some(names)}" for what, names in (("lacks", ours - theirs), ("adds", theirs - ours)) if names]
    if parts:
        raise ValueError(
            f"{val} has not the classes of {train}: it {' and '.join(parts)}. Both need a folder a class, named alike"
        )


def _some(names: set[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _within(root: str, path: str) -> str:
    return path.removeprefix(root).replace(os.sep, "/").lstrip("/")
