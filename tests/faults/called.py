"""A call of every way in which the package runs a model, on a small network whose state there is much of."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import sdkernels as sd
from tests.engine.stored import examples


class Net(nn.Module):
    """[N, 4] -> five logits; a batch norm with running statistics, gradients that wait, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.out = (
            nn.utils.skip_init(nn.Linear, *shape, dtype=torch.float64) for shape in ((4, 6), (6, 5), (5, 5))
        )
        self.norm, self.relu, self.drop = nn.BatchNorm1d(6, dtype=torch.float64), nn.ReLU(), nn.Dropout(0.5)
        self.calls = 0
        with torch.no_grad():
            for tensor in (*self.parameters(), self.norm.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
                tensor.grad = torch.ones_like(tensor) if tensor.requires_grad else None
        self.out.bias.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.first(inputs)))
        logits: Tensor = self.out(self.relu(self.second(self.drop(hidden))))
        return logits


LAYERS = ["relu@0", "relu@1"]

Call = Callable[..., Any]


def regularize(model: nn.Module, data: Any) -> Tensor:
    """Three steps under the regulariser, none of which changes a weight."""
    inputs, labels = data
    with sd.SelectivityRegularizer(model, LAYERS, weight=0.1, num_classes=5) as term:
        for start in range(0, 24, 8):
            model(inputs[start : start + 8])
            loss = term(labels[start : start + 8])
    return loss.detach()


def monitor(model: nn.Module, data: Any, **options: Any) -> Any:
    """Of a network that is being trained."""
    return sd.AblationMonitor(LAYERS, data, orders=2, points=4, **options).check(model)


def compare(model: nn.Module, data: Any, **options: Any) -> Any:
    """With another network of its kind."""
    return sd.compare_layers(model, Net().eval(), LAYERS, data, **options)


CALLS: dict[str, Call] = {
    "curves": partial(sd.cumulative_ablation, layers=LAYERS, orders=2, points=4),
    "curves, loop": partial(sd.cumulative_ablation, layers=LAYERS, orders=2, points=4, method="loop"),
    "curves, means": partial(sd.cumulative_ablation, layers=LAYERS, orders=2, points=4, value="class_mean"),
    "curves, resampled": partial(sd.cumulative_ablation, layers=LAYERS, orders=2, points=4, value="resample"),
    "curves, sampled": partial(sd.cumulative_ablation, layers=LAYERS, orders=2, points=3, tolerance=0.4),
    "units": partial(sd.unit_importance, layers=LAYERS, outcomes=True),
    "units, bfloat16": partial(sd.unit_importance, layers=LAYERS, precision="bfloat16"),
    "pairs": partial(sd.pair_importance, layers="relu@0"),
    "noise": partial(sd.noise_robustness, layers=LAYERS, scales=[0.5, 1.0], repeats=2),
    "directions": partial(
        sd.ablate_directions, layers="relu@0", directions=torch.eye(6, dtype=torch.float64), orders=2
    ),
    "statistics": partial(sd.unit_statistics, layers=LAYERS),
    "taylor": partial(sd.taylor_importance, layers=LAYERS),
    "similarity": compare,
    "monitor": monitor,
    "regularizer": regularize,
}

BATCH_SIZE = 16


def call(name: str, model: nn.Module, data: Any = None, **options: Any) -> Any:
    """The result of a call, on 61 examples in batches of 16."""
    if name == "regularizer":
        return CALLS[name](model, examples())
    return CALLS[name](model, data=examples() if data is None else data, **{"batch_size": BATCH_SIZE, **options})
