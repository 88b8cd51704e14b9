"""Results as files: arrays and a header in one NumPy ``.npz``, without pickle, put in place whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Path_ = str | os.PathLike[str]


def write(path: Path_, form: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write one file; a crash never leaves half of it under its name."""
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(file, allow_pickle=False, header=np.array(json.dumps({"format": form, **header})), **arrays)
    partial.replace(target)


def read(path: Path_, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of what :func:`write` wrote; runs no code from the file.

    Raises:
        ValueError: the file is no such result; names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            tensors = {name: torch.from_numpy(file[name].copy()) for name in file.files if name != "header"}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and json raise several kinds for a file that is something else
        raise ValueError(f"{path}: not a saved {form.split('.')[-1].split('/')[0]} ({error})") from error
    if header.get("format") != form:
        raise ValueError(f"{path}: its format is {header.get('format')!r}; this version reads {form!r}")
    return header, tensors


def by_prefix(tensors: Mapping[str, Tensor], field: str) -> dict[str, Tensor]:
    """Those that were written as ``field/NAME``, by name."""
    return {name[len(field) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{field}/")}


def with_prefix(field: str, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """A field's tensors by name, as :func:`by_prefix` finds them."""
    return {f"{field}/{name}": tensor for name, tensor in (tensors or {}).items()}
