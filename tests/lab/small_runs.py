"""Training runs of a second or less that between them draw, carry and decay everything that a run can."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from sdkernels.lab.seeds import drawing_from
from sdkernels.lab.training import Trainer, TrainingOptions


class Noisy(nn.Module):
    """A buffer that changes in training and that the state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x * (1 + 0.01 * self.calls)


class Language(nn.Module):
    """An LSTM with dropout and tied weights; state ``(h, c)``."""

    def __init__(self, vocabulary=11, width=8):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 2, dropout=0.3, batch_first=True)
        self.out = nn.Linear(width, vocabulary)
        self.out.weight = self.embed.weight

    def forward(self, tokens, state):
        hidden, state = self.lstm(self.embed(tokens), state)
        return self.out(hidden), state


class RandomItems(Dataset):
    """Items that draw from torch's global generator, as transforms do."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index] + 0.1 * torch.randn(self.inputs[index].shape), self.labels[index]


def inputs_and_labels(shape=(50, 6), classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)


def tokens(length=190):
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(0))


def dense(dropout=0.4):
    return nn.Sequential(
        OrderedDict(
            fc=nn.Linear(6, 16),
            bn=nn.BatchNorm1d(16),
            relu=nn.ReLU(),
            drop=nn.Dropout(dropout),
            noisy=Noisy(),
            out=nn.Linear(16, 3),
        )
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)
    )


@dataclass(frozen=True)
class Case:
    """A way to train, and what on."""

    make: Any
    data: Any
    options: TrainingOptions
    validation: Any = None

    def trainer(self, seed=7, **changes):
        with drawing_from(0):
            model = self.make()
        return Trainer(model, self.data, self.options, seed=seed, validation=self.validation, **changes)


IMAGES = inputs_and_labels((50, 2, 8, 8))
CASES = {
    "adam": Case(dense, inputs_and_labels(), TrainingOptions(epochs=4, batch_size=16, learning_rate=1e-2)),
    "adamw, cosine, warm-up, clipped": Case(
        dense,
        inputs_and_labels(),
        TrainingOptions(
            epochs=4,
            optimiser="adamw",
            weight_decay=0.1,
            batch_size=16,
            learning_rate=1e-2,
            schedule="cosine",
            warmup=5,
            clip_norm=0.5,
        ),
        inputs_and_labels(seed=1),
    ),
    "sgd with momentum, steps, augmented": Case(
        convolutional,
        IMAGES,
        TrainingOptions(
            steps=14,
            optimiser="sgd",
            momentum=0.9,
            weight_decay=1e-3,
            batch_size=16,
            learning_rate=1e-2,
            schedule="step",
            milestones=(4, 9),
            augmentation="crop_flip",
        ),
        IMAGES,
    ),
    "bfloat16": Case(
        dense, inputs_and_labels(), TrainingOptions(epochs=4, batch_size=16, learning_rate=1e-2, precision="bfloat16")
    ),
    "random items, read one by one": Case(
        dense, RandomItems(*inputs_and_labels()), TrainingOptions(epochs=4, batch_size=16, learning_rate=1e-2)
    ),
    "language model": Case(
        Language, tokens(), TrainingOptions(epochs=3, batch_size=4, unroll=10, learning_rate=1e-2), tokens(60)
    ),
}


def finish(trainer):
    while not trainer.finished:
        trainer.run_epoch()
    return trainer


def assert_same_end(one, other):
    """Weights and buffers, the optimiser's state, history and result are equal bit for bit."""
    (tensors, record), (others, other_record) = one.state(), other.state()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert one.history == other.history
    assert one.result() == other.result()
    differs = {"history": 0, "seconds": 0, "evaluation_seconds": 0}
    assert record | differs == other_record | differs
