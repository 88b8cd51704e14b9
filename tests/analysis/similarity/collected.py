"""Networks, what their layers give by raw hooks, and distances of that by definition; the package is not used."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.analysis.similarity.oracle import array, cca, principal, pwcca

EXAMPLES = 107  # the last batch is shorter, and longer than what layers are looked for with


def drawn(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network in float64 with weights and biases of its own, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = build().double().eval()
    for tensor in model.parameters():
        tensor.data.normal_(0, 0.4, generator=generator)
    return model


def convolutions(width: int, seed: int) -> nn.Module:
    """Layers: 0, 1 with maps [width, 6, 6]; 3, 4 with maps [width + 2, 3, 3]; 6 with features [4]."""
    return drawn(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, width + 2, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Flatten(), nn.Linear(9 * (width + 2), 4)),
        ),
        seed,
    )


class Other(nn.Module):
    """Another architecture: maps [5, 4, 4] of a module that is called twice, tuples, features [3]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 3, padding=1)
        self.act = nn.Tanh()
        self.rows = nn.LSTM(20, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.act(self.second(self.act(self.first(x))))  # [N, 5, 4, 4]
        steps, _ = self.rows(maps.permute(0, 2, 1, 3).flatten(2))  # [N, 4, 4]
        return self.head(steps.flatten(1))


def images(count: int = EXAMPLES) -> Tensor:
    return torch.randn(count, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def activations(model: nn.Module, layer: str, inputs: Tensor, call: int = 0) -> Tensor:
    """What one call of a layer gives for all inputs."""
    found: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    handle = model.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        model(inputs.clone())
    handle.remove()
    return found[call]


def means(maps: Tensor) -> np.ndarray:
    """[N, C] of [N, C, *positions]."""
    found = array(maps)
    return found.reshape(*found.shape[:2], -1).mean(2)


def each(maps: Tensor) -> np.ndarray:
    """[N S, C] of [N, C, *positions], example after example."""
    found = array(maps)
    return found.reshape(*found.shape[:2], -1).transpose(0, 2, 1).reshape(-1, found.shape[1])


def kernel_alignment(a, b) -> float:
    a, b = (array(x) - array(x).mean(0) for x in (a, b))
    k, m = a @ a.T, b @ b.T
    return np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))


def debiased(a, b) -> float:
    """By Song et al.'s estimator on kernel matrices without their diagonals."""

    def estimate(k, m):
        n, ones = len(k), np.ones(len(k))
        middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    k, m = (array(x) @ array(x).T for x in (a, b))
    for kernel in (k, m):
        np.fill_diagonal(kernel, 0)
    return estimate(k, m) / np.sqrt(estimate(k, k) * estimate(m, m))


def by_weights(a, b) -> float:
    """PWCCA whose weights are of the layer with fewer units that vary, the first of equals."""
    live = [(array(x).std(0) > 0).sum() for x in (a, b)]
    return pwcca(a, b, int(live[1] < live[0]))[0]


SIMILARITIES: dict[str, tuple[dict, Callable]] = {
    "cca": ({"method": "cca"}, lambda a, b: cca(a, b).mean()),
    "svcca": (
        {"method": "svcca", "variance": 0.9},
        lambda a, b: cca(principal(a, 0.9), principal(b, 0.9)).mean(),
    ),
    "pwcca": ({"method": "pwcca"}, by_weights),
    "pwcca second": ({"method": "pwcca", "side": "second"}, lambda a, b: pwcca(a, b, 1)[0]),
    "cka": ({"method": "cka"}, kernel_alignment),
    "debiased": ({"method": "cka", "debiased": True}, debiased),
}


class StoppedError(Exception):
    pass


class Batches:
    """Batches of inputs alone, which break off before one of them."""

    def __init__(self, inputs: Tensor, size: int = 16, stop: int | None = None) -> None:
        self.inputs, self.size, self.stop = inputs, size, stop

    def __iter__(self) -> Iterator[Tensor]:
        for index, batch in enumerate(self.inputs.split(self.size)):
            if index == self.stop:
                raise StoppedError
            yield batch


class Examples(Dataset):
    """Inputs one by one, of which one cannot be read."""

    def __init__(self, inputs: Tensor, stop: int | None = None) -> None:
        self.inputs, self.stop = inputs, stop

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> Tensor:
        if place == self.stop:
            raise StoppedError
        return self.inputs[place]


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many examples each convolution was of; not by hooks, which are part of the model."""
    seen: list[int] = []
    convolved = nn.functional.conv2d

    def counting(x: Tensor, *rest: object) -> Tensor:
        seen.append(len(x))
        return convolved(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "conv2d", counting)
        yield seen


def passes_in(seen: list[int]) -> int:
    """How many examples networks of two convolutions have seen, beside the few that layers are looked for with."""
    return sum(count for count in seen if count > 8) // 2


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
