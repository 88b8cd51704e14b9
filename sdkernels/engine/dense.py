"""The dense way: the part of the network below the first ablation runs once a configuration, on masked activations."""

import torch
from torch import Tensor, fx

from sdkernels.engine.families import Cumulative
from sdkernels.engine.graph import Graph, Values, input_dependent
from sdkernels.ops import perturb


class DenseRun:
    """Runs tiles of configurations folded into the batch dimension; any traced model, any layers.

    Args:
        graph: the traced model.
        unit_dims: the unit dimension of each site.
        family: the configurations.
        values: for each site, what a clamped unit becomes; broadcasts to one example.
        configs_per_batch: how many configurations one forward pass of the dependent part holds.
    """

    def __init__(
        self, graph: Graph, unit_dims: list[int], family: Cumulative, values: list[Tensor], configs_per_batch: int
    ) -> None:
        self._graph = graph
        self._unit_dims = unit_dims
        self._family = family
        self._values = values
        self._configs_per_batch = configs_per_batch
        self._per_example = _boundary(graph)

    def tiles(self) -> list[slice]:
        """The runs of configurations, in order."""
        step, stop = self._configs_per_batch, self._family.configurations
        return [slice(k, min(k + step, stop)) for k in range(0, stop, step)]

    def logits(self, shared: Values, configurations: slice, examples: int) -> Tensor:
        """Logits [K, N, L] of a run of configurations."""
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
            value = shared[node]
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != examples:
                raise ValueError(
                    f"configs_per_batch={k} cannot be used with this model: its node {node.name!r} depends on the "
                    "batch but is not one row an example; use configs_per_batch=1"
                )
            folded[node] = value.repeat(k, *[1] * (value.ndim - 1))
        return folded


def _boundary(graph: Graph) -> list[fx.Node]:
    """Shared nodes computed from the inputs that dependent nodes, other than a site's own mark, read."""
    from_inputs = input_dependent(graph.nodes)
    marks = {mark for mark in graph.sites if mark is not None}
    readers = [n for n in graph.nodes if n in graph.dependent and n not in marks]
    found = {read for n in readers for read in n.all_input_nodes if read not in graph.dependent and read in from_inputs}
    return [n for n in graph.nodes if n in found]


def check_folding(run: DenseRun, shared: Values, examples: int) -> None:
    """Refuse folding where it does not give what one configuration at a time gives, seen on the first tile.

    Raises:
        ValueError: the model mixes the rows of its batch.
    """
    tile = run.tiles()[-1]
    together = run.logits(shared, tile, examples)
    alone = torch.cat([run.logits(shared, slice(k, k + 1), examples) for k in range(tile.start, tile.stop)])
    tolerance = 1e-10 if together.dtype == torch.float64 else 1e-4 if together.dtype == torch.float32 else 1e-1
    if not torch.allclose(together, alone, tolerance, tolerance, equal_nan=True):
        raise ValueError(
            f"configs_per_batch={len(together)} changes this model's logits: it mixes the examples of a batch, or "
            "reads the batch's size; use configs_per_batch=1"
        )
