"""Pickles of plain data, read without running anything that they name.

A pickle is a program: it may name any function and call it. Here the names lead to stand-ins that build an array out of
checked parts, and every other name is an error, so that there is nothing to call. Three walls:

1. only instructions that are known to be harmless with stand-ins are let through, and tuples of few parts, which take
   no time to compare or to print; seen before any of them is run;
2. every name is looked up among the stand-ins below and nowhere else;
3. what comes out is copied into new lists, dicts and arrays, type by type.
"""

import io
import math
import pickle
import pickletools
import reprlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sdkernels.lab.readers.places import read_whole

LARGEST = 2**30  # bytes of a file; CIFAR-100's is 155 MB
_DEEPEST = 20  # lists within lists
_MOST_PARTS = 1000  # of a tuple, with those of tuples in it; an array's description has ten
_LONGEST = 300  # characters of what a message quotes
_STORES = ("PUT", "BINPUT", "LONG_BINPUT")
_MEMORY = (*_STORES, "GET", "BINGET", "LONG_BINGET", "MEMOIZE")
_DICTS_AND_LISTS = ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS")
_TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_NUMBERS = ("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1")
_TEXT = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD")  # of stand-ins only
_OTHERS = ("FLOAT", "BINFLOAT", "EMPTY_SET", "FROZENSET", "ADDITEMS")  # refused later, by their types' names
_FRAMES = ("PROTO", "FRAME", "MARK", "STOP")
_INSTRUCTIONS = {*_MEMORY, *_DICTS_AND_LISTS, *_TUPLES, *_NUMBERS, *_TEXT, *_BYTES, *_CALLS, *_OTHERS, *_FRAMES}


