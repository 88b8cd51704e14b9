r"""Which channels of which tensor are worth computing, along a curve of nested configurations.

Points are numbered as a curve has them: what is clamped at a point stays clamped at all later ones. A channel is
*alive* at point t if it is not known to be a constant there, and *needed* if a living unit or an unknown operation may
read it. Both end at some point and never begin again, so each is one number a channel, and what is *computed*,

.. math:: e_c = \min(\text{alive}_c, \text{needed}_c),

shrinks along the curve. With channels ordered by descending :math:`e`, those computed at any point are a prefix: a
contiguous slice of the tensor, and of the weights that read or write it.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, fx

from sdkernels.engine.families import Curve
from sdkernels.engine.rules import Affine, Binary, Each, Flatten, Join, Knowledge, Linear, Mark, Same


class Layout:
    """The channels of a tensor in memory, the last to go first, and how many of them there are at each point."""

    def __init__(self, ends: Tensor, points: int) -> None:
        self.order = ends.argsort(descending=True, stable=True)  # [C]
        self.counts: list[int] = (ends[None] > torch.arange(points)[:, None]).sum(1).tolist()  # [T]
        self.is_whole = bool((ends == points).all())  # every channel at every point, in its own place

    @cached_property
    def position(self) -> Tensor:
        """int64 [C]: where each channel stands."""
        return self.order.argsort()


class Liveness:
    """Alive, needed and computed, for every node below the first site.

    Args:
        know: the rules of the nodes.
        nodes: the dependent nodes in execution order.
        output: the node of the logits.
        curve: when each site's units die.
    """

    def __init__(self, know: Knowledge, nodes: Sequence[fx.Node], output: fx.Node, curve: Curve) -> None:
        self._know = know
        self._points = curve.points
        self._layouts: dict[bytes, Layout] = {}
        self.alive: dict[fx.Node, Tensor] = {}
        self.needed: dict[fx.Node, Tensor] = {}
        for node in nodes:
            if channels := know.channels(node):
                self.alive[node] = self._alive(node, channels, curve)
        for node in reversed(nodes):
            if node is output and node in self.alive:
                self.needed[node] = self._always(len(self.alive[node]))
            self._need(node, curve)

    def layout(self, node: fx.Node) -> Layout:
        """How the node's value is computed."""
        return self.layout_of(torch.minimum(self.alive[node], self.needed[node]))

    def layout_of(self, ends: Tensor) -> Layout:
        """The layout of channels that go at ``ends`` [C]; the same object for the same ends."""
        key = ends.numpy().tobytes()
        if key not in self._layouts:
            self._layouts[key] = Layout(ends, self._points)
        return self._layouts[key]

    def computed(self, node: fx.Node) -> Tensor:
        """int64 [C]: until which point each channel is computed."""
        return torch.minimum(self.alive[node], self.needed[node])

    def _always(self, channels: int) -> Tensor:
        return torch.full((channels,), self._points)

    def _alive(self, node: fx.Node, channels: int, curve: Curve) -> Tensor:
        know = self._know
        match rule := know.rules[node]:
            case Mark() if rule.by_value:
                return self._always(channels)
            case Mark():
                death = curve.deaths[rule.site]
                source = self._of(rule.source, know.dims[node], channels)
                return torch.minimum(death, source)
            case Each() | Affine() | Same():
                return self.alive[rule.source]
            case Flatten():
                return self._of(rule.source, 1, channels // rule.width).repeat_interleave(rule.width)
            case Join():
                return torch.cat(
                    [self._of(s, know.dims[node], int(s.meta["shape"][know.dims[node]])) for s in rule.sources]
                )
            case Binary():
                lives = [self.alive[o] for o in rule.operands if isinstance(o, fx.Node) and know.channels(o)]
                others = [o for o in rule.operands if isinstance(o, fx.Node) and not know.channels(o)]
                varies = any(_varies(other) for other in others)
                return self._always(channels) if varies or len(lives) == 0 else torch.stack(lives).amax(0)
            case Linear() if rule.product.is_depthwise:
                source = self._of(rule.source, 1, rule.product.inputs)
                return source.repeat_interleave(channels // rule.product.inputs)
        return self._always(channels)

    def _of(self, source: fx.Node, dim: int | None, channels: int) -> Tensor:
        """How long the channels of an operand live, which stand in ``dim``."""
        if source in self.alive and self._know.dims[source] == dim:
            return self.alive[source]
        return self._always(channels)

    def _need(self, node: fx.Node, curve: Curve) -> None:
        """Hand on what is needed of a node to what it reads."""
        know = self._know
        rule = know.rules[node]
        mine = self.needed.get(node)
        if mine is None and node in self.alive:
            mine = self.needed[node] = torch.zeros_like(self.alive[node])
        match rule:
            case Mark() if mine is not None and not rule.by_value:
                self._ask(rule.source, torch.minimum(mine, curve.deaths[rule.site]), know.dims[node])
            case Each() | Affine() | Same() if mine is not None:
                self._ask(rule.source, mine, know.dims[rule.source])
            case Flatten() if mine is not None:
                self._ask(rule.source, mine.view(-1, rule.width).amax(1), 1)
            case Join() if mine is not None:
                sizes = [int(s.meta["shape"][know.dims[node]]) for s in rule.sources]
                for source, part in zip(rule.sources, mine.split(sizes), strict=True):
                    self._ask(source, part, know.dims[node])
            case Binary() if mine is not None:
                for operand in rule.operands:
                    if isinstance(operand, fx.Node):
                        self._ask(operand, mine, know.dims[node])
            case Linear() if mine is not None and rule.product.is_depthwise:
                self._ask(rule.source, mine.view(rule.product.inputs, -1).amax(1), 1)
            case Linear() if mine is not None and rule.product.groups == 1:
                self._ask(rule.source, mine.amax().expand(rule.product.inputs), know.dims[node])
            case _:
                for source in know.sources(node):
                    if channels := know.channels(source):
                        self._ask(source, self._always(channels), know.dims[source])

    def _ask(self, source: fx.Node, wanted: Tensor, dim: int | None) -> None:
        if source not in self.alive:
            return
        if self._know.dims[source] != dim or len(wanted) != len(self.alive[source]):
            wanted = self._always(len(self.alive[source]))
        so_far = self.needed.get(source)
        self.needed[source] = wanted if so_far is None else torch.maximum(so_far, wanted)


def _varies(other: fx.Node) -> bool:
    """Whether an operand without channels of its own differs from example to example."""
    return other.op != "get_attr"
