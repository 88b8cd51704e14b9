"""A model's forward pass by ``torch.compile``."""

from typing import Any

import torch
from torch import nn

from sdkernels.lab.training.evaluation import device_of


class _Compiled(nn.Module):
    """Stands in for the model in training; says what to do where it cannot be compiled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._graphs = device_of(model).type == "cuda"
        # In a list, so that the parameters are not registered twice.
        self._model = [torch.compile(model, mode="reduce-overhead" if self._graphs else None)]
        self._has_run = False

    def forward(self, *inputs: Any) -> Any:
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if self._has_run:
            return self._model[0](*inputs)
        try:
            output = self._model[0](*inputs)
        except Exception as error:
            raise RuntimeError(
                f"compile=True: the first forward pass of the compiled model failed ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}). Where the same model trains with compile=False, it is "
                "torch.compile that cannot take it, or a C++ compiler is missing"
            ) from error
        self._has_run = True
        return output


def compiled_forward(model: nn.Module) -> nn.Module:
    """The model compiled when first called; on CUDA with ``mode="reduce-overhead"``, that is by CUDA graphs."""
    return _Compiled(model)
