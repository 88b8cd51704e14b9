"""Whether a state that comes from a file can be taken up, seen before anything of the run is changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdkernels.lab.training.metrics import EpochMetrics
from sdkernels.lab.training.state import OPTIMISER, differences

_STATES = {"adam": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
_STATES["adamw"] = _STATES["adam"]
_CARRIED, _GENERATORS = "carried.", ("draws.cpu", "generator.shuffle", "generator.augmentation")
_NUMBERS = ("seconds", "learning_rate")


def check_tensors(
    tensors: Mapping[str, Tensor], here: Mapping[str, Tensor], optimiser: str, parameters: Sequence[Tensor]
) -> None:
    """Refuse tensors that are not a run's own.

    Args:
        tensors: of the state.
        here: those of them that a run has at any time, as it has them now.
        optimiser: its name in the options; its state is there of parameters that were trained.
        parameters: the optimiser's.

    Raises:
        ValueError: names what is missing, of another shape, or no state of a random generator.
    """
    own = {name: _form(tensor) for name, tensor in here.items()}
    others = (OPTIMISER, _CARRIED)
    found = {name: _form(tensor) for name, tensor in tensors.items() if not name.startswith(others)}
    if differing := differences(found, own):
        raise ValueError(f"the state's tensors differ in {', '.join(differing[:5])}")
    states: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(OPTIMISER):
            continue
        index, _, name = key.removeprefix(OPTIMISER).partition(".")
        parameter = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        if parameter is None or name not in _STATES[optimiser]:
            raise ValueError(f"the state holds {key[:100]!r}, which {optimiser} of this model has not")
        expected = "a number" if name == "step" else _form(parameter)
        if not (tensor.is_floating_point() and tensor.ndim == 0) if name == "step" else _form(tensor) != expected:
            raise ValueError(f"the state's {key!r} is {_form(tensor)}, not {expected}")
        states.setdefault(index, set()).add(name)
    for index, names in states.items():
        if missing := sorted({*_STATES[optimiser]} - names):
            raise ValueError(f"the state holds no {OPTIMISER}{index}.{missing[0]}")
    for name in _GENERATORS:
        try:
            torch.Generator().set_state(tensors[name].clone())
        except RuntimeError as error:
            raise ValueError(f"the state's {name!r} is no state of a random generator") from error


def check_record(record: Mapping[str, Any], tensors: Mapping[str, Tensor], total_steps: int) -> None:
    """Refuse a record whose entries are not what a run keeps.

    Raises:
        ValueError: names the entry.
    """
    history, tally = record.get("history"), record.get("tally")
    right = {
        "step": _is_whole(record.get("step"), total_steps),
        "position": _is_whole(record.get("position"), total_steps),
        "memorised": type(record.get("memorised")) is bool,
        "tally": isinstance(tally, dict)
        and tally.keys() == {"loss", "right", "examples"}
        and _are_numbers(tally.values()),
        "carried": _leaves(record.get("carried")) == sum(name.startswith(_CARRIED) for name in tensors),
        "history": isinstance(history, list) and all(map(_is_epoch, history)),
        **{name: _are_numbers([record.get(name)]) for name in _NUMBERS},
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        raise ValueError(f"the state's {wrong[0]} is none of a training run: {str(record.get(wrong[0]))[:100]}")


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _is_whole(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _are_numbers(values: Any) -> bool:
    return all(type(value) in (int, float) for value in values)


def _is_epoch(entry: object) -> bool:
    names = {*EpochMetrics.__dataclass_fields__}
    if not isinstance(entry, dict) or not {"epoch", "step", "loss", "accuracy", "learning_rate"} <= {*entry} <= names:
        return False
    return _are_numbers(
        value for name, value in entry.items() if value is not None or not name.startswith("validation")
    )


def _leaves(structure: Any) -> int:
    """How many tensors a carried state has; -1 of what is no description of one."""
    if structure is None or structure == "tensor":
        return int(structure is not None)
    if not isinstance(structure, list) or not structure or structure[0] not in ("tuple", "list"):
        return -1
    parts = [_leaves(part) for part in structure[1:]]
    return -1 if -1 in parts else sum(parts)
