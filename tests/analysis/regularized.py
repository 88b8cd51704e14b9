"""Networks whose selectivity is regularised, and the index written out."""

import numpy as np
import torch
from torch import nn

from sdkernels.lab.models import mlp
from tests.ops.tensors import numbers

EPSILON = 1e-6


class Shared(nn.Module):
    """One ReLU, called twice."""

    def __init__(self, inplace=False):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


class Maps(nn.Module):
    """[N, 2, 5, 5] -> maps [N, 3, 4, 4], batch-normed maps [N, 4, 3, 3], tokens [N, 9, 5]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, 2)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.relu2(self.norm(self.conv2(self.relu1(self.conv1(x)))))
        return self.head(self.relu3(self.fc(x.flatten(2).transpose(1, 2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(6, 4, batch_first=True, nonlinearity="relu"), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def index(activation, labels, kind="macro", unit_dim=1):
    """The mean selectivity of an activation's units: numbers in float64, one unit at a time."""
    rows = np.moveaxis(activation.detach().double().numpy(), unit_dim, 1)
    rows = rows.reshape(len(rows), rows.shape[1], -1).mean(2)
    found = []
    for unit in rows.T:
        by_class = {label: unit[labels.numpy() == label] for label in set(labels.tolist())}
        means = {label: own.mean() for label, own in by_class.items()}
        best = max(means, key=means.get)
        if kind == "macro":
            rest = np.mean([mean for label, mean in means.items() if label != best])
        else:
            rest = np.mean(np.concatenate([own for label, own in by_class.items() if label != best]))
        found.append((means[best] - rest) / (means[best] + rest + EPSILON))
    return np.mean(found)


def activations(model, x, layers):
    """What modules give, by hooks of the test's own, in order of calls."""
    seen = []
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _m, _a, output: seen.append(output)) for layer in layers
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def batch(*shape, examples=12, dtype=torch.float32, seed=0):
    """Inputs and labels of three unequal classes out of six."""
    labels = torch.tensor([0, 2, 5, 0, 0, 5, 0, 2, 0, 0, 5, 0])[:examples]
    return numbers((examples, *shape), dtype, seed), labels


def net(hidden=(8, 7), dtype=torch.float32):
    return mlp(6, hidden, 3, seed=0).to(dtype)
