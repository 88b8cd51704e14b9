"""A model and its optimiser as named tensors, and what tells one model from another."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MODEL, UNSAVED, OPTIMISER = "model.", "unsaved.", "optimiser."


def model_identity(model: nn.Module) -> dict[str, Any]:
    """What another model would differ in: its description, its tensors' shapes and types, what is trained."""
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {
        "description": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        "tensors": {name: f"{t.dtype} {list(t.shape)}" for name, t in model_tensors(model).items()},
        "trained": sorted(trained),
    }


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, not copied.

    Raises:
        ValueError: lazy parameters without a shape yet, or an extra state that is no tensor.
    """
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ValueError(f"{name} of the model has no shape yet; call the model once before training")
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} of the model's state is {type(tensor).__name__}, not a tensor; it cannot be saved"
            )
        found[name] = tensor
    return found


def pack_model(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything the model holds, and of buffers that its state dict leaves out."""
    return {MODEL + name: copied(tensor) for name, tensor in model_tensors(model).items()} | {
        UNSAVED + name: copied(buffer) for name, buffer in _unsaved(model).items()
    }


def unpack_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The opposite of :func:`pack_model`."""
    model.load_state_dict(_under(tensors, MODEL))
    unsaved = _under(tensors, UNSAVED)
    with torch.no_grad():
        for name, buffer in _unsaved(model).items():
            buffer.copy_(unsaved[name])


def pack_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of the optimiser's state, ``optimiser.0.exp_avg``, ...; its settings come from the options."""
    return {
        f"{OPTIMISER}{index}.{name}": copied(torch.as_tensor(value))
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def unpack_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The opposite of :func:`pack_optimiser`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, OPTIMISER).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor.clone()
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Where two records differ, a line each: ``learning_rate (0.1 there, 0.01 here)``."""
    if isinstance(there, dict) and isinstance(here, dict):
        prefix = f"{name}: " if name else ""
        found = []
        for key in dict.fromkeys([*there, *here]):
            if key not in here or key not in there:
                found.append(f"{prefix}{key} (only {'here' if key in here else 'there'})")
            else:
                found += differences(there[key], here[key], f"{prefix}{key}")
        return found
    if there == here:
        return []
    if isinstance(there, str) and isinstance(here, str) and ("\n" in there or "\n" in here):
        old, new = there.splitlines(), here.splitlines()
        for one, other in zip([*old, "the end"], [*new, "the end"], strict=False):
            if one != other:
                return [f"{name} ({one.strip()} there, {other.strip()} here)"]
    return [f"{name} ({_short(there)} there, {_short(here)} here)"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in saved}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
