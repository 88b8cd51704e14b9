"""Graphs of models that torch.fx cannot follow: torch.export runs their code as it stands, on tensors without data.

Branches on shapes, ``len``, types and loops over sizes are then settled while it runs; what depends on the data is not.
The graph has ATen operations and torch's own functions inside modules. Those that :mod:`sdkernels.engine.rules` knows
by another name get that name, so that such graphs run by the same modes as those of torch.fx.
"""

import builtins
import contextlib
import io
import logging
import operator
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdkernels.engine.graph import (
    Graph,
    UntraceableError,
    build,
    check_equal,
    check_in_place,
    is_site,
    mark_site,
    state_restored,
    trace,
)
from sdkernels.engine.loop import Hooks
from sdkernels.engine.memory import is_out_of_memory
from sdkernels.engine.rotation import along_directions
from sdkernels.engine.sites import Site

torch.library.define("sdkernels_engine::site", "(Tensor x, int index) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.impl("sdkernels_engine::site", "default")(lambda x, _index: x.clone())
torch.library.register_fake("sdkernels_engine::site")(lambda x, _index: torch.empty_like(x))

# ATen's operations that the rules know as functions of the same name and arguments, wherever torch has them.
_NAMES = (
    *("linear", "conv1d", "conv2d", "conv3d", "group_norm", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "softplus", "hardtanh"),
    *("hardswish", "hardsigmoid", "mean", "sum", "amax", "amin", "abs", "neg", "square", "sqrt", "exp", "clamp"),
    *("maximum", "minimum", "cat", "flatten", "reshape", "permute", "transpose"),
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(F, name, None) or getattr(torch, name) for name in _NAMES}
_FUNCTIONS |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "log_sigmoid": F.logsigmoid}
_OPERATORS: dict[str, Callable[..., Any]] = {name: getattr(operator, name) for name in ("add", "sub", "mul", "matmul")}
_OPERATORS["div"] = operator.truediv
_METHODS = {name: name for name in ("view", "contiguous", "clone", "add_", "sub_", "mul_", "div_")}
_METHODS |= {"lift_fresh_copy": "clone", "detach_": "detach", "sym_size": "size"}
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")

# What torch.export does to a part of a model that switches autocast or gradients.
_AUTOCAST, _GRADIENTS = "wrap_with_autocast", "wrap_with_set_grad_enabled"

LONGEST_REASON = 200


def find_graph(model: nn.Module, sites: Sequence[Site], inputs: Tensor, logits: Tensor) -> Graph:
    """The model's graph by torch.fx, or by torch.export where that fails; checked to give ``logits`` for ``inputs``.

    The units of sites that have directions are coordinates in it.

    Raises:
        UntraceableError: neither can; says why for both.
    """
    try:
        return along_directions(trace(model, sites, inputs, logits), sites, inputs, logits)
    except UntraceableError as by_fx:
        try:
            return along_directions(trace_exported(model, sites, inputs, logits), sites, inputs, logits)
        except UntraceableError as by_export:
            reasons = [textwrap.shorten(str(e), LONGEST_REASON, placeholder=" ...") for e in (by_fx, by_export)]
            raise UntraceableError("; with torch.export, ".join(reasons)) from by_export


def trace_exported(model: nn.Module, sites: Sequence[Site], inputs: Tensor, logits: Tensor) -> Graph:
    """Trace ``model`` by torch.export, for any number of examples, and check that the graph gives ``logits``.

    Raises:
        UntraceableError: control flow depends on the data or on the number of examples, the model has hooks, an
            in-place operation writes what is read elsewhere, or the graph computes something else.
    """
    if hooked := [name or "model" for name, module in model.named_modules() if _has_hooks(module)]:
        raise UntraceableError(f"its hooks, at {hooked[:5]}, would see tensors without data")
    calls = [site.hooked for site in sites]
    try:
        with state_restored(model), _symbolic_len(model), _in_silence(), Hooks(calls, _mark):
            program = _export(model, inputs)
        constants = _rewrite(program, model)
    except UntraceableError:
        raise
    except Exception as error:  # the user's own code runs, which may raise anything
        if is_out_of_memory(error):
            raise
        raise UntraceableError(f"it cannot be exported ({type(error).__name__}: {error})") from error
    graph = build(model, program.graph_module.graph, sites, constants, inputs, logits)
    try:
        with torch.no_grad(), state_restored(model):
            alone = model(inputs[:1].clone())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UntraceableError(f"it does not run on one example ({type(error).__name__}: {error})") from error
    check_equal(graph, inputs[:1], alone)  # torch.export takes it for granted that there are several
    return graph


