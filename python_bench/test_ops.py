"""Each op against its floor and against plain torch, all on tensors that are there already."""

import torch

from python_bench import torch_ops
from python_bench.race import Race, race
from sdkernels.ops import (
    ClassMoments,
    class_histogram,
    nested_linear_score,
    perturb,
    rank_one,
    score,
)

TURNS, RUNS = 9, 3
NOTES = {"command": "pytest python_bench/test_ops.py"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(examples: int, classes: int = 10) -> torch.Tensor:
    return torch.randint(0, classes, (examples,), generator=torch.Generator().manual_seed(1))


def finish(benchmark, report, result: Race, name: str, ours) -> None:
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)
    benchmark.pedantic(ours, rounds=5)


def test_perturb_masks(benchmark, report):
    x, out = normal(64, 256, 8, 8), torch.empty(64, 64, 256, 8, 8)
    scale, shift = normal(256, seed=1), normal(256, seed=2)
    ablated = normal(64, 256, seed=3) < 0
    zero, keep, once = torch.tensor(0.0), (~ablated).float()[:, None, :, None, None], torch.empty_like(x)
    wide = scale[:, None, None], shift[:, None, None]

    def ours() -> torch.Tensor:
        return perturb(x, ablated, zero, scale=scale, shift=shift, relu=True, out=out)

    expected = torch_ops.three_steps(x, *wide, keep, torch.empty_like(out))
    torch.testing.assert_close(ours(), expected)
    result = race(
        "perturb: affine, ReLU, masks; 64 configurations of [64, 256, 8, 8] float32",
        {
            "sdkernels": ours,
            "fill_ of as much memory": lambda: out.fill_(1.0),
            "three torch steps with out=": lambda: torch_ops.three_steps(x, *wide, keep, out),
            "affine and ReLU once, then the mask, with out=": lambda: torch_ops.shared_steps(x, *wide, keep, once, out),
        },
        TURNS,
        NOTES,
        RUNS,
    )
    finish(benchmark, report, result, "ops_perturb_masks", ours)


def test_perturb_noise(benchmark, report):
    x, out = normal(64, 256, 8, 8), torch.empty(16, 64, 256, 8, 8)
    sigma = normal(16, 256, seed=1).abs()
    nothing, zero, draws = torch.zeros(16, 256, dtype=torch.bool), torch.tensor(0.0), torch.empty_like(out)
    configurations, examples = torch.arange(16), torch.arange(64)
    wide, generator = sigma[:, None, :, None, None], torch.Generator().manual_seed(0)

    def ours() -> torch.Tensor:
        ids = {"seed": 0, "configurations": configurations, "examples": examples}
        return perturb(x, nothing, zero, sigma=sigma, out=out, **ids)

    z = (ours() - x) / wide
    assert max(abs(float(z.mean())), abs(float(z.std()) - 1)) < 1e-3, "a speed-up at other results is none"
    result = race(
        "perturb: noise a channel; 16 configurations of [64, 256, 8, 8] float32",
        {
            "sdkernels": ours,
            "x + sigma * torch.randn(), with out=": lambda: torch_ops.noise(x, wide, draws, out, generator),
            "torch.randn(out=) alone": lambda: torch.randn(out.shape, generator=generator, out=draws),
        },
        TURNS,
        NOTES,
    )
    finish(benchmark, report, result, "ops_perturb_noise", ours)


def test_class_moments(benchmark, report):
    x, labels = normal(512, 256, 16, 16), labels_of(512)
    buffer = torch.empty_like(x)
    moments = ClassMoments.empty(10, 256)
    moments.update(x, labels)
    for name, expected in torch_ops.moments(x, labels, 10, buffer).items():
        torch.testing.assert_close(getattr(moments, name), expected, rtol=2e-5, atol=1e-6)  # torch's in float32
    result = race(
        "class_moments: class means and M2, variance over elements, extremes, firing; [512, 256, 16, 16], 10 classes",
        {
            "sdkernels": lambda: moments.update(x, labels),
            "x.sum()": lambda: x.sum(),
            "torch, one reduction a quantity": lambda: torch_ops.moments(x, labels, 10, buffer),
        },
        TURNS,
        NOTES,
        RUNS,
    )
    finish(benchmark, report, result, "ops_class_moments", lambda: moments.update(x, labels))


