"""What a result depends on, as one SHA-256: the model, the layers, the configurations, the data.

Unlike Python's hashes it is the same in every process. Unlike :mod:`sdkernels.analysis.fingerprint`, which compares a
model with itself, it knows nothing of where in memory things are.
"""

import enum
import hashlib
import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdkernels.engine.digested_code import add_class, add_code, add_function, is_own
from sdkernels.engine.digested_model import digest_of_model

_NAMED = (torch.dtype, torch.device, torch.memory_format, torch.layout, types.EllipsisType)
_CONTAINERS = (Mapping, Sequence, Set, slice)


class Digest:
    """Takes values in, one after the other, and gives their SHA-256.

    Values are numbers, strings, bytes, None, tensors (type, shape and bits), arrays, generators (their state), devices'
    and types' names, sequences, mappings, sets, data classes (all fields), functions (their code, defaults, what they
    close over, the globals that they read), models, classes, and objects of classes that are not a library's.

    Args:
        values: the first of them.
        lenient: of a value of another kind its type's name is taken in, and no error is raised.
        known: by ``id``, what is known by a number instead of by its content.

    Raises:
        TypeError: a value of another kind, which may hide what a result depends on.

    Example:
        >>> Digest(torch.zeros(2), "loss").hex == Digest(torch.zeros(2), "loss").hex
        True
        >>> Digest(torch.zeros(2)).hex == Digest(torch.zeros(2, dtype=torch.int64)).hex
        False
    """

    def __init__(self, *values: Any, lenient: bool = False, known: Mapping[int, int] | None = None) -> None:
        self._sum = hashlib.sha256()
        self.lenient = lenient
        self._known = known or {}
        self._seen: dict[int, tuple[int, Any]] = {}  # objects by id, held so that no other one gets it
        self._open: list[int] = []  # ids of the containers that are being taken in
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
        if type(value) is str:  # most are
            self.add_bytes("str", value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._array(value)
        elif isinstance(value, enum.Enum):
            self.add_many("enum", [type(value).__qualname__, value.name, value.value])
        elif value is None or isinstance(value, (bool, str)):
            self.add_bytes(type(value).__name__, json.dumps(value).encode())
        elif isinstance(value, (Real, complex)):
            self.add_bytes("number", repr(value).encode())
        elif isinstance(value, (bytes, bytearray)):
            self.add_bytes("bytes", value)
        elif isinstance(value, _NAMED):
            self.add_bytes("name", str(value).encode())
        elif isinstance(value, torch.Generator):
            self.add_many("generator", [value.device, value.get_state()])
        elif isinstance(value, np.random.Generator):
            self.add_many("generator", [value.bit_generator.state])
        elif isinstance(value, os.PathLike):
            self.add_bytes("path", os.fspath(value).encode() if isinstance(os.fspath(value), str) else os.fspath(value))
        elif isinstance(value, types.CodeType):
            add_code(self, value)
        elif isinstance(value, types.ModuleType):
            self.add_bytes("module", value.__name__.encode())
        elif isinstance(value, _CONTAINERS) and not isinstance(value, nn.Module):
            self._container(value)
        elif id(value) in self._known:
            self.add_bytes("known", str(self._known[id(value)]).encode())
        elif id(value) in self._seen:
            self.add_bytes("again", str(self._seen[id(value)][0]).encode())
        else:
            self._seen[id(value)] = (len(self._seen), value)
            self._object(value)

    def add_many(self, kind: str, values: Sequence[Any]) -> None:
        """Take in several values as one."""
        self.add_bytes(kind, str(len(values)).encode())
        for value in values:
            self.add(value)

    def add_bytes(self, kind: str, content: bytes | bytearray) -> None:
        """Take in bytes as they are."""
        self._sum.update(f"{kind}:{len(content)}:".encode())
        self._sum.update(content)

    @contextmanager
    def leniently(self) -> Iterator[None]:
        """Within, nothing is refused."""
        before, self.lenient = self.lenient, True
        yield
        self.lenient = before

    def _tensor(self, tensor: Tensor) -> None:
        self._sum.update(f"tensor:{tensor.dtype}:{tensor.layout}:{list(tensor.shape)}:".encode())
        plain = tensor.detach()
        if plain.is_quantized:
            self.add_many("quantized", _scales(plain))
            plain = plain.int_repr()
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        plain = plain.resolve_conj().resolve_neg()
        plain = (torch.view_as_real(plain) if plain.is_complex() else plain).cpu().contiguous()
        if plain.numel():
            self._sum.update(plain.flatten().view(torch.uint8).numpy().data)

    def _array(self, array: "np.ndarray[Any, Any] | np.generic") -> None:
        if array.dtype.hasobject:
            self._refuse(array)
            return
        self._sum.update(f"array:{array.dtype.descr}:{list(array.shape)}:".encode())
        self.add_bytes("bits", array.tobytes())

    def _container(self, value: Any) -> None:
        if id(value) in self._open:
            self.add_bytes("within", str(self._open.index(id(value))).encode())
            return
        self._open.append(id(value))
        kind = "" if type(value).__module__ == "builtins" else f" {type(value).__qualname__}"
        if isinstance(value, Mapping):
            self.add_many(f"mapping{kind}", [part for item in value.items() for part in item])
        elif isinstance(value, Set):
            known = {**self._known, **{key: -1 - number for key, (number, _) in self._seen.items()}}
            held = sorted(Digest(one, lenient=self.lenient, known=known).hex for one in value)
            self.add_many(f"set{kind}", held)
        elif isinstance(value, slice):
            self.add_many("slice", [value.start, value.stop, value.step])
        else:
            self.add_many(f"sequence{kind}", value)
        self._open.pop()
        if kind and callable(value):
            self.add(type(value))

    def _object(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self.add_bytes("model", digest_of_model(value, Digest, self._known).encode())
        elif isinstance(value, type):
            add_class(self, value)
        elif is_dataclass(value):
            self.add_many("data class", [type(value), *(getattr(value, f.name, None) for f in fields(value))])
        elif add_function(self, value):
            pass
        elif is_own(type(value).__module__) or (callable(value) and hasattr(value, "__dict__")):
            slots = [name for base in type(value).__mro__ for name in _slots(base)]
            held = {**getattr(value, "__dict__", {}), **{name: getattr(value, name, None) for name in slots}}
            self.add_many("object", [type(value), held])
            if callable(value):  # strictly; add_class is lenient
                self.add(type(value).__call__)
        else:
            self._refuse(value)

    def _refuse(self, value: Any) -> None:
        if not self.lenient:
            raise TypeError(
                f"a {type(value).__name__} cannot be put into a key, so that work that depends on it cannot be stored. "
                "With store=, metrics are functions of plain values and tensors: give it as an argument of what it is "
                "made from, or leave out store="
            )
        self.add_bytes("unknown", f"{type(value).__module__}.{type(value).__qualname__}".encode())


def _scales(quantized: Tensor) -> list[Any]:
    if quantized.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [quantized.q_scale(), quantized.q_zero_point()]
    scales, zeros = quantized.q_per_channel_scales(), quantized.q_per_channel_zero_points()
    return [scales, zeros, quantized.q_per_channel_axis()]


def _slots(base: type) -> list[str]:
    slots = base.__dict__.get("__slots__", ())
    named = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in named if name not in ("__dict__", "__weakref__")]
