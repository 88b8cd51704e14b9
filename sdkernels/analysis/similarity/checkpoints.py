"""A network at several moments of its training, loaded when it is their turn."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sdkernels.analysis.similarity.compared import Label

StateDict = Mapping[str, Any]
Checkpoint = nn.Module | StateDict | Callable[[], nn.Module | StateDict]


class Checkpoints:
    """Checkpoints by their labels; each is loaded when it is asked for.

    Args:
        given: a mapping of labels to checkpoints, or a sequence of checkpoints or of pairs (label, checkpoint).
        model: what state dicts are loaded into a copy of; None where all are models.

    Raises:
        TypeError, ValueError: something else, or a label that stands twice.
    """

    def __init__(self, given: Any, model: nn.Module | None) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module, or None")
        self.given = _labelled(given)
        self.labels: tuple[Label, ...] = tuple(self.given)
        self._model = model

    def load(self, label: Label) -> nn.Module:
        """The network at that moment.

        Raises:
            TypeError, ValueError: it is no model, or a state dict that does not fit the model; says the label.
        """
        held: Any = self.given[label]
        if callable(held) and not isinstance(held, nn.Module):
            held = held()
        if isinstance(held, nn.Module):
            return held
        if not isinstance(held, Mapping):
            raise TypeError(
                f"checkpoint {label!r} is a {type(held).__name__}; give a torch.nn.Module, a state dict, or a function "
                "without arguments that gives one, as lambda: torch.load(path)"
            )
        if self._model is None:
            raise ValueError(f"checkpoint {label!r} is a state dict; say by model= what to load it into")
        copied = copy.deepcopy(self._model)
        try:
            copied.load_state_dict(held)
        except RuntimeError as error:
            raise ValueError(f"checkpoint {label!r} does not fit the model: {error}") from error
        return copied


def _labelled(given: Any) -> dict[Label, Any]:
    """By label, in their order."""
    if isinstance(given, (nn.Module, Tensor, str)) or not isinstance(given, Iterable):
        raise TypeError(
            f"checkpoints is a {type(given).__name__}; give a mapping of labels to models, or a sequence of models"
        )
    if isinstance(given, Mapping):
        if given and all(isinstance(held, Tensor) for held in given.values()):
            raise TypeError("checkpoints is one state dict; give a mapping of labels to state dicts, one a checkpoint")
        pairs = list(given.items())
    else:
        held = list(given)
        is_labelled = all(isinstance(one, tuple) and len(one) == 2 for one in held)
        pairs = [(one[0], one[1]) for one in held] if is_labelled else list(enumerate(held))
    labels = [label.item() if isinstance(label, Tensor) else label for label, _ in pairs]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (str, int, float)):
            raise TypeError(f"checkpoints have a label {label!r}, a {type(label).__name__}; give strings or numbers")
    if twice := [label for place, label in enumerate(labels) if label in labels[:place]]:
        raise ValueError(f"checkpoints have the label {twice[0]!r} twice; give each its own")
    if len(pairs) < 2:
        raise ValueError(f"checkpoints are {len(pairs)}; give at least two: one to compare, and the reference")
    found = {label: held for label, (_, held) in zip(labels, pairs, strict=True)}
    _check_apart(found)
    return found


def _check_apart(checkpoints: Mapping[Label, Any]) -> None:
    """Refuse checkpoints that are one and the same: a training loop changes a model, and its state dict, in place.

    Raises:
        ValueError: says which two, and the fix.
    """
    seen: dict[Any, Label] = {}
    for label, held in checkpoints.items():
        tensors = held.values() if isinstance(held, Mapping) else ()
        places = tuple(one.data_ptr() for one in tensors if isinstance(one, Tensor) and one.numel())
        place = id(held) if isinstance(held, nn.Module) else places
        if place and place in seen:
            raise ValueError(
                f"checkpoints {seen[place]!r} and {label!r} are the same tensors, which training changes in place. "
                "Keep copies: copy.deepcopy(model), or copy.deepcopy(model.state_dict())"
            )
        seen[place] = label
