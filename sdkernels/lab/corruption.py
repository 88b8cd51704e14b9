"""Label corruption by permutation."""

import torch
from torch import Tensor


def corrupt_labels(labels: Tensor, fraction: float, seed: int) -> Tensor:
    r"""Permute the labels of a random subset among themselves.

    ``round(fraction * N)`` examples are drawn without replacement and their labels are permuted within that subset, so
    that the label histogram stays exactly as it was. With L balanced classes only about ``fraction * (1 - 1/L)`` of all
    labels come out wrong.

    Args:
        labels: integers ``[N]``; not changed.
        fraction: 0..1.
        seed: of the draw and of the permutation.

    Returns:
        A new tensor ``[N]`` of the same dtype.

    Raises:
        ValueError: a fraction out of 0..1, or labels that are not ``[N]``.

    Source:
        Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", as used by Morcos et al.
        2018, section 2.1.

    Example:
        >>> labels = torch.arange(10).repeat(10)
        >>> corrupted = corrupt_labels(labels, 0.4, seed=0)
        >>> corrupted.bincount().tolist() == labels.bincount().tolist(), int((corrupted != labels).sum()) <= 40
        (True, True)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} of corrupted labels must be within 0..1")
    if labels.ndim != 1:
        raise ValueError(f"labels {list(labels.shape)} must be [N]")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    corrupted = labels.clone()
    corrupted[chosen] = labels[chosen[torch.randperm(len(chosen), generator=generator)]]
    return corrupted
