r"""Chains of linear layers: the part of a network that nested sums and slices run on.

Below the first ablated site the network is site, pointwise, Linear, pointwise, site, pointwise, Linear, ... and at its
end perhaps a tail that turns the last Linear's output into logits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.graph import Graph, is_site
from sdkernels.engine.sites import Site

Pointwise = Callable[[Tensor], Tensor]

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


def _as_linear(node: fx.Node, model: nn.Module) -> nn.Linear | None:
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    return module if type(module) is nn.Linear and _is_plain(module) else None


def _as_pointwise(node: fx.Node, model: nn.Module) -> Pointwise | None:
    """The function of a node that treats every element alike, or None; ReLUs become ``F.relu`` itself."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return nn.Identity()  # of [N, C]
        if type(module) not in _POINTWISE_MODULES or not _is_plain(module):
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


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module runs its class's forward and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    everywhere = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
    return not any((*hooks, *everywhere)) and "forward" not in vars(module)
