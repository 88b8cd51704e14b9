"""Sweeps of a second or less, which can be stopped, and what they leave in their ledger."""

from sdkernels.engine.ledger import Ledger
from sdkernels.lab.ensemble import EnsembleTrainer
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep
from sdkernels.lab.sweep.driver import Driver
from sdkernels.lab.training import Trainer, TrainingOptions

OPTIONS = TrainingOptions(epochs=2, learning_rate=1e-2)
ABLATION = Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 2, "points": 5, "seed": 3})
NOISE = Condition("noise", "noise_robustness", ["hidden1"], "test", 200, {"scales": [0.5, 1.0], "repeats": 2})
IMPORTANCE = Condition("importance", "unit_importance", ["hidden1"], examples=300)


def settings(**changes):
    return NetworkSettings(
        **{"data": "digits", "model": "mlp", "options": {"hidden": [12]}, "training": OPTIONS} | changes
    )


def sweep_of(*changes, conditions=(), **more):
    return Sweep(tuple(settings(**change) for change in changes), conditions, **more)


def items(store, kind):
    with Ledger(store) as ledger:
        return {item.key: (item.written, item.content) for item in ledger.items(kind)}


def forbid_training(monkeypatch):
    """From here on nothing may be trained."""

    def refuse(*_, **__):
        raise AssertionError("a network is trained")

    for owner in (Trainer, EnsembleTrainer):
        monkeypatch.setattr(owner, "__init__", refuse)


def stop_after(monkeypatch, messages):
    """Ctrl-C while the sweep keeps the next message after so many; returns what those were."""
    original, seen = Driver.keep, []

    def keep(self, number, message):
        if len(seen) == messages:
            raise KeyboardInterrupt
        seen.append(message.what)
        original(self, number, message)

    monkeypatch.setattr(Driver, "keep", keep)
    return seen
