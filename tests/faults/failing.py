"""An operation of torch that fails: the n-th one that makes a tensor of two dimensions or more."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Failing(TorchDispatchMode):
    """Within the context, the operation of this number raises the error, once; none does if there is no number."""

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.ndim >= 2:
            self.count += 1
            if self.error is not None and self.count - 1 == self.at:
                raise self.error
        return result


def no_memory() -> torch.OutOfMemoryError:
    """As a GPU's allocator says it."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
