"""The dense way: the part of the network below the first ablation runs once a configuration, on masked activations."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from sdkernels.engine.families import Family
from sdkernels.engine.graph import Graph, Values
from sdkernels.ops import perturb


class DenseRun:
    """Runs tiles of configurations folded into the batch dimension; any traced model, any layers.

    Args:
        graph: the traced model.
        unit_dims: the unit dimension of each site.
        family: the configurations.
        values: for each site, what a clamped unit becomes; broadcasts to one example.
        configs_per_batch: how many configurations one forward pass of the dependent part holds.
        probe: a few inputs [N, ...].

    Raises:
        ValueError: more than one configuration a pass, and the model reads the size of its batch.
    """

    def __init__(
        self,
        graph: Graph,
        unit_dims: list[int],
        family: Family,
        values: list[Tensor],
        configs_per_batch: int,
        probe: Tensor,
    ) -> None:
        self._graph = graph
        self._unit_dims = unit_dims
        self._family = family
        self._values = values
        self._configs_per_batch = configs_per_batch
        self._per_example = _one_row_an_example(graph, probe) if configs_per_batch > 1 else []

    def logits(self, shared: Values, examples: int) -> Iterator[tuple[slice, Tensor]]:
        """For a batch's shared values: runs of configurations and their logits [K, N, L]."""
        for start in range(0, self._family.configurations, self._configs_per_batch):
            configurations = slice(start, min(start + self._configs_per_batch, self._family.configurations))
            yield configurations, self._run(shared, configurations, examples)

    def _run(self, shared: Values, configurations: slice, examples: int) -> Tensor:
        masks = self._family.ablated(configurations)
        k = len(masks[0])
        folded = self._fold(shared, k, examples) if k > 1 else shared

        def clamp(site: int, mark: fx.Node, activation: Tensor) -> Tensor:
            is_shared = mark.args[0] not in self._graph.dependent
            x = shared[mark.all_input_nodes[0]] if is_shared else activation.view(k, examples, *activation.shape[1:])
            mask = masks[site].to(x.device)
            value = self._values[site].to(x.device, x.dtype)
            return perturb(x, mask, value, unit_dim=self._unit_dims[site], shared=is_shared).flatten(0, 1)

        logits = self._graph.logits(folded, clamp)
        if self._graph.output not in self._graph.dependent:  # no site reaches the logits
            return logits.expand(k, examples, -1)
        return logits.reshape(k, examples, -1)

    def _fold(self, shared: Values, k: int, examples: int) -> Values:
        """Shared values that meet ablated ones, repeated for k configurations."""
        folded = dict(shared)
        for node in self._per_example:
            folded[node] = shared[node].repeat(k, *[1] * (shared[node].ndim - 1))
        return folded


def _one_row_an_example(graph: Graph, probe: Tensor) -> list[fx.Node]:
    """Shared nodes that grow with the batch and that dependent nodes read, but for a site its own activation."""
    marks = {mark for mark in graph.sites if mark is not None}
    readers = [n for n in graph.nodes if n in graph.dependent and n not in marks]
    boundary = {read: None for n in readers for read in n.all_input_nodes if read not in graph.dependent}
    once, twice = graph.shared_values(probe), graph.shared_values(torch.cat([probe, probe]))
    found: list[fx.Node] = []
    for node in boundary:
        one, two = once[node], twice[node]
        if isinstance(one, Tensor) and one.ndim and (two.shape[0], one.shape[0]) == (2 * len(probe), len(probe)):
            found.append(node)
        elif not (torch.equal(one, two) if isinstance(one, Tensor) else one == two):
            raise ValueError(
                f"configs_per_batch cannot be more than 1 with this model: its node {node.name!r} reads the size of "
                "the batch"
            )
    return found
