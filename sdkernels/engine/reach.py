"""From a site's units to weights: the nearest linear maps that make them, and that read them.

A walk follows the graph from a site's mark and carries along, for each node, whose channel is whose: above the site,
which of the node's channels makes each unit; below it, which unit each of the node's channels came of. It goes through
what keeps channels apart, as :mod:`sdkernels.engine.rules` knows it, and ends at linear maps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sdkernels.engine.channelwise import channelwise
from sdkernels.engine.graph import Graph
from sdkernels.engine.rules import (
    Affine,
    Binary,
    Each,
    Flatten,
    Join,
    Linear,
    Mark,
    Rule,
    Size,
    is_flatten,
    survey,
)
from sdkernels.engine.sites import Site

# In a map of channels to units or of units to channels: none of them.
NONE = -1

_PASSABLE = (
    "a walk goes through pointwise functions, batch norm in evaluation mode, dropout, pooling, means over positions, "
    "flatten, elementwise sums and products, and concatenation of channels"
)


class Walks:
    """The walks from the sites of a graph.

    Args:
        graph: checked, so that its nodes have been run.
        sites: whose marks it has.
    """

    def __init__(self, graph: Graph, sites: Sequence[Site]) -> None:
        self._graph, self._sites = graph, sites
        self._know = survey(graph, sites)
        self._varying: set[fx.Node] = set()  # what depends on the input, by more than its shape
        for node in graph.nodes:
            varies = node.op == "placeholder" or any(read in self._varying for read in node.all_input_nodes)
            if varies and not isinstance(self._know.rules[node], Size):
                self._varying.add(node)

    def linear_above(self, index: int) -> list[tuple[Linear, Tensor]]:
        """The linear maps that make a site's units, and which of their outputs makes each, int64 [U]; of all that are
        summed.

        Raises:
            ValueError: a unit that something else makes; names the layer and the node.
        """
        return [(rule, made) for _, rule, made in self._above(index, Linear) if isinstance(rule, Linear)]

    def batch_norms_above(self, index: int) -> list[tuple[str, Affine, Tensor]]:
        """The nearest batch norms between a site and the linear maps that make its units: what each is called, itself,
        and which of its channels each unit is, int64 [U].

        Raises:
            ValueError: a unit that is made without; names the layer and the node.
        """
        return [
            (self._called(node), rule, made)
            for node, rule, made in self._above(index, Affine)
            if isinstance(rule, Affine)
        ]

    def linear_below(self, index: int) -> list[tuple[Linear, Tensor]]:
        """The linear maps that read a site's units, and which unit each of their inputs came of, int64 [C].

        Raises:
            ValueError: a unit that something else reads; names the layer and the node.
        """
        know, site = self._know, self._sites[index]
        reached = {self._mark(index): torch.arange(site.units)}
        found: list[tuple[Linear, Tensor]] = []
        for node in self._graph.nodes:
            units = reached.pop(node, None)
            if units is None:
                continue
            if node is self._graph.output:
                raise ValueError(
                    f"layer {site.name!r}: units reach the logits at {self._called(node)} with no weights in between; "
                    "name a layer that linear maps read"
                )
            for user in node.users:
                if user not in know.rules:  # its value is not used
                    continue
                rule = know.rules[user]
                if isinstance(rule, Linear) and rule.product.dim(len(node.meta["shape"])) == know.dims[node]:
                    found.append((rule, units))
                elif not isinstance(rule, Size):
                    of_user = self._below(node, user, rule, units, site)
                    reached[user] = self._merged(reached.get(user), of_user, user, site)
        return found

    def _above(self, index: int, until: type[Rule]) -> list[tuple[fx.Node, Rule, Tensor]]:
        """Back from a site to the nearest nodes of one kind."""
        site = self._sites[index]
        reached = {self._mark(index): torch.arange(site.units)}
        found: list[tuple[fx.Node, Rule, Tensor]] = []
        for node in reversed(self._graph.nodes):
            made = reached.pop(node, None)
            if made is None:
                continue
            rule = self._know.rules[node]
            if isinstance(rule, until):
                found.append((node, rule, made))
                continue
            for source, of_source in self._sources(node, rule, made, site):
                if (of_source != NONE).any():
                    reached[source] = self._merged(reached.get(source), of_source, source, site)
        return found

    def _sources(self, node: fx.Node, rule: Rule, made: Tensor, site: Site) -> list[tuple[fx.Node, Tensor]]:
        """What a node is made of, and which channel of that makes each unit."""
        dims = self._know.dims
        if node not in self._varying:
            raise ValueError(self._refusal_above(node, rule, site))
        match rule:
            case Mark() if dims.get(rule.source) in (None, dims[node]):
                return [(rule.source, made)]
            case Each() | Affine():
                return [(rule.source, made)]
            case Binary():  # constants have no part in what makes a unit
                return [(o, made) for o in rule.operands if isinstance(o, fx.Node) and o in self._varying]
            case Join():
                parts: list[tuple[fx.Node, Tensor]] = []
                start = 0
                for source in rule.sources:
                    size = int(source.meta["shape"][dims[node]])
                    is_here = (start <= made) & (made < start + size)
                    parts.append((source, torch.where(is_here, made - start, NONE)))
                    start += size
                return parts
        if (channel := self._flattened(node, rule)) is not None:
            return [(node.all_input_nodes[0], torch.where(made == NONE, NONE, channel[made.clamp_min(0)]))]
        raise ValueError(self._refusal_above(node, rule, site))

    def _below(self, node: fx.Node, user: fx.Node, rule: Rule, units: Tensor, site: Site) -> Tensor:
        """Which unit each channel of ``user`` came of, int64 [C]."""
        dims = self._know.dims
        match rule:
            case Mark() if dims[user] == dims[node]:
                return units
            case Each() | Affine() | Binary():
                return units
            case Join():
                parts = [
                    units if source is node else torch.full((int(source.meta["shape"][dims[user]]),), NONE)
                    for source in rule.sources
                ]
                return torch.cat(parts)
        if (channel := self._flattened(user, rule)) is not None:
            return units[channel]
        if isinstance(rule, Mark):
            raise ValueError(self._other_dim(user, node, site))
        raise ValueError(
            f"layer {site.name!r}: {self._called(user)} reads its units before any linear map does, and is not known "
            f"to keep them apart ({_PASSABLE}); name a layer from which such alone lead to linear maps"
        )

    def _flattened(self, node: fx.Node, rule: Rule) -> Tensor | None:
        """Of a node that is flatten(1), the channel that each of its features came of; else None."""
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        dim = self._know.dims.get(source) if source is not None else None
        if source is None or dim is None:
            return None
        if not isinstance(rule, Flatten) and not is_flatten(node, self._graph.model, source):
            return None
        shape = source.meta["shape"]
        channels = torch.arange(shape[dim]).view([-1 if d == dim else 1 for d in range(1, len(shape))])
        return channels.expand(shape[1:]).flatten()

    def _merged(self, before: Tensor | None, now: Tensor, node: fx.Node, site: Site) -> Tensor:
        """One map of two that lead to the same node."""
        if before is None:
            return now
        if ((before != now) & (before != NONE) & (now != NONE)).any():
            raise ValueError(
                f"layer {site.name!r}: two ways to {self._called(node)} permute channels differently, so that its "
                "units are mixed there; name a layer without such ways to linear maps"
            )
        return torch.where(before == NONE, now, before)

    def _mark(self, index: int) -> fx.Node:
        mark = self._graph.sites[index]
        if mark is None:
            raise ValueError(
                f"the logits do not depend on layer {self._sites[index].name!r}, so that its weights are not in the "
                "model's graph; name a layer that they depend on"
            )
        return mark

    def _refusal_above(self, node: fx.Node, rule: Rule, site: Site) -> str:
        name, called = f"layer {site.name!r}", self._called(node)
        if isinstance(rule, Mark):
            return self._other_dim(node, rule.source, site)
        if node.op == "placeholder":
            return (
                f"{name}: its units are made of the model's input, {called}, with no weights in between; name a layer "
                "behind a linear map"
            )
        if isinstance(rule, Linear):
            return (
                f"{name}: no batch norm stands between it and {called}, which makes its units; name a batch norm, or "
                "a layer behind one"
            )
        if node not in self._varying:
            return f"{name}: some of its units are a constant, {called}, which no linear map makes; name another layer"
        called = self._called(self._first_unknown(node))
        return (
            f"{name}: {called} makes its units, which is neither a linear map with known weights (torch.nn.Linear, "
            f"Conv1d, Conv2d, Conv3d, or these as functions) nor known to keep channels apart ({_PASSABLE}; without "
            "hooks); name a layer to which such alone lead from linear maps"
        )

    def _first_unknown(self, node: fx.Node) -> fx.Node:
        """What is not known of a node without a rule: itself, or what a function that it would pass reads."""
        source = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
        if source not in self._varying or source in self._know.dims or not source.all_input_nodes:
            return node
        passes, _ = channelwise(node, self._graph.model, tuple(source.meta["shape"]), 1)
        return node if passes is None else self._first_unknown(source)

    def _other_dim(self, mark: fx.Node, neighbour: fx.Node, site: Site) -> str:
        """What is wrong with a mark that finds units where its neighbour has none."""
        dims = self._know.dims
        return (
            f"layer {site.name!r}: the units of layer {self._sites[int(str(mark.args[1]))].name!r} are dimension "
            f"{dims[mark]}, but the channels of {self._called(neighbour)} are dimension {dims[neighbour]}, so that "
            f"channels are mixed; say unit_dim={dims[neighbour]}, or name another layer"
        )

    def _called(self, node: fx.Node) -> str:
        """A node, for messages: its name and what it runs."""
        if node.op == "call_module":
            what = f"{node.target}: {type(self._graph.model.get_submodule(str(node.target))).__name__}"
        elif node.op == "call_function":
            what = getattr(node.target, "__name__", str(node.target))
        else:
            what = f".{node.target}" if node.op == "call_method" else str(node.target)
        return f"node {node.name!r} ({what})"
