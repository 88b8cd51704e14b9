"""The model as a dataflow graph, cut into what no ablation touches (shared) and what some does (dependent)."""

import copy
import inspect
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sdkernels.engine.memory import is_out_of_memory
from sdkernels.engine.sites import Site

Values = dict[fx.Node, Any]
AtSite = Callable[[int, fx.Node, Tensor], Tensor]
_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and name[1:] in dir(operator)
)

_CONTAINERS = (dict, OrderedDict, list, set)

_ALLOCATING_MODULES = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid),
)
_ALLOCATING_FUNCTIONS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, torch.cat, torch.add, torch.mul),
    *(F.relu, F.gelu, F.linear, F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.layer_norm, F.group_norm),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
}


class _Step(NamedTuple):
    """A node ready to be run."""

    node: fx.Node
    module: nn.Module | None  # of a call_module
    in_place: bool  # whether it writes into its first argument
    finished: list[fx.Node]  # the values that nobody reads after it


class UntraceableError(Exception):
    """The model has no graph that is known to compute the same; the message says why."""


@dataclass(frozen=True)
class Graph:
    """What the model computes, node by node in execution order; only nodes that reach the output.

    Attributes:
        model: the traced model, whose modules the nodes call.
        nodes: all nodes but the output.
        output: the node of the logits.
        sites: for each site, its marking node, or None where the layer's output does not reach the logits.
        dependent: the nodes downstream of a site, the sites' marks included.
        constants: tensors that the model's code makes from nothing, by the names that fx gave them.
    """

    model: nn.Module
    nodes: list[fx.Node]
    output: fx.Node
    sites: list[fx.Node | None]
    dependent: frozenset[fx.Node]
    constants: dict[str, Tensor]

    def shared_values(self, inputs: Tensor) -> Values:
        """Compute everything upstream of the first ablation once, and keep just what the rest reads."""
        values: Values = {}
        self._evaluate(self._shared_steps, values, inputs=inputs)
        return values

    def values(self, shared: Values, at_site: AtSite, keep: Collection[fx.Node] = ()) -> Values:
        """Run the dependent part: the shared values, those of ``keep``, and the logits at ``output``.

        ``at_site(site, mark, activation)`` gives what the site's layer hands on.
        """
        values = dict(shared)
        self._evaluate(self._dependent_steps, values, at_site=at_site, keep=keep)
        return values

    def call(self, node: fx.Node, value_of: Callable[[fx.Node], Any], protected: Collection[int | None] = ()) -> Any:
        """Run one node on the values of its arguments; what is ``protected`` is not written in place."""
        step = self._step_of[node]
        args: tuple[Any, ...] = map_arg(node.args, value_of)
        kwargs: dict[str, Any] = map_arg(node.kwargs, value_of)
        if step.in_place and storage(args[0]) in protected:
            args = (args[0].clone(), *args[1:])
        if node.op == "get_attr":
            return self.attribute(node)
        if step.module is not None:
            return step.module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def attribute(self, node: fx.Node) -> Any:
        """What a ``get_attr`` node names: a parameter, a buffer, a constant."""
        name = str(node.target)
        return self.constants[name] if name in self.constants else operator.attrgetter(name)(self.model)

    def constant(self, argument: Any) -> Tensor | None:
        """The tensor that an argument names if it is a ``get_attr`` node."""
        is_named = isinstance(argument, fx.Node) and argument.op == "get_attr"
        value = self.attribute(argument) if is_named else None
        return value.detach() if isinstance(value, Tensor) else None

    @cached_property
    def _step_of(self) -> dict[fx.Node, _Step]:
        return {step.node: step for step in (*self._shared_steps, *self._dependent_steps)}

    @cached_property
    def _shared_steps(self) -> list[_Step]:
        return self._steps([n for n in self.nodes if n not in self.dependent])

    @cached_property
    def _dependent_steps(self) -> list[_Step]:
        return self._steps([n for n in self.nodes if n in self.dependent])

    def _steps(self, nodes: list[fx.Node]) -> list[_Step]:
        """Each node with the values that are read for the last time by it; what other nodes read later stays."""
        own = set(nodes)
        kept = {read for node in self.nodes if node not in own for read in node.all_input_nodes} | {self.output}
        last = {read: node for node in nodes for read in node.all_input_nodes}
        steps: list[_Step] = []
        for node in nodes:
            finished = [read for read in node.all_input_nodes if last[read] is node and read not in kept]
            module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
            steps.append(_Step(node, module, _is_in_place(node, self.model), finished))
        return steps

    def _evaluate(
        self,
        steps: list[_Step],
        values: Values,
        *,
        inputs: Tensor | None = None,
        at_site: AtSite | None = None,
        keep: Collection[fx.Node] = (),
    ) -> None:
        # What is read again, by a second configuration or by the user, must not be written by an in-place operation.
        protected = {storage(v) for v in (inputs, *values.values()) if isinstance(v, Tensor)}
        for node, _module, _in_place, finished in steps:
            if node.op == "placeholder":
                values[node] = inputs
            elif is_site(node):
                assert at_site is not None  # noqa: S101 - only the dependent part has sites
                mark = int(node.args[1])  # type: ignore[arg-type]
                values[node] = at_site(mark, node, values[node.all_input_nodes[0]])
            else:
                values[node] = self.call(node, values.__getitem__, protected)
            if isinstance(values[node], Tensor):
                node.meta.setdefault("shape", tuple(values[node].shape))
                node.meta.setdefault("dtype", values[node].dtype)
            if node in keep:
                protected.add(storage(values[node]))
            for read in finished:
                if read not in keep:
                    del values[read]