def test_class_histogram(benchmark, report):
    x, labels = normal(512, 256, 16, 16).relu_(), labels_of(512)
    edges = torch.linspace(0.3, 0.5, 20, dtype=torch.float64).expand(256, -1).contiguous()
    counts = torch.zeros(10, 256, 22, dtype=torch.int64)
    class_histogram(x, labels, edges, counts)
    assert torch.equal(counts, torch_ops.histogram(x, labels, edges, 10)), "a speed-up at other results is none"
    result = race(
        "class_histogram: [512, 256, 16, 16], 10 classes, 20 edges",
        {
            "sdkernels": lambda: class_histogram(x, labels, edges, counts),
            "x.sum()": lambda: x.sum(),
            "torch: mean, searchsorted, bincount": lambda: torch_ops.histogram(x, labels, edges, 10),
        },
        TURNS,
        NOTES,
        RUNS,
    )
    finish(benchmark, report, result, "ops_class_histogram", lambda: class_histogram(x, labels, edges, counts))


def test_score(benchmark, report):
    logits, labels = normal(256, 4096, 10), labels_of(4096)
    correct, loss = torch_ops.score(logits, labels)
    ours = score(logits, labels)
    assert torch.equal(ours.correct, correct), "a speed-up at other results is none"
    torch.testing.assert_close(ours.loss, loss, rtol=1e-5, atol=0)
    result = race(
        "score: counts and losses of [256, 4096, 10] float32",
        {
            "sdkernels": lambda: score(logits, labels),
            "argmax, ==, cross_entropy": lambda: torch_ops.score(logits, labels),
        },
        TURNS,
        NOTES,
    )
    finish(benchmark, report, result, "ops_score", lambda: score(logits, labels))


def test_nested_linear(benchmark, report):
    a, labels = normal(4096, 512).relu_(), labels_of(4096)
    weight, bias = normal(512, 512, seed=1) / 20, normal(1, 512, seed=2)
    head, head_bias = normal(10, 512, seed=3) / 20, normal(1, 10, seed=4)
    units = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    living = torch.linspace(512, 0, 128).round().long()
    sums, hidden = torch.empty(512, 4096), torch.empty(512, 4096)

    def ours():
        return nested_linear_score(a, units, weight, bias, living, living, labels, head=head, head_bias=head_bias)

    def torch_alone():
        return torch_ops.nested_linear_score(a, units, weight, bias, head, head_bias, living, labels, sums, hidden)

    correct, loss = torch_alone()
    assert (ours().correct - correct).abs().max() <= 2, "no more than rounding may decide"
    torch.testing.assert_close(ours().loss, loss, rtol=1e-5, atol=0)
    result = race(
        "nested_linear_score: 512 -> 512 -> 10, 128 points, 4096 examples, counts and losses out",
        {"sdkernels": ours, "the same algorithm in torch": torch_alone},
        TURNS,
        NOTES,
    )
    finish(benchmark, report, result, "ops_nested_linear", ours)


def test_rank_one(benchmark, report):
    z, weight, a = normal(512, 512), normal(512, 512, seed=1), normal(512, 512, seed=2)
    units, out = torch.arange(128), torch.empty(128, 512, 512)

    def ours() -> torch.Tensor:
        return rank_one(z, weight, a, units, relu=True)

    torch.testing.assert_close(ours(), torch_ops.rank_one(z, weight, a, units, out))
    result = race(
        "rank_one: 128 units, ReLU, [512, 512] float32",
        {
            "sdkernels": ours,
            "fill_ of as much memory": lambda: out.fill_(1.0),
            "torch with out=": lambda: torch_ops.rank_one(z, weight, a, units, out),
        },
        TURNS,
        NOTES,
        RUNS,
    )
    finish(benchmark, report, result, "ops_rank_one", ours)


def test_rank_one_head(benchmark, report):
    weight, a, head = normal(512, 512, seed=1) / 20, normal(1024, 512, seed=2).relu_(), normal(10, 512, seed=3) / 20
    bias, head_bias, units = normal(512, seed=4), normal(10, seed=5), torch.arange(512)
    z = torch.addmm(bias, a, weight.t())
    intact = torch.addmm(head_bias, z.relu(), head.t())
    hidden, out = torch.empty(1024, 512), torch.empty(512, 1024, 10)

    def ours(intact: torch.Tensor | None = intact) -> torch.Tensor:
        return rank_one(z, weight, a, units, relu=True, head=head, head_bias=head_bias, intact=intact)

    def torch_alone() -> torch.Tensor:
        return torch_ops.rank_one_head(z, weight, a, units, head, head_bias, hidden, out)

    torch.testing.assert_close(ours(), torch_alone(), rtol=1e-5, atol=2e-5)
    result = race(
        "rank_one with a head: 512 units alone, 512 -> 512 -> 10, 1024 examples, half of the activations 0; float32",
        {
            "sdkernels": ours,
            "sdkernels, every row computed": lambda: ours(None),
            "torch with out=, a unit at a time": torch_alone,
        },
        TURNS,
        NOTES,
    )
    finish(benchmark, report, result, "ops_rank_one_head", ours)
