"""Where activations are summed and decomposed, which need not be where the networks are."""

import torch


def named_device(given: str | torch.device | None) -> torch.device | None:
    """The device that a caller names; None for none.

    Raises:
        ValueError, TypeError: there is no such device, or it has no float64, as Apple's GPUs.

    Example:
        >>> named_device("cpu"), named_device(None)
        (device(type='cpu'), None)
        >>> named_device("meta")
        Traceback (most recent call last):
        ValueError: device='meta' cannot sum float64 numbers here (Tensor.item() cannot be called on meta tensors). ...
    """
    if given is None:
        return None
    if not isinstance(given, (str, torch.device)):
        raise TypeError(f"device is a {type(given).__name__}; give a torch.device or its name, as 'cpu' or 'cuda:1'")
    try:
        found = torch.device(given)
        float(torch.zeros(1, dtype=torch.float64, device=found).sum())
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device={str(given)!r} cannot sum float64 numbers here ({reason}). Leave it out, or give 'cpu', or 'cuda' "
            "where there is an NVIDIA GPU"
        ) from error
    return found
