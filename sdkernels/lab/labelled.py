"""A classification data set in memory, and its shapes: flat for MLPs, images for convolutions."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

_AT_ONCE = 2**22  # numbers that are held in float64 at a time


@dataclass(frozen=True)
class LabelledData:
    """A classification data set in memory.

    Attributes:
        name: as asked for.
        inputs: float32 ``[N, D]`` or ``[N, C, H, W]``, pixels scaled to 0..1 as read.
        labels: int64 ``[N]``.
        classes: L.
        image_shape: (C, H, W) of flat inputs; images have their own.

    Raises:
        ValueError: ``image_shape`` does not fit the inputs.

    Example:
        >>> data = LabelledData("ramp", torch.arange(60.0).view(5, 12) / 60, torch.arange(5), 5, (3, 2, 2))
        >>> data.as_images().inputs.shape, data.first(2).labels.tolist()
        (torch.Size([5, 3, 2, 2]), [0, 1])
    """

    name: str
    inputs: Tensor
    labels: Tensor
    classes: int
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.image_shape is not None and math.prod(self.image_shape) != math.prod(self.inputs.shape[1:]):
            raise ValueError(
                f"{self.name}: image_shape={self.image_shape} does not fit inputs {list(self.inputs.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one example as an image.

        Raises:
            ValueError: it is not known.
        """
        if self.inputs.ndim == 4:
            channels, height, width = self.inputs.shape[1:]
            return channels, height, width
        if self.image_shape is None:
            raise ValueError(
                f"{self.name} has inputs {list(self.inputs.shape)}: which images they are is not known; say it by "
                "LabelledData(..., image_shape=(C, H, W))"
            )
        return self.image_shape

    def as_images(self) -> "LabelledData":
        """The same data with inputs ``[N, C, H, W]``.

        Raises:
            ValueError: the shape of an image is not known.
        """
        shape = self.shape
        return replace(self, inputs=self.inputs.reshape(len(self.inputs), *shape), image_shape=shape)

    def flattened(self) -> "LabelledData":
        """The same data with inputs ``[N, D]``; the shape of an image is remembered."""
        shape = self.shape if self.inputs.ndim == 4 else self.image_shape
        return replace(self, inputs=self.inputs.flatten(1), image_shape=shape)

    def first(self, examples: int) -> "LabelledData":
        """The first ``examples`` examples.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= examples <= len(self.labels):
            raise ValueError(f"{self.name} has {len(self.labels)} examples; asked for {examples}")
        return replace(self, inputs=self.inputs[:examples], labels=self.labels[:examples])

    def statistics(self) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of every channel's pixels, over all examples and positions.

        .. math:: \mu_c = \langle x_{n,c,h,w} \rangle_{n,h,w}, \quad
            \sigma_c = \sqrt{\langle (x_{n,c,h,w} - \mu_c)^2 \rangle_{n,h,w}}

        Returns:
            Two float64 ``[C]``.

        Raises:
            ValueError: the shape of an image is not known, or there is no example.
        """
        channels = self.shape[0]
        if not len(self.inputs):
            raise ValueError(f"{self.name} has no example: no mean and standard deviation")
        pixels = self.inputs.reshape(len(self.inputs), channels, -1)  # [N, C, H W]
        parts = pixels.split(max(1, _AT_ONCE // max(1, pixels[0].numel())))
        count = len(pixels) * pixels.shape[2]
        mean = torch.stack([part.double().sum((0, 2)) for part in parts]).sum(0) / count
        squares = [(part.double() - mean[:, None]).square_().sum((0, 2)) for part in parts]
        return mean, (torch.stack(squares).sum(0) / count).sqrt()

    def standardised(
        self, mean: Tensor | Sequence[float] | None = None, std: Tensor | Sequence[float] | None = None
    ) -> "LabelledData":
        """The same data with every channel at mean 0 and standard deviation 1, or scaled by another set's statistics.

        Args:
            mean, std: ``[C]``, both or neither; by default this set's own :meth:`statistics`. Give a test set those of
                the training set: ``test.standardised(*train.statistics())``.

        Raises:
            ValueError: only one is given, not one number a channel, or a standard deviation that is not positive.
        """
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, as from statistics(), or neither")
        if mean is None or std is None:
            mean, std = self.statistics()
        channels = self.shape[0]
        centre, scale = (torch.as_tensor(given, dtype=torch.float64).cpu() for given in (mean, std))
        if centre.shape != (channels,) or scale.shape != (channels,):
            raise ValueError(
                f"mean {list(centre.shape)} and std {list(scale.shape)} must be [{channels}], one number a channel of "
                f"{self.name}"
            )
        if not (scale > 0).all():
            raise ValueError(
                f"{self.name}: standard deviations {scale.tolist()} must be positive; a channel that never changes "
                "cannot be standardised"
            )
        pixels = self.inputs.reshape(len(self.inputs), channels, -1)
        scaled = (pixels - centre[:, None].to(pixels)) / scale[:, None].to(pixels)
        return replace(self, inputs=scaled.reshape(self.inputs.shape))

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of inputs and labels."""
        digest = hashlib.sha256(self.inputs.reshape(-1).numpy().data)
        digest.update(self.labels.reshape(-1).numpy().data)
        return digest.hexdigest()
