"""A valid call of every public function, small enough to be made thousands of times."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.lab.models import lstm_language_model

LAYERS = ["1", "3"]


class Call(NamedTuple):
    """A function, and arguments that it takes as they are."""

    function: Callable[..., Any]
    arguments: Mapping[str, Callable[[], Any]]

    @property
    def names(self) -> list[str]:
        """All that may be given, but for what is kept and shown."""
        known = inspect.signature(self.function).parameters
        return [name for name in known if name not in ("options", "workers")]


def network(seed: int = 0) -> nn.Module:
    """Two hidden layers of 4 and 3 units, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for width, out in ((3, 4), (4, 3), (3, 3)):
        linear = nn.utils.skip_init(nn.Linear, width, out)
        for tensor in (linear.weight, linear.bias):
            tensor.data = torch.randn(tensor.shape, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def normed() -> nn.Module:
    """A layer with a batch norm."""
    model = nn.Sequential(network()[0], nn.BatchNorm1d(4), nn.ReLU(), network()[2])
    return model.eval()


def inputs(count: int = 24) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def data() -> tuple[Tensor, Tensor]:
    return inputs(), torch.arange(24) % 3


def matrix(seed: int) -> Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))


def language_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return lstm_language_model(9, embedding=3, hidden=2, layers=1, dropout=0.0, seed=0).eval()


def _call(function: Callable[..., Any], **arguments: Callable[[], Any]) -> Call:
    return Call(function, arguments)


_OF_A_MODEL: dict[str, Callable[[], Any]] = {"model": network, "layers": lambda: list(LAYERS), "data": data}

CALLS = {
    "cumulative_ablation": _call(sd.cumulative_ablation, **_OF_A_MODEL, orders=lambda: 2, points=lambda: 3),
    "unit_importance": _call(sd.unit_importance, **_OF_A_MODEL),
    "pair_importance": _call(sd.pair_importance, **_OF_A_MODEL),
    "ablate": _call(sd.ablate, **_OF_A_MODEL, units=lambda: [[0], [1, 5], []]),
    "ablate_directions": _call(sd.ablate_directions, **_OF_A_MODEL, directions=lambda: "random"),
    "noise_robustness": _call(sd.noise_robustness, **_OF_A_MODEL, scales=lambda: [0.0, 1.0], repeats=lambda: 2),
    "unit_statistics": _call(sd.unit_statistics, **_OF_A_MODEL),
    "taylor_importance": _call(sd.taylor_importance, **_OF_A_MODEL),
    "weight_norm": _call(sd.weight_norm, **_OF_A_MODEL),
    "batch_norm_scale": _call(sd.batch_norm_scale, **_OF_A_MODEL | {"model": normed, "layers": lambda: "2"}),
    "principal_directions": _call(sd.principal_directions, model=network, layer=lambda: "1", data=data),
    "random_directions": _call(sd.random_directions, channels=lambda: 4),
    "rank_correlation": _call(sd.rank_correlation, x=lambda: matrix(0)[:, 0], y=lambda: matrix(1)[:, 0]),
    "similarity": _call(sd.similarity, a=lambda: matrix(0), b=lambda: matrix(1)),
    "compare_layers": _call(
        sd.compare_layers,
        model_a=network,
        model_b=lambda: network(1),
        layers=lambda: ["0"],
        data=lambda: inputs(40),
    ),
    "pairwise_similarity": _call(
        sd.pairwise_similarity,
        models=lambda: [network(seed) for seed in range(3)],
        layers=lambda: ["0"],
        data=lambda: inputs(40),
    ),
    "similarity_over_training": _call(
        sd.similarity_over_training,
        checkpoints=lambda: {seed: network(seed) for seed in range(2)},
        layers=lambda: ["0"],
        data=lambda: inputs(40),
    ),
    "similarity_over_steps": _call(
        sd.similarity_over_steps,
        model=language_model,
        layers=lambda: ["lstm1"],
        data=lambda: torch.arange(160).view(40, 4) % 9,
        select=lambda: 0,
    ),
}
