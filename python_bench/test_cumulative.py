"""Cumulative ablation of the MNIST-sized MLP: 2 x 512 units, 10 orders x 33 points, 10,000 examples."""

import torch

import sdkernels as sd
from python_bench.opponents import hook_loop, prefix_cache, tuned_batch_size
from python_bench.race import race
from sdkernels.lab.models import mlp

LAYERS = ["relu1", "relu2"]
BATCH_SIZES = [250, 500, 1000, 2000, 10_000]


def test_cumulative_mlp(benchmark, report):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(10_000, 784, generator=generator)
    labels = torch.randint(0, 10, (10_000,), generator=generator)
    model = mlp(784, (512, 512), 10, seed=0).eval()

    def ours() -> sd.AblationCurve:
        return sd.cumulative_ablation(model, LAYERS, (inputs, labels), orders=10, points=33)

    curve = ours()
    setting = (model, LAYERS, inputs, labels, curve.orders, curve.points)
    results = {"sdkernels": ours}
    notes = {"command": "pytest python_bench", "examples": len(labels), "configurations": curve.correct.numel()}
    for name, opponent in {"hook loop": hook_loop, "hand-written prefix cache": prefix_cache}.items():
        few = (*setting[:4], curve.orders[:1], curve.points[::8])
        size = tuned_batch_size(opponent, BATCH_SIZES, *few)
        notes[f"{name}'s batch size"] = size
        results[name] = lambda opponent=opponent, size=size: opponent(*setting, size)
        correct, loss = results[name]()
        assert ((correct - curve.correct).abs() <= curve.ambiguous).all(), "a speed-up at other results is none"
        torch.testing.assert_close(loss, curve.loss, rtol=1e-5, atol=0)
    result = race("Cumulative ablation, MLP 784-512-512-10, 10 orders x 33 points, 10,000 examples", results, 3, notes)
    report(result, "cumulative_mlp")
    benchmark.extra_info["seconds"] = dict(result.seconds)
    benchmark.pedantic(ours, rounds=3)
