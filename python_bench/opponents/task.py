"""What an opponent is asked for, and what it may choose."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stages = list[tuple[str, Callable[[Tensor], Tensor]]]  # a network in steps; each gives a new tensor, the last logits


class Scores(NamedTuple):
    """Of each configuration over all examples."""

    correct: Tensor  # int64 [K]
    loss: Tensor  # float64 [K], mean


class Setting(NamedTuple):
    """What is tuned: examples a batch, configurations a forward pass, memory layout of maps."""

    examples: int
    configurations: int = 1
    channels_last: bool = False

    def __str__(self) -> str:
        said = [f"{self.examples} examples"]
        said += [f"{self.configurations} configurations"] if self.configurations > 1 else []
        return " x ".join(said) + (", channels-last" if self.channels_last else "")


@dataclass(frozen=True)
class Task:
    """Score every configuration: units [K, U] of the layers' outputs are set to zero.

    Attributes:
        model: in evaluation mode.
        stages: the same network by hand, in steps named for the layers whose output they give.
        layers: in the order in which they run; their units, dimension 1, are pooled.
        widths: units of each layer.
        inputs, labels: all examples.
        ablated: bool [K, U], on the CPU.
    """

    model: nn.Module
    stages: Callable[[nn.Module], Stages]
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    inputs: Tensor
    labels: Tensor
    ablated: Tensor

    def only(self, configurations: Tensor, examples: int | None = None) -> "Task":
        """Some configurations, by index, on the first examples."""
        part = slice(0, examples)
        return replace(self, inputs=self.inputs[part], labels=self.labels[part], ablated=self.ablated[configurations])

    def channels_last(self) -> "Task":
        """A copy with another memory layout of maps."""
        model = copy.deepcopy(self.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, model=model, inputs=self.inputs.contiguous(memory_format=torch.channels_last))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels."""
        return zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def by_layer(self) -> dict[str, Tensor]:
        """The ablated units of each layer, bool [K, C]."""
        return dict(zip(self.layers, self.ablated.split(self.widths, 1), strict=True))

    def masks(self) -> dict[str, Tensor]:
        """1 where a unit lives: [K, C], on the device."""
        return {layer: (~ablated).to(self.inputs) for layer, ablated in self.by_layer().items()}

    def groups(self) -> dict[str | None, Tensor]:
        """Indices of the configurations by the first layer in which they ablate; None: in no layer."""
        ablates = torch.stack([ablated.any(1) for ablated in self.by_layer().values()])  # [layers, K]
        first = torch.where(ablates.any(0), ablates.int().argmax(0), len(self.layers))
        groups = {layer: (first == i).nonzero()[:, 0] for i, layer in enumerate((*self.layers, None))}
        return {layer: members for layer, members in groups.items() if len(members)}

    def no_scores(self) -> tuple[Tensor, Tensor]:
        """Zeros to add to: counts, and sums of losses."""
        k, device = len(self.ablated), self.inputs.device
        return torch.zeros(k, dtype=torch.int64, device=device), torch.zeros(k, dtype=torch.float64, device=device)

    def scores(self, correct: Tensor, loss: Tensor) -> Scores:
        """From sums over all examples."""
        return Scores(correct.cpu(), loss.cpu() / len(self.labels))


def like_units(mask: Tensor, output: Tensor) -> Tensor:
    """[..., C] to [..., C, 1, 1], so that it broadcasts over a layer's output [N, C, H, W]."""
    return mask.reshape(*mask.shape, *[1] * (output.ndim - 2))


def correct_and_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and sums of losses [K] of logits [K, N, L]."""
    correct = (logits.argmax(-1) == labels).sum(-1)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return correct, losses.view(len(logits), -1).sum(1, dtype=torch.float64)
