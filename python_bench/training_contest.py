"""Many small perceptrons trained side by side: by the package, one after the other, and by torch.func."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_bench.contest import DifferentResultsError
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.ensemble import train_ensemble
from sdkernels.lab.models import mlp
from sdkernels.lab.training import Training, TrainingOptions, evaluate, train

ALONE, FUNC = "one after the other", "torch.func: vmap, stacked parameters"
RATES = (2e-4, 3e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1.2e-3, 1.5e-3)
CLASSES = 10
EXACT = (1e-9, 1e-9)  # of the median and the worst network, in float64
# In float32 rounding decides the ReLU of one in some ten million numbers, and Adam lets a network drift from there.
ROUNDED = (1e-4, 5e-2)


@dataclass(frozen=True)
class Ensemble:
    """Networks that differ in seed, learning rate and labels.

    Attributes:
        title: of the race.
        hidden: widths.
        data: the inputs' source: ``"digits"``, or random ones of ``width`` numbers.
    """

    title: str
    hidden: tuple[int, ...]
    data: str
    examples: int
    width: int = 64
    epochs: int = 5
    networks: int = 32
    batch_size: int = 128


ENSEMBLES = {
    "training_digits": Ensemble(
        "Training of {networks} MLPs 64-128-128-10 on the digits, Adam, batches of {batch_size}",
        (128, 128),
        "digits",
        1797,
    ),
    "training_mnist_128": Ensemble(
        "Training of {networks} MLPs 784-128-128-10, Adam, batches of {batch_size}", (128, 128), "random", 2048, 784, 2
    ),
    "training_mnist_512": Ensemble(
        "Training of {networks} MLPs 784-512-512-10, Adam, batches of {batch_size}", (512, 512), "random", 2048, 784, 1
    ),
}
TOYS = {
    "training_digits": Ensemble("tiny", (6, 5), "digits", 40, epochs=2, networks=9, batch_size=16),
    "training_mnist_128": Ensemble("tiny", (6, 5), "random", 40, 7, 2, 9, 16),
    "training_mnist_512": Ensemble("tiny", (8, 8), "random", 40, 7, 1, 9, 16),
}


@dataclass(frozen=True)
class Trained:
    """What a contestant leaves: all parameters of each network ``[M, P]``, and how each run ended."""

    parameters: Tensor
    results: list[Training]


class Rows:
    """An ensemble ready to be trained, again and again from the same weights."""

    def __init__(self, ensemble: Ensemble, dtype: torch.dtype = torch.float32, epochs: int | None = None) -> None:
        M = ensemble.networks
        generator = torch.Generator().manual_seed(0)
        if ensemble.data == "digits":
            digits = load("digits", split="all").first(ensemble.examples)
            inputs, labels = digits.inputs, digits.labels
        else:
            inputs = torch.rand(ensemble.examples, ensemble.width, generator=generator)
            labels = torch.randint(0, CLASSES, (ensemble.examples,), generator=generator)
        self.inputs = inputs.to(dtype)
        self.labels = torch.stack([corrupt_labels(labels, m / M, seed=m) for m in range(M)])
        self.options = [
            TrainingOptions(
                epochs=epochs or ensemble.epochs, learning_rate=RATES[m % len(RATES)], batch_size=ensemble.batch_size
            )
            for m in range(M)
        ]
        self._models = [mlp(inputs.shape[1], ensemble.hidden, CLASSES, seed=m).to(dtype) for m in range(M)]
        self._weights = [p.detach().clone() for model in self._models for p in model.parameters()]
        widths = (inputs.shape[1], *ensemble.hidden, CLASSES)
        maps = [a * b for a, b in pairwise(widths)]
        products = 3 * sum(maps) - maps[0]  # forward, and backward but for the inputs'
        self.gflop = 2 * products * ensemble.examples * self.options[0].epochs * M / 1e9

    def side_by_side(self) -> Trained:
        """The package."""
        models = self._fresh()
        return _trained(
            models, train_ensemble(models, self.inputs, self.labels, self.options, seeds=range(len(models)))
        )

    def one_after_the_other(self) -> Trained:
        """The package's trainer of one network."""
        models = self._fresh()
        runs = zip(models, self.labels, self.options, strict=True)
        return _trained(models, [train(model, (self.inputs, y), own, seed=m) for m, (model, y, own) in enumerate(runs)])

    def by_torch_func(self) -> Trained:
        """As torch's documentation stacks an ensemble, with torch's fused Adam."""
        models = self._fresh()
        order = sorted(range(len(models)), key=lambda m: self.options[m].learning_rate)
        _by_torch_func([models[m] for m in order], self.inputs, self.labels, self.options, order)
        epochs = self.options[0].epochs
        results = [
            evaluate(model, (self.inputs, y), epochs=epochs) for model, y in zip(models, self.labels, strict=True)
        ]
        return _trained(models, results)

    def _fresh(self) -> list[nn.Sequential]:
        with torch.no_grad():
            for parameter, weights in zip(
                (p for model in self._models for p in model.parameters()), self._weights, strict=True
            ):
                parameter.copy_(weights)
        for model in self._models:
            model.zero_grad()
        return self._models

    def contestants(self) -> dict[str, Callable[[], Trained]]:
        """The opponents."""
        return {ALONE: self.one_after_the_other, FUNC: self.by_torch_func}


