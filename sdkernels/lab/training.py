"""Training of small networks on data that fits in memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

# A pass over the whole training set is spent only when the epoch's own mini-batches were nearly all right.
_WORTH_EVALUATING = 0.98


@dataclass(frozen=True)
class Training:
    """How a training run ended.

    Attributes:
        epochs: epochs run.
        accuracy: on the whole training set (with its corrupted labels), in evaluation mode, 0..1.
        loss: mean cross-entropy there, nats.
        memorised: whether every training example is classified as labelled.
    """

    epochs: int
    accuracy: float
    loss: float
    memorised: bool


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    stop_when_memorised: bool,
    description: str = "training",
    show_progress: bool = False,
) -> Training:
    """Train by Adam on cross-entropy, in shuffled mini-batches; ends in evaluation mode.

    Args:
        model: trained in place; its device decides where.
        inputs, labels: ``[N, ...]`` and int64 ``[N]``, on the model's device.
        epochs: at most, or exactly if not ``stop_when_memorised``.
        learning_rate: Adam's; its other constants are torch's defaults.
        batch_size: examples a mini-batch; the last of an epoch may be smaller.
        seed: of the shuffling.
        stop_when_memorised: stop after the first epoch at which the training accuracy is exactly 1.
        description: what the progress bar says.
        show_progress: a bar over epochs.

    Raises:
        ValueError: no epochs, or an empty training set.
    """
    if epochs < 1 or len(labels) == 0:
        raise ValueError(f"training needs at least one epoch and one example; got {epochs} and {len(labels)}")
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    shuffle = torch.Generator().manual_seed(seed)
    with tqdm(total=epochs, desc=description, unit="epoch", disable=not show_progress) as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            right = torch.zeros((), dtype=torch.int64, device=labels.device)
            for batch in torch.randperm(len(labels), generator=shuffle).to(labels.device).split(batch_size):
                logits = model(inputs[batch])
                loss = F.cross_entropy(logits, labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                right += (logits.detach().argmax(1) == labels[batch]).sum()
            running = int(right) / len(labels)
            bar.set_postfix(accuracy=f"{running:.4f}", refresh=False)
            bar.update()
            if stop_when_memorised and running >= _WORTH_EVALUATING:
                result = evaluate(model, inputs, labels, epoch)
                if result.memorised:
                    bar.total = epoch  # the bar ends full: the work is done
                    bar.set_postfix(accuracy=f"{result.accuracy:.4f}")
                    return result
    return evaluate(model, inputs, labels, epochs)


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int) -> Training:
    """Accuracy and loss on the whole set; leaves the model in evaluation mode."""
    model.eval()
    right, loss = 0, 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(4096), labels.split(4096), strict=True):
            logits = model(x)
            right += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits.double(), y, reduction="sum"))
    return Training(epochs, right / len(labels), loss / len(labels), right == len(labels))
