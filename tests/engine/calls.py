"""Which layers a model calls, and what they give; found by plain hooks, with nothing of the package."""

import torch
from torch import Tensor, nn


def calls_of(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of an example's output, by each call's name: ``"name"``, or ``"name@k"`` of a layer that fires often.

    In the order in which the calls end; only outputs that are floating tensors ``[N, C, ...]``, but not the logits.
    """
    fired: list[tuple[str, tuple[int, ...] | None]] = []

    def hook_for(name: str):
        def hook(_module, _args, output):
            has_units = isinstance(output, Tensor) and output.ndim >= 2 and output.is_floating_point()
            fired.append((name, tuple(output.shape[1:]) if has_units else None))

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in fired]
    return {
        name if names.count(name) == 1 else f"{name}@{names[:i].count(name)}": shape
        for i, (name, shape) in enumerate(fired)
        if shape is not None
    }