def load_plain(path: Path, hint: str) -> Any:
    """Read a pickle of plain data, as Python 2 or 3 wrote it.

    Args:
        path: the file.
        hint: where to get it; ends every error.

    Returns:
        Dicts, lists, bytes (as which Python 2's strings come), str, ints, bools, None, and numpy arrays of numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the pickle holds or names anything else, or is damaged; says what, and in which file.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "batch").write_bytes(pickle.dumps({"labels": [3, 1]}, protocol=2))
        ...     load_plain(Path(folder) / "batch", "")
        {'labels': [3, 1]}
    """
    raw = read_whole(path, hint)
    try:
        if len(raw) > LARGEST:
            raise _RefusedError(f"is larger than {LARGEST} bytes")
        _check_instructions(raw)
        return _plain(_Unpickler(io.BytesIO(raw), encoding="bytes").load(), {}, _DEEPEST)
    except _RefusedError as refused:
        raise ValueError(
            f"{path} {refused}. Only lists, dicts, bytes, strings, whole numbers and arrays of numbers are read, and "
            f"nothing in it was run. {hint}"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is no pickle, or damaged: {str(error)[:_LONGEST]}. {hint}") from error


class _RefusedError(Exception):
    """What a file may not hold."""


def _check_instructions(raw: bytes) -> None:
    """Parse the pickle without running it: known instructions, small tuples, and nothing after the end."""
    end, tuples = -1, _Tuples()
    for instruction, argument, position in pickletools.genops(raw):
        name = instruction.name
        if name not in _INSTRUCTIONS:
            what = "" if argument is None else f" {reprlib.repr(argument)}"
            raise _RefusedError(f"holds a {name}{what} at byte {position}, which plain data has no need of")
        if name in _STORES and isinstance(argument, int) and argument > len(raw):
            raise _RefusedError(f"numbers an object {argument}, which would take memory that it does not need")
        tuples.follow(instruction, argument)
        end = position or 0
    if end != len(raw) - 1:
        raise _RefusedError(f"goes on for {len(raw) - 1 - end} bytes after its end")


class _Tuples:
    """How many parts the tuples on a pickle's stack have.

    A tuple may hold another twice, and so on: a hundred bytes then make one whose parts nobody could count, and that
    is what a dict's key or a message does. One that nests a million deep ends the process.
    """

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # of each object its parts, 1 of what is no tuple; None: a mark
        self._memory: dict[int, int | None] = {}

    def follow(self, instruction: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do to the numbers of parts what the instruction does to objects."""
        name = instruction.name
        if name in _STORES or name == "MEMOIZE":
            self._memory[len(self._memory) if argument is None else int(argument)] = self._stack[-1]
        elif name == "MARK":
            self._stack.append(None)
        elif name in _MEMORY:
            self._stack.append(self._memory[int(argument)])
        else:
            parts = self._taken(instruction.stack_before)
            made = 1 + sum(parts) if name in _TUPLES else 1
            if made > _MOST_PARTS:
                raise _RefusedError(f"holds a tuple of more than {_MOST_PARTS} parts")
            self._stack += [made] * len(instruction.stack_after)

    def _taken(self, kinds: list[pickletools.StackObject]) -> list[int]:
        """What it takes off the stack: so many objects, or all down to a mark, and those below that it needs."""
        taken: list[int] = []
        count = len(kinds)
        if pickletools.markobject in kinds:
            while (parts := self._stack.pop()) is not None:
                taken.append(parts)
            count = kinds.index(pickletools.markobject)
        return taken + [self._stack.pop() or 1 for _ in range(count)]


class _Unpickler(pickle.Unpickler):
    """Looks names up among the stand-ins only."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _RefusedError(f"tries to load {module[:_LONGEST]}.{name[:_LONGEST]}")
        return stand_in()

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError(f"tries to load an object from elsewhere, {reprlib.repr(pid)}")


class _StandIn:
    """Takes the place of a function or class; without attributes, so that nothing can be set on it."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        raise _RefusedError(f"calls {type(self).__name__[1:]} by itself")

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError(f"gives {type(self).__name__[1:]} a state")


class _Array(_StandIn):
    """An array to be: what numpy's ``_reconstruct`` returns, and then its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), tuple(shape), _DType() as dtype, bool() | 0 | 1 as by_columns, bytes(data)):
                self.value = _array(shape, dtype, bool(by_columns), data)
            case (int(), tuple(), _DType(), _, list()):
                raise _RefusedError("holds an array of objects")
            case _:
                raise _RefusedError("holds an array whose parts are not a shape, a type and bytes")


class _NdArray(_StandIn):
    """Stands for ``numpy.ndarray``, which ``_reconstruct`` is given."""

    __slots__ = ()


class _Reconstruct(_StandIn):
    """Stands for numpy's ``_reconstruct(ndarray, (0,), b"b")``."""

    __slots__ = ()

    def __call__(self, *args: Any) -> _Array:
        match args:
            case (_NdArray(), (0,), b"b" | "b"):
                return _Array()
        raise _RefusedError("reconstructs something other than an array")


class _DType(_StandIn):
    """Stands for a ``numpy.dtype``: a kind and a size, then its state with the order of bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), str() | bytes() as order, None, None, None, -1, -1, 0) if _text(order) in "<>=|":
                self.order = _text(order)
            case _:
                raise _RefusedError(f"holds an array of a type other than numbers, {self.code} with fields or parts")


class _NumpyDType(_StandIn):
    """Stands for the class ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, *args: Any) -> _DType:
        code = _text(args[0]) if args and isinstance(args[0], str | bytes) else repr(args)
        if len(args) != 3 or code not in _CODES:
            raise _RefusedError(f"holds an array of objects or of another type than numbers, dtype {code[:40]!r}")
        return _DType(code)


class _Encode(_StandIn):
    """Stands for ``_codecs.encode(text, "latin1")``, which is how protocol 2 writes bytes in Python 3."""

    __slots__ = ()

    def __call__(self, *args: Any) -> bytes:
        match args:
            case (str(text), "latin1" | b"latin1"):
                return text.encode("latin1")
        raise _RefusedError("encodes something other than bytes")


class _Bytes(_StandIn):
    """Stands for ``bytes()``, which is how protocol 2 writes empty bytes in Python 3."""

    __slots__ = ()

    def __call__(self, *args: Any) -> bytes:
        if args:
            raise _RefusedError("calls bytes with arguments")
        return b""


_CODES = frozenset(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _NumpyDType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("_codecs", "encode"): _Encode,
    ("__builtin__", "bytes"): _Bytes,
    ("builtins", "bytes"): _Bytes,
}


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _array(shape: tuple[Any, ...], dtype: _DType, by_columns: bool, data: bytes) -> np.ndarray[Any, Any]:
    order = "=" if dtype.order == "|" else dtype.order
    stored = np.dtype(order + dtype.code)
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
        raise _RefusedError(f"holds an array of shape {reprlib.repr(shape)}")
    if math.prod(shape) * stored.itemsize != len(data):
        raise _RefusedError(f"holds an array of shape {reprlib.repr(shape)} and type {dtype.code} in {len(data)} bytes")
    values = np.frombuffer(data, stored).reshape(shape, order="F" if by_columns else "C")
    return values.astype(stored.newbyteorder("="), order="C")


def _plain(value: Any, copies: dict[int, Any], deeper: int) -> Any:
    """A copy that holds plain data only; what occurs twice is copied once."""
    if value is None or type(value) in (bool, int, str, bytes):
        return value
    if id(value) in copies:
        return copies[id(value)]
    if deeper == 0:
        raise _RefusedError(f"nests deeper than {_DEEPEST} levels, or holds itself")
    copy: Any
    if type(value) is list:
        copy = [_plain(item, copies, deeper - 1) for item in value]
    elif type(value) is dict:
        if not all(type(key) in (str, bytes, int) for key in value):
            raise _RefusedError("holds a dict whose keys are not all strings or whole numbers")
        copy = {key: _plain(item, copies, deeper - 1) for key, item in value.items()}
    elif type(value) is _Array and value.value is not None:
        copy = value.value
    else:
        raise _RefusedError(f"holds a {type(value).__name__.lstrip('_')}")
    copies[id(value)] = copy
    return copy
