"""Workloads of robustness to noise, each with the same draws for all scales, and with draws of their own."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from python_bench.opponents.noise import NoiseTask
from python_bench.opponents.task import Task
from python_bench.workloads import WORKLOADS, Workload, prepare, tiny

CPU = torch.device("cpu")
EXAMPLES = 64  # that mean logits are taken over


@dataclass(frozen=True)
class NoiseWorkload:
    """Noise on all units of a network's layers at once.

    Attributes:
        network: the model, its layers, how many examples, and what opponents may choose from.
        scales: T, log-spaced from 10^-1.5 to 10.
        runs: R.
        same_draws: whether all scales of a run share their draws.
    """

    network: Workload
    scales: int
    runs: int
    same_draws: bool

    def heading(self) -> str:
        """The title, in numbers."""
        return f"{self.network.heading()}; {'the same draws for all scales' if self.same_draws else 'own draws'}"

    def factors(self) -> Tensor:
        """float64 [T]."""
        return torch.logspace(-1.5, 1, self.scales, dtype=torch.float64)


def prepare_noise(workload: NoiseWorkload) -> NoiseTask:
    """The network, each unit's standard deviation over the examples and positions, the configurations run by run."""
    shape = workload.network.shape
    network, _ = prepare(replace(workload.network, build=balanced(workload.network.build, shape)), CPU)
    configurations = torch.arange(workload.runs * workload.scales)
    draws = configurations // workload.scales if workload.same_draws else configurations
    factors = workload.factors().float().repeat(workload.runs)
    return NoiseTask(network, deviations_of(network), factors, draws)


def balanced(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    """With the mean logit of every class at 0, as if trained: else most predictions are of one class, noise or not."""

    def build_balanced() -> nn.Module:
        model = build()
        with torch.no_grad():
            mean = model(torch.rand(EXAMPLES, *shape, generator=torch.Generator().manual_seed(2))).mean(0)
            model.get_submodule("out").bias.sub_(mean)
        return model

    return build_balanced


def deviations_of(network: Task) -> dict[str, Tensor]:
    """By layer [C]."""
    found, x = {}, network.inputs
    with torch.no_grad():
        for name, stage in network.stages(network.model):
            x = stage(x)
            if name in network.layers:
                over = [dim for dim in range(x.ndim) if dim != 1]
                found[name] = x.double().std(over, correction=0).to(x.dtype)
    return found


NOISE_WORKLOADS = {
    f"noise_{network}{'' if same_draws else '_own_draws'}": NoiseWorkload(
        replace(base, title=title, floors=floors if same_draws or network == "convnet" else {}),
        scales,
        runs,
        same_draws,
    )
    for network, base, title, floors, scales, runs in (
        (
            "mlp",
            WORKLOADS["units_mlp"],
            "Noise on both layers of the MLP 784-512-512-10, 20 scales x 10 runs, {examples} examples",
            {"hook loop": 4},
            20,
            10,
        ),
        (
            "convnet",
            replace(WORKLOADS["units_convnet"], examples=128, batches=(32, 128), turns=3),
            "Noise on all eleven layers of the CIFAR-10 ConvNet, 10 scales x 2 runs, {examples} images 32 x 32",
            {"hook loop": 1.3},
            10,
            2,
        ),
    )
    for same_draws in (True, False)
}


def tiny_noise(name: str) -> NoiseWorkload:
    """A toy of the same kind: three scales, four runs."""
    small = replace(tiny(f"units_{name.split('_')[1]}"), title=f"tiny {name}, {{examples}} examples", examples=40)
    return replace(NOISE_WORKLOADS[name], network=small, scales=3, runs=4)
