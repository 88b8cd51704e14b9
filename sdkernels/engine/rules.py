"""What each node of a graph does to channels: the knowledge that lets clamped units be left out.

A node that is not known here is no error: its inputs are made whole again, and it runs as it stands.
"""

import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.channelwise import Function, channelwise
from sdkernels.engine.graph import Graph, is_site, storage
from sdkernels.engine.products import Product, fold_affine, is_plain, product_of, specialise
from sdkernels.engine.sites import Site

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_BATCH_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_JOINS = (torch.cat, torch.concat, torch.concatenate)
_BINARY: dict[Any, Callable[..., Tensor]] = {
    operator.add: torch.add,
    operator.iadd: torch.add,
    torch.add: torch.add,
    operator.sub: torch.sub,
    operator.isub: torch.sub,
    torch.sub: torch.sub,
    operator.mul: torch.mul,
    operator.imul: torch.mul,
    torch.mul: torch.mul,
    operator.truediv: torch.true_divide,
    operator.itruediv: torch.true_divide,
    torch.div: torch.true_divide,
    torch.maximum: torch.maximum,
    torch.minimum: torch.minimum,
}
_BINARY_METHODS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "add_": torch.add,
    "sub": torch.sub,
    "sub_": torch.sub,
    "mul": torch.mul,
    "mul_": torch.mul,
    "div": torch.true_divide,
    "div_": torch.true_divide,
}


@dataclass(frozen=True)
class Mark:
    """A site: some of its source's channels are clamped here."""

    source: fx.Node
    site: int
    by_value: bool = False  # whether a configuration's own activations decide which of their elements are clamped


@dataclass(frozen=True)
class Each:
    """Treats every channel alike and by itself: pointwise functions, pooling, means over positions, reordered dims."""

    source: fx.Node
    function: Function
    keeps_zero: bool  # whether a channel of zeros stays one


@dataclass(frozen=True)
class Affine:
    """A channel's own scale and shift: batch norm in evaluation mode."""

    source: fx.Node
    scale: Tensor  # [C], float64
    shift: Tensor  # [C], float64
    weight: Tensor | None = None  # [C], of the scale that part which was learned; None where nothing was


@dataclass(frozen=True)
class Binary:
    """An elementwise function of two operands, each a node or a number."""

    function: Callable[..., Tensor]
    operands: tuple[Any, Any]


@dataclass(frozen=True)
class Join:
    """Channels one after another: concatenation."""

    sources: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Flatten:
    """[N, C, ...] -> [N, C * S]: each channel becomes S features."""

    source: fx.Node
    width: int  # S


@dataclass(frozen=True)
class Linear:
    """A linear map of channels: convolution or Linear, with the batch norm that follows it."""

    source: fx.Node
    product: Product
    result: fx.Node  # whose intact value the map gives: the batch norm that is folded into it, or the node itself


@dataclass(frozen=True)
class Size:
    """The shape of a tensor, or one number of it."""

    source: fx.Node
    shape: tuple[int, ...]  # of the whole tensor; the first is the batch's
    index: int | None


@dataclass(frozen=True)
class Same:
    """Another node's value: a batch norm that was folded into the product before it."""

    source: fx.Node


@dataclass(frozen=True)
class Unknown:
    """Runs as it stands on whole tensors."""


Rule = Mark | Each | Affine | Binary | Join | Flatten | Linear | Size | Same | Unknown


