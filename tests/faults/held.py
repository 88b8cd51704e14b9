"""What a call must leave as it was, whatever ends it: the model, and the process's own settings."""

import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_pre_hooks", "_hooks_with_kwargs"))]


def bits(tensor: Tensor | None) -> Any:
    """A tensor by its content, which can be compared."""
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.detach().numpy().tobytes())


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of it, by name."""
    found: dict[str, Any] = {
        "gradients are recorded": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.enabled,
        "dispatch modes": list(_get_current_dispatch_mode_stack()),
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": str(np.random.get_state()),
        "Python's random state": random.getstate(),
        "hooks of all modules": [len(getattr(torch.nn.modules.module, f"_global_{kind}_hooks")) for kind in _GLOBAL],
    }
    for name, module in model.named_modules():
        found |= {
            f"{name}.training": module.training,
            f"{name}: class": type(module),
            f"{name}: keys": list(vars(module)),
        }
        found |= {f"{name}.{hooks}": list(getattr(module, hooks)) for hooks in _HOOKS if hooks in vars(module)}
        found[f"{name}: forward"] = vars(module).get("forward")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found |= {
            f"{name}: which": id(tensor),
            f"{name}: bits": bits(tensor),
            f"{name}: requires_grad": tensor.requires_grad,
            f"{name}: hooks": len(tensor._backward_hooks or ()),
            f"{name}.grad": bits(tensor.grad),
            f"{name}.grad: which": id(tensor.grad),
        }
    return found


_GLOBAL = ("forward", "forward_pre", "backward", "backward_pre")


@contextmanager
def left_as_it_was(model: nn.Module, fault: str = "") -> Iterator[None]:
    """Whatever is raised within, model and process are what they were."""
    before = state_of(model)
    try:
        yield
    finally:
        after = state_of(model)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not changed, f"{fault}: {sorted(changed)} changed"
