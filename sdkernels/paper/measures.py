"""The measurements that several figures take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Condition


@dataclass(frozen=True)
class Ablation:
    """How curves are measured.

    Attributes:
        layers: whose units are pooled, as people name them.
        orders: random orders; points: of a curve, or ``"all"``.
        measured: the first so many training examples, or all.
        metrics: the first is what the figure shows.
    """

    layers: tuple[str, ...]
    orders: int = 10
    points: int | str = 33
    measured: int | None = None
    metrics: tuple[str, ...] = field(default=("accuracy", "loss"))

    def condition(self, seed: int, name: str = "ablation", **arguments: Any) -> Condition:
        """Cumulative ablation on the training examples, as the networks were trained on them."""
        own = {"orders": self.orders, "points": self.points, "metrics": list(self.metrics)}
        own["seed"] = seed_for("orders", seed)
        return Condition(name, "cumulative_ablation", self.layers, "train", self.measured, {**own, **arguments})


@dataclass(frozen=True)
class Noise:
    """How robustness to noise is measured.

    Attributes:
        layers: all of whose units get noise at once.
        scales: log-spaced from 10^-1.5 to 10.
        runs: with other draws.
        scale_kind: whether a scale multiplies the standard deviation, ``"std"``, or the variance, ``"var"``.
        per_map: one draw for all positions of a feature map, and not one for each element.
        measured, metrics: as for :class:`Ablation`.
    """

    layers: tuple[str, ...]
    scales: int = 20
    runs: int = 10
    scale_kind: str = "std"
    per_map: bool = False
    measured: int | None = None
    metrics: tuple[str, ...] = field(default=("accuracy", "loss"))

    def condition(self, seed: int, name: str = "noise") -> Condition:
        """Noise on the training examples, over which deviations are taken too."""
        own = {"scales": self.scales, "repeats": self.runs, "scale_kind": self.scale_kind, "per_map": self.per_map}
        own |= {"metrics": list(self.metrics), "seed": seed_for("noise", seed)}
        return Condition(name, "noise_robustness", self.layers, "train", self.measured, own)


def named(prefix: str, numbers: Sequence[int]) -> tuple[str, ...]:
    """Layers' names: ``named("conv", (9, 10))`` is ``("conv9", "conv10")``."""
    return tuple(f"{prefix}{number}" for number in numbers)
