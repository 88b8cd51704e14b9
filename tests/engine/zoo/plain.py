"""Networks without branches: perceptrons, ConvNets, other convolutions, and norms that look across units."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _sequential(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def vgg(classes: int) -> nn.Module:
    """Max pooling between convolutions, flatten, a linear head with dropout; in-place ReLUs."""
    return _sequential(
        ("conv1", nn.Conv2d(2, 5, 3, padding=1)),
        ("relu1", nn.ReLU(inplace=True)),
        ("conv2", nn.Conv2d(5, 6, 3, padding=1)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool1", nn.MaxPool2d(2)),
        ("conv3", nn.Conv2d(6, 7, 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("pool2", nn.MaxPool2d(2, ceil_mode=True)),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(7 * 4, 9)),
        ("relu4", nn.ReLU(inplace=True)),
        ("drop", nn.Dropout(0.5)),
        ("fc2", nn.Linear(9, 8)),
        ("relu5", nn.ReLU(inplace=True)),
        ("out", nn.Linear(8, classes)),
    )


def conv1d(classes: int) -> nn.Module:
    """Maps with one position axis."""
    return _sequential(
        ("conv1", nn.Conv1d(3, 6, 3, padding=1)),
        ("bn1", nn.BatchNorm1d(6)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool1d(3, 2, padding=1)),
        ("conv2", nn.Conv1d(6, 5, 4, stride=2, padding=1)),
        ("bn2", nn.BatchNorm1d(5)),
        ("act2", nn.LeakyReLU(0.1)),
        ("pool", nn.AdaptiveAvgPool1d(1)),
        ("flatten", nn.Flatten()),
        ("out", nn.Linear(5, classes)),
    )


def conv3d(classes: int) -> nn.Module:
    """Maps with three position axes."""
    return _sequential(
        ("conv1", nn.Conv3d(1, 4, 2)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.AvgPool3d(2)),
        ("conv2", nn.Conv3d(4, 5, 2)),
        ("bn2", nn.BatchNorm3d(5)),
        ("relu2", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("out", nn.Linear(5, classes)),
    )


def odd_convolutions(classes: int) -> nn.Module:
    """Dilation, strides and kernels that differ by axis, padding of all modes, a transposed convolution."""
    return _sequential(
        ("dilated", nn.Conv2d(2, 4, 3, padding=2, dilation=2)),
        ("relu1", nn.ReLU()),
        ("uneven", nn.Conv2d(4, 5, (3, 1), stride=(2, 1), padding=(2, 1), bias=False)),
        ("relu2", nn.ReLU()),
        ("circular", nn.Conv2d(5, 4, 3, padding=1, padding_mode="circular")),
        ("relu3", nn.ReLU()),
        ("reflect", nn.Conv2d(4, 5, 3, padding=(1, 2), padding_mode="reflect")),
        ("relu4", nn.ReLU()),
        ("same", nn.Conv2d(5, 4, 2, dilation=2, padding="same")),
        ("relu5", nn.ReLU()),
        ("transposed", nn.ConvTranspose2d(4, 4, 3, stride=2)),
        ("relu6", nn.ReLU()),
        ("replicate", nn.Conv2d(4, 5, 3, stride=3, padding=1, padding_mode="replicate")),
        ("tanh", nn.Tanh()),
        ("pool", nn.AdaptiveMaxPool2d((1, 2))),
        ("flatten", nn.Flatten()),
        ("out", nn.Linear(10, classes)),
    )


class Padded(nn.Module):
    """Padding by modules and by ``F.pad``, more on one side than on the other, and with another number than zero."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.pad, self.conv2 = nn.Conv2d(2, 5, 3), nn.ConstantPad2d((0, 1, 2, 0), 0.5), nn.Conv2d(5, 4, 3)
        self.conv3, self.out = nn.Conv2d(4, 4, 2), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.pad(F.relu(self.conv1(F.pad(x, (1, 0, 0, 1))))))
        x = self.conv3(F.pad(F.relu(x), (0, 1, 0, 1)))
        return self.out(F.avg_pool2d(x, 3).amax((2, 3)))


class GroupNormed(nn.Module):
    """Group norm and instance norm in the place of batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(3, 6)
        self.conv2, self.norm2 = nn.Conv2d(6, 4, 3, padding=1), nn.GroupNorm(1, 4)
        self.conv3, self.norm3 = nn.Conv2d(4, 5, 3, padding=1), nn.InstanceNorm2d(5, affine=True)
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        x = self.relu(self.norm3(self.conv3(x)))
        return self.out(x.amax((2, 3)))


class _ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(channels, 9), nn.GELU(), nn.Linear(9, channels)
        self.gamma = nn.Parameter(torch.linspace(0.3, 1.2, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Channels go last and come back: depthwise convolution, layer norm, two linear layers, a scale a channel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.block1, self.block2 = nn.Conv2d(2, 5, 2, stride=2), _ConvNeXtBlock(5), _ConvNeXtBlock(5)
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block2(self.block1(self.stem(x))).mean((-2, -1))))


class BranchingOnData(nn.Module):
    """Control flow that depends on the data: no tracer can follow it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.relu, self.out = nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x)).mean((2, 3))
        return self.out(x if x.shape[0] == 0 or x.abs().max() < 1e6 else -x)
