"""The ResNets of the ImageNet experiments, with torchvision's names, so that its weights load."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sdkernels.lab.seeds import drawing_from

Stride = Literal["first", "last"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them; the first convolution has the stride."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, H, W] -> [N, planes, H / stride, W / stride]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, and a shortcut around them; the 3x3 convolution has the stride."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, H, W] -> [N, 4 planes, H / stride, W / stride]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


def _shortcut(channels: int, out: int, stride: int) -> nn.Module | None:
    """A projection where the number of channels changes; else every ``stride``-th position."""
    if channels != out:
        return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return nn.MaxPool2d(1, stride) if stride > 1 else None


class ResNet(nn.Module):
    """A residual network: ``conv1, bn1, relu, maxpool, layer1, layer2, ..., avgpool, fc``, as in torchvision.

    The blocks of a stage are ``layer1.0, layer1.1, ...``. In every block one in-place ``relu`` fires several times: the
    last call, ``layer1.0.relu@1`` of a basic block and ``layer1.0.relu@2`` of a bottleneck, is the block's output.
    The stem is that of 224 x 224 images: a 7x7 convolution and a 3x3 max pooling, each with stride 2.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        blocks: how many of them each stage has; the planes double from stage to stage, from 64.
        classes: L; the model takes ``[N, in_channels, H, W]`` and gives logits ``[N, classes]``.
        stride: where the maps are halved. ``"first"``: in the first block of all stages but the first, in the 3x3
            convolution (in a bottleneck ``conv2``, torchvision's "ResNet v1.5"; He et al. 2016 have it in ``conv1``)
            and in the shortcut's projection. ``"last"``: in the last block of all stages but the last, in the same 3x3
            convolution; the shortcut then takes every second position.
        width: a factor of all numbers of planes; each is rounded, and at least 1.
        in_channels: of the inputs.
        seed: of the initialisation; the global random state is left as it was.

    Raises:
        ValueError: another stride.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        *,
        classes: int = 1000,
        stride: Stride = "first",
        width: float = 1.0,
        in_channels: int = 3,
        seed: int,
    ) -> None:
        super().__init__()
        if stride not in ("first", "last"):
            raise ValueError(f"stride={stride!r}: choose 'first' or 'last'")
        channels = _scaled(64, width)
        with drawing_from(seed):
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
            self._stages = tuple(f"layer{stage}" for stage in range(1, len(blocks) + 1))
            for stage, count in enumerate(blocks):
                strides = [1] * count
                if stride == "first" and stage > 0:
                    strides[0] = 2
                if stride == "last" and stage < len(blocks) - 1:
                    strides[-1] = 2
                layer = nn.Sequential()
                for by in strides:
                    planes = _scaled(64 * 2**stage, width)
                    layer.append(block(channels, planes, by))
                    channels = planes * block.expansion
                self.add_module(self._stages[stage], layer)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages: ``layer1``, ``layer2``, ..."""
        return self._stages

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of ``[N, in_channels, H, W]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _scaled(planes: int, width: float) -> int:
    return max(1, round(planes * width))


def resnet18(
    *, classes: int = 1000, stride: Stride = "first", width: float = 1.0, in_channels: int = 3, seed: int
) -> ResNet:
    """ResNet-18: basic blocks, (2, 2, 2, 2) of them; arguments as for :class:`ResNet`.

    Source:
        He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", table 1.

    Example:
        >>> model = resnet18(seed=0)
        >>> [name for name, _ in model.named_children()]
        ['conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4', 'avgpool', 'fc']
        >>> sum(p.numel() for p in model.parameters())
        11689512
    """
    return ResNet(
        BasicBlock, (2, 2, 2, 2), classes=classes, stride=stride, width=width, in_channels=in_channels, seed=seed
    )


def resnet50(
    *, classes: int = 1000, stride: Stride = "first", width: float = 1.0, in_channels: int = 3, seed: int
) -> ResNet:
    """ResNet-50: bottlenecks, (3, 4, 6, 3) of them; arguments as for :class:`ResNet`.

    ``stride="first"`` is torchvision's (v1.5); ``stride="last"`` is the single-directions paper's, whose stages 1-3
    halve the maps in their last block: (1x1, 64, 64, 256) x 2, (2x2, 64, 64, 256), and so on.

    Source:
        He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", table 1; Morcos, Barrett,
        Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization".

    Example:
        >>> sum(p.numel() for p in resnet50(seed=0).parameters())
        25557032
    """
    return ResNet(
        Bottleneck, (3, 4, 6, 3), classes=classes, stride=stride, width=width, in_channels=in_channels, seed=seed
    )
