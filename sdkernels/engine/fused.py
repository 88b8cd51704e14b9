"""Tails that one kernel has: Linear, ReLU, Linear down to the logits.

:func:`sdkernels.ops.nested_linear` walks a whole curve through them while its running sums stay in a core's own cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sdkernels.engine.curves import CurvePlan, CurveRun
from sdkernels.engine.graph import Values
from sdkernels.engine.marked import clamped, has_one_mark
from sdkernels.engine.rules import Binary, Each, Knowledge, Linear, Mark, Same
from sdkernels.ops import nested_linear, nested_linear_score
from sdkernels.ops.backend import choose_backend
from sdkernels.ops.score import Score


@dataclass(frozen=True)
class Tail:
    """The nodes of a tail: Linear, ReLU and perhaps a site in either order, Linear."""

    first: fx.Node
    last: fx.Node
    hidden: tuple[fx.Node, ...]  # between them
    added: fx.Node | None = None  # to what the first gives, the same at every point


def find_tail(know: Knowledge, nodes: Sequence[fx.Node], output: fx.Node) -> Tail | None:
    """The tail that ends in ``output``, if the nodes that run at every point are one."""
    if len(nodes) < 3 or nodes[-1] is not output:
        return None
    first, *hidden, last = nodes
    if not all(_is_matrix(know, node) for node in (first, last)):
        return None
    total = hidden[0] if _is_total(know, hidden[0], first, nodes) else None
    if any(know.sources(node) != [before] for before, node in pairwise(nodes) if node is not total):
        return None
    added = None
    if total is not None:
        (added,) = [source for source in know.sources(total) if source is not first]
        if added in know.rules:
            return None
        hidden = hidden[1:]
    rules = [know.rules[n] for n in hidden if not isinstance(know.rules[n], Same)]
    relus = [r for r in rules if isinstance(r, Each) and r.function is F.relu]
    marks = [r for r in rules if isinstance(r, Mark)]
    if len(relus) != 1 or len(marks) > 1 or len(relus) + len(marks) != len(rules):
        return None
    return Tail(first, last, tuple(hidden), added)


class FusedTail:
    """Runs a tail by kernel; one a plan and tile.

    Args:
        run: the run whose nodes the tail is made of.
        tail: the nodes.
        plan: of one curve.
        clamped_units: for each site, what its clamped units are, [1, *example] or [N, *example].
    """

    def __init__(self, run: CurveRun, tail: Tail, plan: CurvePlan, clamped_units: Sequence[Tensor]) -> None:
        first, last = tail.first, tail.last
        device = plan.weights[first].device
        source = run.know.sources(first)[0]
        self._source = run.intact_of(source)
        own = clamped(run.know, clamped_units, source)
        self._own = own if own is not None and len(own) > 1 else None
        self._units = plan.inputs[first].order.to(device)
        self._living_in = torch.tensor(plan.inputs[first].counts)
        self._living_out = torch.tensor(plan.inputs[last].counts)
        self._weight, self._head = plan.weights[first].contiguous(), plan.weights[last].contiguous()
        sent = [
            None if self._own is not None else _sent(run, clamped_units, source),
            _sent(run, clamped_units, run.know.sources(last)[0]),
        ]
        self._bias = _with_clamped(self._weight, plan.biases[first], sent[0], self._units, self._living_in)
        order = plan.inputs[last].order.to(device)
        self._head_bias = _with_clamped(self._head, plan.biases[last], sent[1], order, self._living_out)
        if self._own is not None:
            # z = W own + sum over the living of W_c (a_c - own_c): as many units again, which never die
            channels = len(self._units)
            self._units = torch.cat([channels + self._units, self._units])
            self._weight = torch.cat([self._weight, self._weight], 1)
            self._living_in = self._living_in + channels
        self._added = tail.added
        if self._added is not None:
            # Inputs of their own, which never die, with weights of one
            outputs, inputs = self._weight.shape
            order = plan.layouts[first].order.to(device)
            ones = torch.eye(outputs, dtype=self._weight.dtype, device=device)[order]
            self._units = torch.cat([inputs + torch.arange(outputs, device=device), self._units])
            self._weight = torch.cat([ones, self._weight], 1)
            self._living_in = self._living_in + outputs

    def logits(self, intact: Values, examples: slice) -> Tensor:
        """[T, n, L] of a run of examples."""
        arguments, head = self.arguments(intact, examples)
        return nested_linear(*arguments, head=head[0], head_bias=head[1]).transpose(1, 2)

    def score(self, intact: Values, examples: slice, labels: Tensor, options: dict[str, Any]) -> Score:
        """Their scores, with the options of :func:`~sdkernels.ops.nested_linear_score`."""
        arguments, head = self.arguments(intact, examples)
        return nested_linear_score(*arguments, labels, head=head[0], head_bias=head[1], **options)

    def arguments(
        self, intact: Values, examples: slice
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What the kernel is given: its positional arguments, and the head's weight and bias."""
        a: Tensor = intact[self._source][examples]
        if self._own is not None:
            own = self._own[examples]
            a = torch.cat([a - own, own], 1)
        if self._added is not None:
            added = intact[self._added].expand(len(intact[self._source]), -1)
            a = torch.cat([a, added[examples]], 1)
        counts = (self._living_in, self._living_out)
        return (a, self._units, self._weight, self._bias, *counts), (self._head, self._head_bias)


