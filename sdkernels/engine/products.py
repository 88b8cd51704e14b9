"""Products: the linear maps of a network, whose weights can be sliced to the channels that live."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.graph import Graph
from sdkernels.ops.backend import choose_backend
from sdkernels.ops.winograd import DTYPES as WINOGRAD_DTYPES
from sdkernels.ops.winograd import tiles, weight_matrix, winograd_input, winograd_output, winograd_weight

_CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}

# Elements of an unrolled weight, at most.
LARGEST_UNROLLED = 2**25

# Winograd's products pay from so many channels on either side, and where so few of the multiplications remain.
FEWEST_CHANNELS = 32
LARGEST_SHARE = 0.6

# Bytes of either side of the 36 products, at least: they stay in a cache if they are no more than that, but are as many
# as the weights if these are more, which are read again for each part of the examples.
PRODUCTS_AT_ONCE = 2**22

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
        share: multiplications done, of those that the definition has.
    """

    weight: Tensor
    bias: Tensor
    convolve: Callable[..., Tensor] | None = None
    options: tuple[tuple[str, Any], ...] = ()
    groups: int = 1
    pad: tuple[tuple[int, ...], str] | None = None
    share: float = 1.0

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

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

    @property
    def by_column(self) -> "Product":
        """The same map, where the weights of a few input channels are cheap to take."""
        return self

    def arranged(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """The weights of some output and input channels, in the order given; None for all as they are."""
        return _arranged(self.weight, 0, rows, 1, columns)

    def part(self, weight: Tensor, rows: slice, columns: slice) -> Tensor:
        """A slice of arranged weights."""
        return weight[rows, columns]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
        """The map with other weights of the same kernel: ``[N, C', ...]`` -> ``[N, D', ...]``, in memory of its own."""
        if self.convolve is None:
            result = F.linear(x, weight, bias)
        else:
            x = x if self.pad is None else F.pad(x, *self.pad)
            groups = x.shape[1] // weight.shape[1] if self.groups > 1 else 1
            result = self.convolve(x, weight, bias, groups=groups, **dict(self.options))
        return result.clamp_min_(0) if relu else result

    # Running sums over input channels, as long as a curve is walked.

    def start(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A running sum with its first input channels."""
        return self(x, weight, bias)

    def add(self, sums: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add further input channels to a running sum."""
        if self.convolve is None:
            sums.view(-1, sums.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
        else:
            sums += self(x, weight, None)

    def read(self, sums: Tensor, rows: int, bias: Tensor, relu: bool) -> tuple[Tensor, bool]:
        """The first outputs of a running sum, and whether they may be written."""
        outputs = sums.narrow(self.dim(sums.ndim), 0, rows)
        return (outputs.clamp_min(0), True) if relu else (outputs, False)


@dataclass(frozen=True)
class Unrolled(Product):
    r"""A convolution of maps so small that most of its kernel meets padding: one matrix over channels and positions.

    Attributes:
        weight: ``[D, S', C, S]``, S input and S' output positions.
        output_shape: the output's positions.
    """

    output_shape: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """C."""
        return self.weight.shape[2]

    def arranged(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """The weights of some output and input channels."""
        return _arranged(self.weight, 0, rows, 2, columns)

    def part(self, weight: Tensor, rows: slice, columns: slice) -> Tensor:
        """A slice of arranged weights."""
        return weight[rows, :, columns]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
        """The map with other weights: ``[N, C', ...]`` -> ``[N, D', ...]``."""
        outputs, positions = weight.shape[:2]
        matrix = weight.view(outputs * positions, weight.shape[2] * weight.shape[3])
        repeated = None if bias is None else bias.repeat_interleave(positions)
        result = F.linear(x.flatten(1), matrix, repeated).view(len(x), outputs, *self.output_shape)
        return result.clamp_min_(0) if relu else result


@dataclass(frozen=True)
class Winograd(Product):
    """A 3x3 convolution as 36 products, a quarter of its multiplications: :mod:`sdkernels.ops.winograd`.

    Attributes:
        weight: ``[36, D, C]``.
        direct: the convolution itself.
        positions: height and width of the maps.
    """

    direct: Product | None = None
    positions: tuple[int, int] = (0, 0)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds, of the convolution too."""
        return [*super().tensors, *(self.direct.tensors if self.direct else [])]

    @property
    def inputs(self) -> int:
        """C."""
        return self.weight.shape[2]

    @property
    def by_column(self) -> Product:
        """The convolution itself."""
        assert self.direct is not None  # noqa: S101 - specialise gives it
        return self.direct

    def arranged(self, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """The weights of some output and input channels, ``[36, D', C']``."""
        weight = self.by_column.arranged(rows, columns)
        matrix = weight_matrix().to(weight)
        kernels = torch.einsum("ip,jq->ijpq", matrix, matrix).reshape(36, 9)
        return (kernels @ weight.reshape(-1, 9).t()).view(36, *weight.shape[:2])

    def part(self, weight: Tensor, rows: slice, columns: slice) -> Tensor:
        """A slice of arranged weights."""
        return weight[:, rows, columns]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
        """The map with other weights: ``[N, C', H, W]`` -> ``[N, D', H, W]``, in channels-last memory."""
        down, across = tiles(*self.positions)
        example = 36 * down * across * max(weight.shape[1:]) * x.element_size()
        step = max(1, max(PRODUCTS_AT_ONCE, weight.nbytes) // example)
        parts = [
            winograd_output(torch.bmm(winograd_input(part), weight.mT), bias, *self.positions, relu=relu)
            for part in x.split(step)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def start(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A running sum: the 36 products; the bias is added when it is read."""
        return torch.bmm(winograd_input(x), weight.mT)

    def add(self, sums: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add further input channels to a running sum."""
        sums.baddbmm_(winograd_input(x), weight.mT)

    def read(self, sums: Tensor, rows: int, bias: Tensor, relu: bool) -> tuple[Tensor, bool]:
        """The first outputs of a running sum."""
        return winograd_output(sums[:, :, :rows], bias[:rows], *self.positions, relu=relu), True


def specialise(product: Product, shape: tuple[int, ...]) -> Product:
    """The product as it runs best on maps of ``shape`` [*S]."""
    if product.convolve is None or product.groups > 1:
        return product
    if 2 * math.prod(shape) <= math.prod(product.weight.shape[2:]):
        return _unroll(product, shape)
    return _as_winograd(product, shape)


def _unroll(product: Product, shape: tuple[int, ...]) -> Product:
    positions = math.prod(shape)
    outputs, inputs = product.weight.shape[:2]
    impulses = torch.eye(positions, dtype=product.weight.dtype, device=product.weight.device)
    kernels = product.weight.reshape(outputs * inputs, 1, *product.weight.shape[2:])
    answers = product(impulses.view(positions, 1, *shape), kernels, None)  # [S, D * C, ...]
    output_shape = tuple(answers.shape[2:])
    if math.prod(output_shape) * positions * outputs * inputs > LARGEST_UNROLLED:
        return product
    matrix = answers.view(positions, outputs, inputs, -1).permute(1, 3, 2, 0).contiguous()
    share = positions / math.prod(product.weight.shape[2:])
    return Unrolled(matrix, product.bias, product.convolve, output_shape=output_shape, share=share)


def _as_winograd(product: Product, shape: tuple[int, ...]) -> Product:
    options, weight = dict(product.options), product.weight
    is_plain_3x3 = product.convolve is F.conv2d and weight.shape[2:] == (3, 3) and product.pad is None
    ones = (1, (1, 1), [1, 1])
    same = options.get("padding", 0) in (*ones, "same")
    unit = options.get("stride", 1) in ones and options.get("dilation", 1) in ones
    if not (is_plain_3x3 and same and unit) or weight.dtype not in WINOGRAD_DTYPES:
        return product
    if weight.device.type != "cpu" or choose_backend(weight.device, "winograd_input") != "native":
        return product  # elsewhere libraries know better
    down, across = tiles(*shape)
    share = down * across * 36 / (9 * math.prod(shape))
    if min(weight.shape[:2]) < FEWEST_CHANNELS or share > LARGEST_SHARE:
        return product
    height, width = shape
    return Winograd(
        winograd_weight(weight).mT.contiguous(),
        product.bias,
        product.convolve,
        share=share,
        direct=product,
        positions=(height, width),
    )


def _arranged(weight: Tensor, row_dim: int, rows: Tensor | None, column_dim: int, columns: Tensor | None) -> Tensor:
    if rows is not None:
        weight = weight.index_select(row_dim, rows.to(weight.device))
    return weight if columns is None else weight.index_select(column_dim, columns.to(weight.device))


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
