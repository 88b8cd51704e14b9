"""Training runs on disk: one safetensors file a checkpoint, with its record inside; nothing that runs code on load."""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sdkernels.lab.training.state import MODEL, differences

FORMAT = "sdkernels.checkpoint/1"
LATEST = "latest.safetensors"


def epoch_file(epoch: int) -> str:
    """The name of a kept epoch's file.

    Example:
        >>> epoch_file(12)
        'epoch-000012.safetensors'
    """
    return f"epoch-{epoch:06d}.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Put tensors and record into one file, in one move: a crash, or a full disk, leaves what was there before.

    The record also stands next to it as ``.json``, for people and other programs; it is never read back.
    """
    text = json.dumps(record)
    metadata = {"format": FORMAT, "record": text, "crc32": _checksum(tensors, text)}
    _place(path, lambda partial: save_file(dict(tensors), partial, metadata))
    _place(path.with_suffix(".json"), lambda partial: partial.write_text(json.dumps(record, indent=1) + "\n"))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a checkpoint.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the file is damaged, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is a safetensors file, but no checkpoint in the format {FORMAT}")
            names: list[str] = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); remove it, or take another checkpoint"
        ) from error
    if metadata.get("crc32") != _checksum(tensors, metadata.get("record", "")):
        raise ValueError(f"{path} is damaged: its checksum is wrong; remove it, or take another checkpoint")
    try:
        record: dict[str, Any] = json.loads(metadata["record"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no record of a training ({error}); take another checkpoint") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} holds no record of a training, but a {type(record).__name__}; take another checkpoint"
        )
    return tensors, record


def load_checkpoint(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Put a checkpoint's weights and buffers into a model.

    Args:
        path: an ``epoch-NNNNNN.safetensors``, a ``latest.safetensors``, or a folder with the latter.
        model: of the same shapes; keeps its device and mode.

    Returns:
        The checkpoint's record: options, seed, history, ...

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a damaged file, or one of another model; names the file and what differs.
    """
    path = Path(path)
    path = path / LATEST if path.is_dir() else path
    tensors, record = read(path)
    if record.get("holds") == "run":
        tensors = {n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)}
    there = {name: f"{t.dtype} {list(t.shape)}" for name, t in tensors.items()}
    here = {name: f"{t.dtype} {list(t.shape)}" for name, t in model.state_dict().items()}
    found = differences(there, here)
    if found:
        raise ValueError(f"{path} is a checkpoint of another model; it differs in {', '.join(found[:5])}")
    model.load_state_dict(tensors)
    return record


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _place(path: Path, save: Callable[[Path], object]) -> None:
    """Save under another name, and give the file its own when all of it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except SafetensorError as error:  # which hides the system's own
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