def _by_torch_func(
    models: Sequence[nn.Module],
    inputs: Tensor,
    label_sets: Tensor,
    options: Sequence[TrainingOptions],
    order: Sequence[int],
) -> None:
    parameters, _ = torch.func.stack_module_state(list(models))  # type: ignore[arg-type]
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    base = models[0]

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(base, own, (x,))
        return F.cross_entropy(logits, y), logits

    slopes_of = torch.func.vmap(torch.func.grad(loss, has_aux=True))
    groups: list[dict[str, Any]] = []
    slices = []
    start = 0
    for rate, rows in groupby(options[m].learning_rate for m in order):
        end = start + len(list(rows))
        groups.append({"params": [value[start:end] for value in values.values()], "lr": rate})
        slices.append(slice(start, end))
        start = end
    optimiser = torch.optim.Adam(groups, fused=True)
    shuffles = [torch.Generator().manual_seed(m) for m in order]
    labels = label_sets[list(order)]
    for _ in range(options[0].epochs or 0):
        epoch = torch.stack([torch.randperm(len(inputs), generator=shuffle) for shuffle in shuffles])
        right = torch.zeros(len(order), dtype=torch.int64)
        for batch in epoch.split(options[0].batch_size, 1):
            y = labels.gather(1, batch)
            slopes, logits = slopes_of(values, inputs[batch], y)
            for group, rows in zip(groups, slices, strict=True):
                for part, name in zip(group["params"], values, strict=True):
                    part.grad = slopes[name][rows]
            optimiser.step()
            right += (logits.argmax(2) == y).sum(1)
    with torch.no_grad():
        for row, model in enumerate(models):
            for name, parameter in model.named_parameters():
                parameter.copy_(values[name][row])


def _trained(models: Sequence[nn.Module], results: list[Training]) -> Trained:
    rows = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    return Trained(torch.stack(rows), results)


def check(ours: Trained, theirs: Trained, tolerances: tuple[float, float]) -> None:
    """Whether both trained the same networks.

    Args:
        ours, theirs: what they left.
        tolerances: of the median and of the worst network: of its weights, all together and relative to their length,
            and of its loss.

    Raises:
        DifferentResultsError: they did not.
    """
    weights = (ours.parameters - theirs.parameters).norm(dim=1) / theirs.parameters.norm(dim=1)
    pairs = list(zip(ours.results, theirs.results, strict=True))
    losses = torch.tensor([abs(own.loss - other.loss) / other.loss for own, other in pairs])
    off = torch.stack([weights, losses.to(weights)])
    fine = all(
        bool((found <= tolerance).all())
        for found, tolerance in zip((off.median(1).values, off.amax(1)), tolerances, strict=True)
    )
    if not fine or any(own.epochs != other.epochs for own, other in pairs):
        worst = f"{float(off[0].max()):.1e}, losses by up to {float(off[1].max()):.1e}"
        raise DifferentResultsError(f"weights differ by {float(off[0].median()):.1e} (median) to {worst}")
