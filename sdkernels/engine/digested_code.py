"""Code as part of a digest: functions with all that they read, and classes.

What comes with Python, or is installed as a library, goes by its name; everybody else's code is taken in, as far as
names in it lead: a function's globals, the functions among these, and so on.
"""

import dis
import functools
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from sdkernels.engine.digest import Digest

_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    np.ufunc,
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
)
# Those of the package that say no more than their fields do; what they mean is part of the key's format.
_OURS = ("sdkernels.engine", "sdkernels.analysis", "sdkernels.ops")
_INSTALLED = ("site-packages", "dist-packages")
_MADE_BY_PYTHON = ("__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__firstlineno__")


@functools.cache
def is_own(module: str) -> bool:
    """Whether a module is neither Python's, nor an installed library, nor of this package's core."""
    root = module.split(".")[0]
    if root in sys.stdlib_module_names or root in ("torch", "numpy") or module.startswith(_OURS):
        return False
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or not any(folder in Path(file).parts for folder in _INSTALLED)


def add_function(digest: "Digest", function: Any) -> bool:
    """Take in a function, a method, a partial function or one that is built in; False: it is none of these."""
    if isinstance(function, types.MethodType):
        digest.add_many("method", [function.__func__, function.__self__])
    elif isinstance(function, functools.partial):
        digest.add_many("partial", [function.func, function.args, function.keywords])
    elif isinstance(function, torch.jit.ScriptFunction):
        digest.add_bytes("script", re.sub(r" *#.*", "", str(function.graph)).encode())  # comments tell paths
    elif isinstance(function, (staticmethod, classmethod)):
        digest.add_many(type(function).__name__, [function.__func__])
    elif isinstance(function, property):
        digest.add_many("property", [function.fget])
    elif isinstance(function, functools.cached_property):
        digest.add_many("property", [function.func])
    elif isinstance(function, types.FunctionType):
        _add_plain(digest, function)
    elif isinstance(function, _BUILT_IN):
        digest.add_bytes("built in", _name(function))
        owner = getattr(function, "__self__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            digest.add(owner)
    else:
        return False
    return True


def add_code(digest: "Digest", code: types.CodeType) -> None:
    """Take in what a compiled function does, but not where it stands."""
    digest.add_bytes("code", code.co_code)
    digest.add_many("signature", [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags])
    digest.add_bytes("handlers", getattr(code, "co_exceptiontable", b""))
    digest.add_many("names", [code.co_names, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]])
    digest.add_many("constants", code.co_consts)


def add_class(digest: "Digest", cls: type) -> None:
    """Take in a class's name, and the functions and values in it and in its bases, but for libraries'."""
    digest.add_bytes("class", _name(cls))
    with digest.leniently():
        for base in cls.__mro__:
            if not is_own(base.__module__):
                continue
            for name, member in sorted(vars(base).items()):
                is_slot = isinstance(member, (types.GetSetDescriptorType, types.MemberDescriptorType))
                if not is_slot and name not in _MADE_BY_PYTHON and not name.startswith("_abc_"):
                    digest.add_many(name, [member])


def _add_plain(digest: "Digest", function: types.FunctionType) -> None:
    add_code(digest, function.__code__)
    digest.add_many("defaults", [function.__defaults__, function.__kwdefaults__])
    digest.add_many("closure", [_content(cell) for cell in function.__closure__ or ()])
    if not is_own(function.__module__ or ""):
        return
    extra = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
    if extra:
        digest.add(extra)
    names = _names(function.__code__)
    for name in sorted(_read_globals(function.__code__)):
        if name in function.__globals__:
            digest.add_bytes("global", name.encode())
            _add_global(digest, function.__globals__[name], names)


def _add_global(digest: "Digest", value: Any, names: set[str]) -> None:
    if isinstance(value, types.ModuleType):
        digest.add(value)
        if is_own(value.__name__):
            for name in sorted(names & vars(value).keys()):
                _add_global(digest, vars(value)[name], names - {name})
    elif isinstance(value, (type, types.FunctionType, *_BUILT_IN)) and not is_own(value.__module__ or ""):
        digest.add_bytes("library's", _name(value))
    else:
        digest.add(value)


def _read_globals(code: types.CodeType) -> set[str]:
    found = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_read_globals(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _names(code: types.CodeType) -> set[str]:
    """All that a function reads by name, attributes included."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return "empty"


def _name(value: Any) -> bytes:
    module = getattr(value, "__module__", None) or ""
    return f"{module}.{getattr(value, '__qualname__', getattr(value, '__name__', str(value)))}".encode()
