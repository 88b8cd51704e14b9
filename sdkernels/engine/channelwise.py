"""Functions that treat every channel alike and by itself: which nodes of a graph compute one, and what it is."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.products import is_plain

Function = Callable[[Tensor], Tensor]

_POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink, nn.Hardshrink),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)
_POOLING_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
# Further arguments, where there are any, must be constants.
_POINTWISE_FUNCTIONS = {
    *(F.relu, F.relu6, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.elu, F.selu, F.celu, F.leaky_relu),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.tanh, F.sigmoid, torch.relu, torch.tanh, torch.sigmoid),
    *(torch.abs, torch.neg, torch.square, torch.sqrt, torch.exp, torch.clamp, operator.neg, operator.abs),
}
_POINTWISE_METHODS = ("relu", "tanh", "sigmoid", "abs", "neg", "square", "sqrt", "exp", "clamp", "contiguous", "clone")
_POOLING_FUNCTIONS = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "amax": torch.amax,
    "amin": torch.amin,
}
_RELUS = (F.relu, torch.relu, "relu", "relu_")


def channelwise(
    node: fx.Node, model: nn.Module, shape: tuple[int, ...], dim: int
) -> tuple[Function | None, int | None]:
    """What a node does to every channel of its source, and the dimension of the channels after it."""
    if node.op == "call_module":
        return _of_module(model.get_submodule(str(node.target)), shape, dim)
    args, kwargs = node.args[1:], dict(node.kwargs)
    if any(isinstance(a, fx.Node) for a in (*args, *kwargs.values())):
        return None, None
    kwargs.pop("inplace", None)
    if node.target in _RELUS:
        return F.relu, dim
    if node.target is F.dropout and kwargs.get("training") is False:
        return _identity, dim
    name = str(node.target).removesuffix("_") if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.target in _POINTWISE_FUNCTIONS:
        return (lambda x: node.target(x, *args, **kwargs)), dim
    if node.op == "call_method" and name in _POINTWISE_METHODS:
        return (lambda x: getattr(x, name)(*args, **kwargs)), dim
    if node.target in _POOLING_FUNCTIONS and dim == 1:
        return (lambda x: node.target(x, *args, **kwargs)), dim
    if name in _REDUCTIONS and (node.op == "call_method" or node.target is _REDUCTIONS[name]):
        return _reduction(_REDUCTIONS[name], args, kwargs, len(shape), dim)
    if name in ("permute", "transpose") and (
        node.op == "call_method" or node.target in (torch.permute, torch.transpose)
    ):
        return _reordering(name, args, len(shape), dim) if not kwargs else (None, None)
    if node.target in (torch.flatten, "flatten") and args == (2,) and dim == 1 and not kwargs:
        return (lambda x: x.flatten(2)), dim
    if node.target is operator.getitem:
        return _indexing(args[0], dim)
    return None, None


def _identity(x: Tensor) -> Tensor:
    return x


def _of_module(module: nn.Module, shape: tuple[int, ...], dim: int) -> tuple[Function | None, int | None]:
    if not is_plain(module):
        return None, None
    if type(module) is nn.ReLU:
        return F.relu, dim
    if type(module) in _POINTWISE_MODULES:
        own = copy.copy(module)
        if hasattr(own, "inplace"):
            own.inplace = False  # type: ignore[assignment]
        return own, dim
    if type(module) in _POOLING_MODULES and dim == 1 and not getattr(module, "return_indices", False):
        return module, dim
    return None, None


def _reduction(
    function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int, dim: int
) -> tuple[Function | None, int | None]:
    """mean, sum, amax, amin over positions."""
    over = args[0] if args else kwargs.get("dim")
    keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
    if isinstance(over, int):
        over = (over,)
    if not over or not all(isinstance(d, int) for d in over) or set(kwargs) - {"dim", "keepdim"} or len(args) > 2:
        return None, None
    positions = {d % ndim for d in over}
    if positions & {0, dim}:
        return None, None
    after = dim if keepdim else dim - sum(d < dim for d in positions)
    return (lambda x: function(x, dim=tuple(positions), keepdim=keepdim)), after


def _reordering(name: str, args: tuple[Any, ...], ndim: int, dim: int) -> tuple[Function | None, int | None]:
    """permute, transpose; the examples must stay first."""
    flat = tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    if not all(isinstance(d, int) for d in flat):
        return None, None
    order = list(range(ndim))
    if name == "permute":
        order = [d % ndim for d in flat]
    else:
        a, b = (d % ndim for d in flat)
        order[a], order[b] = order[b], order[a]
    if sorted(order) != list(range(ndim)) or order[0] != 0:
        return None, None
    return (lambda x: x.permute(order)), order.index(dim)


def _indexing(index: Any, dim: int) -> tuple[Function | None, int | None]:
    """Positions picked by ints and slices, all examples and channels kept."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, int) or (isinstance(i, slice) and _is_constant(i)) for i in index):
        return None, None
    everything = slice(None, None, None)
    if index[0] != everything or (len(index) > dim and index[dim] != everything):
        return None, None
    return (lambda x: x[index]), dim - sum(isinstance(i, int) for i in index[:dim])


def _is_constant(index: slice) -> bool:
    return not any(isinstance(bound, fx.Node) for bound in (index.start, index.stop, index.step))
