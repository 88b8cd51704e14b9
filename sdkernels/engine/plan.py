"""The plan: for each node of the graph, how it is run and how much work that is, against a hook loop."""

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from sdkernels.engine.chain import Chain
from sdkernels.engine.families import Cumulative, Family
from sdkernels.engine.graph import Graph, is_site


@dataclass(frozen=True)
class PlannedNode:
    """One row of the plan; work in floating-point operations an example, over all configurations."""

    name: str
    mode: str  # shared, nested, compact or dense
    work: float
    loop_work: float


@dataclass(frozen=True)
class Plan:
    """How a family is run on a model.

    Attributes:
        nodes: a row a node that computes something; none if the whole model runs once a configuration.
        configurations: K.
        chain: the chain of linear layers that nested sums and slices run on, if there is one.
        reason: why a slower way than nested sums and slices was taken; empty if they were.
    """

    nodes: list[PlannedNode]
    configurations: int
    chain: Chain | None = None
    reason: str = ""

    def explain(self) -> str:
        """A table: node, mode, work done and the work of a hook loop, in MFLOP an example."""
        if not self.nodes:
            return f"{self.configurations} configurations; loop: the whole model once each ({self.reason})"
        rows = [("node", "mode", "MFLOP an example", "a hook loop's")]
        rows += [(n.name, n.mode, f"{n.work / 1e6:.3f}", f"{n.loop_work / 1e6:.3f}") for n in self.nodes]
        work, loop_work = sum(n.work for n in self.nodes), sum(n.loop_work for n in self.nodes)
        rows.append(("all", "", f"{work / 1e6:.3f}", f"{loop_work / 1e6:.3f}"))
        widths = [max(len(row[c]) for row in rows) for c in range(4)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        ratio = loop_work / max(work, 1.0)
        lines.append(f"{self.configurations} configurations; {ratio:.1f} times less arithmetic than a hook loop")
        if self.reason:
            lines.append(f"no nested sums: {self.reason}")
        return "\n".join(lines)


def make_plan(graph: Graph, family: Family, chain: Chain | None, reason: str = "") -> Plan:
    """Nested sums and slices along ``chain`` if there is one, else dense for the ``reason`` given."""
    return Plan(_rows(graph, family, chain), family.configurations, chain, reason)


def loop_plan(family: Family, reason: str) -> Plan:
    """The plan of running the whole model once a configuration."""
    return Plan([], family.configurations, reason=reason)


def _rows(graph: Graph, family: Family, chain: Chain | None) -> list[PlannedNode]:
    modes = _chain_modes(graph, chain, family) if chain and isinstance(family, Cumulative) else {}
    rows: list[PlannedNode] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or (is_site(node) and chain):
            continue
        once = _work(node, graph.model)
        everything = family.configurations * once
        if node not in graph.dependent:
            rows.append(PlannedNode(node.name, "shared", once, everything))
        else:
            mode, runs = modes.get(node, ("dense", float(family.configurations)))
            rows.append(PlannedNode(node.name, mode, runs * once, everything))
    return rows


def _chain_modes(graph: Graph, chain: Chain, family: Cumulative) -> dict[fx.Node, tuple[str, float]]:
    """For each node of the chain, its mode and how many whole runs its work comes to."""
    counts = torch.tensor(family.unit_counts)
    living = torch.stack([family.living(r) / counts for r in range(len(family.orders))])  # [R, T, sites], fractions
    whole = torch.ones_like(living[..., 0])
    stages = {stage.node: i for i, stage in enumerate(chain.stages)}
    modes: dict[fx.Node, tuple[str, float]] = {}
    incoming = whole
    for node in (n for n in graph.nodes if n in graph.dependent):
        if is_site(node):
            incoming = living[..., node.args[1]]  # type: ignore[index]
        elif (stage := stages.get(node)) is not None:
            following = chain.stages[stage + 1].site if stage + 1 < len(chain.stages) else None
            outgoing = whole if following is None else living[..., following]
            nested = ("nested", float(incoming.amax(1).sum()))
            modes[node] = nested if stage == 0 else ("compact", float((incoming * outgoing).sum()))
            incoming = outgoing
        elif node in chain.tail:
            modes[node] = ("dense", float(family.configurations))
        else:
            modes[node] = ("compact", float(incoming.sum())) if chain.stages[0].node in modes else ("shared", 1.0)
    return modes


def _work(node: fx.Node, model: nn.Module) -> float:
    """Floating-point operations an example of one run of a node: two a multiply-add, one an element elsewhere."""
    shape = node.meta.get("shape", (1,))
    elements = float(math.prod(shape[1:]))
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, nn.Linear):
            return 2.0 * elements * module.in_features
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return 2.0 * elements * (module.in_channels // module.groups) * math.prod(module.kernel_size)
    return elements
