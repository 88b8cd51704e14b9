"""Images shifted and mirrored at random, a batch at a time and on the batch's own device."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

PADDING = 4


def crop_flip(images: Tensor, generator: Generator) -> Tensor:
    """Pad by 4 zeros a side, cut back to size at a random place, mirror left to right with probability 1/2.

    Args:
        images: ``[N, C, H, W]``.
        generator: on the CPU, so that every device sees the same draws.

    Returns:
        ``[N, C, H, W]``, each image with draws of its own.

    Raises:
        ValueError: no images.

    Example:
        >>> crop_flip(torch.ones(1, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([1, 1, 8, 8])
    """
    if images.ndim != 4:
        raise ValueError(
            f"augmentation='crop_flip' needs images [N, C, H, W]; got {tuple(images.shape)}. Give the data as images "
            "(LabelledData.as_images()), or augmentation='none'"
        )
    n, channels, height, width = images.shape
    down = torch.randint(2 * PADDING + 1, (n, 1), generator=generator)
    right = torch.randint(2 * PADDING + 1, (n, 1), generator=generator)
    mirrored = torch.randint(2, (n, 1), generator=generator).bool()
    rows = (down + torch.arange(height)).to(images.device)  # [N, H]
    columns = torch.arange(width).expand(n, width)
    columns = (right + torch.where(mirrored, columns.flip(1), columns)).to(images.device)  # [N, W]
    which = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return pad(images, [PADDING] * 4)[which, channel, rows[:, None, :, None], columns[:, None, None, :]]
