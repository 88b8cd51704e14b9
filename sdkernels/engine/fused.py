"""Tails that one kernel has: Linear, ReLU, Linear down to the logits.

:func:`sdkernels.ops.nested_linear` walks a whole curve through them while its running sums stay in a core's own cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sdkernels.engine.curves import CurvePlan, CurveRun
from sdkernels.engine.graph import Values
from sdkernels.engine.rules import Each, Flatten, Knowledge, Linear, Mark, Same
from sdkernels.ops import nested_linear, nested_linear_score
from sdkernels.ops.backend import choose_backend
from sdkernels.ops.score import Score


@dataclass(frozen=True)
class Tail:
    """The nodes of a tail: Linear, ReLU and perhaps a site in either order, Linear."""

    first: fx.Node
    last: fx.Node
    hidden: tuple[fx.Node, ...]  # between them


def find_tail(know: Knowledge, nodes: Sequence[fx.Node], output: fx.Node) -> Tail | None:
    """The tail that ends in ``output``, if the nodes that run at every point are one."""
    if len(nodes) < 3 or nodes[-1] is not output:
        return None
    first, *hidden, last = nodes
    for before, node in pairwise(nodes):
        if know.sources(node) != [before]:
            return None
    if not all(_is_matrix(know, node) for node in (first, last)):
        return None
    rules = [know.rules[n] for n in hidden if not isinstance(know.rules[n], Same)]
    relus = [r for r in rules if isinstance(r, Each) and r.function is F.relu]
    marks = [r for r in rules if isinstance(r, Mark)]
    if len(relus) != 1 or len(marks) > 1 or len(relus) + len(marks) != len(rules):
        return None
    return Tail(first, last, tuple(hidden))


class FusedTail:
    """Runs a tail by kernel; one a plan.

    Args:
        run: the run whose nodes the tail is made of.
        tail: the nodes.
        plan: of one curve.
    """

    def __init__(self, run: CurveRun, tail: Tail, plan: CurvePlan) -> None:
        first, last = tail.first, tail.last
        device = plan.weights[first].device
        self._source = run.intact_of(run.know.sources(first)[0])
        self._units = plan.inputs[first].order.to(device)
        self._living_in = torch.tensor(plan.inputs[first].counts)
        self._living_out = torch.tensor(plan.inputs[last].counts)
        self._weight, self._head = plan.weights[first].contiguous(), plan.weights[last].contiguous()
        sent = [_sent(run, run.know.sources(first)[0]), _sent(run, run.know.sources(last)[0])]
        self._bias = _with_clamped(self._weight, plan.biases[first], sent[0], self._units, self._living_in)
        order = plan.inputs[last].order.to(device)
        self._head_bias = _with_clamped(self._head, plan.biases[last], sent[1], order, self._living_out)

    def logits(self, intact: Values, examples: slice) -> Tensor:
        """[T, n, L] of a run of examples."""
        arguments, head = self._arguments(intact, examples)
        return nested_linear(*arguments, head=head[0], head_bias=head[1]).transpose(1, 2)

    def score(self, intact: Values, examples: slice, labels: Tensor, options: dict[str, Any]) -> Score:
        """Their scores, with the options of :func:`~sdkernels.ops.nested_linear_score`."""
        arguments, head = self._arguments(intact, examples)
        return nested_linear_score(*arguments, labels, head=head[0], head_bias=head[1], **options)

    def _arguments(
        self, intact: Values, examples: slice
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        a: Tensor = intact[self._source][examples]
        counts = (self._living_in, self._living_out)
        return (a, self._units, self._weight, self._bias, *counts), (self._head, self._head_bias)


def can_fuse(run: CurveRun) -> Tail | None:
    """The run's tail, if there is a kernel for it here."""
    like = run.values[0]
    tail = find_tail(run.know, [node for node, _ in run.steps], run.graph.output)
    if tail is None or not run.adds_up or choose_backend(like.device, "nested_linear") == "reference":
        return None
    source = run.know.sources(tail.first)[0]
    if source not in run.frozen or run.know.dims[source] != 1 or not _has_one_mark(run.know, source):
        return None
    return tail


def find_update(know: Knowledge, below: Sequence[fx.Node], output: fx.Node) -> tuple[fx.Node, fx.Node | None] | None:
    """The Linear that reads a site's single units, and the one behind a ReLU that gives the logits, or None if the
    first gives them; None if ``below``, the nodes that the units reach, are anything else.
    """
    first = next((n for n in below if isinstance(know.rules[n], Linear)), None)
    if first is None or below[-1] is not output or not _is_matrix(know, first) or know.dims[below[0]] != 1:
        return None
    if any(know.sources(node) != [before] for before, node in pairwise(below)):
        return None
    if not all(isinstance(know.rules[n], (Mark, Each, Same)) for n in below[: below.index(first)]):
        return None
    after = [n for n in below[below.index(first) + 1 :] if not isinstance(know.rules[n], (Mark, Same))]
    if not after:
        return (first, None)
    relu = know.rules[after[0]]
    if len(after) != 2 or not isinstance(relu, Each) or relu.function is not F.relu or not _is_matrix(know, after[1]):
        return None
    return (first, after[1])


def _is_matrix(know: Knowledge, node: fx.Node) -> bool:
    rule = know.rules[node]
    return isinstance(rule, Linear) and rule.product.convolve is None and len(node.meta["shape"]) == 2


def _has_one_mark(know: Knowledge, node: fx.Node) -> bool:
    """Whether one site, and none above it, decides what of a node lives."""
    while isinstance(rule := know.rules.get(node), (Each, Flatten, Same)):
        node = rule.source
    return isinstance(rule, Mark) and rule.source not in know.rules


def clamped(know: Knowledge, values: Sequence[Tensor], node: fx.Node, site: int | None = None) -> Tensor | None:
    """A node's value for one example, [1, C], if every unit of a site above it is clamped, the nearest one unless
    another is named; None if there is none."""
    match rule := know.rules.get(node):
        case Mark() if site is not None and rule.site != site:
            return clamped(know, values, rule.source, site)
        case Mark():
            return values[rule.site].expand(node.meta["shape"][1:])[None].clone()
        case Each():
            before = clamped(know, values, rule.source, site)
            return None if before is None else rule.function(before)
        case Flatten():
            before = clamped(know, values, rule.source, site)
            return None if before is None else before.flatten(1)
        case Same():
            return clamped(know, values, rule.source, site)
    return None


def _sent(run: CurveRun, node: fx.Node) -> Tensor | None:
    """What clamped channels of a node are, [C] in float64; None where all are zero, or nothing is clamped."""
    value = clamped(run.know, run.values, node)
    return None if value is None or not value.count_nonzero() else value[0].double()


def _with_clamped(weight: Tensor, bias: Tensor, sent: Tensor | None, order: Tensor, living: Tensor) -> Tensor:
    """bias + W[:, clamped] sent[clamped] at every point, [T, D], or [1, D] where that is all; summed in float64."""
    if sent is None:
        return bias[None].contiguous()
    contributions = weight.double() * sent[order]  # [D, C]
    from_the_last = contributions.flip(1).cumsum(1)  # column j: the last j + 1 units
    nothing = from_the_last.new_zeros(len(weight), 1)
    clamped = weight.shape[1] - living.to(weight.device)  # [T]
    return (
        (bias.double()[:, None] + torch.cat([nothing, from_the_last], 1)[:, clamped]).t().to(weight.dtype).contiguous()
    )
