r"""Chains of linear layers: nested sums and slices instead of whole products.

Below the first ablated site the network is site, pointwise, Linear, pointwise, site, pointwise, Linear, ... With units
numbered so that the last to be clamped comes first, the living units of every configuration of an order are a *prefix*:
a contiguous slice of the permuted weights, with no gather and no mask.

*Nested.* The first Linear's output at point t is a sum over living units. The curve is walked backwards, from
everything clamped to nothing, and units are added back:

.. math:: z_t = z_{t+1} + W_{:, \text{returning}}\, a_{\text{returning}}

so that a whole curve costs one product. Adding only, never subtracting, keeps rounding small.

*Compact.* Every later Linear multiplies living inputs into living outputs alone.

A clamped unit is no longer a variable: what it sends on, pointwise(value), folds into the next layer's bias.

Activations are kept units first, [C, N]: a prefix of units is then one dense block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.families import Cumulative
from sdkernels.engine.graph import Graph, is_site
from sdkernels.engine.sites import Site

Pointwise = Callable[[Tensor], Tensor]

# Work buffers of one tile, in bytes: what stays in a processor's cache, and what keeps a GPU busy.
WORKING_SET = {"cpu": 16 * 2**20, "cuda": 2**30}

# Permuted weights kept from tile to tile, in bytes; those of further orders are made again for each tile.
PERMUTED_WEIGHTS = 2**28

_POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink),
    *(nn.Identity, nn.Dropout),
)
_POINTWISE_FUNCTIONS = {
    *(F.relu, F.relu6, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.elu, F.selu, F.leaky_relu, F.tanh, F.sigmoid),
    *(torch.relu, torch.tanh, torch.sigmoid),
}
_POINTWISE_METHODS = ("relu", "tanh", "sigmoid")
_RELUS = {F.relu, torch.relu}


class NoChainError(Exception):
    """The part below the first site is no chain of linear layers; the message says where it stops being one."""


@dataclass
class Stage:
    """A site (or none), the pointwise functions on the way to its Linear, and those after it."""

    site: int | None
    before: list[Pointwise]
    linear: nn.Linear
    node: fx.Node
    after: list[Pointwise] = field(default_factory=list)


@dataclass(frozen=True)
class Chain:
    """The dependent part of a graph as stages, and a tail of nodes that turn the last Linear's output into logits."""

    start: fx.Node  # the first site's activation, a shared value
    stages: list[Stage]
    tail: list[fx.Node]


def find_chain(graph: Graph, sites: list[Site]) -> Chain:
    """Read the dependent part of ``graph`` as a chain of linear layers.

    Raises:
        NoChainError: it is none.
    """
    nodes = [n for n in graph.nodes if n in graph.dependent]
    if not nodes:
        raise NoChainError("no site reaches the logits")
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before]:
            raise NoChainError(f"{node.name!r} reads more than {before.name!r}")
    stages: list[Stage] = []
    site: int | None = None
    path: list[Pointwise] = []
    for position, node in enumerate(nodes):
        pointwise = _as_pointwise(node, graph.model)
        linear = _as_linear(node, graph.model)
        if is_site(node):
            index = int(node.args[1])  # type: ignore[arg-type]
            name, shape = sites[index].name, list(sites[index].example_shape)
            if len(shape) != 1:
                raise NoChainError(f"layer {name!r} gives {shape} an example, not [C]")
            if site is not None:
                raise NoChainError(f"no Linear stands between layer {name!r} and the site before it")
            if stages:
                stages[-1].after = path
            site, path = index, []
        elif linear is not None:
            if site is None:
                stages[-1].after, path = path, []
            stages.append(Stage(site, path, linear, node))
            site, path = None, []
        elif pointwise is not None:
            path.append(pointwise)
        elif stages and site is None and not any(is_site(n) for n in nodes[position:]):
            stages[-1].after = path
            return Chain(nodes[0].all_input_nodes[0], stages, nodes[position:])
        else:
            raise NoChainError(f"{node.name!r} ({node.target}) is neither a Linear nor known to be pointwise")
    if site is not None:
        raise NoChainError(f"no Linear reads layer {sites[site].name!r}")
    stages[-1].after = path
    return Chain(nodes[0].all_input_nodes[0], stages, [])


