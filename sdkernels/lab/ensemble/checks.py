"""What can be trained as one ensemble."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdkernels.lab.ensemble.stacked import StackedMLP
from sdkernels.lab.training import TrainingOptions
from sdkernels.lab.training.state import differences


def check_options(options: Sequence[TrainingOptions], seeds: Sequence[int], M: int) -> None:
    """Refuse options that M networks cannot be trained with together.

    Raises:
        ValueError: names the network and the option.
    """
    if len(options) != M or len(seeds) != M:
        raise ValueError(f"{M} networks, {len(options)} options and {len(seeds)} seeds; give one of each a network")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must be at least 0 and below 2**63")
    first = options[0]
    for network, own in enumerate(options):
        alike = replace(own, learning_rate=first.learning_rate, weight_decay=first.weight_decay)
        if found := differences(first.record(), alike.record()):
            raise ValueError(
                f"options of network 0 (there) and {network} (here) differ in {', '.join(found)}; networks that are "
                "trained together may differ in learning_rate and weight_decay alone"
            )
    for name, only in (("precision", "float32"), ("compile", False), ("augmentation", "none")):
        if getattr(first, name) != only:
            raise ValueError(f"{name}={getattr(first, name)!r} is not for ensembles; train the networks one by one")


def check_data(inputs: Tensor, labels: Tensor, stack: StackedMLP, M: int) -> None:
    """Refuse data that the networks cannot be trained on.

    Raises:
        ValueError: names shape and type, and what they must be.
    """
    wanted = stack.parameters.dtype
    if inputs.ndim != 2 or inputs.shape[1] != stack.inputs or inputs.dtype != wanted or len(inputs) == 0:
        raise ValueError(
            f"inputs {inputs.dtype} {tuple(inputs.shape)} must be {wanted} [N, {stack.inputs}], with at least one "
            "example"
        )
    if labels.dtype != torch.int64 or labels.shape not in ((len(inputs),), (M, len(inputs))):
        raise ValueError(
            f"labels {labels.dtype} {tuple(labels.shape)} must be int64 [{len(inputs)}], or [{M}, {len(inputs)}] with "
            "a row a network"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= stack.classes:
        raise ValueError(f"labels go from {least} to {most}; the networks tell classes 0 to {stack.classes - 1} apart")
