"""How much memory a run takes, against what its plan says: ``python -m tests.engine.resident none NAME...``.

Resident memory holds whatever torch's own kernels allocate too, so it owes nothing to how the engine counts. Large
blocks must go back to the system when they are freed: see :data:`ENVIRONMENT`.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis.pairs import pair_importance
from sdkernels.engine import runner
from sdkernels.lab.models import BasicBlock, ResNet, convnet, mlp
from tests.engine.parse import read_plan

# glibc: every block of 64 KiB and more is mapped by itself and unmapped when it is freed.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "OMP_NUM_THREADS": "1"}


class Measured(NamedTuple):
    """Bytes: what a run took beyond what was there before it, and what its plan had announced."""

    taken: float
    announced: float


class Recurrent(nn.Module):
    """An LSTM, then linear layers on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc, self.act = nn.LSTM(16, 64, batch_first=True), nn.Linear(64, 96), nn.ReLU()
        self.head = nn.Linear(96, 5)

    def forward(self, x):
        return self.head(self.act(self.fc(self.lstm(x)[0])).mean(1))


def _images(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(examples, 3, 32, 32), torch.randint(0, 10, (examples,))


def _vectors(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(examples, 256), torch.randint(0, 10, (examples,))


def _convnet_curve(examples: int, width: float = 0.5) -> Callable[[], Any]:
    model, data = convnet(width=width, seed=0).eval(), _images(examples)
    return lambda: sd.cumulative_ablation(model, ["relu9", "relu10", "relu11"], data, orders=1, points=5)


def _float64_curve(examples: int) -> Callable[[], Any]:
    """Convolutions in float64 unroll their inputs into columns."""
    model, (inputs, labels) = convnet(width=0.25, seed=0).double().eval(), _images(examples)
    data = inputs.double(), labels
    return lambda: sd.cumulative_ablation(model, ["relu9", "relu10", "relu11"], data, orders=1, points=5)


def _convnet_singles(examples: int) -> Callable[[], Any]:
    model, data = convnet(width=0.25, seed=0).eval(), _images(examples)
    return lambda: sd.unit_importance(model, "relu9", data)


def _mlp_curve(examples: int) -> Callable[[], Any]:
    model, data = mlp(256, (512, 512), 10, seed=0).eval(), _vectors(examples)
    return lambda: sd.cumulative_ablation(model, ["relu1", "relu2"], data, orders=1, points="all")


def _mlp_means(examples: int) -> Callable[[], Any]:
    """A metric of the user's, which needs logits of all points."""
    model, data = mlp(256, (512, 512), 10, seed=0).eval(), _vectors(examples)

    def margin(logits: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        return logits.amax(1) - logits.mean(1)

    options = {"value": "mean", "metrics": ["loss", margin]}
    return lambda: sd.cumulative_ablation(model, ["relu1", "relu2"], data, orders=1, points="all", **options)


def _mlp_singles(examples: int) -> Callable[[], Any]:
    """Most units are silent for the first examples, that a probe would see, and fire for many later ones."""
    model, (inputs, labels) = mlp(256, (512, 256, 256), 10, seed=0).eval(), _vectors(examples)
    model.fc1.bias.data[:400] = -10
    inputs[8:] *= 30
    return lambda: sd.unit_importance(model, "relu1", (inputs, labels))


def _resnet_curve(examples: int) -> Callable[[], Any]:
    model, data = ResNet(BasicBlock, (1, 1, 1), classes=10, width=0.5, seed=0).eval(), _images(examples)
    return lambda: sd.cumulative_ablation(model, ["layer1.0", "layer2.0"], data, orders=1, points=5)


def _lstm_curve(examples: int) -> Callable[[], Any]:
    model, data = Recurrent().eval(), (torch.randn(examples, 20, 16), torch.randint(0, 5, (examples,)))
    return lambda: sd.cumulative_ablation(model, ["lstm", "act"], data, orders=1, points=5, select={"lstm": 0})


def _noisy_mlp(examples: int) -> Callable[[], Any]:
    """Draws that scales share are kept for all of them."""
    model, data = mlp(256, (512, 512), 10, seed=0).eval(), _vectors(examples)
    options = {"sd": {layer: torch.ones(512) for layer in ("relu1", "relu2")}, "common_random_numbers": True}
    return lambda: sd.noise_robustness(model, ["relu1", "relu2"], data, scales=9, repeats=2, **options)


def _noisy_convnet(examples: int) -> Callable[[], Any]:
    model, data = convnet(width=0.25, seed=0).eval(), _images(examples)
    widths = {f"relu{i}": model.get_submodule(f"conv{i}").out_channels for i in range(1, 12)}
    deviations = {layer: torch.ones(width) for layer, width in widths.items()}
    return lambda: sd.noise_robustness(model, list(widths), data, scales=3, repeats=1, sd=deviations)


def _resampled_convnet(examples: int) -> Callable[[], Any]:
    """Another example's activations, at every layer, beside one's own."""
    model, data = convnet(width=0.5, seed=0).eval(), _images(examples)
    options = {"orders": 1, "points": 5, "value": "resample", "batch_size": 32}
    return lambda: sd.cumulative_ablation(model, ["relu9", "relu10", "relu11"], data, **options)


def _pairs_of_maps(examples: int) -> Callable[[], Any]:
    model, data = convnet(width=0.5, seed=0).eval(), _images(examples)
    return lambda: sd.ablate(model, ["relu5", "relu9"], data, units=[[0, 1], [2, 3], [70, 80]])


def _pairs_of_units(examples: int) -> Callable[[], Any]:
    """More pairs than fit a mask each; the first examples fire few units, as in :func:`_mlp_singles`."""
    model, (inputs, labels) = mlp(256, (512, 512), 10, seed=0).eval(), _vectors(examples)
    model.fc1.bias.data[:400] = -10
    inputs[8:] *= 30
    every = torch.triu_indices(512, 512, 1).t()
    pairs = every[:: 50 if examples > WARM_UP else 5000]
    return lambda: pair_importance(model, "relu1", (inputs, labels), pairs=pairs)


def _pairs_of_two_layers(examples: int) -> Callable[[], Any]:
    model, data = convnet(width=0.25, seed=0).eval(), _images(examples)
    pairs = torch.cartesian_prod(torch.tensor([1, 64 + 3]), 64 + 64 + torch.arange(12))
    return lambda: pair_importance(model, ["relu4", "relu5", "relu9"], data, pairs=pairs)


def _directions(examples: int) -> Callable[[], Any]:
    model, data = convnet(width=0.5, seed=0).eval(), _images(examples)
    return lambda: sd.ablate_directions(model, "relu9", data, directions="random", orders=1, points=5)


CASES: dict[str, tuple[Callable[[int], Callable[[], Any]], int]] = {  # and how many examples: some tiles
    "convnet-curve": (_convnet_curve, 200),
    "float64-curve": (_float64_curve, 150),
    "convnet-singles": (_convnet_singles, 200),
    "mlp-curve": (_mlp_curve, 10_000),
    "mlp-means": (_mlp_means, 3000),
    "mlp-singles": (_mlp_singles, 750),
    "resnet-curve": (_resnet_curve, 1000),
    "lstm-curve": (_lstm_curve, 3000),
    "noisy-mlp": (_noisy_mlp, 10_000),
    "noisy-convnet": (_noisy_convnet, 300),
    "resampled-convnet": (_resampled_convnet, 300),
    "pairs-of-maps": (_pairs_of_maps, 200),
    "pairs-of-units": (_pairs_of_units, 750),
    "pairs-of-two-layers": (_pairs_of_two_layers, 200),
    "directions": (_directions, 200),
    "whole-convnet": (lambda examples: _convnet_curve(examples, width=1.0), 10_000),
}
WARM_UP = 16  # examples


def measure(*names: str, limit: int | None = None) -> dict[str, Measured]:
    """Run cases in a process of their own, with a limit of so many bytes or the machine's."""
    command = [sys.executable, "-m", "tests.engine.resident", str(limit).lower(), *names]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {name: Measured(*numbers) for name, numbers in json.loads(done.stdout).items()}


def _status(field: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024.0


def _taken(work: Callable[[], Any]) -> tuple[float, Any]:
    """Bytes of resident memory at the worst moment, beyond those at the start, and the result."""
    gc.collect()  # or what an earlier case left would be freed now, and hide as much of what this one takes
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    result = work()
    return _status("VmHWM") - before, result


def _main() -> None:
    torch.manual_seed(0)
    limit, *names = sys.argv[1:]
    if limit != "none":
        runner.memory_limit = lambda _device, _fraction: float(limit)
    found: dict[str, Measured] = {}
    for name in names:
        make, examples = CASES[name]
        make(WARM_UP)()  # what torch and oneDNN prepare once
        taken, result = _taken(make(examples))
        found[name] = Measured(taken, read_plan(result.plan).peak)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
