r"""Directions as units: a site's coordinates take the place of its channels.

With directions :math:`Q` ``[K, C]``, the units of an activation :math:`z` ``[N, C, ...]`` are its coordinates
:math:`c = Q z`, at every position. Once some are clamped, which makes them :math:`c'`, the layer hands on

.. math:: z' = z - Q^\top (c - c') = Q^\top c' + r, \qquad r = z - Q^\top Q z

The rest :math:`r` is what clamping leaves alone, the same in all configurations; with as many orthonormal directions as
channels there is none. So the graph is rewritten, with the mark of the site on :math:`c`, and everything that is known
of clamped units holds for clamped directions. A linear map that reads :math:`z'` takes the directions into its weights,

.. math:: W z' + b = (W Q^\top) c' + (W r + b)

and is a product of units as any other: a running sum along a curve, a rank-one update of a direction alone. A
convolution is no different, as channels are mixed at each position, and the padding is zero on either side. Nor is a
linear function :math:`L` that treats every channel alike, as average pooling does, in between: it commutes with
:math:`Q^\top`. Whatever else reads :math:`z'`, reads the sum.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sdkernels.engine.channelwise import channelwise
from sdkernels.engine.graph import Graph, check_equal, cut, insert_site
from sdkernels.engine.products import product_of
from sdkernels.engine.rules import is_flatten
from sdkernels.engine.sites import Site

# As many orthonormal directions as channels leave no rest; off by so much, they are not taken for orthonormal.
ORTHONORMAL = 1e-9

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}

# Of the functions that treat every channel alike, those that are linear.
_LINEAR_MODULES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)
_LINEAR_FUNCTIONS = {
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, torch.sum, torch.permute, torch.transpose, torch.flatten, operator.getitem, F.dropout),
}
_LINEAR_METHODS = ("mean", "sum", "permute", "transpose", "flatten", "contiguous", "clone")


@dataclass(frozen=True)
class _Turned:
    """A value that depends linearly on clamped coordinates, whole and in parts: whole = basis^T coordinates + rest."""

    whole: fx.Node  # [N, C, ...], or [N, C * width]
    coordinates: fx.Node  # [N, K, ...], or [N, K * width]
    rest: fx.Node | None  # as the whole
    basis: Tensor  # [K, C], float64
    dim: int  # of the channels
    width: int = 1  # how many features, one after another, each channel has become

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return tuple(self.whole.meta["shape"])


def along_directions(graph: Graph, sites: Sequence[Site], inputs: Tensor, logits: Tensor) -> Graph:
    """The graph in whose sites the coordinates are marked, wherever a site has directions.

    Args:
        graph: as it was traced and run once, so that shapes are known. Its nodes are changed: use the result instead.
        sites: of the graph, with or without directions.
        inputs: a batch, for which the model gives ``logits``.

    Raises:
        UntraceableError: the rewritten graph gives other logits.
    """
    turning = [(site, mark) for site, mark in zip(sites, graph.sites, strict=True) if mark and site.basis is not None]
    if not turning:
        return graph
    rewriting = _Rewriting(graph, logits.device)
    for value in [rewriting.turn(site, mark) for site, mark in turning]:
        rewriting.take_in(value)
    fx_graph = graph.output.graph
    rewritten = cut(graph.model, fx_graph, len(sites), {**graph.constants, **rewriting.constants})
    check_equal(rewritten, inputs, logits)
    return rewritten


class _Rewriting:
    def __init__(self, graph: Graph, device: torch.device) -> None:
        self._old, self._graph, self._device = graph, graph.output.graph, device
        self.constants: dict[str, Tensor] = {}

    def turn(self, site: Site, mark: fx.Node) -> _Turned:
        """Mark the coordinates instead of the activation, and hand on what they make."""
        assert site.basis is not None  # noqa: S101 - the caller has seen it
        basis = site.basis.to(self._device)
        dtype, dim, ndim = mark.meta["dtype"], site.unit_dim, len(mark.meta["shape"])
        forth, back = basis.to(dtype), basis.t().to(dtype)
        activation = mark.all_input_nodes[0]
        with self._graph.inserting_before(mark):
            coordinates = self._mixed(activation, forth, dim, ndim, f"{site.name}_coordinates")
            changed = insert_site(coordinates, int(mark.args[1]))  # type: ignore[arg-type]
            whole, rest = self._mixed(changed, back, dim, ndim, f"{site.name}_turned_back"), None
            if not _is_rotation(basis):
                seen = self._mixed(coordinates, back, dim, ndim, f"{site.name}_seen")
                rest = self._call(torch.sub, activation, seen, name=f"{site.name}_rest")
                whole = self._call(torch.add, whole, rest, name=f"{site.name}_whole")
        whole.meta.update(mark.meta)
        mark.replace_all_uses_with(whole)
        self._graph.erase_node(mark)
        return _Turned(whole, changed, rest, basis, dim)

    def take_in(self, value: _Turned) -> None:
        """Let what reads a value read its parts, wherever that is linear."""
        for reader in list(value.whole.users):
            if reader.op == "call_method" and reader.target == "size" and reader.args[1:] == (0,):
                reader.replace_input_with(value.whole, value.coordinates)  # as many examples
            elif (product := self._product(reader, value)) is not None:
                reader.replace_all_uses_with(product)
            elif (behind := self._behind(reader, value)) is not None:
                self.take_in(behind)

    def _product(self, reader: fx.Node, value: _Turned) -> fx.Node | None:
        """The node in whose weights the directions are, if the reader is a product of the value's channels."""
        if not reader.args or reader.args[0] is not value.whole or "shape" not in reader.meta:
            return None
        product = product_of(reader, self._old)
        is_matrix = product is not None and product.convolve is None
        if product is None or product.groups > 1 or product.pad or product.dim(len(value.shape)) != value.dim:
            return None
        directions, channels = value.basis.shape
        if product.inputs != channels * value.width or (value.width > 1 and not is_matrix):
            return None
        weight = product.weight.double().reshape(len(product.weight), channels, -1)
        turned = torch.einsum("dcs,kc->dks", weight, value.basis.to(weight.device))
        kernel = product.weight.shape[2:]
        shape = (len(weight), directions * value.width, *kernel)
        with self._graph.inserting_before(reader):
            weight_node = self._constant(turned.reshape(shape).to(product.weight.dtype))
            bias = self._constant(product.bias) if value.rest is None else None
            function = product.convolve or F.linear
            name = f"{reader.name}_along_directions"
            options = {} if is_matrix else dict(product.options)
            result = self._call(function, value.coordinates, weight_node, bias, name=name, **options)
            if value.rest is not None:
                rest = self._of_part(reader, value.whole, value.rest, "rest")
                result = self._call(torch.add, result, rest, name=f"{reader.name}_sum")
        result.meta.update(reader.meta)
        return result

    def _behind(self, reader: fx.Node, value: _Turned) -> _Turned | None:
        """The reader's own value and parts, if it is linear and treats every channel alike."""
        model, whole = self._old.model, value.whole
        if "shape" not in reader.meta or not reader.args or reader.args[0] is not whole:
            return None
        if is_flatten(reader, model, whole):
            return self._flattened(reader, value) if value.dim == 1 else None
        if len(reader.all_input_nodes) > 1 or not self._is_linear(reader):
            return None
        function, dim = channelwise(reader, model, value.shape, value.dim)
        if function is None or dim is None:
            return None
        with self._graph.inserting_before(reader):
            coordinates = self._of_part(reader, whole, value.coordinates, "coordinates")
            rest = None if value.rest is None else self._of_part(reader, whole, value.rest, "rest")
        return replace(value, whole=reader, coordinates=coordinates, rest=rest, dim=dim)

    def _flattened(self, reader: fx.Node, value: _Turned) -> _Turned:
        name = reader.name
        with self._graph.inserting_before(reader):
            coordinates = self._call(torch.flatten, value.coordinates, 1, name=f"{name}_coordinates")
            rest = None if value.rest is None else self._call(torch.flatten, value.rest, 1, name=f"{name}_rest")
        return replace(value, whole=reader, coordinates=coordinates, rest=rest, width=math.prod(value.shape[2:]))

    def _is_linear(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self._old.model.get_submodule(str(node.target))) in _LINEAR_MODULES
        return node.target in (_LINEAR_METHODS if node.op == "call_method" else _LINEAR_FUNCTIONS)

    def _mixed(self, x: fx.Node, matrix: Tensor, dim: int, ndim: int, name: str) -> fx.Node:
        """The matrix times the channels, at every position."""
        if dim == ndim - 1:
            return self._call(F.linear, x, self._constant(matrix), name=name)
        if dim == 1 and ndim in _CONVOLUTIONS:
            kernel = matrix.reshape(*matrix.shape, *[1] * (ndim - 2))
            return self._call(_CONVOLUTIONS[ndim], x, self._constant(kernel), name=name)
        last = self._call(torch.transpose, x, dim, ndim - 1)
        mixed = self._call(F.linear, last, self._constant(matrix), name=name)
        return self._call(torch.transpose, mixed, dim, ndim - 1)

    def _call(self, function: object, *args: object, name: str | None = None, **options: object) -> fx.Node:
        while args and args[-1] is None:
            args = args[:-1]
        return self._graph.create_node("call_function", function, args, options, name)  # type: ignore[arg-type]

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"_along_directions_{len(self.constants)}"
        self.constants[name] = tensor.contiguous()
        return self._graph.create_node("get_attr", name)

    def _of_part(self, node: fx.Node, whole: fx.Node, part: fx.Node, name: str) -> fx.Node:
        """What a node makes of a part of what it reads."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: part if read is whole else read)
        return self._graph.create_node(node.op, node.target, args, kwargs, f"{node.name}_{name}")


def _is_rotation(basis: Tensor) -> bool:
    """Whether nothing is left of a vector without its coordinates."""
    directions, channels = basis.shape
    if directions != channels:
        return False
    identity = torch.eye(channels, dtype=basis.dtype, device=basis.device)
    return float((basis @ basis.t() - identity).abs().max()) <= ORTHONORMAL
