"""Scores: logits of many configurations -> exact counts and float64 sums. Logits never leave the device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Metric = str | Callable[[Tensor, Tensor], Tensor]
Metrics = Sequence[Metric]

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")

# A logit below this is taken for a mask, and does not count for the scale of its example.
MASKED = -1e3

# Two logits closer than this, relative to the largest of their example, may change places by rounding alone.
AMBIGUOUS_MARGIN = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


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
    ``class_examples`` int64 ``[L]`` counts the labels.
    """

    def __init__(self, metrics: Sequence[Metric], configurations: int, classes: int, device: torch.device) -> None:
        self._metrics = metrics
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

    def add(self, configurations: slice, logits: Tensor, labels: Tensor, intact_prediction: Tensor) -> None:
        """Add the scores of logits [K, N, L], of any strides, against labels [N], for a run of configurations."""
        top, prediction = logits.max(-1)  # [K, N]; the first of equal logits, as argmax, which is slow on such strides
        right = prediction == labels
        for metric in self._metrics:
            self.sums[metric_name(metric)][configurations] += self._score(
                metric, logits, labels, prediction, right, intact_prediction
            )
        lowest = torch.where(logits > MASKED, logits, top[..., None]).amin(-1)
        scale = torch.maximum(top.abs(), lowest.abs())  # the largest magnitude
        close = logits >= (top - AMBIGUOUS_MARGIN[logits.dtype] * scale)[..., None]
        self.sums["ambiguous"][configurations] += (close.sum(-1) > 1).sum(1)

    def _score(
        self,
        metric: Metric,
        logits: Tensor,
        labels: Tensor,
        prediction: Tensor,
        right: Tensor,
        intact_prediction: Tensor,
    ) -> Tensor:
        if metric == "accuracy":
            return right.sum(1)
        if metric == "agreement":
            return (prediction == intact_prediction).sum(1)
        if metric == "class_accuracy":
            counts = torch.zeros(len(logits), self._classes, dtype=torch.int64, device=logits.device)
            return counts.index_add_(1, labels, right.long())
        if metric == "top5":
            return (logits.topk(5, dim=-1).indices == labels[:, None]).any(-1).sum(1)
        if metric == "loss":
            wide = logits.double()
            at_label = wide.gather(-1, labels.expand(len(logits), -1)[..., None]).squeeze(-1)
            return (wide.logsumexp(-1) - at_label).sum(1)
        assert callable(metric)  # noqa: S101 - check_metrics has refused other words
        own = logits.clone(memory_format=torch.contiguous_format)  # the user's function may view it, or write into it
        return torch.stack([_per_example(metric, one, labels).sum(dtype=torch.float64) for one in own])


def _per_example(metric: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    values = metric(logits, labels)
    if not isinstance(values, Tensor) or values.shape != labels.shape:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"metric {metric_name(metric)!r} gave {got} for logits {list(logits.shape)}; it must give one number an "
            f"example, {list(labels.shape)}"
        )
    return values