def _rewrite(program: Any, model: nn.Module) -> dict[str, Tensor]:
    """Turn an exported program's graph into one of a traced module; gives the tensors that the model does not name."""
    graph = program.graph_module.graph
    _inline_regions(program.graph_module)
    constants = _name_what_is_held(graph, program)
    for node in graph.nodes:
        _translate(node)
    for node in graph.nodes:
        check_in_place(node, model)
    _own_sizes(graph)
    for node in graph.nodes:
        _translate_in_place(node)
        node.meta.clear()
    (output,) = [n for n in graph.nodes if n.op == "output"]
    (logits,) = output.args[0]
    output.args = (logits,)
    return constants


def _mark(index: int, output: Tensor) -> Any:
    return torch.ops.sdkernels_engine.site(output, index)


def _has_hooks(module: nn.Module) -> bool:
    own = (module._forward_hooks, module._forward_pre_hooks)
    everywhere = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
    return any((*own, *everywhere))


def _export(model: nn.Module, inputs: Tensor) -> Any:
    """The exported program; the import of what torch.export needs takes seconds, so that it waits until here."""
    several = inputs if len(inputs) > 1 else torch.cat([inputs, inputs])  # one would be taken for a constant
    return torch.export.export(model, (several,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)


@contextmanager
def _in_silence() -> Iterator[None]:
    """Nothing of what torch.export says on the way reaches the user: if it fails, the error has it."""
    disabled = logging.root.manager.disable
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextmanager
def _symbolic_len(model: nn.Module) -> Iterator[None]:
    """Let ``len`` of a tensor be a symbol in the model's own code: Python's own is an int, of one batch."""
    scopes = {id(scope): scope for module in model.modules() if (scope := _scope(module)) is not None}
    try:
        for scope in scopes.values():
            scope["len"] = _len
        yield
    finally:
        for scope in scopes.values():
            scope.pop("len", None)


def _scope(module: nn.Module) -> dict[str, Any] | None:
    """The global names of a module's code, unless it is torch's or has another ``len``."""
    scope = getattr(type(module).forward, "__globals__", None)
    if scope is None or "len" in scope or str(scope.get("__name__")).split(".")[0] == "torch":
        return None
    return scope  # type: ignore[no-any-return]


def _len(of: Any) -> Any:
    return of.shape[0] if isinstance(of, Tensor) and of.ndim else builtins.len(of)


def _name_what_is_held(graph: fx.Graph, program: Any) -> dict[str, Tensor]:
    """Parameters and buffers become nodes that read the model's own; the other tensors are returned by name."""
    constants: dict[str, Tensor] = {}
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        spec = kinds[node.name]
        if spec.kind.name == "USER_INPUT":
            continue
        if spec.kind.name == "CONSTANT_TENSOR":
            constants[spec.target] = program.constants[spec.target]
        elif spec.kind.name not in ("PARAMETER", "BUFFER"):
            raise UntraceableError(f"it holds {spec.target!r}, which is no tensor")
        node.op, node.target = "get_attr", spec.target
    return constants


@dataclass(frozen=True)
class _Autocast:
    """An operation in a region of autocast."""

    operation: Callable[..., Any]
    settings: tuple[Any, ...]  # device type, dtype, enabled, cache

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(*self.settings):
            return self.operation(*args, **kwargs)


def _inline_regions(module: fx.GraphModule) -> None:
    """Put the nodes of regions that switch autocast or gradients where the regions are."""
    graph = module.graph
    while regions := [n for n in graph.nodes if getattr(n.target, "__name__", "") in (_AUTOCAST, _GRADIENTS)]:
        for region in regions:
            at = 4 if region.target.__name__ == _AUTOCAST else 1
            body: fx.Graph = module.get_submodule(region.args[at].target).graph  # type: ignore[assignment]
            inputs = [n for n in body.nodes if n.op == "placeholder"]
            values = dict(zip(inputs, region.args[at + 1 :], strict=True))
            with graph.inserting_before(region):
                for node in body.nodes:
                    if node.op in ("placeholder", "output"):
                        continue
                    values[node] = graph.node_copy(node, values.__getitem__)
                    if at == 4 and isinstance(node.target, torch._ops.OpOverload) and not _is_mark(node):
                        values[node].target = _Autocast(node.target, region.args[:4])
            (end,) = [n for n in body.nodes if n.op == "output"]
            results = [values[n] for n in end.args[0]]
            for part in list(region.users):
                part.replace_all_uses_with(results[part.args[1]])
                graph.erase_node(part)
            graph.erase_node(region)


def _is_mark(node: fx.Node) -> bool:
    return node.target is torch.ops.sdkernels_engine.site.default


def _own_sizes(graph: fx.Graph) -> None:
    """Below a site, take the number of examples from the site: with configurations folded in, there are more.

    torch.export reads it from the inputs, wherever the model did.
    """
    nodes = list(graph.nodes)
    mark = next((n for n in nodes if is_site(n)), None)
    sizes = [n for n in nodes if n.target == "size" and n.args[0].op == "placeholder"]
    if mark is None or not sizes:
        return
    below: set[fx.Node] = set()
    for node in nodes:
        if is_site(node) or any(read in below for read in node.all_input_nodes):
            below.add(node)
    for node in reversed(nodes):  # sums and products of sizes that only those read
        is_number = isinstance(node.meta.get("val"), torch.SymInt) and node not in sizes
        if is_number and all(user in below for user in node.users):
            below.add(node)
    place = {node: i for i, node in enumerate(nodes)}
    with graph.inserting_after(mark):
        own = graph.call_method("size", (mark, 0))
    for size in sizes:
        size.replace_all_uses_with(own, delete_user_cb=lambda n: n in below and place[n] > place[mark])


def _translate(node: fx.Node) -> None:
    """Give a node the name that the rules know; unknown ones and those that write in place stay."""
    if _is_mark(node):
        mark_site(node)
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return
    written = [a.name for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    name = node.target._schema.name.removeprefix("aten::")
    if name in _METHODS and not (written and name != "detach_"):
        node.op, node.target = "call_method", _METHODS[name]
    elif written:
        if written != [node.target._schema.arguments[0].name]:
            raise UntraceableError(f"node {node.name!r} writes into {written}")
    else:
        _translate_function(node, name)


def _translate_in_place(node: fx.Node) -> None:
    """The same for what writes in place: nobody else reads what it writes, so that it need not."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        name = node.target._schema.name.removeprefix("aten::")
        if name in _METHODS:  # of two operands, whose result has the type of the first
            node.op, node.target = "call_method", _METHODS[name]
        else:
            _translate_function(node, name.removesuffix("_"))


def _translate_function(node: fx.Node, name: str) -> None:
    args = tuple(_as_tuple(a) for a in node.args)
    if name in _OPERATORS:
        if len(args) == 2 and not node.kwargs:
            node.target = _OPERATORS[name]
    elif name == "elu" and len(args) > 2:
        return
    elif name in _FUNCTIONS:
        node.target, node.args = _FUNCTIONS[name], args
    elif name == "batch_norm":
        x, weight, bias, mean, variance, training, momentum, eps, *_ = args
        node.target, node.args = F.batch_norm, (x, mean, variance, weight, bias, training, momentum, eps)
    elif name == "layer_norm":
        node.target, node.args = F.layer_norm, args[:5]
    elif name in _DROPOUTS and args[2] is False:
        node.target, node.args, node.kwargs = F.dropout, args[:2], {"training": False}
    elif name in ("select", "slice"):
        _translate_indexing(node, name, args)


def _translate_indexing(node: fx.Node, name: str, args: tuple[Any, ...]) -> None:
    source = args[0]
    dim, *bounds = args[1:] or (0,)
    if dim < 0:
        return
    if name == "slice":
        start, end, step = bounds + [None, None, 1][len(bounds) :]
        start = None if start == 0 else start
        end = None if isinstance(end, int) and end >= 2**63 - 1 else end
        bounds = [slice(start, end, None if step == 1 else step)]
    node.target, node.args, node.kwargs = operator.getitem, (source, (*[slice(None)] * dim, *bounds)), {}


def _as_tuple(argument: Any) -> Any:
    """Lists of numbers as modules hold them."""
    is_numbers = isinstance(argument, list) and all(isinstance(a, int) for a in argument)
    return tuple(argument) if is_numbers else argument
