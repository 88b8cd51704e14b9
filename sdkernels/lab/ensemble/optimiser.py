"""One optimiser for the rows of stacked parameters, each with its own learning rate and weight decay."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from sdkernels.lab.training import TrainingOptions
from sdkernels.lab.training.schedules import learning_rate


class StackedOptimiser:
    """Adam, AdamW or SGD on ``[M, P]``: torch's own, fused, a parameter group for each run of rows with equal options.

    Args:
        parameters: ``[M, P]``, a network a row; changed in place.
        gradients: ``[M, P]``, read at each step.
        options: of each row; rows with equal learning rate and weight decay stand side by side.
        steps_an_epoch: for schedules.
    """

    def __init__(
        self, parameters: Tensor, gradients: Tensor, options: Sequence[TrainingOptions], steps_an_epoch: int
    ) -> None:
        self._steps_an_epoch = steps_an_epoch
        self._gradients = gradients
        self._options: list[TrainingOptions] = []
        self._blocks: list[Tensor] = []
        start = 0
        for own, rows in groupby(options):
            end = start + len(list(rows))
            block = parameters[start:end]
            block.grad = gradients[start:end]
            self._options.append(own)
            self._blocks.append(block)
            start = end
        self._optimiser = _fused(self._blocks, self._options)
        first = options[0]
        self._is_constant = first.schedule == "constant" and not first.warmup
        self._clip_norm = first.clip_norm

    def step(self, step: int) -> None:
        """Take step ``step``, counted from 0, along the gradients; where they are clipped, they are changed."""
        if not self._is_constant:
            for group, own in zip(self._optimiser.param_groups, self._options, strict=True):
                group["lr"] = learning_rate(own, step, self._steps_an_epoch)
        if self._clip_norm is not None:
            length = torch.linalg.vector_norm(self._gradients, dim=1, keepdim=True)
            self._gradients.mul_((self._clip_norm / (length + 1e-6)).clamp_(max=1))  # as nn.utils.clip_grad_norm_
        self._optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """What it remembers: ``[M, P]`` each, or a number for all rows; nothing before the first step."""
        states = [self._optimiser.state.get(block, {}) for block in self._blocks]
        return {
            name: torch.cat([state[name] for state in states]) if value.ndim else value.clone()
            for name, value in states[0].items()
            if value is not None
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state` of as many rows."""
        sizes = [len(block) for block in self._blocks]
        split = {name: value.split(sizes) if value.ndim else [value] * len(sizes) for name, value in state.items()}
        for i, block in enumerate(self._blocks):
            self._optimiser.state[block] = {name: parts[i].clone() for name, parts in split.items()}


def _fused(blocks: Sequence[Tensor], options: Sequence[TrainingOptions]) -> torch.optim.Optimizer:
    groups = [
        {"params": [block], "lr": own.learning_rate, "weight_decay": own.weight_decay}
        for block, own in zip(blocks, options, strict=True)
    ]
    if options[0].optimiser == "adam":
        return torch.optim.Adam(groups, fused=True)
    if options[0].optimiser == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, momentum=options[0].momentum, fused=True)
