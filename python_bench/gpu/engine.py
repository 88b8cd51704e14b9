"""The engine's workload on a device: cumulative ablation of the MNIST-sized MLP, against two opponents."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import sdkernels as sd
from python_bench.gpu.clock import Cases, Measures, Row
from python_bench.opponents import Counts, hook_loop, prefix_cache, tuned_batch_size
from python_bench.race import race
from sdkernels.lab.models import mlp

LAYERS = ["relu1", "relu2"]
EXAMPLES = {"full": 60_000, "quick": 10_000, "tiny": 60}
WIDTHS = {"full": (784, 512), "quick": (784, 512), "tiny": (12, 8)}
ORDERS = {"full": 10, "quick": 2, "tiny": 2}
POINTS = {"full": 33, "quick": 9, "tiny": 3}
BATCH_SIZES = {"full": [1000, 4000, 10_000, 30_000, 60_000], "quick": [1000, 10_000], "tiny": [20, 60]}
TURNS = 3
OURS = "sdkernels"
OPPONENTS = {"hook loop": hook_loop, "hand-written prefix cache": prefix_cache}


def engine_cases(device: torch.device, scale: str) -> Cases:
    """One race."""
    return {"cumulative ablation of an MLP": lambda: _race(device, scale)}


def _race(device: torch.device, scale: str) -> Measures:
    examples, (inputs_wide, hidden) = EXAMPLES[scale], WIDTHS[scale]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(examples, inputs_wide, generator=generator).to(device)
    labels = torch.randint(0, 10, (examples,), generator=generator).to(device)
    model = mlp(inputs_wide, (hidden, hidden), 10, seed=0).eval().to(device)

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def ours(batch_size: int) -> sd.AblationCurve:
        curve = sd.cumulative_ablation(
            model,
            LAYERS,
            (inputs, labels),
            orders=ORDERS[scale],
            points=POINTS[scale],
            batch_size=batch_size,
        )
        finish()
        return curve

    def measure() -> Row:
        sizes = BATCH_SIZES[scale]
        ours(sizes[-1])  # what is compiled, is compiled now
        own_size = tuned_batch_size(ours, sizes)  # type: ignore[arg-type]
        curve = ours(own_size)
        contestants: dict[str, Callable[[], Any]] = {OURS: lambda: ours(own_size)}
        batch_sizes, left_out, losses = {OURS: own_size}, {}, {}
        for name, opponent in OPPONENTS.items():
            there = on_device(opponent, device, finish)
            setting = (model, LAYERS, inputs, labels, curve.orders.to(device), curve.points)
            few = (*setting[:4], setting[4][:1], curve.points[::8])
            there(*few, sizes[-1])
            batch_sizes[name] = tuned_batch_size(there, sizes, *few)
            correct, loss = (t.cpu() for t in there(*setting, batch_sizes[name]))
            wrong = (correct - curve.correct).abs() > curve.ambiguous
            losses[name] = float(((loss - curve.loss) / curve.loss).abs().max())
            if wrong.any() or not losses[name] < 1e-4:
                left_out[name] = f"{int(wrong.sum())} counts differ beyond ambiguous ones; losses by {losses[name]:.0e}"
                continue
            contestants[name] = lambda run=there, setting=setting, size=batch_sizes[name]: run(*setting, size)  # type: ignore[misc]
        title = f"{model_name(inputs_wide, hidden)}, {len(curve.orders)} orders x {len(curve.points)} points"
        result = race(title, contestants, TURNS, {"batch sizes": batch_sizes})
        row: Row = {
            "shape": f"{title}, {examples} examples on the device, float32",
            "seconds": dict(result.seconds),
            "ratios": {name: median(result.ratios(name)) for name in result.seconds},
            "batch_sizes": batch_sizes,
            "losses_differ_by": losses,
            "ambiguous": int(curve.ambiguous.sum()),
            "plan": curve.plan,
        }
        if left_out:
            row["failed"] = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        return row

    return {OURS: measure}


def model_name(inputs: int, hidden: int) -> str:
    """Its layers' widths."""
    return f"MLP {inputs}-{hidden}-{hidden}-10"


def on_device(
    opponent: Callable[..., Counts], device: torch.device, finish: Callable[[], None]
) -> Callable[..., Counts]:
    """An opponent whose masks and counts are on the device, and that ends when the device has."""

    def run(*arguments: Any) -> Counts:
        with device:  # tensors that it makes
            counts = opponent(*arguments)
        finish()
        return counts

    return run
