"""The handwritten digits as a text: pixel after pixel, so that language models have real data that need no file."""

import torch
from torch import Tensor

from sdkernels.analysis.extras import require

TRAINING_IMAGES = 1437  # four fifths of 1,797

_INTENSITIES = 17  # 0 .. 16
WORDS = (*map(str, range(_INTENSITIES)), "<image>")


def read_digits_tokens() -> tuple[Tensor, Tensor]:
    """The 1,797 images of scikit-learn's digits, one after the other, as tokens.

    An image is 65 tokens: ``<image>``, number 17, and its 64 pixels, row by row, each by its intensity 0 .. 16.

    Returns:
        int64 ``[93405]`` of the first 1,437 images and int64 ``[23400]`` of the other 360.

    Example:
        >>> train, test = read_digits_tokens()
        >>> train[:9].tolist(), len(train), len(test)
        ([17, 0, 0, 5, 13, 9, 1, 0, 0], 93405, 23400)
    """
    digits = require("sklearn.datasets", "read_digits_tokens()").load_digits()
    pixels = torch.tensor(digits.data).long()  # [1797, 64]
    images = torch.cat([torch.full((len(pixels), 1), _INTENSITIES), pixels], dim=1)
    return images[:TRAINING_IMAGES].flatten(), images[TRAINING_IMAGES:].flatten()
