"""Networks whose ways part and meet again: by addition, by concatenation, by a gate."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FunctionalBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, planes, 1, stride), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class FunctionalResNet(nn.Module):
    """The ResNet of CIFAR-10 as it is mostly written: ``F.relu``, ``F.avg_pool2d``, ``view``, empty shortcuts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(_FunctionalBlock(4, 4, 1))
        self.layer2 = nn.Sequential(_FunctionalBlock(4, 6, 2), _FunctionalBlock(6, 6, 1))
        self.linear = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.avg_pool2d(self.layer2(self.layer1(out)), 4)
        return self.linear(out.view(out.size(0), -1))


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution; the shortcut carries what was never rectified."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(5), nn.Conv2d(5, 5, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 5, 3, padding=1)
        self.bn3, self.out = nn.BatchNorm2d(5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(self.bn1(x).relu())
        x = x + 0.5 * self.conv2(torch.relu(self.bn2(x)))
        return self.out(F.adaptive_avg_pool2d(F.relu(self.bn3(x), inplace=True), 1).flatten(1))


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, 6, 1)
        self.norm2, self.relu2 = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, growth, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it; a transition halves the maps."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.dense1, self.dense2 = _DenseLayer(4, 3), _DenseLayer(7, 3)
        self.transition = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.AvgPool2d(2))
        self.dense3 = _DenseLayer(5, 3)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.dense1(features))
        features.append(self.dense2(features))
        x = self.transition(torch.cat(features, 1))
        x = torch.cat([x, self.dense3([x])], dim=1)
        return self.out(F.relu(self.norm(x)).mean([2, 3]))


def _unit(channels: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.BatchNorm2d(out), nn.ReLU(True))


class Inception(nn.Module):
    """Four branches, one of them through average pooling, joined by concatenation; twice."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = _unit(2, 4, 3)
        self.branch1, self.branch3 = _unit(4, 3, 1), nn.Sequential(_unit(4, 3, 1), _unit(3, 4, 3))
        self.branch_double = nn.Sequential(_unit(4, 2, 1), _unit(2, 3, 3), _unit(3, 3, 3))
        self.pool, self.branch_pool = nn.AvgPool2d(3, stride=1, padding=1), _unit(4, 2, 1)
        self.left, self.right = nn.Conv2d(12, 3, 3, stride=2), nn.MaxPool2d(3, stride=2)
        self.out = nn.Linear(15, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.branch_pool(self.pool(x))
        x = torch.cat([self.branch1(x), self.branch3(x), self.branch_double(x), pooled], 1)
        x = torch.cat((F.relu(self.left(x)), self.right(x)), 1)
        return self.out(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class SqueezeExcite(nn.Module):
    """A sigmoid gate, made of the maps' means, multiplies the maps; within a residual block."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.squeeze, self.excite, self.gate = nn.Conv2d(5, 3, 1), nn.Conv2d(3, 5, 1), nn.Sigmoid()
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.relu(self.stem(x))
        x = self.bn(self.conv(skip))
        x = x * self.gate(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.out(self.relu(x + skip).mean((2, 3)))


def _conv_bn(channels: int, out: int, kernel: int, stride: int, groups: int, act: Callable[[], nn.Module]) -> list:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), act()]


class _Inverted(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide, act = 2 * channels, lambda: nn.ReLU6(inplace=True)
        self.conv = nn.Sequential(
            *_conv_bn(channels, wide, 1, 1, 1, act),
            *_conv_bn(wide, wide, 3, stride, wide, act),
            nn.Conv2d(wide, out, 1),
        )
        self.skips = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNet(nn.Module):
    """Depthwise separable convolutions with ReLU6, and two inverted residual blocks with linear bottlenecks."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(2, 4, 3, 2, 1, nn.ReLU6))
        self.separable = nn.Sequential(*_conv_bn(4, 4, 3, 1, 4, nn.ReLU6), *_conv_bn(4, 5, 1, 1, 1, nn.ReLU6))
        self.inverted1, self.inverted2 = _Inverted(5, 5, 1), _Inverted(5, 6, 2)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inverted2(self.inverted1(self.separable(self.stem(x))))
        return self.classifier(F.adaptive_avg_pool2d(F.hardswish(x), 1).reshape(x.shape[0], -1))


class ResNeXt(nn.Module):
    """Grouped convolutions: a block of groups within a residual, then groups that widen and that narrow, shuffled."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.reduce, self.bn1 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8)
        self.expand, self.bn3 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.widen, self.narrow = nn.Conv2d(6, 9, 3, stride=2, groups=3), nn.Conv2d(9, 6, 2, groups=3)
        self.shuffle, self.relu, self.out = nn.ChannelShuffle(3), nn.ReLU(inplace=True), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        x = self.relu(self.bn1(self.reduce(skip)))
        x = self.relu(self.bn2(self.grouped(x)))
        x = self.relu(self.bn3(self.expand(x)) + skip)
        x = self.narrow(self.shuffle(self.relu(self.widen(x))))
        return self.out(self.relu(x).mean((2, 3)))


class UNet(nn.Module):
    """Down and up again: nearest and transposed upsampling, and a concatenation across."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down1, self.down2 = _unit(2, 4, 3), _unit(4, 5, 3)
        self.upsample, self.up2 = nn.Upsample(scale_factor=2), nn.ConvTranspose2d(5, 3, 2, stride=2)
        self.join, self.out = _unit(12, 4, 3), nn.Conv2d(4, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.down1(x)
        deep = self.down2(F.max_pool2d(across, 2))
        x = torch.cat([across, self.upsample(deep), self.up2(deep)], 1)
        return self.out(self.join(x)).mean((2, 3))


class ReadTwice(nn.Module):
    """Maps that one branch flattens and rectifies, and another averages as they are: the flat ones are a view."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.relu, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2)
        self.flat, self.averaged = nn.Linear(45, classes), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.relu(self.conv1(x)))
        return self.flat(torch.relu(torch.flatten(x, 1))) + self.averaged(x.mean((2, 3)))
