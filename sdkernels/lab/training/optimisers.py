"""The optimiser that options name."""

import torch
from torch import nn

from sdkernels.lab.training.options import TrainingOptions


def make_optimiser(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD at torch's defaults but for learning rate, momentum and weight decay."""
    parameters, rate, decay = model.parameters(), options.learning_rate, options.weight_decay
    if options.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if options.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=options.momentum, weight_decay=decay)
