"""Gaussian noise on all units at once: a loop of hooks, and a prefix cache by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from python_bench.opponents.task import Scores, Setting, Task, correct_and_loss, like_units


@dataclass(frozen=True)
class NoiseTask:
    """Score every configuration k: ``factors[k] * deviations * normals`` is added to the layers' outputs.

    Attributes:
        network: the model, its layers and the examples; nothing of it is ablated.
        deviations: by layer, each unit's standard deviation [C].
        factors: [K].
        draws: int64 [K]; configurations with the same number get the same normals.
    """

    network: Task
    deviations: Mapping[str, Tensor]
    factors: Tensor
    draws: Tensor

    @property
    def shares_draws(self) -> bool:
        """Whether configurations differ by their factors alone."""
        return len(self.draws.unique()) < len(self.draws)

    def only(self, configurations: Tensor, examples: int | None = None) -> "NoiseTask":
        """Some configurations, by index, on the first examples."""
        network = self.network.only(torch.arange(0), examples)
        return replace(self, network=network, factors=self.factors[configurations], draws=self.draws[configurations])

    def channels_last(self) -> "NoiseTask":
        """A copy with another memory layout of maps."""
        return replace(self, network=self.network.channels_last())

    def groups(self, size: int) -> list[Tensor]:
        """Indices of the configurations of each draw; where each has its own, of ``size`` configurations."""
        if self.shares_draws:
            return [(self.draws == draw).nonzero()[:, 0] for draw in self.draws.unique()]
        return list(torch.arange(len(self.draws)).split(size)) if len(self.draws) else []

    def no_scores(self) -> tuple[Tensor, Tensor]:
        """Zeros to add to: counts, and sums of losses."""
        return torch.zeros(len(self.factors), dtype=torch.int64), torch.zeros(len(self.factors), dtype=torch.float64)


def noisy_hook_loop(task: NoiseTask, setting: Setting) -> Scores:
    """The whole network over the whole data set once a configuration, with hooks that add noise."""
    network, generator = task.network, torch.Generator()
    correct, loss = task.no_scores()

    def add_noise(out: Tensor, strength: Tensor) -> Tensor:
        noise = normals_like(out, 1, generator)[0]
        return torch.addcmul(out, noise, like_units(strength, out), out=noise)

    with torch.no_grad():
        for k, (factor, draw) in enumerate(zip(task.factors.tolist(), task.draws.tolist(), strict=True)):
            generator.manual_seed(draw)
            handles = [
                network.model.get_submodule(layer).register_forward_hook(
                    lambda _module, _inputs, out, strength=factor * deviations: add_noise(out, strength)
                )
                for layer, deviations in task.deviations.items()
            ]
            for x, y in network.batches(setting.examples):
                more_correct, more_loss = correct_and_loss(network.model(x)[None], y)
                correct[k] += more_correct[0]
                loss[k] += more_loss[0]
            for handle in handles:
                handle.remove()
    return network.scores(correct, loss)


def noisy_prefix_cache(task: NoiseTask, setting: Setting) -> Scores:
    """Each batch once down to the first noisy layer, and every configuration from there.

    Several configurations may share a forward pass, side by side in the batch. Where configurations share their draws,
    the noise of every layer is drawn once a batch and draw, and kept for all factors.
    """
    network, generator = task.network, torch.Generator().manual_seed(0)
    stages = network.stages(network.model)
    first = [name for name, _ in stages].index(network.layers[0])
    correct, loss = task.no_scores()
    with torch.no_grad():
        for x, y in network.batches(setting.examples):
            for _, stage in stages[: first + 1]:
                x = stage(x)
            for group in task.groups(setting.configurations):
                kept: dict[str, Tensor] = {}
                for configurations in group.split(setting.configurations):
                    k = len(configurations)

                    def noise_at(name: str, out: Tensor, k: int = k, kept: dict[str, Tensor] = kept) -> Tensor:
                        """[1 or k, N, ...] for one configuration's output."""
                        if not task.shares_draws:
                            return normals_like(out, k, generator)
                        if name not in kept:
                            kept[name] = normals_like(out, 1, generator)
                        return kept[name]

                    strengths = {
                        name: torch.outer(task.factors[configurations], deviations)[:, None]  # [k, 1, C]
                        for name, deviations in task.deviations.items()
                    }
                    name = network.layers[0]
                    out = torch.addcmul(x, noise_at(name, x), like_units(strengths[name], x)).flatten(0, 1)
                    for name, stage in stages[first + 1 :]:
                        out = stage(out)
                        if name in task.deviations:
                            apart = out.unflatten(0, (k, -1))
                            apart.addcmul_(noise_at(name, apart[0]), like_units(strengths[name], out))
                    more_correct, more_loss = correct_and_loss(out.unflatten(0, (k, -1)), y)
                    correct[configurations] += more_correct
                    loss[configurations] += more_loss
    return network.scores(correct, loss)


def normals_like(x: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Standard normals [copies, *x.shape], each copy in the memory layout of x, which is dense.

    Drawn in a row: on a CPU, ``randn_like`` of channels-last maps takes eight times as long.
    """
    drawn = torch.randn(copies * x.numel(), generator=generator, dtype=x.dtype)
    return drawn.as_strided((copies, *x.shape), (x.numel(), *x.stride()))


NOISE_OPPONENTS: Mapping[str, Callable[[NoiseTask, Setting], Scores]] = {
    "hook loop": noisy_hook_loop,
    "hand-written prefix cache": noisy_prefix_cache,
}
