"""Results as files: arrays and a header in one NumPy ``.npz``, without pickle, put in place whole."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sdkernels.engine.arrays import read_arrays, write_arrays

Path_ = str | os.PathLike[str]

Made = TypeVar("Made")


def write(path: Path_, form: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write one file; a crash never leaves half of it under its name.

    Raises:
        TypeError: no path.
        ValueError, OSError: a path that no file can have, a folder, a full disk; names it.
    """
    target = _file(path)
    if target.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder; give the name of a file")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            write_arrays(file, {"header": np.array(json.dumps({"format": form, **header})), **arrays})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path_, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of what :func:`write` wrote; runs no code from the file.

    Raises:
        TypeError: no path.
        ValueError: the file is no such result; names it.
    """
    _file(path)
    try:
        with open(path, "rb") as file:
            arrays = read_arrays(file)
        header = json.loads(str(arrays.pop("header")).encode("ascii"))  # as it was written; numpy takes what is no text
        if not isinstance(header, dict):
            raise TypeError(f"its header is a {type(header).__name__}")
        json.dumps(header, ensure_ascii=False).encode()  # or there are halves of characters in it, which nothing prints
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and json raise several kinds for a file that is something else
        raise ValueError(f"{path}: not a saved {_kind(form)} ({_short(error)})") from error
    if header.get("format") != form:
        raise ValueError(f"{path}: its format is {str(header.get('format'))[:100]!r}; this version reads {form!r}")
    return header, tensors


def load(path: Path_, form: str, make: Callable[[dict[str, Any], dict[str, Tensor]], Made]) -> Made:
    """What ``make`` makes of a file's header and tensors.

    Raises:
        ValueError: the file is no such result, or its parts do not fit; names it.
    """
    header, tensors = read(path, form)
    try:
        return make(header, tensors)
    except KeyError as error:
        raise ValueError(f"{path}: a saved {_kind(form)} without {_short(error)}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{path}: its parts are not those of a saved {_kind(form)} ({_short(error)})") from error


def check_header(header: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Refuse entries of another type.

    Raises:
        KeyError: an entry that is not there.
        TypeError: one of another type.
    """
    for name, kind in kinds.items():
        if type(header[name]) not in kind:
            raise TypeError(f"{name} is a {type(header[name]).__name__}")


def check_units(layers: Any, unit_counts: Any) -> int:
    """How many pooled units there are.

    Raises:
        TypeError, ValueError: no list of names, or not a number of units for each.
    """
    if type(layers) is not list or not all(type(layer) is str for layer in layers):
        raise TypeError("layers are not a list of names")
    if type(unit_counts) is not list or not all(type(count) is int and count >= 0 for count in unit_counts):
        raise TypeError("unit_counts are not a list of whole numbers")
    if len(layers) != len(unit_counts):
        raise ValueError(f"there are {len(layers)} layers with {len(unit_counts)} unit_counts")
    return sum(unit_counts)


def check_layout(held: Mapping[str, Tensor | None], layout: Mapping[str, str], **sizes: int) -> None:
    """Refuse tensors of another type or shape.

    Args:
        held: tensors by name; None is not looked at.
        layout: of each its type and sizes, as ``"int64 R T"``: a letter is the same size wherever it stands.
        sizes: letters' sizes, where they are known.

    Raises:
        ValueError: names the tensor, how it is and how it should be.

    Example:
        >>> check_layout({"orders": torch.zeros(2, 3, dtype=torch.int64)}, {"orders": "int64 R U"}, U=3)
    """
    for name, words in layout.items():
        tensor, (dtype, *letters) = held.get(name), words.split()
        if tensor is None:
            continue
        fits = str(tensor.dtype) == f"torch.{dtype}" and tensor.ndim == len(letters)
        for letter, size in zip(letters, tensor.shape, strict=False):
            fits &= size == (int(letter) if letter.isdecimal() else sizes.setdefault(letter, size))
        if not fits:
            expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} [{expected}]")


def _kind(form: str) -> str:
    return form.split(".")[-1].split("/")[0]


def _short(error: Exception) -> str:
    return str(error)[:500]


def by_prefix(tensors: Mapping[str, Tensor], field: str) -> dict[str, Tensor]:
    """Those that were written as ``field/NAME``, by name."""
    return {name[len(field) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{field}/")}


def with_prefix(field: str, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """A field's tensors by name, as :func:`by_prefix` finds them."""
    return {f"{field}/{name}": tensor for name, tensor in (tensors or {}).items()}


def _file(path: Any) -> Path:
    """A path that a file could have."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a {type(path).__name__}; give the name of a file")
    try:
        os.stat(path)
    except ValueError as error:  # a NUL, or what the system's encoding does not have
        raise ValueError(f"path={path!r}: no file can have this name ({error})") from error
    except OSError:
        pass  # so far there is none
    return Path(path)
