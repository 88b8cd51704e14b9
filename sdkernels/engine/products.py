"""Products: the linear maps of a network, whose weights can be sliced to the channels that live."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.graph import Graph

_CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
# Elements of an unrolled weight, at most.
LARGEST_UNROLLED = 2**25

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Product:
    r"""A convolution or a Linear: :math:`y_d = b_d + \sum_c W_{dc} * x_c`.

    Attributes:
        weight: ``[D, C / groups, *kernel]``; of a Linear ``[D, C]``.
        bias: ``[D]``.
        convolve: ``F.conv1d``, ``F.conv2d`` or ``F.conv3d``; None for a Linear.
        options: its stride, padding and dilation.
        groups: channel groups that do not see each other.
        pad: ``F.pad``'s widths and mode, where the convolution does not pad by zeros itself.
    """

    weight: Tensor
    bias: Tensor
    convolve: Callable[..., Tensor] | None = None
    options: tuple[tuple[str, Any], ...] = ()
    groups: int = 1
    pad: tuple[tuple[int, ...], str] | None = None

    def dim(self, ndim: int) -> int:
        """The dimension of a tensor of ``ndim`` dimensions that the channels stand in, of inputs and outputs."""
        return ndim - 1 if self.convolve is None else 1

    @property
    def inputs(self) -> int:
        """C."""
        return self.weight.shape[1] * self.groups

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel reads one input channel: output d reads d // (D / C)."""
        return self.groups > 1 and self.weight.shape[1] == 1

    def rows(self, which: Tensor | slice, weight: Tensor | None = None) -> Tensor:
        """The weights of some output channels."""
        weight = self.weight if weight is None else weight
        return weight[which] if isinstance(which, slice) else weight.index_select(0, which.to(weight.device))

    def columns(self, which: Tensor | slice, weight: Tensor | None = None) -> Tensor:
        """The weights of some input channels."""
        weight = self.weight if weight is None else weight
        return weight[:, which] if isinstance(which, slice) else weight.index_select(1, which.to(weight.device))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The map with other weights of the same kernel: ``[N, C', ...]`` -> ``[N, D', ...]``."""
        if self.convolve is None:
            return F.linear(x, weight, bias)
        if self.pad is not None:
            x = F.pad(x, *self.pad)
        groups = x.shape[1] // weight.shape[1] if self.groups > 1 else 1
        return self.convolve(x, weight, bias, groups=groups, **dict(self.options))


@dataclass(frozen=True)
class Unrolled(Product):
    r"""A convolution of maps so small that most of its kernel meets padding: one matrix over channels and positions.

    Attributes:
        weight: ``[D, S', C, S]``, S input and S' output positions.
        output_shape: its positions.
    """

    output_shape: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """C."""
        return self.weight.shape[2]

    def columns(self, which: Tensor | slice, weight: Tensor | None = None) -> Tensor:
        """The weights of some input channels."""
        weight = self.weight if weight is None else weight
        return weight[:, :, which] if isinstance(which, slice) else weight.index_select(2, which.to(weight.device))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The map with other weights: ``[N, C', ...]`` -> ``[N, D', ...]``."""
        outputs, positions = weight.shape[:2]
        matrix = weight.view(outputs * positions, weight.shape[2] * weight.shape[3])
        repeated = None if bias is None else bias.repeat_interleave(positions)
        return F.linear(x.flatten(1), matrix, repeated).view(len(x), outputs, *self.output_shape)


def unroll(product: Product, shape: tuple[int, ...]) -> Product:
    """The product as a matrix, where maps of ``shape`` [*S] are so small that this saves half of its arithmetic."""
    positions, taps = math.prod(shape), math.prod(product.weight.shape[2:])
    if product.convolve is None or product.groups > 1 or 2 * positions > taps:
        return product
    outputs, inputs = product.weight.shape[:2]
    impulses = torch.eye(positions, dtype=product.weight.dtype, device=product.weight.device)
    kernels = product.weight.reshape(outputs * inputs, 1, *product.weight.shape[2:])
    answers = product(impulses.view(positions, 1, *shape), kernels, None)  # [S, D * C, ...]
    output_shape = tuple(answers.shape[2:])
    if math.prod(output_shape) * positions * outputs * inputs > LARGEST_UNROLLED:
        return product
    matrix = answers.view(positions, outputs, inputs, -1).permute(1, 3, 2, 0).contiguous()
    return Unrolled(matrix, product.bias, product.convolve, output_shape=output_shape)


def product_of(node: fx.Node, graph: Graph) -> Product | None:
    """The product that a node computes from its first argument, or None."""
    if node.op == "call_module":
        module = graph.model.get_submodule(str(node.target))
        return _of_module(module) if len(node.all_input_nodes) == 1 and len(node.args) == 1 else None
    if node.op != "call_function":
        return None
    arguments = dict(zip(_CONVOLUTION_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    if node.target is not F.linear and node.target not in _CONVOLUTIONS.values():
        return None
    weight, bias = (_constant(arguments.pop(name, None), graph) for name in ("weight", "bias"))
    if weight is None or not isinstance(arguments.pop("input", None), fx.Node):
        return None
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if node.target is F.linear:
        return Product(weight, bias)
    groups = arguments.pop("groups", 1)
    return Product(weight, bias, node.target, tuple(arguments.items()), groups)  # type: ignore[arg-type]


def fold_affine(product: Product, scale: Tensor, shift: Tensor) -> Product:
    """The product followed by a scale and shift of each output channel, [D]; folded in float64, then rounded once."""
    weight = product.weight.double() * scale.view(-1, *[1] * (product.weight.ndim - 1))
    bias = product.bias.double() * scale + shift
    return replace(product, weight=weight.to(product.weight.dtype), bias=bias.to(product.bias.dtype))


def _of_module(module: nn.Module) -> Product | None:
    if not is_plain(module):
        return None
    if type(module) is nn.Linear:
        return Product(module.weight.detach(), _bias(module))
    if type(module) not in _CONVOLUTIONS:
        return None
    assert isinstance(module, nn.modules.conv._ConvNd)  # noqa: S101 - they all are
    options: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    pad = None
    if module.padding_mode != "zeros":
        pad = (tuple(module._reversed_padding_repeated_twice), module.padding_mode)
        options["padding"] = 0
    convolve = _CONVOLUTIONS[type(module)]
    return Product(module.weight.detach(), _bias(module), convolve, tuple(options.items()), module.groups, pad)


def _bias(module: nn.Module) -> Tensor:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)  # noqa: S101 - of a convolution or a Linear
    return weight.new_zeros(len(weight)) if bias is None else bias.detach()  # type: ignore[operator]


def _constant(argument: Any, graph: Graph) -> Tensor | None:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value = graph.attribute(argument)
    return value.detach() if isinstance(value, Tensor) else None


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module runs its class's forward and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    everywhere = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
    return not any((*hooks, *everywhere)) and "forward" not in vars(module)
