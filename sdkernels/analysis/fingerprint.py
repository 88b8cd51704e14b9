"""What a model computes depends on, in short: whoever keeps work done on a model compares two of these."""

from collections.abc import Hashable
from itertools import chain

import torch
from torch import Tensor, nn

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module) -> Hashable:
    """Equal as long as a model computes the same; what it takes is about one read of its weights.

    It has each module's identity, mode, hooks and plain attributes (numbers, strings), and each parameter's and
    buffer's place, shape, version and sum of bits, as writing through ``.data`` raises no version. Tensors that are
    neither are left out: many models keep their last activation in one.
    """
    modules = tuple(_of_module(name, module) for name, module in model.named_modules())
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.layout == torch.strided]
    places = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype, _version(t)) for t in tensors)
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(_sum_of_bits(tensor))
    sums = tuple(total for totals in by_device.values() for total in torch.stack(totals).tolist())
    return modules, places, sums


def _of_module(name: str, module: nn.Module) -> Hashable:
    plain = tuple((key, value) for key, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    hooks = (
        tuple(module._forward_hooks),
        tuple(module._forward_pre_hooks),
    )  # their numbers, which are never given again
    return name, id(module), type(module), plain, hooks


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """int64 []: in words of eight bytes where that is possible, which is several times faster."""
    bits = tensor.detach()
    bits = torch.view_as_real(bits) if bits.is_complex() else bits
    if bits.is_contiguous() and bits.numel() * bits.element_size() % 8 == 0:
        bits = bits.view(-1).view(torch.int64) if bits.numel() else bits.new_zeros(1, dtype=torch.int64)
    else:
        bits = bits.view(_BITS[bits.element_size()])
    return bits.sum(dtype=torch.int64)
