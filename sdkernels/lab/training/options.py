"""Everything that a training run depends on, but for model, data and seed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

OPTIMISERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "step")
PRECISIONS = ("float32", "bfloat16")
AUGMENTATIONS = ("none", "crop_flip")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; plain values that JSON can hold.

    Attributes:
        epochs: how long, in passes over the data; or
        steps: how long, in mini-batches; exactly one of the two is given. With ``steps`` the last epoch may be cut
            short.
        optimiser: ``"adam"``, ``"adamw"`` or ``"sgd"``, at torch's defaults but for what stands here.
        learning_rate: at its highest; the schedule lowers it.
        momentum: of ``"sgd"`` alone.
        weight_decay: of all three: an L2 term of the gradient, in ``"adamw"`` taken from the weights themselves.
        schedule: ``"constant"``; ``"linear"`` or ``"cosine"``, to zero at the end of the run; or ``"step"``, times
            ``decay`` at each of the ``milestones``.
        warmup: steps in which the learning rate rises linearly from ``learning_rate / warmup``.
        milestones: of schedule ``"step"``: how many epochs (or steps, where the length is given in steps) come before
            each decay.
        decay: of schedule ``"step"``.
        batch_size: examples a mini-batch, of which the last of an epoch may have fewer; of a token stream, how many
            pieces of it run side by side.
        unroll: of a token stream alone: tokens that a step reads in each piece; gradients reach no further back.
        stop_when_memorised: stop after the first epoch at which every training example is classified as labelled.
        precision: ``"float32"``, or ``"bfloat16"``: the forward pass in training by ``torch.autocast``. Weights and
            loss stay in float32, and so does every evaluation, as the analyses measure in it.
        compile: run the forward pass in training by ``torch.compile``, on CUDA with ``mode="reduce-overhead"`` (CUDA
            graphs; how much that gains is not yet measured).
        clip_norm: scale the gradient down to this norm, all parameters taken together, where it is longer.
        augmentation: ``"none"``, or ``"crop_flip"``: images ``[N, C, H, W]`` are padded by 4 zeros a side, cut back to
            their size at a random place, and mirrored left to right with probability 1/2.

    Raises:
        ValueError: a value out of its range, or two that do not go together; names them.

    Example:
        >>> options = TrainingOptions(epochs=90, optimiser="sgd", learning_rate=0.1, momentum=0.9, schedule="cosine")
        >>> TrainingOptions.from_record(options.record()) == options
        True
    """

    epochs: int | None = None
    steps: int | None = None
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    batch_size: int = 128
    unroll: int = 35
    stop_when_memorised: bool = False
    precision: str = "float32"
    compile: bool = False
    clip_norm: float | None = None
    augmentation: str = "none"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"training needs a length: give epochs= or steps=, and not both; got {self.epochs} and {self.steps}"
            )
        for name in ("epochs", "steps", "batch_size", "unroll"):
            value = getattr(self, name)
            if not (value is None and name in ("epochs", "steps")) and not (_whole(value) and value >= 1):
                raise ValueError(f"{name}={value!r} must be a whole number, at least one")
        if not (_whole(self.warmup) and self.warmup >= 0):
            raise ValueError(f"warmup={self.warmup!r} must be a whole number of steps, at least 0")
        for name, choices in (
            ("optimiser", OPTIMISERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("augmentation", AUGMENTATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}")
        for name in ("stop_when_memorised", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        if not (_number(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate!r} must be a number above 0")
        if not (_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay={self.weight_decay!r} must be a number, at least 0")
        if not (_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"momentum={self.momentum!r} must be at least 0 and below 1")
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum={self.momentum} is of optimiser='sgd'; {self.optimiser} has its own")
        if self.clip_norm is not None and not (_number(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm={self.clip_norm!r} must be a number above 0, or None")
        if not (_number(self.decay) and 0 < self.decay < 1):
            raise ValueError(f"decay={self.decay!r} must be above 0 and below 1")
        self._check_milestones()

    def _check_milestones(self) -> None:
        if not isinstance(self.milestones, tuple | list):
            raise ValueError(f"milestones={self.milestones!r} must be a tuple")
        object.__setattr__(self, "milestones", tuple(self.milestones))  # JSON has lists alone
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(
                f"schedule={self.schedule!r} with milestones={self.milestones}: schedule='step' needs milestones, and "
                "no other schedule has them"
            )
        rising = all(_whole(m) and m >= 1 for m in self.milestones) and list(self.milestones) == sorted(
            {*self.milestones}
        )
        if not rising:
            raise ValueError(f"milestones={self.milestones} must be whole numbers from 1 that rise")
        length = self.epochs if self.epochs is not None else self.steps
        if length is not None and self.milestones and self.milestones[-1] >= length:
            raise ValueError(f"milestones={self.milestones} go beyond the run, which is over after {length}")

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "TrainingOptions":
        """The options of a :meth:`record`.

        Raises:
            ValueError: an option that there is not.
        """
        unknown = sorted({*record} - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"there is no training option {', '.join(unknown)}")
        return cls(**record)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
