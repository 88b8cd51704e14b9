"""What a node holds where the units of a site above it are clamped."""

from collections.abc import Sequence

from torch import Tensor, fx

from sdkernels.engine.rules import Each, Flatten, Knowledge, Mark, Same


def has_one_mark(know: Knowledge, node: fx.Node) -> bool:
    """Whether one site, and none above it, decides what of a node lives."""
    while isinstance(rule := know.rules.get(node), (Each, Flatten, Same)):
        node = rule.source
    return isinstance(rule, Mark) and rule.source not in know.rules


def clamped(know: Knowledge, values: Sequence[Tensor], node: fx.Node, site: int | None = None) -> Tensor | None:
    """A node's value, [1, ...] or [N, ...], if every unit of a site above it is clamped to ``values[site]``: of the
    nearest one unless another is named; None if there is none."""
    match rule := know.rules.get(node):
        case Mark() if site is not None and rule.site != site:
            return clamped(know, values, rule.source, site)
        case Mark():
            return values[rule.site].clone()
        case Each():
            before = clamped(know, values, rule.source, site)
            return None if before is None else rule.function(before)
        case Flatten():
            before = clamped(know, values, rule.source, site)
            return None if before is None else before.flatten(1)
        case Same():
            return clamped(know, values, rule.source, site)
    return None
