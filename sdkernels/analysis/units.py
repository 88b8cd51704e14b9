"""Pooled units: how results number them, layer after layer."""

import torch
from torch import Tensor

from sdkernels.engine.arguments import whole_number


class PooledUnits:
    """What every result says of the U units of its layers."""

    layers: tuple[str, ...]
    unit_counts: tuple[int, ...]

    @property
    def unit_layer(self) -> Tensor:
        """int64 [U]: which of ``layers`` each pooled unit stands in."""
        return torch.arange(len(self.unit_counts)).repeat_interleave(torch.tensor(self.unit_counts))

    @property
    def unit_index(self) -> Tensor:
        """int64 [U]: each pooled unit's index within its layer."""
        return torch.cat([torch.arange(count) for count in self.unit_counts])

    def unit_layers(self) -> list[str]:
        """The layer of each pooled unit, [U], as tables name it."""
        return [self.layers[layer] for layer in self.unit_layer.tolist()]

    def named(self, unit: int) -> str:
        """A pooled unit as messages name it.

        Raises:
            ValueError, TypeError: it is none of 0..U-1.
        """
        unit = whole_number("unit", unit, 0, sum(self.unit_counts) - 1, what="the number of a pooled unit")
        return f"unit {int(self.unit_index[unit])} of layer {self.layers[int(self.unit_layer[unit])]!r}"