class ChainRun:
    """Walks curves through a chain, a tile of examples at a time.

    Args:
        graph, chain: the traced model and its chain.
        family: the orders and points.
        values: for each site, what a clamped unit becomes, [C] or a scalar.
        classes: L.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(
        self, graph: Graph, chain: Chain, family: Cumulative, values: list[Tensor], classes: int, like: Tensor
    ) -> None:
        self._graph, self._chain, self._family, self._classes = graph, chain, family, classes
        self._device = like.device
        widths = [stage.linear.out_features for stage in chain.stages]
        per_example = like.element_size() * (2 * chain.stages[0].linear.in_features + 2 * sum(widths))
        working_set = WORKING_SET.get(like.device.type, WORKING_SET["cpu"])
        self.tile = max(16, working_set // (per_example + 16 * classes))
        self._points_a_flush = max(1, working_set // (16 * classes * self.tile))
        self._sent_on = [_sent_on(stage, values, like) for stage in chain.stages]
        self._permuted: dict[int, _Permuted] = {}
        points = min(self._points_a_flush, len(family.points))
        self._sums = like.new_empty(widths[0] * self.tile)
        self._flush = like.new_empty(points * classes * self.tile)
        self._buffers = [like.new_empty(width * self.tile) for width in widths]

    def logits(self, activation: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """For an activation [N, C] of the first site, N at most ``tile``: runs of configurations and their logits
        [K, N, L], valid until the next is asked for."""
        units_first = activation.t().contiguous()  # [C, N]
        for function in self._chain.stages[0].before:
            units_first = function(units_first)
        n, points = units_first.shape[1], len(self._family.points)
        for order in range(len(self._family.orders)):
            walk = self._walk(self._permute(order), units_first)
            for stop in range(points, 0, -self._points_a_flush):
                start = max(0, stop - self._points_a_flush)
                logits = self._flush[: (stop - start) * self._classes * n].view(stop - start, self._classes, n)
                for at in range(stop - start - 1, -1, -1):
                    logits[at] = next(walk)
                yield slice(order * points + start, order * points + stop), logits.transpose(1, 2)

    def _walk(self, permuted: "_Permuted", activation: Tensor) -> Iterator[Tensor]:
        """Logits [L, N] from the last point to the first; each is valid until the next."""
        n = activation.shape[1]
        activation = activation[permuted.units]
        first, *later = permuted.layers
        sums = _view(self._sums, len(first.weight), n)  # [D, N]
        sums.copy_(first.bias[:, None]) if first.bias_at is None else sums.zero_()
        added = 0
        for point in range(len(self._family.points) - 1, -1, -1):
            if (living := first.inputs[point]) > added:
                sums.addmm_(first.weight[:, added:living], activation[added:living])
                added = living
            rows = first.outputs[point]
            buffer = _view(self._buffers[0], rows, n)
            hidden = sums[:rows]
            if first.bias_at is not None:
                hidden = torch.add(hidden, first.bias_at[point, :rows, None], out=buffer)
            hidden = _apply(first.path, hidden, buffer)
            for layer, flat in zip(later, self._buffers[1:], strict=True):
                rows = layer.outputs[point]
                bias = layer.bias if layer.bias_at is None else layer.bias_at[point]
                weight = layer.weight[:rows, : layer.inputs[point]]
                product = torch.addmm(bias[:rows, None], weight, hidden, out=_view(flat, rows, n))
                hidden = _apply(layer.path, product, product)
            yield self._graph.tail_logits(self._chain.tail, hidden.t()).t() if self._chain.tail else hidden

    def _permute(self, order: int) -> "_Permuted":
        if order in self._permuted:
            return self._permuted[order]
        units = [site_units.to(self._device) for site_units in self._family.last_to_die_first(order)]
        living = self._family.living(order)  # [T, sites]
        layers: list[_Layer] = []
        for i, stage in enumerate(self._chain.stages):
            following = self._chain.stages[i + 1] if i + 1 < len(self._chain.stages) else None
            weight = stage.linear.weight.detach()  # [D, C]
            bias = weight.new_zeros(len(weight)) if stage.linear.bias is None else stage.linear.bias.detach()
            sent_on = self._sent_on[i]
            inputs = [weight.shape[1]] * len(living)
            outputs = [weight.shape[0]] * len(living)
            if stage.site is not None:
                weight, inputs = weight[:, units[stage.site]], living[:, stage.site].tolist()
                sent_on = None if sent_on is None else sent_on[units[stage.site]]
            if following is not None and following.site is not None:
                outputs = living[:, following.site].tolist()
                weight, bias = weight[units[following.site]], bias[units[following.site]]
            path = stage.after + (following.before if following else [])
            bias_at = None if sent_on is None else _bias_with_clamped(weight, bias, sent_on, inputs)
            layers.append(_Layer(weight.contiguous(), bias, bias_at, inputs, outputs, path))
        first_site = self._chain.stages[0].site
        assert first_site is not None  # noqa: S101 - a chain starts at a site
        permuted = _Permuted(units[first_site], layers)
        held = sum(layer.bytes for p in (permuted, *self._permuted.values()) for layer in p.layers)
        if held <= PERMUTED_WEIGHTS:
            self._permuted[order] = permuted
        return permuted


@dataclass(frozen=True)
class _Layer:
    weight: Tensor  # [D, C], living units first on both sides
    bias: Tensor  # [D]
    bias_at: Tensor | None  # [T, D] where clamped units send something on
    inputs: list[int]  # [T] living units in
    outputs: list[int]  # [T] living units out
    path: list[Pointwise]  # on the way to the next Linear

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.weight, self.bias, self.bias_at) if t is not None)


@dataclass(frozen=True)
class _Permuted:
    units: Tensor  # [C] of the first site, the last to be clamped first
    layers: list[_Layer]


def _view(flat: Tensor, rows: int, columns: int) -> Tensor:
    return flat[: rows * columns].view(rows, columns)


def _sent_on(stage: Stage, values: list[Tensor], like: Tensor) -> Tensor | None:
    """What each clamped unit sends to the stage's Linear, [C] float64; None where that is nothing but zeros."""
    if stage.site is None:
        return None
    clamped = values[stage.site].to(like.device, like.dtype).expand(stage.linear.in_features).clone()
    for function in stage.before:
        clamped = function(clamped)
    return clamped.double() if clamped.count_nonzero() else None