@dataclass(frozen=True)
class Knowledge:
    """Of every dependent node: its rule, and the dimension of ``[N, ...]`` that its channels stand in (or None)."""

    rules: dict[fx.Node, Rule]
    dims: dict[fx.Node, int | None]
    rectified: set[fx.Node] = field(default_factory=set)  # products that nothing but a ReLU reads, which they may do

    def channels(self, node: fx.Node) -> int:
        """C; 0 where there is no channel dimension."""
        dim = self.dims.get(node)
        return 0 if dim is None else int(node.meta["shape"][dim])

    def made_bytes(self, model: nn.Module) -> int:
        """What products hold beside the model's own weights: those with batch norms folded in, and transformed ones."""
        own = {storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        made = {
            storage(tensor): tensor.untyped_storage().nbytes()
            for rule in self.rules.values()
            if isinstance(rule, Linear)
            for tensor in rule.product.tensors
        }
        return sum(nbytes for address, nbytes in made.items() if address not in own)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values a node's rule reads."""
        match rule := self.rules[node]:
            case Mark() | Each() | Affine() | Flatten() | Linear() | Same():
                return [rule.source]
            case Binary():
                return [operand for operand in rule.operands if isinstance(operand, fx.Node)]
            case Join():
                return list(rule.sources)
            case Size():
                return []
            case _:
                return list(node.all_input_nodes)


def learn(graph: Graph, sites: list[Site], ranged: Collection[int] = ()) -> Knowledge:
    """Find the rule of every dependent node; the graph must have been run once, so that shapes are known.

    ``ranged`` are the sites whose units are clamped only where their activation is in a range.
    """
    know = Knowledge({}, {})
    for node in graph.nodes:
        if node in graph.dependent:
            rule, dim = _rule(node, graph, sites, know)
            if isinstance(rule, Affine):
                rule = _folded(rule, node, graph, know)
            if isinstance(rule, Mark):  # what no other site changes is known before the configurations run
                rule = replace(rule, by_value=rule.site in ranged and rule.source in graph.dependent)
            know.rules[node], know.dims[node] = rule, dim
    for node, rule in list(know.rules.items()):
        if isinstance(rule, Linear):
            product = specialise(rule.product, tuple(rule.source.meta["shape"][2:]))
            know.rules[node] = replace(rule, product=product)
        elif isinstance(rule, Each) and rule.function is F.relu:
            before = rule.source
            while isinstance(same := know.rules.get(before), Same) and len(before.users) == 1:
                before = same.source
            if isinstance(know.rules.get(before), Linear) and len(before.users) == 1 and before is not graph.output:
                know.rectified.add(before)
    return know


def survey(graph: Graph, sites: Sequence[Site]) -> Knowledge:
    """The rule of every node, those above the sites too, with the weights as the model has them: nothing is folded.

    The graph must have been run once. Nodes that have no channel dimension are not among ``dims``; inputs of three
    dimensions, which may be ``[N, C, S]`` or ``[N, T, F]``, have none.
    """
    know = Knowledge({}, {})
    for node in graph.nodes:
        know.rules[node], dim = _rule(node, graph, sites, know)
        if node.op == "placeholder" and len(node.meta["shape"]) not in (1, 3):
            dim = 1
        if dim is not None:
            know.dims[node] = dim
    return know


def _rule(node: fx.Node, graph: Graph, sites: Sequence[Site], know: Knowledge) -> tuple[Rule, int | None]:
    if is_site(node):
        index = int(node.args[1])  # type: ignore[arg-type]
        return Mark(node.all_input_nodes[0], index), sites[index].unit_dim
    if (size := _as_size(node)) is not None:
        return size, None
    if "shape" not in node.meta or not node.all_input_nodes or "shape" not in node.all_input_nodes[0].meta:
        return Unknown(), None
    if (product := product_of(node, graph)) is not None:
        source = node.args[0]
        assert isinstance(source, fx.Node)  # noqa: S101 - product_of has seen it
        return Linear(source, product, node), product.dim(len(node.meta["shape"]))
    if (binary := _as_binary(node, know)) is not None:
        return binary
    if (join := _as_join(node, know)) is not None:
        return join
    source = node.args[0]
    dim = know.dims.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(source, fx.Node):
        return Unknown(), None
    if is_flatten(node, graph.model, source):
        return (Flatten(source, math.prod(source.meta["shape"][2:])) if dim == 1 else Unknown()), 1
    if dim == 1 and (affine := _as_affine(node, graph, source)) is not None:
        return affine, dim
    if dim is None or len(node.all_input_nodes) > 1:
        return Unknown(), None
    if (each := _as_each(node, graph.model, source, dim)) is not None:
        return each
    return Unknown(), None


def _as_size(node: fx.Node) -> Size | None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or "shape" not in source.meta:
        return None
    shape = tuple(source.meta["shape"])
    index = node.args[1] if len(node.args) > 1 else None
    if node.op == "call_method" and node.target == "size" and (index is None or isinstance(index, int)):
        return Size(source, shape, index)
    if node.op == "call_function" and node.target is getattr and index == "shape":
        return Size(source, shape, None)
    return None


def _as_binary(node: fx.Node, know: Knowledge) -> tuple[Rule, int] | None:
    """Elementwise functions of two operands of which one has channels; the other may be broadcast."""
    function = _BINARY_METHODS.get(str(node.target)) if node.op == "call_method" else _BINARY.get(node.target)
    if function is None or len(node.args) != 2 or node.kwargs:
        return None
    dims = [know.dims.get(a) for a in node.args if isinstance(a, fx.Node)]
    known = {dim for dim in dims if dim is not None}
    shape = node.meta["shape"]
    shapes = [a.meta.get("shape") for a in node.args if isinstance(a, fx.Node)]
    if len(known) != 1 or None in shapes:
        return None
    (dim,) = known
    # A tracked operand has the result's own dimensions, so that its channels stand where the result's do.
    for operand in node.args:
        if isinstance(operand, fx.Node) and know.dims.get(operand) is not None:
            own = operand.meta["shape"]
            if len(own) != len(shape) or own[dim] != shape[dim]:
                return None
        elif not isinstance(operand, (fx.Node, int, float)):
            return None
    first, second = node.args
    return Binary(function, (first, second)), dim


def _as_join(node: fx.Node, know: Knowledge) -> tuple[Rule, int] | None:
    if node.op != "call_function" or node.target not in _JOINS or not isinstance(node.args[0], (tuple, list)):
        return None
    sources = tuple(node.args[0])
    at = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    ndim = len(node.meta["shape"])
    if not isinstance(at, int) or not all(isinstance(s, fx.Node) and "shape" in s.meta for s in sources):
        return None
    at %= ndim
    known = {know.dims[s] for s in sources if s in know.dims}
    if known != {at} or any(len(s.meta["shape"]) != ndim for s in sources):
        return None
    return Join(sources), at


def _as_affine(node: fx.Node, graph: Graph, source: fx.Node) -> Affine | None:
    if node.op == "call_function" and node.target is F.batch_norm:
        arguments = dict(zip(_BATCH_NORM_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
        if arguments.get("training", False) is not False:
            return None
        given = [arguments.get(name) for name in _BATCH_NORM_ARGUMENTS[1:5]]
        mean, variance, weight, bias = (graph.constant(argument) for argument in given)
        if any(a is None and b is not None for a, b in zip((mean, variance, weight, bias), given, strict=True)):
            return None
        return _affine(source, mean, variance, weight, bias, arguments.get("eps", 1e-5))
    if node.op != "call_module":
        return None
    module = graph.model.get_submodule(str(node.target))
    if type(module) not in _BATCH_NORMS or not is_plain(module):
        return None
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: S101 - they all are
    return _affine(source, module.running_mean, module.running_var, module.weight, module.bias, module.eps)


def _affine(
    source: fx.Node, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: Any
) -> Affine | None:
    if mean is None or variance is None or not isinstance(eps, float):
        return None
    scale = (variance.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.detach().double()
    return Affine(source, scale, shift, None if weight is None else weight.detach())


def _folded(affine: Affine, node: fx.Node, graph: Graph, know: Knowledge) -> Rule:
    """The batch norm, or nothing where the product that it alone reads can take it in."""
    before = know.rules.get(affine.source)
    if not isinstance(before, Linear) or len(affine.source.users) > 1 or affine.source is graph.output:
        return affine
    product = fold_affine(before.product, affine.scale, affine.shift)
    know.rules[affine.source] = Linear(before.source, product, node)
    return Same(affine.source)


def is_flatten(node: fx.Node, model: nn.Module, source: fx.Node) -> bool:
    """Whether a node is flatten(1), by whatever name."""
    before, after = source.meta.get("shape"), node.meta.get("shape")
    if not before or not after or len(before) < 3 or tuple(after) != (before[0], math.prod(before[1:])):
        return False
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))) is nn.Flatten
    return node.target in (torch.flatten, torch.reshape, "flatten", "view", "reshape")


def _as_each(node: fx.Node, model: nn.Module, source: fx.Node, dim: int) -> tuple[Rule, int] | None:
    before, after = tuple(source.meta["shape"]), tuple(node.meta["shape"])
    function, new_dim = channelwise(node, model, before, dim)
    if function is None or new_dim is None or len(after) <= new_dim or after[new_dim] != before[dim]:
        return None
    zeros = torch.zeros(1, *before[1:])
    try:
        keeps_zero = not function(zeros.narrow(dim, 0, 1).clone()).count_nonzero()
    except RuntimeError:  # the user's modules may want their own device or dtype
        keeps_zero = False
    return Each(source, function, keeps_zero), new_dim