def can_fuse(run: CurveRun) -> Tail | None:
    """The run's tail, if there is a kernel for it here."""
    like = run.like
    tail = find_tail(run.know, [node for node, _ in run.steps], run.graph.output)
    if tail is None or not run.adds_up or choose_backend(like.device, "nested_linear") == "reference":
        return None
    source = run.know.sources(tail.first)[0]
    if source not in run.frozen or run.know.dims[source] != 1 or not has_one_mark(run.know, source):
        return None
    hidden = [rule for node in tail.hidden if isinstance(rule := run.know.rules[node], Mark)]
    return tail if all(run.clamps[rule.site].is_fixed for rule in hidden) else None


class Update(NamedTuple):
    """The nodes of a rank-one update that gives the logits: Linear, perhaps ReLU and Linear."""

    first: fx.Node  # whose weights the update has
    result: fx.Node  # what is updated: the product, or what becomes of it with something added that no unit reaches
    last: fx.Node | None


def find_update(know: Knowledge, below: Sequence[fx.Node], output: fx.Node) -> Update | None:
    """The Linear that reads a site's single units, and the one behind a ReLU that gives the logits, or None if the
    first gives them; None if ``below``, the nodes that the units reach, are anything else.
    """
    first = next((n for n in below if isinstance(know.rules[n], Linear)), None)
    if first is None or below[-1] is not output or not _is_matrix(know, first) or know.dims[below[0]] != 1:
        return None
    total = next((n for n in below if _is_total(know, n, first, below)), None)
    if any(know.sources(node) != [before] for before, node in pairwise(below) if node is not total):
        return None
    if not all(isinstance(know.rules[n], (Mark, Each, Same)) for n in below[: below.index(first)]):
        return None
    rule = know.rules[first]
    result = total or (rule.result if isinstance(rule, Linear) else first)
    after = [n for n in below[below.index(total or first) + 1 :] if not isinstance(know.rules[n], (Mark, Same))]
    if not after:
        return Update(first, result, None)
    relu = know.rules[after[0]]
    if len(after) != 2 or not isinstance(relu, Each) or relu.function is not F.relu or not _is_matrix(know, after[1]):
        return None
    return Update(first, result, after[1])


def _is_total(know: Knowledge, node: fx.Node, product: fx.Node, nodes: Sequence[fx.Node]) -> bool:
    """Whether the node behind a product adds a tensor to it that is none of ``nodes``, and changes nothing else."""
    rule = know.rules[node]
    if not isinstance(rule, Binary) or rule.function is not torch.add or product not in rule.operands:
        return False
    others = [operand for operand in rule.operands if operand is not product]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0] in nodes:
        return False
    kinds = [(n.meta["shape"], n.meta["dtype"]) for n in (node, product)]
    is_alike = kinds[0] == kinds[1] and others[0].meta.get("dtype") == kinds[0][1]
    return is_alike and nodes.index(node) == nodes.index(product) + 1


def _is_matrix(know: Knowledge, node: fx.Node) -> bool:
    rule = know.rules[node]
    return isinstance(rule, Linear) and rule.product.convolve is None and len(node.meta["shape"]) == 2


def _sent(run: CurveRun, values: Sequence[Tensor], node: fx.Node) -> Tensor | None:
    """What clamped channels of a node are, [C] in float64; None where all are zero, or nothing is clamped."""
    value = clamped(run.know, values, node)
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
