"""The weights that make or read each unit, found by trying: an oracle that knows no graph.

With the outputs of all linear maps held fast, what still reaches from one place to another does so without weights: a
unit is read by those inputs of linear maps that change with it, and made by those outputs that change it. The weights
are the Jacobian of the linear maps themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
CANVAS = 13  # positions along each axis, more than any kernel here reaches


@contextmanager
def hooked(modules: list[nn.Module], hook: Callable) -> Iterator[None]:
    """Call ``hook(module, call, input, output)`` at each call, and let it replace the output."""
    calls = dict.fromkeys(modules, -1)

    def count(module, args, output):
        calls[module] += 1
        return hook(module, calls[module], args[0], output)

    handles = [module.register_forward_hook(count) for module in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Reached:
    """The weights of the units of one layer.

    Args:
        model: in float64 and evaluation mode; linear maps are modules.
        layer: ``"name"`` or ``"name@call"``.
        inputs: ``[N, ...]``.
        dim: of the layer's units.
    """

    def __init__(self, model: nn.Module, layer: str, inputs: Tensor, dim: int) -> None:
        name, _, call = layer.partition("@")
        self.model, self.inputs, self.dim = model, inputs, dim
        self.site, self.call = model.get_submodule(name), int(call or 0)
        self.maps = [m for m in model.modules() if isinstance(m, LINEAR)]
        self.intact: dict = {}
        with hooked(self.maps, lambda m, call, _x, out: self.intact.update({(m, call): out.clone()})):
            self.units, *_ = self.run({})
        self.generator = torch.Generator().manual_seed(0)

    def noise(self, like: Tensor, dim: int, channel: int) -> Tensor:
        """Large, in one channel, at all positions of all examples."""
        noise = torch.zeros_like(like)
        at = noise.select(dim, channel)
        at += 30 * torch.randn(at.shape, dtype=at.dtype, generator=self.generator)
        return noise

    def run(self, added: dict, to_inputs: float = 0.0, to_units: Tensor | float = 0.0) -> tuple[Tensor, Tensor, dict]:
        """Units before anything is added to them, logits and the maps' inputs, with the maps' outputs held fast."""
        seen: dict = {}
        units: list[Tensor] = []

        def hold(module, call, x, output):
            seen[module, call] = x.clone()
            return (self.intact.get((module, call), output) + added.get((module, call), 0)).clone()

        def see(_module, call, _x, output):
            if call != self.call:
                return None
            units.append(output.clone())
            return output + to_units

        with torch.no_grad(), hooked(self.maps, hold), hooked([self.site], see):
            logits = self.model(self.inputs + to_inputs if self.inputs.is_floating_point() else self.inputs.clone())
        return units[0], logits, seen

    def incoming(self) -> list[Tensor] | None:
        """By unit, all weights that make it; None where the input does without."""
        weights: list[list[Tensor]] = [[] for _ in range(self.units.shape[self.dim])]
        shift = torch.randn(self.inputs.shape, dtype=torch.float64, generator=self.generator) * 30
        if self.inputs.is_floating_point() and not torch.equal(self.run({}, to_inputs=shift)[0], self.units):
            return None
        for (module, call), output in self.intact.items():
            dim = output.ndim - 1 if isinstance(module, nn.Linear) else 1
            for channel in range(output.shape[dim]):
                units, _, _ = self.run({(module, call): self.noise(output, dim, channel)})
                for unit in self._changed(units, self.units, self.dim):
                    weights[unit].append(jacobian(module)[channel].flatten())
        return [torch.cat(w) for w in weights]

    def outgoing(self) -> list[Tensor] | None:
        """By unit, all weights that read it; None where the logits do without."""
        _, logits, before = self.run({})
        weights: list[Tensor] = []
        for unit in range(self.units.shape[self.dim]):
            _, changed, after = self.run({}, to_units=self.noise(self.units, self.dim, unit))
            if not torch.equal(changed, logits):
                return None
            read: list[Tensor] = []
            for (module, call), x in before.items():
                dim = x.ndim - 1 if isinstance(module, nn.Linear) else 1
                for channel in self._changed(after[module, call], x, dim):
                    read.append(jacobian(module)[:, channel].flatten())
            weights.append(torch.cat(read))
        return weights

    @staticmethod
    def _changed(after: Tensor, before: Tensor, dim: int) -> list[int]:
        return (after != before).movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist()


def jacobian(module: nn.Module) -> Tensor:
    """[D, C, ...] of a linear map; of a convolution that of its middle output, by all inputs that it reads."""
    if isinstance(module, nn.Linear):
        x = torch.zeros(1, module.in_features, dtype=torch.float64, requires_grad=True)
    else:
        axes = module.weight.ndim - 2
        x = torch.zeros(1, module.in_channels, *[CANVAS] * axes, dtype=torch.float64, requires_grad=True)
    output = module(x)[0]
    middle = output[(slice(None), *(size // 2 for size in output.shape[1:]))]
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0][0] for value in middle]
    return torch.stack(rows)
