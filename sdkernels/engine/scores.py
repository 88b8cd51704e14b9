"""Scores: logits of many configurations -> exact counts and float64 sums. Logits never leave the device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.batches import Batch
from sdkernels.engine.outcomes import Outcomes
from sdkernels.ops import score
from sdkernels.ops.score import Score

Metric = str | Callable[[Tensor, Tensor], Tensor]
Metrics = Sequence[Metric]

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")

# What the op calls them.
COUNTED = {
    "accuracy": "correct",
    "loss": "loss",
    "top5": "top",
    "class_accuracy": "class_correct",
    "agreement": "agreement",
    "ambiguous": "ambiguous",
}

# Two logits closer than this, relative to the largest of their example, may change places by rounding alone.
AMBIGUOUS_MARGIN = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
TF32_MARGIN = 1e-2


def uses_tf32(like: Tensor, dtype: torch.dtype) -> bool:
    """Whether float32 products on this device round their operands to TF32."""
    return dtype == torch.float32 and like.is_cuda and torch.backends.cuda.matmul.allow_tf32


def metric_name(metric: Metric) -> str:
    """A metric's name in results: its word, or its function's name."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def check_metrics(metrics: Metric | Metrics, classes: int) -> tuple[Metric, ...]:
    """The metrics as a tuple; accuracy is always there.

    Raises:
        ValueError: an unknown name, a name twice, ``"top5"`` of fewer than five classes.
    """
    if not isinstance(metrics, (str, Sequence)) and not callable(metrics):
        raise TypeError(f"metrics is a {type(metrics).__name__}; give a name, a function, or a list of them")
    listed = (metrics,) if isinstance(metrics, str) or callable(metrics) else tuple(metrics)
    for metric in listed:
        if not callable(metric) and metric not in METRICS:
            raise ValueError(f"metrics: unknown {metric!r}; known are {', '.join(METRICS)}, or a function")
    names = [metric_name(metric) for metric in listed]
    reserved = (*METRICS, "ambiguous")
    if len(set(names)) < len(names) or any(callable(m) and n in reserved for m, n in zip(listed, names, strict=True)):
        raise ValueError(f"metrics: every name must be there once and a function must have its own; got {names}")
    if "top5" in listed and classes < 5:
        raise ValueError(f"metrics: 'top5' needs five classes or more; the model gives {classes} logits")
    return listed if "accuracy" in listed else ("accuracy", *listed)


class Scores:
    """Sums over examples for K configurations.

    ``sums[name]`` is int64 ``[K]`` for counts (``"accuracy"``, ``"top5"``, ``"agreement"``, ``"ambiguous"``), int64
    ``[K, L]`` for ``"class_accuracy"``, float64 ``[K]`` for ``"loss"`` (nats) and for functions.
    ``class_examples`` int64 ``[L]`` counts the labels, ``outcomes`` holds which predictions are correct if that is
    wanted.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        configurations: int,
        classes: int,
        device: torch.device,
        outcomes: Outcomes | None = None,
    ) -> None:
        self._metrics = metrics
        self.outcomes = outcomes
        self._classes = classes
        self.examples = 0
        self.class_examples = torch.zeros(classes, dtype=torch.int64, device=device)
        self.sums: dict[str, Tensor] = {}
        for name in [*map(metric_name, metrics), "ambiguous"]:
            counts = name == "ambiguous" or (name in METRICS and name != "loss")
            shape = (configurations, classes) if name == "class_accuracy" else (configurations,)
            self.sums[name] = torch.zeros(shape, dtype=torch.int64 if counts else torch.float64, device=device)

    def count_examples(self, labels: Tensor) -> None:
        """Note a batch's labels [N]; once a batch, however many configurations run on it."""
        self.examples += len(labels)
        self.class_examples += torch.bincount(labels, minlength=self._classes)

    @property
    def are_counted(self) -> bool:
        """Whether an op can count everything, so that nobody needs to see logits."""
        return self.outcomes is None and not any(callable(metric) for metric in self._metrics)

    def options(self, dtype: torch.dtype, intact_prediction: Tensor) -> dict[str, Any]:
        """What an op that scores is asked for."""
        return {
            "loss": "loss" in self.sums,
            "top": 5 if "top5" in self.sums else None,
            "per_class": "class_accuracy" in self.sums,
            "prediction": intact_prediction if "agreement" in self.sums else None,
            "margin": TF32_MARGIN if uses_tf32(intact_prediction, dtype) else AMBIGUOUS_MARGIN[dtype],
        }

    def add(self, configurations: Tensor, logits: Tensor, batch: Batch, intact_prediction: Tensor) -> None:
        """Add the scores of logits [k, N, L], of any strides, against a batch's labels, for configurations [k]."""
        labels = batch.labels
        counted = score(logits, labels, **self.options(logits.dtype, intact_prediction))
        if self.outcomes is not None:
            self.outcomes.write(configurations, batch.places, _correct(logits, labels, counted.correct))
        self.add_counted(configurations, counted)
        configurations = configurations.to(logits.device)
        for metric in self._metrics:
            if callable(metric):
                own = logits.clone(memory_format=torch.contiguous_format)  # the user's function may write into it
                values = [_per_example(metric, one, labels).sum(dtype=torch.float64) for one in own]
                self.sums[metric_name(metric)][configurations] += torch.stack(values)

    def add_counted(self, configurations: Tensor, counted: Score) -> None:
        """Add what an op has counted for configurations [k]."""
        configurations = configurations.to(counted.correct.device)
        for name, sums in self.sums.items():
            if name in COUNTED:
                sums[configurations] += getattr(counted, COUNTED[name])

    def snapshot(self) -> dict[str, Tensor]:
        """The sums so far, to go back to."""
        return {name: sums.clone() for name, sums in self.sums.items()}


def _correct(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """bool [k, N]: whether the label's logit is the first of the largest, as often as ``counts`` [k] says."""
    own = logits.gather(2, labels.view(1, -1, 1).expand(len(logits), -1, 1)).squeeze(2)
    correct = own == logits.amax(2)  # torch's argmax takes many times longer; but of ties it knows the first
    return correct if torch.equal(correct.sum(1), counts) else logits.argmax(2) == labels


def _per_example(metric: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    try:
        values = metric(logits, labels)
    except TypeError as error:
        raise TypeError(
            f"metrics: {metric_name(metric)!r} does not take logits {list(logits.shape)} and labels "
            f"{list(labels.shape)}: {error}"
        ) from error
    if not isinstance(values, Tensor) or values.shape != labels.shape:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"metrics: {metric_name(metric)!r} gave {got} for logits {list(logits.shape)}; it must give one number an "
            f"example, {list(labels.shape)}"
        )
    return values
