"""The plan: for each node of the graph, how it is run and how much work that is, against a hook loop."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx

from sdkernels.engine.apart import ApartRun
from sdkernels.engine.curves import CurvePlan, CurveRun
from sdkernels.engine.graph import Graph, is_site
from sdkernels.engine.noise import NoiseRun
from sdkernels.engine.pairwise import PairsRun
from sdkernels.engine.products import product_of
from sdkernels.engine.rules import Linear, Unknown
from sdkernels.engine.singles import SinglesRun


@dataclass(frozen=True)
class PlannedNode:
    """One row of the plan; work in floating-point operations an example, over all configurations."""

    name: str
    mode: str  # of shared, nested, compact, one channel, rank-one, line, dense; several where configurations differ
    work: float
    loop_work: float


@dataclass(frozen=True)
class Plan:
    """How a family is run on a model.

    Attributes:
        nodes: a row a node that computes something; none if the whole model runs once a configuration.
        configurations: K.
        notes: lines on what the table cannot say: the kernel that runs the tail, what was absent already, the reason
            why a slower way was taken.
        tile: examples that are run at once.
        peak: bytes that the run takes at most, beyond the model, the data set and the scores.
        limit: bytes that it may take.
        is_elsewhere: nothing was run in this process; the notes say where.
    """

    nodes: list[PlannedNode]
    configurations: int
    notes: tuple[str, ...] = ()
    tile: int = 0
    peak: float = 0.0
    limit: float = 0.0
    is_elsewhere: bool = False

    def explain(self) -> str:
        """A table: node, mode, work done and the work of a hook loop, in MFLOP an example; then notes and memory."""
        lines: list[str] = []
        if self.nodes:
            rows = [("node", "mode", "MFLOP an example", "a hook loop's")]
            rows += [(n.name, n.mode, f"{n.work / 1e6:.3f}", f"{n.loop_work / 1e6:.3f}") for n in self.nodes]
            work, loop_work = sum(n.work for n in self.nodes), sum(n.loop_work for n in self.nodes)
            rows.append(("all", "", f"{work / 1e6:.3f}", f"{loop_work / 1e6:.3f}"))
            widths = [max(len(row[c]) for row in rows) for c in range(4)]
            lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
            ratio = loop_work / max(work, 1.0)
            lines.append(f"{self.configurations} configurations; {ratio:.1f} times less arithmetic than a hook loop")
        elif not self.is_elsewhere:
            lines.append(f"{self.configurations} configurations; loop: the whole model once each")
        lines += self.notes
        if self.tile:
            peak, limit = (f"{size / 2**20:.1f} MiB" for size in (self.peak, self.limit))
            lines.append(f"{self.tile} examples at once; memory at most {peak}, limit {limit}")
        return "\n".join(lines)


class Work:
    """Adds up how often each dependent node runs, in whole runs an example, and by which mode."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._runs: dict[fx.Node, float] = defaultdict(float)
        self._modes: dict[fx.Node, list[str]] = defaultdict(list)

    def add_curve(self, run: CurveRun, plan: CurvePlan) -> None:
        """A curve of nested configurations."""
        points = plan.curve.points
        for node, _ in run.steps:
            rule, layout = run.know.rules[node], plan.layouts.get(node)
            if layout is None or isinstance(rule, Unknown):
                self._add(node, "dense", points)
                continue
            rows = torch.tensor(layout.counts) / max(len(layout.order), 1)
            mode = "compact" if bool((rows < 1).any()) else "dense"
            if isinstance(rule, Linear) and node in plan.inputs:
                columns = torch.tensor(plan.inputs[node].counts) / max(rule.product.inputs, 1)
                share = rule.product.share
                if run.is_nested(node):
                    self._add(node, "nested", share * float(columns.max()) * float(rows.max()))
                    continue
                mode = "compact" if bool((rows * columns < 1).any()) else "dense"
                self._add(node, mode, share * float((rows * columns).sum()))
            else:
                self._add(node, mode, float(rows.sum()))

    def add_singles(self, run: SinglesRun) -> None:
        """Single units; call it after they ran, as pairs that were absent already are no work."""
        for group in run.alone:
            self._add_alone(run, group.site, len(group.units) * (run.active / max(run.pairs, 1)))

    def add_pairs(self, run: PairsRun) -> None:
        """Pairs, by a unit that they have in common; call it after they ran too."""
        for common in run.common:
            for node in run.singles.below.get(common.site, []):
                self._add(node, "dense", run.first_rows / max(run.firsts, 1))
        for site in run.singles.below:
            k = sum(len(g.units) for common in run.common for g in common.others if g.site == site)
            if k:
                self._add_alone(run.singles, site, k * (run.singles.active / max(run.pairs, 1)))

    def add_apart(self, run: ApartRun) -> None:
        """Sets of their own."""
        for node in run.nodes:
            self._add(node, "dense", len(run.configurations))

    def add_noise(self, run: NoiseRun) -> None:
        """Noise: a product on a line runs once for all configurations of its draw."""
        for node, mode in run.modes().items():
            self._add(node, mode, len(run.groups) if mode == "line" else run.family.configurations)

    def rows(self, configurations: int) -> list[PlannedNode]:
        """A row a node; the intact model's own run counts too."""
        rows: list[PlannedNode] = []
        for node in self._graph.nodes:
            if node.op in ("placeholder", "get_attr") or is_site(node):
                continue
            once = _work(node, self._graph)
            mode = ", ".join(self._modes.get(node, ["shared"]))
            rows.append(PlannedNode(node.name, mode, (1 + self._runs.get(node, 0.0)) * once, configurations * once))
        return rows

    def _add_alone(self, run: SinglesRun, site: int, k: float) -> None:
        """So many units of a site, each alone."""
        for node, mode in run.modes(site).items():
            rule = run.know.rules[node]
            share = rule.product.share if isinstance(rule, Linear) else 1.0
            if mode != "dense":
                share = 1.0 / max(run.know.channels(run.know.sources(node)[0]) or run.know.channels(node), 1)
            self._add(node, mode, k * share)

    def _add(self, node: fx.Node, mode: str, runs: float) -> None:
        self._runs[node] += runs
        if mode not in self._modes[node]:
            self._modes[node].append(mode)


def _work(node: fx.Node, graph: Graph) -> float:
    """Floating-point operations an example of one run of a node: two a multiply-add, one an element elsewhere."""
    elements = float(math.prod(node.meta.get("shape", (1,))[1:]))
    product = product_of(node, graph) if node.all_input_nodes else None
    return elements if product is None else 2.0 * elements * product.weight[0].numel()
