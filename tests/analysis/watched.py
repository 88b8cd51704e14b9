"""Networks, and statistics of their units by raw hooks and NumPy: what `unit_statistics` is held against."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

CLASSES = 4


def activations(model: nn.Module, modules: list[nn.Module], inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of some layers for all examples, float64."""
    found: list[torch.Tensor] = []
    handles = [m.register_forward_hook(lambda *call: found.append(call[2].detach().double().clone())) for m in modules]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def by_unit(output: torch.Tensor, unit_dim: int) -> np.ndarray:
    """[C, N, S]: of each unit, every example's elements."""
    moved = output.movedim(unit_dim, 0).reshape(output.shape[unit_dim], len(output), -1)
    return moved.numpy()


def of_units(units: np.ndarray, of: Callable[[np.ndarray], object]) -> np.ndarray:
    """A number a unit, of its elements [N, S]."""
    return np.array([of(unit) for unit in units])


def selectivity(unit: np.ndarray, labels: np.ndarray, kind: str) -> float:
    """Of elements [N, S], from the formula."""
    means = unit.mean(1)
    classes = np.unique(labels)
    by_class = np.array([means[labels == label].mean() for label in classes])
    best = by_class.argmax()
    others = np.delete(by_class, best) if kind == "macro" else means[labels != classes[best]]
    other = others.mean()
    return (by_class[best] - other) / (by_class[best] + other) if by_class[best] > 0 else np.nan


class Tokens(nn.Module):
    """Tokens [N, T] -> features [N, T, F] -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.rnn = nn.GRU(6, 5, batch_first=True)
        self.relu = nn.ReLU()
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.rnn(self.embed(x))[0]).mean(1))


class Shared(nn.Module):
    """One ReLU that fires twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, CLASSES)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.second(self.relu(self.first(x)))))


def maps() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES)),
    )


def network(name: str) -> tuple[nn.Module, list[str], list[nn.Module], list[int], torch.Tensor]:
    """Model, layers by name, their modules in the order of their calls, the units' dimensions, inputs."""
    if name == "features":
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, CLASSES))
        return model, ["1", "3"], [model[1], model[3]], [1, 1], torch.randn(101, 6)
    if name == "rectified":  # no product, whose last digits go by the batch
        model = nn.Sequential(nn.ReLU(), nn.Linear(6, CLASSES))
        return model, ["0"], [model[0]], [1], torch.randn(101, 6)
    if name == "maps":
        model = maps()
        for tensor in (model[1].running_mean, model[1].bias.data):
            tensor.normal_()
        return model, ["2", "5"], [model[2], model[5]], [1, 1], torch.randn(101, 3, 8, 8)
    if name == "channels last":
        model = maps().to(memory_format=torch.channels_last)
        inputs = torch.randn(101, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        return model, ["2", "5"], [model[2], model[5]], [1, 1], inputs
    if name == "tokens":
        tokens = Tokens()
        return tokens, ["relu"], [tokens.relu], [2], torch.randint(0, 50, (101, 4))
    shared = Shared()
    return shared, ["relu@0", "relu@1"], [shared.relu], [1, 1], torch.randn(101, 6)


NETWORKS = ["features", "rectified", "maps", "channels last", "tokens", "shared"]


def drawn(name: str) -> tuple[nn.Module, list[str], list[np.ndarray], torch.Tensor, torch.Tensor]:
    """Model in float64, layers, each layer's elements [C, N, S], inputs, labels."""
    model, layers, modules, unit_dims, inputs = network(name)
    model = model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    outputs = activations(model, modules, inputs)
    units = [by_unit(output, dim) for output, dim in zip(outputs, unit_dims, strict=True)]
    return model, layers, units, inputs, torch.randint(0, CLASSES, (len(inputs),))


def pooled(units: list[np.ndarray], of) -> np.ndarray:
    return np.concatenate([of_units(one, of) for one in units])