def is_site(node: fx.Node) -> bool:
    """Whether a node marks a site: ``args`` are the activation and the site's index."""
    return node.target is _site


def mark_site(node: fx.Node) -> None:
    """Make a node, whose arguments are the activation and the site's index, the mark of a site."""
    node.target = _site


def insert_site(activation: fx.Node, index: int) -> fx.Node:
    """A new mark of a site, where its graph inserts nodes."""
    return activation.graph.call_function(_site, (activation, index))


def trace(model: nn.Module, sites: Sequence[Site], inputs: Tensor, logits: Tensor) -> Graph:
    """Trace ``model`` by torch.fx and check that the graph gives ``logits`` for ``inputs``.

    Raises:
        UntraceableError: fx cannot follow the model (data-dependent control flow, other arguments than one tensor), an
            in-place operation writes what is read elsewhere, or the graph computes something else.
    """
    tracer = _SiteTracer(sites)
    try:
        with state_restored(model):
            fx_graph = tracer.trace(model, concrete_args=_defaults(model))
            constants = {name: value for name, value in vars(model).items() if name.startswith("_tensor_constant")}
    except UntraceableError:
        raise
    except Exception as error:  # fx runs the user's own code, which may raise anything
        if is_out_of_memory(error):
            raise
        raise UntraceableError(f"torch.fx cannot trace it ({type(error).__name__}: {error})") from error
    for node in fx_graph.nodes:
        check_in_place(node, model)
    return build(model, fx_graph, sites, constants, inputs, logits)


def build(
    model: nn.Module,
    fx_graph: fx.Graph,
    sites: Sequence[Site],
    constants: dict[str, Tensor],
    inputs: Tensor,
    logits: Tensor,
) -> Graph:
    """The graph of traced nodes, whose sites are marked; checked to give ``logits`` for ``inputs``.

    Raises:
        UntraceableError: a site has no mark, sites have several types, or the graph computes something else.
    """
    marked = {n.args[1] for n in fx_graph.nodes if is_site(n)}
    if hidden := [site.name for i, site in enumerate(sites) if i not in marked]:
        raise UntraceableError(f"the calls of layers {hidden} do not show in its graph")
    graph = cut(model, fx_graph, len(sites), constants)
    check_equal(graph, inputs, logits)
    if len({mark.meta["dtype"] for mark in graph.sites if mark is not None}) > 1:
        raise UntraceableError("its layers give outputs of several types")
    return graph


def cut(model: nn.Module, fx_graph: fx.Graph, sites: int, constants: dict[str, Tensor]) -> Graph:
    """What reaches the output, and what of it lies downstream of a site.

    Raises:
        UntraceableError: the output is not one tensor, or there are several inputs.
    """
    (output_node,) = [n for n in fx_graph.nodes if n.op == "output"]
    output = output_node.args[0]
    if not isinstance(output, fx.Node):
        raise UntraceableError("its output is not one tensor")
    reaches = _ancestors(output)
    nodes = [n for n in fx_graph.nodes if n in reaches]
    if sum(n.op == "placeholder" for n in nodes) > 1:
        raise UntraceableError("its forward takes more than one argument")
    marks: dict[Any, fx.Node] = {n.args[1]: n for n in nodes if is_site(n)}
    dependent: set[fx.Node] = set()
    for node in nodes:
        if is_site(node) or any(read in dependent for read in node.all_input_nodes):
            dependent.add(node)
    return Graph(model, nodes, output, [marks.get(i) for i in range(sites)], frozenset(dependent), constants)


def _site(activation: Tensor, index: int) -> Tensor:
    """Marks a site in the graph; never called, the evaluation puts the ablation here."""
    raise NotImplementedError


