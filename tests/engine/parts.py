"""The parts that generated networks are made of.

Each is a tuple of a word and its options:

==============================================================  ======================================================
``("act", kind)``                                               see ``ACTIVATIONS``
``("norm", kind)``                                              see ``NORMS``
``("conv", out, kernel, stride, padding, dilation, groups, bias, mode)``
``("depthwise", multiplier, kernel)``                           as many groups as channels
``("pool", kind, kernel, stride, padding)``                     ``max``, ``avg``, ``adaptive-max``, ``adaptive-avg``
``("residual", parts, form, stride)``                           a projection stands where shapes change
``("cat", branches, with_input)``                               branches, each a tuple of parts, and perhaps the input
``("gate", hidden)``                                            squeeze and excitation
``("last", hidden)``                                            channels last: layer norm, two linear layers, and back
``("scale", kind)``                                             by a number (perhaps in place), or a parameter a channel
``("drop",)``                                                   dropout, which does nothing
==============================================================  ======================================================
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = (
    *("relu", "relu_", "shared", "F.relu", "F.relu_", "torch.relu", "x.relu"),  # with _, in place
    *("leaky", "leaky_", "gelu", "sigmoid", "tanh", "relu6", "hardswish"),
)
NORMS = ("batch", "plain", "group", "layer", "instance")
EPS = 0.1  # of norms over activations: a smaller one makes large differences of rounding, where all units are clamped


@dataclass(frozen=True)
class Maps:
    """What flows: channels, the length of each axis, and whether it surely may be written in place.

    That is where no other part reads the tensor, and what made it is known to make new ones.
    """

    channels: int
    size: int
    fresh: bool


class Maker:
    """Makes modules of parts, and makes parts fit."""

    def __init__(self, axes: int) -> None:
        self.axes = axes
        self.shared = nn.ReLU(inplace=True)
        self.conv_type = nn.Conv1d if axes == 1 else nn.Conv2d

    def sequence(self, parts: tuple, maps: Maps, *, keep_size: bool) -> tuple[nn.Sequential, Maps]:
        modules = []
        for part in parts:
            module, maps = getattr(self, f"_{part[0]}")(maps, keep_size, *part[1:])
            modules.append(module)
        return nn.Sequential(*modules), maps

    def activation(self, kind: str, *, fresh: bool) -> nn.Module:
        if kind == "shared" and fresh:
            return self.shared
        kind = kind if fresh else kind.removesuffix("_").replace("shared", "F.relu")
        modules = {"leaky": nn.LeakyReLU(0.2), "gelu": nn.GELU(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh()}
        modules |= {
            "leaky_": nn.LeakyReLU(0.2, inplace=True),
            "relu6": nn.ReLU6(),
            "hardswish": nn.Hardswish(),
            "relu": nn.ReLU(),
            "relu_": nn.ReLU(inplace=True),
        }
        return modules[kind] if kind in modules else _Function(kind)

    def _act(self, maps: Maps, _keep: bool, kind: str) -> tuple[nn.Module, Maps]:
        return self.activation(kind, fresh=maps.fresh), maps

    def _norm(self, maps: Maps, _keep: bool, kind: str) -> tuple[nn.Module, Maps]:
        channels, positions = maps.channels, maps.size**self.axes
        after = Maps(channels, maps.size, fresh=True)
        groups = 2 if channels % 2 == 0 else 1
        if kind == "layer":
            return _LayerNorm(channels), after
        if kind == "group" and channels // groups * positions > 1:  # torch refuses to normalise one element
            return nn.GroupNorm(groups, channels, eps=EPS), after
        if kind == "instance" and positions > 1:
            return (nn.InstanceNorm1d if self.axes == 1 else nn.InstanceNorm2d)(channels, eps=EPS, affine=True), after
        batch_norm = nn.BatchNorm1d if self.axes == 1 else nn.BatchNorm2d
        return batch_norm(channels, affine=kind != "plain"), after

    def _conv(self, maps: Maps, keep: bool, out, kernel, stride, padding, dilation, groups, bias, mode):
        if mode != "zeros" and padding >= maps.size:  # no map can be wrapped around twice
            mode = "zeros"
        if keep:
            kernel, stride, dilation = kernel, 1, 2 if kernel == 2 else dilation
            padding = dilation * (kernel - 1) // 2
            mode = "zeros" if padding >= maps.size else mode
        elif maps.size + 2 * padding < dilation * (kernel - 1) + 1:
            kernel = 1
        groups = math.gcd(groups, math.gcd(maps.channels, out))
        conv = self.conv_type(
            *(maps.channels, out, kernel, stride, padding, dilation, groups), bias=bias, padding_mode=mode
        )
        return conv, Maps(out, (maps.size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1, fresh=True)

    def _depthwise(self, maps: Maps, keep: bool, multiplier: int, kernel: int):
        return self._conv(maps, True, maps.channels * multiplier, kernel, 1, 0, 1, maps.channels, False, "zeros")

    def _pool(self, maps: Maps, keep: bool, kind: str, kernel: int, stride: int, padding: int):
        names = {
            "max": "MaxPool",
            "avg": "AvgPool",
            "adaptive-max": "AdaptiveMaxPool",
            "adaptive-avg": "AdaptiveAvgPool",
        }
        pool = getattr(nn, f"{names[kind]}{self.axes}d")
        if kind.startswith("adaptive"):
            size = maps.size if keep else min(kernel, maps.size)
            return pool(size), Maps(maps.channels, size, maps.fresh)
        if keep:
            kernel, stride, padding = 3, 1, 1
        padding = min(padding, kernel // 2)
        if maps.size + 2 * padding < kernel:
            return nn.Identity(), maps
        return pool(kernel, stride, padding), Maps(
            maps.channels, (maps.size + 2 * padding - kernel) // stride + 1, maps.fresh
        )

    def _residual(self, maps: Maps, keep: bool, parts: tuple, form: str, stride: int):
        branch, out = self.sequence(parts, Maps(maps.channels, maps.size, fresh=False), keep_size=True)
        stride = 1 if keep else stride
        if stride > 1:
            branch.append(self.conv_type(out.channels, out.channels, 3, stride, padding=1))
            out = Maps(out.channels, (maps.size - 1) // stride + 1, fresh=True)
        shortcut: nn.Module | None = None
        if stride > 1 or out.channels != maps.channels:
            shortcut = self.conv_type(maps.channels, out.channels, 1, stride)
        form = "x + y" if form in ("y += x", "y.add_(x)") and not out.fresh else form
        return _Residual(branch, shortcut, form), Maps(out.channels, out.size, fresh=True)

    def _cat(self, maps: Maps, keep: bool, branches: tuple, with_input: bool):
        made = [self.sequence(b, Maps(maps.channels, maps.size, fresh=False), keep_size=True) for b in branches]
        channels = sum(out.channels for _, out in made) + (maps.channels if with_input else 0)
        return _Cat([module for module, _ in made], with_input), Maps(channels, maps.size, fresh=True)

    def _gate(self, maps: Maps, keep: bool, hidden: int):
        squeeze, excite = self.conv_type(maps.channels, hidden, 1), self.conv_type(hidden, maps.channels, 1)
        return _Gate(squeeze, excite, tuple(range(2, 2 + self.axes))), Maps(maps.channels, maps.size, fresh=True)

    def _last(self, maps: Maps, keep: bool, hidden: int):
        return _Last(maps.channels, hidden), Maps(maps.channels, maps.size, fresh=False)  # a view

    def _scale(self, maps: Maps, keep: bool, kind: str):
        kind = "number" if kind == "x.mul_" and not maps.fresh else kind
        return _Scale(maps.channels, self.axes, kind), Maps(maps.channels, maps.size, fresh=True)

    def _drop(self, maps: Maps, keep: bool):
        return nn.Dropout(0.5), maps


class _Function(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "x.relu":
            return x.relu()
        return torch.relu(x) if self.kind == "torch.relu" else F.relu(x, inplace=self.kind == "F.relu_")


class _LayerNorm(nn.Module):
    """Over channels, at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(channels, eps=EPS))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class _Last(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.LayerNorm(channels, eps=EPS), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x.transpose(1, -1)).transpose(1, -1)


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module | None, form: str) -> None:
        super().__init__()
        self.branch, self.shortcut, self.form = branch, shortcut, form

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        x = x if self.shortcut is None else self.shortcut(x)
        if self.form == "y += x":
            y += x
            return y
        if self.form == "y.add_(x)":
            return y.add_(x)
        if self.form == "torch.add":
            return torch.add(y, x)
        if self.form == "x - y":
            return x - y
        return x + 0.5 * y if self.form == "x + y / 2" else x + y


class _Cat(nn.Module):
    def __init__(self, branches: list[nn.Module], with_input: bool) -> None:
        super().__init__()
        self.branches, self.with_input = nn.ModuleList(branches), with_input

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(([x] if self.with_input else []) + [branch(x) for branch in self.branches], 1)


class _Gate(nn.Module):
    def __init__(self, squeeze: nn.Module, excite: nn.Module, positions: tuple[int, ...]) -> None:
        super().__init__()
        self.squeeze, self.excite, self.gate, self.positions = squeeze, excite, nn.Sigmoid(), positions

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.excite(F.silu(self.squeeze(x.mean(self.positions, keepdim=True)))))


class _Scale(nn.Module):
    def __init__(self, channels: int, axes: int, kind: str) -> None:
        super().__init__()
        self.kind, self.gamma = kind, nn.Parameter(torch.randn(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "x.mul_":
            return x.mul_(-0.5)
        return {"gamma": lambda: self.gamma * x, "number": lambda: x * 0.5, "shift": lambda: 0.3 - x}[self.kind]()
