"""Statistics of every unit, by the package and by hooks with torch's reductions, beside the forward pass alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sdkernels as sd
from python_bench.contest import DifferentResultsError
from python_bench.torch_ops import moments
from python_bench.workloads import CLASSES, convnet_of, mlp_of

FORWARD, HOOKS, MOMENTS = "the forward pass alone", "hooks with torch's reductions", "sdkernels, no histograms"
ADDED = "added to the forward pass"
TOLERANCE = 1e-4  # of a unit's standard deviation: the hooks add in float32


@dataclass(frozen=True)
class Watching:
    """A network and what is watched of it."""

    title: str
    build: Callable[[], nn.Module]
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    examples: int
    batch_size: int = 128


NETWORKS = {
    "statistics_convnet": Watching(
        "Statistics of all 2,816 feature maps, CIFAR-10 ConvNet, {examples} images",
        convnet_of(),
        tuple(f"relu{i}" for i in range(1, 12)),
        (3, 32, 32),
        2048,
    ),
    "statistics_mlp": Watching(
        "Statistics of all 1,024 units, MLP 784-512-512-10, {examples} examples",
        mlp_of(),
        ("relu1", "relu2"),
        (784,),
        20000,
        1000,
    ),
}
TOYS = {
    "statistics_convnet": Watching(
        "tiny", convnet_of(1 / 32, 8), NETWORKS["statistics_convnet"].layers, (3, 8, 8), 40, 16
    ),
    "statistics_mlp": Watching("tiny", mlp_of(8, 6), ("relu1", "relu2"), (6,), 40, 16),
}


class Hooks:
    """A statistic a reduction, written well in torch: class means and variances, extremes, firing rates, means kept."""

    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        self._model = model
        self._modules = [model.get_submodule(layer) for layer in layers]
        self._buffers: dict[tuple[int, ...], Tensor] = {}

    def run(self, inputs: Tensor, labels: Tensor, batch_size: int) -> list[list[dict[str, Tensor]]]:
        """Of each layer, the statistics of each batch: merging them costs next to nothing."""
        found: list[list[dict[str, Tensor]]] = [[] for _ in self._modules]
        at_once = [labels]

        def see(layer: int, output: Tensor) -> None:
            maps = output.reshape(*output.shape[:2], -1, 1)
            buffer = self._buffers.setdefault(maps.shape, torch.empty_like(maps))
            found[layer].append({**moments(maps, at_once[0], CLASSES, buffer), "means": maps.mean((2, 3))})

        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, layer=layer: see(layer, output))
            for layer, module in enumerate(self._modules)
        ]
        with torch.no_grad():
            for x, at_once[0] in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
                self._model(x)
        for handle in handles:
            handle.remove()
        return found


def forward(model: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """What a user pays anyhow."""
    with torch.no_grad():
        for x in inputs.split(batch_size):
            model(x)


def check(stats: sd.UnitStatistics, found: list[list[dict[str, Tensor]]]) -> None:
    """Whether both saw the same.

    Raises:
        DifferentResultsError: means or counts differ.
    """
    means = torch.cat([torch.cat([batch["means"] for batch in layer]) for layer in found], 1).double()
    fired = torch.cat([sum(batch["fired_elements"] for batch in layer) for layer in found])
    off = ((means.mean(0) - stats.mean).abs() / stats.std.clamp(min=1e-12)).max()
    if not off < TOLERANCE or not torch.equal(fired, stats.fired_elements):
        raise DifferentResultsError(f"means differ by {off} standard deviations, or counts of what fires")