def _bias_with_clamped(weight: Tensor, bias: Tensor, sent_on: Tensor, living: list[int]) -> Tensor:
    """bias + W[:, clamped] sent_on[clamped] at every point, [T, D]; summed in float64."""
    contributions = weight.double() * sent_on  # [D, C]
    from_the_last = contributions.flip(1).cumsum(1)  # column j: the last j + 1 units
    nothing = from_the_last.new_zeros(len(weight), 1)
    clamped = weight.shape[1] - torch.tensor(living, device=weight.device)  # [T]
    return (bias.double()[:, None] + torch.cat([nothing, from_the_last], 1)[:, clamped]).t().to(weight.dtype)


def _apply(path: list[Pointwise], source: Tensor, out: Tensor) -> Tensor:
    """The functions one after another; ``source`` is left as it was unless it is ``out``."""
    for function in path:
        source = torch.clamp_min(source, 0, out=out) if function is F.relu else function(source)
    return source


def _as_linear(node: fx.Node, model: nn.Module) -> nn.Linear | None:
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    return module if type(module) is nn.Linear and not _has_hooks(module) else None


def _as_pointwise(node: fx.Node, model: nn.Module) -> Pointwise | None:
    """The function of a node that treats every element alike, or None; ReLUs become ``F.relu`` itself."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return nn.Identity()  # of [N, C]
        if type(module) not in _POINTWISE_MODULES or _has_hooks(module):
            return None
        if type(module) is nn.ReLU:
            return F.relu
        return (lambda x: module(x.clone())) if getattr(module, "inplace", False) else module
    if node.target is F.dropout and node.kwargs.get("training") is False:
        return nn.Identity()
    only_x = len(node.args) == 1 and not set(node.kwargs) - {"inplace"}
    if node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS and only_x:
        return F.relu if node.target in _RELUS else node.target
    if node.op == "call_method" and node.target in _POINTWISE_METHODS:
        return F.relu if node.target == "relu" else getattr(torch, str(node.target))
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
