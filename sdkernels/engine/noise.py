r"""Run configurations of noise: Gaussian draws on all units of all sites at once.

.. math:: y_k = x + f_k \sigma_c \epsilon_{d_k}

for configuration k with factor :math:`f_k`, unit c's standard deviation :math:`\sigma_c`, and the standard normals
:math:`\epsilon` of draw :math:`d_k`, from the random stream: an element's depends on the seed, the draw, the example's
place in the data, the site and the element, and on nothing else.

*The same draw.* Configurations of one draw differ by their factors alone. It is drawn once, and up to the first
nonlinearity behind the first sites every value is a line in f,

.. math:: W (a + f \sigma \epsilon) + b = (W a + b) + f\, W (\sigma \epsilon),

whose two products all of them share. A product with fewer outputs than inputs behind a later site is shared likewise:
:math:`W (h + f \sigma \epsilon) = W h + f\, W (\sigma \epsilon)`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sdkernels.engine.curves import SUM_DTYPES
from sdkernels.engine.dense import AtSite, DenseRun
from sdkernels.engine.families import Noise
from sdkernels.engine.graph import Graph, Values
from sdkernels.engine.rules import Flatten, Knowledge, Linear, Mark, Same
from sdkernels.engine.sites import Site
from sdkernels.ops import perturb
from sdkernels.ops.layout import computed_in


@dataclass
class _Draw:
    """What configurations of one draw share, on a run of examples."""

    noise: list[Tensor]  # by site, [N, *example]
    slopes: dict[fx.Node, Tensor]  # how values behind the first sites change with the factor
    sent: dict[fx.Node, Tensor]  # what later products make of the noise


class NoiseRun:
    """Runs a family of noise on tiles of examples.

    Args:
        graph, know: the traced model and what its nodes do to channels.
        sites: where noise is added.
        family: the configurations.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(self, graph: Graph, know: Knowledge, sites: list[Site], family: Noise, like: Tensor) -> None:
        self.graph, self.know, self.family = graph, know, family
        self._sites, self._like = sites, like
        self._deviations = [sd.to(like.device, computed_in(like.dtype)) for sd in family.deviations]
        self._masks = [torch.zeros(1, len(sd), dtype=torch.bool, device=like.device) for sd in family.deviations]
        self.nodes = [n for n in graph.nodes if n in graph.dependent]
        self.groups = family.groups() if like.dtype in SUM_DTYPES else list(torch.arange(len(family.draws)).split(1))
        shares = any(len(group) > 1 for group in self.groups)
        self.lines = self._find_lines() if shares else []
        self._sent = self._find_sent() if shares else {}
        self._dense = DenseRun(graph, know, [n for n in self.nodes if n not in self.lines])
        self._ends = [n for n in self.lines if n in self._dense.reads or n is graph.output]
        read = (set(self._dense.reads) - set(self.lines)) | {self._intact_of(n) for n in self._ends}
        self.keep = frozenset(n for n in read if n in graph.dependent)

    def logits(self, intact: Values, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Configurations [k] and their logits [k, N, L], for examples whose places in the data are ``ids`` [N]."""
        for group in self.groups:
            yield group, self._group_logits(group, intact, ids)

    def modes(self) -> dict[fx.Node, str]:
        """How each node below the sites runs: as a line in the factor, or dense."""
        return {node: "line" if node in self.lines else "dense" for node in self.nodes}

    def _group_logits(self, group: Tensor, intact: Values, ids: Tensor) -> Tensor:
        """[k, N, L] of configurations of one draw, which is let go at the end."""
        draw_id, factors = self.family.draws[group[:1]], self.family.factors[group].tolist()
        if len(group) == 1 and not self.lines:
            return self._dense.logits(intact, len(ids), self._adding(draw_id, factors[0], ids))[None]
        draw = self._draw(draw_id, ids)
        return torch.stack([self._on_line(draw, factor, intact, len(ids)) for factor in factors])

    def _adding(self, draw_id: Tensor, factor: float, ids: Tensor) -> AtSite:
        """Noise added in the same pass as it is drawn."""

        def at_site(site: int, x: Tensor, may_write: bool) -> Tensor:
            out = x[None] if may_write else None
            return self._perturbed(site, x, factor * self._deviations[site], draw_id, ids, out)

        return at_site

    def _perturbed(
        self, site: int, x: Tensor, sigma: Tensor, draw_id: Tensor, ids: Tensor, out: Tensor | None
    ) -> Tensor:
        return perturb(
            x,
            self._masks[site],
            x.new_zeros(()),
            sigma=sigma[None],
            seed=self.family.seed,
            configurations=draw_id.to(x.device),
            examples=ids.to(x.device),
            site=site,
            per_map=self.family.per_map,
            unit_dim=self._sites[site].unit_dim,
            out=out,
        )[0]

    # Configurations of one draw.

    def _draw(self, draw_id: Tensor, ids: Tensor) -> _Draw:
        noise: list[Tensor] = []
        for index, sd in enumerate(self._deviations):
            nothing = self._like.new_zeros(len(ids), *self._sites[index].example_shape)
            noise.append(self._perturbed(index, nothing, sd, draw_id, ids, nothing[None]))
        lines: dict[fx.Node, Tensor] = {}
        for node in self.lines:
            match rule := self.know.rules[node]:
                case Mark():
                    lines[node] = noise[rule.site]
                case Linear():
                    lines[node] = rule.product(lines[rule.source], rule.product.weight, None)
                case Same():
                    lines[node] = lines[rule.source]
                case Flatten():
                    lines[node] = lines[rule.source].flatten(1)
        slopes = {node: lines[node] for node in self._ends}
        sent: dict[fx.Node, Tensor] = {}
        for site, node in self._sent.items():
            rule = self.know.rules[node]
            assert isinstance(rule, Linear)  # noqa: S101 - _find_sent has seen it
            sent[node] = rule.product(noise[site], rule.product.weight, None)
        return _Draw(noise, slopes, sent)

    def _on_line(self, draw: _Draw, factor: float, intact: Values, examples: int) -> Tensor:
        """[N, L] of one configuration."""

        def at_site(site: int, x: Tensor, may_write: bool) -> Tensor:
            if site in self._sent:  # the product behind it adds what the noise becomes there
                return x
            noise = draw.noise[site]
            return x.add_(noise, alpha=factor) if may_write else torch.add(x, noise, alpha=factor)

        fresh = {n: torch.add(intact[self._intact_of(n)], draw.slopes[n], alpha=factor) for n in self._ends}
        added = {node: (slope, factor) for node, slope in draw.sent.items()}
        return self._dense.logits(intact, examples, at_site, fresh=fresh, added=added)

    def _find_lines(self) -> list[fx.Node]:
        """The nodes whose values are lines in the factor: first sites, and what is linear behind them."""
        found: list[fx.Node] = []
        for node in self.nodes:
            match rule := self.know.rules[node]:
                case Mark():
                    is_line = rule.source not in self.graph.dependent
                case Linear() | Same() | Flatten():
                    is_line = rule.source in found
                case _:
                    is_line = False
            if is_line:
                found.append(node)
        return found

    def _find_sent(self) -> dict[int, fx.Node]:
        """By later site, the product that alone reads it, where that gives less than it takes."""
        found: dict[int, fx.Node] = {}
        for node in self.nodes:
            rule = self.know.rules[node]
            before = self.know.rules.get(rule.source) if isinstance(rule, Linear) else None
            if isinstance(rule, Linear) and isinstance(before, Mark) and rule.source not in self.lines:
                sizes = [math.prod(n.meta["shape"][1:]) for n in (node, rule.source)]
                if len(rule.source.users) == 1 and sizes[0] < sizes[1]:
                    found[before.site] = node
        return found

    def _intact_of(self, node: fx.Node) -> fx.Node:
        """Whose intact value a line has where the factor is zero."""
        rule = self.know.rules[node]
        if isinstance(rule, Linear):
            return rule.result
        return rule.source if isinstance(rule, Mark) else node
