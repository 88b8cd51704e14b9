"""Run the nodes below the sites on whole tensors, one configuration at a time, by the fastest product of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sdkernels.engine.constants import scaled
from sdkernels.engine.graph import Graph, Values, storage
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Knowledge, Linear, Mark, Same, Size

# What a site hands on: of the site's number, its activation, and whether that may be written into.
AtSite = Callable[[int, Tensor, bool], Tensor]


class DenseRun:
    """Evaluates some nodes, given the values of all others that they read.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        nodes: those that are evaluated, in execution order; the last is the graph's output.
    """

    def __init__(self, graph: Graph, know: Knowledge, nodes: Sequence[fx.Node]) -> None:
        self._graph, self._know = graph, know
        own = set(nodes)
        self._rectified = know.rectified & own
        last = {source: node for node in nodes for source in know.sources(node)}
        self._steps = [
            (node, [s for s in know.sources(node) if s in own and last[s] is node and s is not graph.output])
            for node in nodes
        ]
        self.reads = frozenset(s for node in nodes for s in know.sources(node)) - own  # and not evaluated here

    def logits(
        self,
        given: Values,
        examples: int,
        at_site: AtSite,
        *,
        fresh: Values | None = None,
        added: Mapping[fx.Node, tuple[Tensor, float]] | None = None,
    ) -> Tensor:
        """The graph's output, [N, L].

        Args:
            given: values that are read, and not written into.
            examples: N.
            at_site: what a site hands on.
            fresh: more of them, which may be written into.
            added: what is added to a product's outputs, and how many times.
        """
        values = {**given, **(fresh or {})}
        protected = {storage(value) for value in given.values() if isinstance(value, Tensor)}
        free = set(fresh or {})  # whose memory nobody else holds

        def may_write(source: Any) -> bool:
            return source in free and len(source.users) == 1

        def write(node: fx.Node, value: Any, is_free: bool) -> None:
            values[node] = value
            if is_free:
                free.add(node)

        for node, finished in self._steps:
            match rule := self._know.rules[node]:
                case Mark():
                    changed = at_site(rule.site, values[rule.source], may_write(rule.source))
                    write(node, changed, changed is not values[rule.source] or may_write(rule.source))
                case Linear():
                    product, relu, more = rule.product, node in self._rectified, (added or {}).get(node)
                    y = product(values[rule.source], product.weight, product.bias, relu and more is None)
                    if more is not None:
                        y.add_(more[0], alpha=more[1])
                        y = y.clamp_min_(0) if relu else y
                    write(node, y, True)
                case Same():
                    write(node, values[rule.source], may_write(rule.source))
                case Each() if rule.function is F.relu:
                    x = values[rule.source]
                    if self._is_rectified(rule.source):
                        write(node, x, may_write(rule.source))
                    else:
                        write(node, x.clamp_min_(0) if may_write(rule.source) else x.clamp_min(0), True)
                case Each():
                    x = values[rule.source]
                    result = rule.function(x)
                    write(node, result, storage(result) != storage(x) or may_write(rule.source))
                case Affine():
                    everyone = torch.arange(len(rule.scale), device=rule.scale.device)
                    write(node, scaled(values[rule.source], rule, everyone), True)
                case Flatten():
                    write(node, values[rule.source].flatten(1), False)
                case Binary():
                    first, second = (values[o] if isinstance(o, fx.Node) else o for o in rule.operands)
                    first = first if isinstance(first, Tensor) else second.new_full((), first)
                    write(node, rule.function(first, second), True)
                case Join():
                    write(node, torch.cat([values[s] for s in rule.sources], self._know.dims[node] or 1), True)
                case Size():
                    shape = torch.Size((examples, *rule.shape[1:]))
                    write(node, shape if rule.index is None else shape[rule.index], False)
                case _:
                    held = protected | {storage(v) for v in values.values() if isinstance(v, Tensor)}
                    write(node, self._graph.call(node, values.__getitem__, held), False)
            for source in finished:
                values.pop(source, None)
        logits: Tensor = values[self._graph.output]
        return logits

    def _is_rectified(self, node: fx.Node) -> bool:
        """Whether the product above did the ReLU already."""
        while isinstance(rule := self._know.rules.get(node), Same):
            node = rule.source
        return node in self._rectified
