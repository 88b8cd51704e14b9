"""Checkpoints of trainings: weights for a model, and whole runs to go on from."""

import json
import random
import struct
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from sdkernels.lab.training import TrainingOptions, load_checkpoint, train
from sdkernels.lab.training.checkpoints import _checksum
from tests.fuzz.readers.mutations import changed_bytes, changed_value
from tests.fuzz.readers.reader import Reader

_OPTIONS = TrainingOptions(epochs=2, batch_size=8, optimiser="adam")
_INPUTS, _LABELS = torch.arange(32.0).view(16, 2) / 32, torch.arange(16) % 2


def _model() -> nn.Module:
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, 2, 3), nn.BatchNorm1d(3), nn.utils.skip_init(nn.Linear, 3, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    return model


@cache
def _made() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(_model(), (_INPUTS, _LABELS), _OPTIONS, seed=0, checkpoints=folder, keep_epochs=[1])
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def _read_weights(path: Path) -> None:
    model = _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load_checkpoint(path, model)
    except Exception:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "half is loaded"
        raise
    kept = load(path.read_bytes())
    for name, tensor in model.state_dict().items():
        own = kept.get(f"model.{name}", kept.get(name))
        assert own is not None
        assert tensor.numpy().tobytes() == own.numpy().tobytes()


def _read_run(path: Path) -> None:
    """A run that goes on from the file ends as one that was never stopped, if nothing in it was changed."""
    found = train(_model(), (_INPUTS, _LABELS), _OPTIONS, seed=0, checkpoints=path.parent)
    assert 0 <= found.accuracy <= 1


def _change(content: bytes, draw: random.Random) -> bytes:
    """The header or the record, with the checksum made anew or not; a tensor's numbers, type, shape or name."""
    try:
        tensors, metadata = load(content), _metadata(content)
        match draw.randrange(4):
            case 0:
                metadata["record"] = json.dumps(changed_value(json.loads(metadata["record"]), draw))
            case 1:
                name = draw.choice(sorted(tensors))
                tensor = tensors.pop(name)
                kept = draw.choice(
                    (
                        tensor.float(),
                        tensor.to(torch.bfloat16),
                        tensor.flatten(),
                        tensor[None],
                        tensor * 0 + 7,
                        tensor[:0],
                    )
                )
                tensors[draw.choice((name, name, name, f"{name}x", "optimiser.x.y", "carried.0", "draws.x"))] = kept
            case 2:
                tensors.pop(draw.choice(sorted(tensors)))
            case _:
                return _changed_header(content, draw)
        if draw.random() < 0.9:
            metadata["crc32"] = _checksum(tensors, metadata.get("record", ""))
        if draw.random() < 0.1:
            metadata.pop(draw.choice(sorted(metadata)))
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    except Exception:  # a damaged file may raise anything
        return changed_bytes(content, draw)


def _metadata(content: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", content[:8])
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found


def _changed_header(content: bytes, draw: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(changed_value(json.loads(content[8 : 8 + length]), draw)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


WEIGHTS = Reader("checkpoints", "epoch-000001.safetensors", lambda: [*_made().values()], _read_weights, _change)
RUN = Reader("runs", "latest.safetensors", lambda: [_made()["latest.safetensors"]], _read_run, _change)
