"""The ConvNet of the CIFAR-10 experiments."""

from collections import OrderedDict
from typing import Literal

from torch import nn

from sdkernels.lab.seeds import drawing_from

CHANNELS = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)


def convnet(
    *,
    classes: int = 10,
    batch_norm: bool = True,
    head: Literal["average", "flatten"] = "average",
    width: float = 1.0,
    in_channels: int = 3,
    image_size: int = 32,
    seed: int,
) -> nn.Sequential:
    """Eleven 3x3 convolutions: ``conv1, bn1, relu1, ..., conv11, bn11, relu11``, a head and ``out``.

    Padding is 1; the strides divide the maps' side by eight, from 32 to 4. Convolutions have a bias only where no batch
    norm follows. Their weights are drawn as He et al. 2015 have it, so that the network trains without batch norm too;
    biases are zero.

    Args:
        classes: L; the model takes ``[N, in_channels, image_size, image_size]`` and gives logits ``[N, classes]``.
        batch_norm: whether a batch norm follows each convolution.
        head: what stands before ``out``, which the paper does not say: ``"average"`` over space (``pool, flatten``), or
            ``"flatten"``, so that every position has weights of its own.
        width: a factor of all numbers of channels; each is rounded, and at least 1.
        in_channels, image_size: of the inputs; ``image_size`` matters to ``head="flatten"`` alone.
        seed: of the initialisation; the global random state is left as it was.

    Raises:
        ValueError: another head.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization":
        channels, kernels and strides.

    Example:
        >>> model = convnet(seed=0)
        >>> [name for name, _ in model.named_children()][-6:]
        ['conv11', 'bn11', 'relu11', 'pool', 'flatten', 'out']
        >>> sum(p.numel() for p in model.parameters())
        7790794
    """
    if head not in ("average", "flatten"):
        raise ValueError(f"head={head!r}: choose 'average' or 'flatten'")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, side = in_channels, image_size
    with drawing_from(seed):
        for i, (wide, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True), 1):
            out = max(1, round(wide * width))
            conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            layers[f"conv{i}"] = conv
            if batch_norm:
                layers[f"bn{i}"] = nn.BatchNorm2d(out)
            layers[f"relu{i}"] = nn.ReLU()
            channels, side = out, (side - 1) // stride + 1
        if head == "average":
            layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["out"] = nn.Linear(channels * (1 if head == "average" else side * side), classes)
    return nn.Sequential(layers)
