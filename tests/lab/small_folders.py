"""Folders of images in ImageNet's layout, a few kilobytes each."""

import torch
import torch.nn.functional as F
from PIL import Image

CLASSES = ("n01", "n02", "n03", "n04", "n05", "n06")


def make_imagenet(data_dir, *, train=6, val=3, classes=CLASSES, side=40):
    """``train`` and ``val`` JPEG images a class, whose pixels differ; wider than high, and the other way round."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            folder = data_dir / "imagenet" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (side, side + 10 + i) if i % 2 else (side + 12, side)
                coarse = torch.rand(1, 3, 5, 5, generator=generator)
                fine = F.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
                Image.fromarray((fine * 255).round().byte().numpy()).save(folder / f"{name}_{i}.JPEG", quality=95)
    return data_dir
