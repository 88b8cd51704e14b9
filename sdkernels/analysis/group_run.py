"""Run groups of a layer's units, each clamped at once: what lies above the layer once, the rest once a group."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sdkernels.engine.batches import Batch
from sdkernels.engine.dense import AtSite, DenseRun
from sdkernels.engine.execute import CHECKED_EXAMPLES
from sdkernels.engine.exported import find_graph
from sdkernels.engine.families import Sets
from sdkernels.engine.graph import UntraceableError, Values, is_close
from sdkernels.engine.loop import changed_logits, clamping
from sdkernels.engine.memory import Budget, find_budget
from sdkernels.engine.rules import learn
from sdkernels.engine.sites import Site
from sdkernels.engine.values import Clamp

# Enough to see how memory grows.
MEASURED_EXAMPLES = 4


class GroupRun:
    """Gives every configuration's logits, a whole pass below the layer each.

    Sets that are neither nested nor of one unit share nothing but what lies above them; to rearrange the weights of the
    layers below for one of them takes longer than it saves.

    Args:
        model: in evaluation mode.
        site: the layer.
        family: the groups.
        clamp: what a clamped unit becomes, on the examples of ``probe``.
        probe: a few examples, and ``logits`` [N, L] what the model gives for them.

    Raises:
        UntraceableError: the model cannot be traced, or does something else than its graph says.
    """

    def __init__(self, model: nn.Module, site: Site, family: Sets, clamp: Clamp, probe: Batch, logits: Tensor) -> None:
        self.graph = find_graph(model, [site], probe.inputs, logits)
        self._site, self._probe = site, probe
        self._value = clamp.of(probe.labels, None)
        nodes = [n for n in self.graph.nodes if n in self.graph.dependent]
        self._dense = DenseRun(self.graph, learn(self.graph, [site], []), nodes)
        self._masks = family.masks.view(-1, *site.per_unit).to(probe.inputs.device)  # [K, ..., U, ...]
        self._check(model, family, clamp, logits)

    def logits(
        self, inputs: Tensor, value: Tensor, look: Callable[[Tensor], None]
    ) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
        """The intact model's logits [N, L], and configurations [1] and theirs [1, N, L], one by one.

        ``value`` is what the layer's units are once clamped and broadcasts to [N, *example]; ``look`` sees what they
        are.
        """

        def see(_site: int, x: Tensor, _may_write: bool) -> Tensor:
            look(x)
            return x

        shared = self.graph.shared_values(inputs)
        intact = self._dense.logits(shared, len(inputs), see)
        configurations = range(len(self._masks))
        return intact, ((torch.tensor([k]), self._one(shared, inputs, value, k)[None]) for k in configurations)

    def budget(self, limit: float) -> Budget:
        """What memory a pass takes, measured on the probe."""

        def work(examples: int) -> None:
            inputs = self._probe.inputs[:examples].clone()
            value = self._value[:examples] if len(self._value) > 1 else self._value
            for _ in zip(range(2), self.logits(inputs, value, lambda _x: None)[1], strict=False):
                pass

        return find_budget(work, min(len(self._probe.inputs), MEASURED_EXAMPLES), limit)

    def _one(self, shared: Values, inputs: Tensor, value: Tensor, configuration: int) -> Tensor:
        return self._dense.logits(shared, len(inputs), self._clamping(value, configuration))

    def _clamping(self, value: Tensor, configuration: int) -> AtSite:
        return lambda _site, x, _may_write: torch.where(self._masks[configuration], value.to(x), x)

    def _check(self, model: nn.Module, family: Sets, clamp: Clamp, logits: Tensor) -> None:
        """See that a few configurations give what hooks give."""
        part, calls = self._probe.part(slice(CHECKED_EXAMPLES)), [self._site.hooked]
        change_of = clamping(model, calls, family.ablated(slice(None)), [clamp])
        shared, value = self.graph.shared_values(part.inputs), clamp.of(part.labels, None)
        found = [self._dense.logits(shared, len(part.inputs), lambda _site, x, _may_write: x)]
        expected = [logits[:CHECKED_EXAMPLES]]
        for k in sorted({0, family.configurations // 2, family.configurations - 1}):
            found.append(self._one(shared, part.inputs, value, k))
            expected.append(changed_logits(model, calls, part.inputs, change_of(k, part)))
        if not all(map(is_close, found, expected)):
            raise UntraceableError("its graph gives other logits than the model with hooks")