class _SiteTracer(fx.Tracer):
    """Marks the output of the chosen calls, whether fx steps into their layer or not."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self._sites = sites
        self._index = {(id(site.module), site.call): i for i, site in enumerate(sites)}
        self._layers = {id(site.module) for site in sites}
        self._calls: dict[int, int] = {}
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As fx has it, but never a module around a chosen layer: its call would be hidden inside."""
        hides = any(id(inner) in self._layers for inner in m.modules() if inner is not m)
        return not hides and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As fx has it, and marked; but what another thread runs meanwhile is its own: fx watches all of them."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        call = self._calls.get(id(m), 0)
        self._calls[id(m)] = call + 1
        if m._forward_hooks and not self.is_leaf_module(m, self.path_of_module(m)):
            raise UntraceableError(f"layer {self.path_of_module(m)!r} has hooks, and other layers inside it")
        output = super().call_module(m, forward, args, kwargs)
        index = self._index.get((id(m), call))
        if index is None:
            return output
        part = self._sites[index].select
        if part is None:
            return self.create_proxy("call_function", _site, (output, index), {})
        if not isinstance(output, tuple):  # of a leaf: all parts that forward may unpack
            output = tuple(output[i] for i in range(self._sites[index].parts))
        marked = self.create_proxy("call_function", _site, (output[part], index), {})
        return (*output[:part], marked, *output[part + 1 :])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


@contextmanager
def state_restored(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass over stand-ins for tensors stores in the model's attributes, lists and dicts."""
    attributes = [vars(module) for module in model.modules()]
    containers = [v for held in attributes for v in held.values() if type(v) in _CONTAINERS]
    before = [(container, copy.copy(container)) for container in (*attributes, *containers)]

    def restore() -> None:
        for container, held in before:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(held)

    try:
        yield
    finally:
        try:
            restore()
        except KeyboardInterrupt:  # which leaves one of them empty
            restore()
            raise


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments of ``forward`` that are left at their defaults: all but the first."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    return {p.name: p.default for p in parameters[1:] if p.default is not p.empty}


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _is_in_place(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        if isinstance(node.target, torch._ops.OpOverload):
            return bool(node.target._schema.is_mutable)
        if getattr(node.target, "__module__", "") == "_operator":
            return node.target in _IN_PLACE_OPERATORS
        name = getattr(node.target, "__name__", "")
        return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
    return False


def storage(value: Any) -> int | None:
    """Where a tensor's memory begins; views share it."""
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def check_in_place(node: fx.Node, model: nn.Module) -> None:
    """Refuse a node that writes into what another may read.

    Raises:
        UntraceableError: names the node.
    """
    if node.target is operator.setitem or "out" in node.kwargs:
        raise UntraceableError(f"node {node.name!r} writes into a tensor that other nodes hold")
    if not _is_in_place(node, model):
        return
    written = node.args[0] if node.args else None
    # Up through whatever may be a view of the same memory, to the node that made it.
    while isinstance(written, fx.Node) and len(written.users) == 1:
        if written.op == "placeholder" or _allocates(written, model):  # the inputs are protected
            return
        written = written.args[0] if written.args else None
    raise UntraceableError(f"node {node.name!r} writes in place into {written}, which may be read elsewhere too")


def _allocates(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node's value is surely new memory, no view of its arguments."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _ALLOCATING_MODULES) and not _is_in_place(node, model)
    is_new = node.target in _ALLOCATING_FUNCTIONS or is_site(node)
    return node.op == "call_function" and is_new and not _is_in_place(node, model)


def check_equal(graph: Graph, inputs: Tensor, logits: Tensor) -> None:
    """Refuse a graph that does not give the model's logits.

    Raises:
        UntraceableError: says how they differ.
    """
    try:
        with torch.no_grad():
            traced = graph.values(graph.shared_values(inputs), lambda _index, _mark, activation: activation)[
                graph.output
            ]
    except Exception as error:  # nodes are the user's own code, which may raise anything
        if is_out_of_memory(error):
            raise
        raise UntraceableError(f"its traced graph does not run ({type(error).__name__}: {error})") from error
    if not is_close(traced, logits):
        raise UntraceableError("its traced graph gives other logits than the model itself")


def is_close(a: Tensor, b: Tensor, like: Tensor | None = None) -> bool:
    """Whether two ways to the same logits agree but for rounding; numbers as large as ``like`` may have cancelled."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(a.dtype, 3e-2)
    finite = [t[t.isfinite()].abs() for t in (b, like) if t is not None]
    scale = max(float(t.max()) if len(t) else 0.0 for t in finite)
    return torch.allclose(a, b, tolerance, tolerance * scale, equal_nan=True)
