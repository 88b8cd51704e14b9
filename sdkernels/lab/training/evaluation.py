"""How well a network does on a whole data set."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdkernels.lab.training.feeds import Data, Feed, feed_for
from sdkernels.lab.training.metrics import Training

# Logits of so many numbers are scored at once; of more, as a vocabulary's are, in parts that stay in the cache: float64
# copies of all of them would take four times as long.
_AT_ONCE, _PART = 2**22, 2**20


def evaluate(
    model: nn.Module, data: Data, *, epochs: int = 0, batch_size: int = 1, unroll: int = 35, workers: int = 0
) -> Training:
    """Accuracy and loss on the whole set; leaves the model in evaluation mode.

    Args:
        model: gives logits; its device decides where.
        data: ``(inputs, labels)``, a ``LabelledData``, a ``Dataset`` of (input, label), or tokens int64 ``[M]``.
        epochs: how many the model was trained, for the result.
        batch_size, unroll: of tokens alone: how many pieces, and how many tokens of each at once.
        workers: processes that read a ``Dataset``'s items.

    Returns:
        A :class:`Training`.

    Example:
        >>> from sdkernels.lab.datasets import load
        >>> from sdkernels.lab.models import mlp
        >>> evaluate(mlp(64, (8, 8), 10, seed=0), load("digits")).accuracy < 0.3
        True
    """
    feed = feed_for(data, device_of(model), batch_size=batch_size, unroll=unroll, seed=0, workers=workers)
    return evaluate_feed(model, feed, epochs)


def evaluate_feed(model: nn.Module, feed: Feed, epochs: int) -> Training:
    """:func:`evaluate` on data that is ready to be read."""
    model.eval()
    right, loss, examples, carried = 0, 0.0, 0, None
    with torch.no_grad():
        for inputs, labels in feed.evaluation():
            logits, carried = feed.forward(model, inputs, carried)
            y = labels.flatten()
            right += int((logits.argmax(1) == y).sum())
            loss += _summed_loss(logits, y)
            examples += len(y)
    return Training(epochs, right / examples, loss / examples, right == examples)


def _summed_loss(logits: Tensor, labels: Tensor) -> float:
    """Cross-entropy in float64, nats, added up over the rows of logits ``[N, L]``."""
    rows = len(labels) if logits.numel() <= _AT_ONCE else max(1, _PART // logits.shape[1])
    parts = zip(logits.split(rows), labels.split(rows), strict=True)
    return sum(float(F.cross_entropy(part.double(), own, reduction="sum")) for part, own in parts)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters.

    Raises:
        ValueError: no parameters, or several devices.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        where = ", ".join(sorted(map(str, devices)))
        raise ValueError(
            f"{type(model).__name__} has parameters on {where}; move them to one device"
            if devices
            else f"{type(model).__name__} has no parameters to train"
        )
    return devices.pop()
