"""A model's forward pass by ``torch.compile``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sdkernels.lab.training.evaluation import device_of


class CompiledForward(nn.Module):
    """Stands in for the model in training: compiles it when first called, and says what to do where that fails.

    On CUDA with ``mode="reduce-overhead"``, that is by CUDA graphs. It has no parameters of its own: the model is what
    is saved, loaded and evaluated.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._graphs = device_of(model).type == "cuda"
        self._model = [model]  # in a list, so that its parameters are not registered here
        self._compiled: Callable[..., Any] | None = None

    def forward(self, *inputs: Any) -> Any:
        """What the model gives."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if self._compiled is not None:
            return self._compiled(*inputs)
        try:
            compiled = torch.compile(self._model[0], mode="reduce-overhead" if self._graphs else None)
            output = compiled(*inputs)
        except Exception as error:
            raise RuntimeError(
                f"compile=True: the first forward pass of the compiled model failed ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}). Where the same model trains with compile=False, it is "
                "torch.compile that cannot take it, or a C++ compiler is missing"
            ) from error
        object.__setattr__(self, "_compiled", compiled)  # else it too would be registered as a part
        return output
