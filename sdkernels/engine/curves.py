"""What runs along curves of nested configurations, and what of it does not depend on the data."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sdkernels.engine.families import Curve
from sdkernels.engine.graph import Graph
from sdkernels.engine.liveness import Layout, Liveness
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Knowledge, Linear, Mark, Same
from sdkernels.engine.values import Clamp

# What running sums are kept in: half precision would lose digits.
SUM_DTYPES = (torch.float64, torch.float32)


def find_frozen(know: Knowledge, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes whose living channels have the same values in all configurations: the intact model's."""
    frozen: set[fx.Node] = set()
    for node in nodes:
        own = [s for s in know.sources(node) if s in know.rules]
        is_frozen = all(s in frozen for s in own)
        match rule := know.rules[node]:
            case Each() | Flatten() | Same():
                pass
            case Mark() if rule.by_value:
                is_frozen = False
            case Mark() | Affine() | Join():
                is_frozen &= all(know.dims[s] == know.dims[node] for s in own)
            case Linear():
                is_frozen &= rule.product.is_depthwise and know.dims[rule.source] == know.dims[node]
            case Binary():  # with a parameter or a number
                others = [s for s in know.sources(node) if s not in know.rules]
                is_frozen &= len(own) == 1 and all(other.op == "get_attr" for other in others)
            case _:
                is_frozen = False
        if is_frozen:
            frozen.add(node)
    return frozen


class CurveRun:
    """Walks curves, a tile of examples at a time.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        clamps: for each site, what a clamped unit becomes.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(self, graph: Graph, know: Knowledge, clamps: Sequence[Clamp], like: Tensor) -> None:
        self.graph, self.know, self.clamps, self.like = graph, know, clamps, like
        self.nodes = [n for n in graph.nodes if n in graph.dependent]
        self.frozen = find_frozen(know, self.nodes)
        self.is_zero = [clamp.is_fixed and not clamp.value.count_nonzero() for clamp in clamps]
        self.adds_up = like.dtype in SUM_DTYPES
        live = [n for n in self.nodes if n not in self.frozen]
        read = {s for n in live for s in know.sources(n)} | {graph.output}
        self.keep = frozenset(self.intact_of(n) for n in read if n in self.frozen)
        # What is evaluated at each point, and which values nobody reads after it.
        self.steps: list[tuple[fx.Node, list[fx.Node]]] = []
        last = {s: n for n in live for s in know.sources(n)}
        for node in live:
            done = [s for s in know.sources(node) if last[s] is node and s in know.rules and s not in self.frozen]
            self.steps.append((node, [s for s in done if s is not graph.output]))

    def intact_of(self, node: fx.Node) -> fx.Node:
        """The node whose intact value a node's is."""
        rule = self.know.rules[node]
        return rule.result if isinstance(rule, Linear) else node

    def is_nested(self, node: fx.Node) -> bool:
        """Whether a node is a product whose inputs only die: a running sum along the curve."""
        rule = self.know.rules[node]
        return (
            isinstance(rule, Linear)
            and not rule.product.is_depthwise
            and rule.source in self.frozen
            and self.know.dims[rule.source] == self.know.dims[node]
            and self.adds_up
        )

    def plan(self, curve: Curve) -> "CurvePlan":
        """What does not depend on the data: layouts, permuted weights, biases."""
        return CurvePlan(self, curve)

    @property
    def row_bytes(self) -> int:
        """About how much memory an example takes at a point."""
        sizes = [math.prod(n.meta["shape"][1:]) for n, _ in self.steps if "shape" in n.meta]
        # Constants of a point are kept for it: one of each node, by example if clamps are.
        constants = 0 if all(clamp.is_fixed for clamp in self.clamps) else sum(sizes)
        return (3 * max(sizes, default=1) + constants) * self.like.element_size()


class CurvePlan:
    """One curve's layouts and permuted weights."""

    def __init__(self, run: CurveRun, curve: Curve) -> None:
        self.curve = curve
        self.live = Liveness(run.know, run.nodes, run.graph.output, curve)
        self.layouts = {node: self.live.layout(node) for node in self.live.alive}
        self.inputs: dict[fx.Node, Layout] = {}  # of each product
        self.weights: dict[fx.Node, Tensor] = {}  # permuted on both sides
        self.biases: dict[fx.Node, Tensor] = {}
        for node in run.nodes:
            rule = run.know.rules[node]
            if not isinstance(rule, Linear) or (rule.product.groups > 1 and not rule.product.is_depthwise):
                continue
            product, out = rule.product, self.layouts[node]
            rows = None if out.is_whole else out.order
            columns = None
            if not product.is_depthwise:
                layout = self.inputs[node] = self._input_layout(run, rule, node)
                columns = None if layout.is_whole else layout.order
            self.weights[node] = product.arranged(rows, columns)
            self.biases[node] = product.bias if rows is None else product.bias[rows.to(product.bias.device)]

    @property
    def bytes(self) -> int:
        """Memory of the permuted weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    def _input_layout(self, run: CurveRun, rule: Linear, node: fx.Node) -> Layout:
        source, inputs = rule.source, rule.product.inputs
        if source not in self.live.alive or run.know.dims[source] != run.know.dims[node]:
            return self.live.layout_of(torch.full((inputs,), self.curve.points))
        wanted = self.live.computed(node).amax().expand(inputs)
        return self.live.layout_of(torch.minimum(self.live.alive[source], wanted))
