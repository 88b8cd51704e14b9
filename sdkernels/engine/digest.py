"""What a result depends on, as one SHA-256: the model, the layers, the configurations, the data.

Unlike Python's hashes it is the same in every process. Unlike :mod:`sdkernels.analysis.fingerprint`, which compares a
model with itself, it knows nothing of where in memory things are.
"""

import functools
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Digest:
    """Takes values in, one after the other, and gives their SHA-256.

    Values are numbers, strings, bytes, None, tensors (type, shape and bits), arrays, devices' names, sequences,
    mappings, data classes (all fields), functions (their code, defaults and what they close over), models, and classes.

    Raises:
        TypeError: a value of another kind, which may hide what a result depends on.

    Example:
        >>> Digest(torch.zeros(2), "loss").hex == Digest(torch.zeros(2), "loss").hex
        True
        >>> Digest(torch.zeros(2)).hex == Digest(torch.zeros(2, dtype=torch.int64)).hex
        False
    """

    def __init__(self, *values: Any) -> None:
        self._sum = hashlib.sha256()
        for value in values:
            self.add(value)

    @property
    def hex(self) -> str:
        """64 digits."""
        return self._sum.hexdigest()

    @property
    def raw(self) -> bytes:
        """32 bytes."""
        return self._sum.digest()

    def add(self, value: Any) -> None:
        """Take in one value. Its kind and its length come first, so that no two rows of values look alike."""
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self._tensor(torch.from_numpy(np.ascontiguousarray(value)))
        elif value is None or isinstance(value, (bool, str)):
            self._bytes(type(value).__name__, json.dumps(value).encode())
        elif isinstance(value, Real):
            self._bytes("number", repr(value).encode())
        elif isinstance(value, bytes):
            self._bytes("bytes", value)
        elif isinstance(value, nn.Module):
            self._model(value)
        elif isinstance(value, type):
            self._bytes("class", f"{value.__module__}.{value.__qualname__}".encode())
        elif is_dataclass(value):
            self._many("data class", [type(value), *(getattr(value, f.name) for f in fields(value) if f.init)])
        elif isinstance(value, Mapping):
            self._many("mapping", [part for item in value.items() for part in item])
        elif isinstance(value, (Sequence, torch.Size)):
            self._many("sequence", value)
        elif isinstance(value, (slice, types.CodeType)) or callable(value):
            self._code(value)
        else:
            self._bytes("device or type", _named(value))

    def _many(self, kind: str, values: Sequence[Any]) -> None:
        self._bytes(kind, str(len(values)).encode())
        for value in values:
            self.add(value)

    def _bytes(self, kind: str, content: bytes | memoryview) -> None:
        self._sum.update(f"{kind}:{len(content)}:".encode())
        self._sum.update(content)

    def _tensor(self, tensor: Tensor) -> None:
        self._sum.update(f"tensor:{tensor.dtype}:{list(tensor.shape)}:".encode())
        plain = tensor.detach()
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        plain = (torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain).cpu().contiguous()
        if plain.numel():
            self._sum.update(plain.flatten().view(torch.uint8).numpy().data)

    def _model(self, model: nn.Module) -> None:
        """Every module's class, code and plain attributes, and every parameter's and buffer's bits."""
        modules = list(model.named_modules())
        self._many("model", [name for name, _ in modules])
        for _, module in modules:
            self.add(type(module))
            plain = {k: v for k, v in vars(module).items() if not k.startswith("__") and _is_plain(v)}
            self.add(dict(sorted(plain.items())))
            if not type(module).__module__.startswith("torch.nn."):
                self.add(_forward(module))
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                self._many("hooks", list(hooks.values()))
        for named in (model.named_parameters(), model.named_buffers()):
            held = dict(named)
            self._many("tensors", [part for item in held.items() for part in item])

    def _code(self, function: Any) -> None:
        if isinstance(function, slice):
            self._many("slice", [function.start, function.stop, function.step])
            return
        if isinstance(function, types.MethodType):
            self.add(function.__func__)
            owner = function.__self__
            if isinstance(owner, nn.Module):  # that is the model, which is taken in for itself
                return
            self.add(owner if isinstance(owner, type) else vars(owner))
            return
        if isinstance(function, (types.BuiltinFunctionType, types.MethodDescriptorType)):
            self._bytes("built in", f"{function.__module__}.{function.__qualname__}".encode())
            return
        if isinstance(function, functools.partial):
            self._many("partial", [function.func, function.args, function.keywords])
            return
        code = function if isinstance(function, types.CodeType) else getattr(function, "__code__", None)
        if code is None:  # an object that can be called
            self._many("callable", [type(function), type(function).__call__, vars(function)])
            return
        self._bytes("code", code.co_code)
        self._many("names", code.co_names)
        for constant in code.co_consts:
            self.add(repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else constant)
        if not isinstance(function, types.CodeType):
            self._many("defaults", [*(function.__defaults__ or ()), function.__kwdefaults__])
            self._many("closure", [cell.cell_contents for cell in function.__closure__ or ()])


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _forward(module: nn.Module) -> Any:
    """What tells a module's computation: its ``forward``, or the text of one that TorchScript compiled."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.code)
    forward = module.forward
    return getattr(forward, "__func__", forward)


def _named(value: Any) -> bytes:
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout, torch.Generator)):
        return str(value).encode()
    if value is Ellipsis:
        return b"..."
    raise TypeError(
        f"a {type(value).__name__} cannot be put into a key, so that work that depends on it cannot be stored; with "
        "store=, metrics are functions of plain values and tensors"
    )
