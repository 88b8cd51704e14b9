"""What a training run says about itself."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Training:
    """How a training run ended.

    Attributes:
        epochs: epochs run; one that was cut short counts as one.
        accuracy: on the whole training set (with its corrupted labels), in evaluation mode, 0..1; of a token stream,
            of the next tokens.
        loss: mean cross-entropy there, nats.
        memorised: whether every training example is classified as labelled.
    """

    epochs: int
    accuracy: float
    loss: float
    memorised: bool

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return _exp(self.loss)


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch; also a mapping, ``metrics["loss"]``, ``dict(metrics)``.

    Attributes:
        epoch: from 1.
        step: mini-batches since the beginning of the run.
        loss: mean cross-entropy over the epoch's examples, nats, each taken as it was trained on (in training mode,
            augmented, by the weights of that moment).
        accuracy: likewise, 0..1.
        learning_rate: of the epoch's last step.
        validation_loss, validation_accuracy: on the whole validation set after the epoch, in evaluation mode; None
            where there is none.
        seconds: what the epoch took; the one attribute that comparisons leave out.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    learning_rate: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return _exp(self.loss)

    @property
    def validation_perplexity(self) -> float | None:
        """``exp(validation_loss)``."""
        return None if self.validation_loss is None else _exp(self.validation_loss)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def keys(self) -> Iterator[str]:
        """The attributes' names."""
        return (f.name for f in fields(self))

    def __getitem__(self, name: str) -> Any:
        if name not in {*self.keys(), "perplexity", "validation_perplexity"}:
            raise KeyError(f"no metric {name!r}; there are {', '.join(self.keys())}")
        return getattr(self, name)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # beyond that a float64 overflows
