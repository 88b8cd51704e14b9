"""Cases of the ops that read much and write little: ``class_moments``, ``class_histogram`` and ``score``."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from python_bench.gpu.case import TORCH, Case, require, runs
from python_bench.gpu.clock import Cases, Clock, normal, require_close
from sdkernels.ops import ClassMoments, class_histogram, score
from sdkernels.ops.class_histogram import IMPLEMENTATIONS as HISTOGRAM
from sdkernels.ops.class_histogram import reference as count_bins
from sdkernels.ops.class_moments import IMPLEMENTATIONS as MOMENTS
from sdkernels.ops.class_moments import reference as sum_moments
from sdkernels.ops.score import IMPLEMENTATIONS as SCORE
from sdkernels.ops.score import empty_sums
from sdkernels.ops.score import reference as score_reference

MAPS = {"full": (4096, 256, 16, 16), "quick": (256, 256, 16, 16), "tiny": (6, 5, 2, 3)}
FEATURES = {"full": (100_000, 512), "quick": (10_000, 512), "tiny": (9, 4)}
FEW_LOGITS = {"full": (1024, 16384, 10), "quick": (64, 16384, 10), "tiny": (3, 7, 10)}  # K, N, L
MANY_LOGITS = {"full": (64, 8192, 1000), "quick": (8, 8192, 1000), "tiny": (2, 5, 33)}
EDGES = 32
MARGIN = 1e-5

TARGET = ">= 85% of copy"
MOMENTS_ERROR = 1e-10  # float64, merged in any order
TORCH_ERROR = 1e-4  # what plain float32 sums make of a variance
LOSS_ERROR = 1e-5  # of float32 exponentials
CHUNK = 2**27  # logits that the reference takes at once


def sums_cases(device: torch.device, scale: str, clock: Clock) -> Cases:
    """Every op on its shapes."""
    return {
        "class_moments: maps, 10 classes": lambda: moments_case(MAPS[scale], 10, device).measures(clock),
        "class_moments: features, 1000 classes": lambda: moments_case(FEATURES[scale], 1000, device).measures(clock),
        "class_moments: maps, 10 classes, means": lambda: moments_case(MAPS[scale], 10, device, True).measures(clock),
        "class_histogram: maps, 10 classes": lambda: histogram_case(MAPS[scale], 10, device).measures(clock),
        "score: loss, 10 classes": lambda: score_case(FEW_LOGITS[scale], device).measures(clock),
        "score: loss, 1000 classes": lambda: score_case(MANY_LOGITS[scale], device).measures(clock),
        "score: loss + ambiguous, 10 classes": lambda: score_case(FEW_LOGITS[scale], device, MARGIN).measures(clock),
    }


def activation(shape: tuple[int, ...], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a ReLU gives, with every eighth unit dead; and labels."""
    x = normal(*shape, device=device).relu_()
    x[:, ::8] = 0
    uniform = normal(shape[0], device=device, seed=1).mul(0.5**0.5).erf().abs()
    return x, (uniform * classes).long().clamp(max=classes - 1)


def moments_case(shape: tuple[int, ...], classes: int, device: torch.device, with_means: bool = False) -> Case:
    """A batch added to the accumulators, each example's means written if asked for."""
    x, labels = activation(shape, classes, device)
    means = x.new_empty(shape[:2], dtype=torch.float64) if with_means else None
    state = ClassMoments.empty(classes, shape[1], device)
    run: dict[str, Callable] = dict(runs("class_moments", MOMENTS, (x, labels, *state.tensors(), means, 1)))  # type: ignore[type-arg]
    run[TORCH] = lambda: torch_moments(x, labels, classes)

    @cache
    def expected() -> ClassMoments:
        moments = ClassMoments.empty(classes, shape[1], device)
        sum_moments(x, labels, *moments.tensors(), None, 1)
        return moments

    def check(name: str) -> str:
        if name == TORCH:
            for field, result in torch_moments(x, labels, classes).items():
                require_close(field, result, getattr(expected(), field), TORCH_ERROR)
            return f"to {TORCH_ERROR:.0e}"
        moments = ClassMoments.empty(classes, shape[1], device)
        written = None if means is None else torch.full_like(means, torch.nan)
        MOMENTS[name](x, labels, *moments.tensors(), written, 1)
        for field in ("count", "elements", "minimum", "maximum", "fired", "fired_elements"):
            require(torch.equal(getattr(moments, field), getattr(expected(), field)), f"{field} is not the reference's")
        floats = ("mean", "m2", "element_mean", "element_m2")
        error = max(
            require_close(field, getattr(moments, field), getattr(expected(), field), MOMENTS_ERROR) for field in floats
        )
        if written is not None:
            error = max(error, require_close("means", written, x.double().flatten(2).mean(2), MOMENTS_ERROR))
        return f"counts and extremes equal, moments to {error:.0e}"

    return Case(
        f"float32 {list(shape)}",
        run,
        lambda: state.update(x, labels, means=means),
        check,
        bytes=x.nbytes + (0 if means is None else means.nbytes),
        target=TARGET,
    )


def torch_moments(x: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """The same numbers by torch's own reductions, a pass or more each."""
    positions = tuple(range(2, x.ndim))
    means = x.mean(positions, dtype=torch.float64) if positions else x.double()  # [N, C]
    count = torch.zeros(classes, dtype=torch.float64, device=x.device).index_add_(0, labels, means.new_ones(len(x)))
    sums = means.new_zeros(classes, x.shape[1]).index_add_(0, labels, means)
    mean = sums / count.clamp(min=1)[:, None]
    m2 = torch.zeros_like(mean).index_add_(0, labels, (means - mean[labels]) ** 2)
    element_variance, element_mean = torch.var_mean(x, (0, *positions), correction=0)
    positive = x > 0
    return {
        "mean": mean,
        "m2": m2,
        "element_mean": element_mean,
        "element_m2": element_variance.double() * (x.numel() // x.shape[1]),
        "minimum": x.amin((0, *positions)),
        "maximum": x.amax((0, *positions)),
        "fired": (positive.any(-1).any(-1) if x.ndim == 4 else positive).sum(0),
        "fired_elements": positive.sum((0, *positions)),
    }


def histogram_case(shape: tuple[int, ...], classes: int, device: torch.device) -> Case:
    """Edges spread over what the means take."""
    x, labels = activation(shape, classes, device)
    edges = torch.linspace(0.2, 0.6, EDGES, dtype=torch.float64, device=device).repeat(shape[1], 1)
    counts = torch.zeros(classes, shape[1], EDGES + 2, dtype=torch.int64, device=device)
    run = dict(runs("class_histogram", HISTOGRAM, (x, labels, edges, counts, 1)))
    run[TORCH] = lambda: torch_histogram(x, labels, edges, counts)

    @cache
    def expected() -> Tensor:
        result = torch.zeros_like(counts)
        count_bins(x, labels, edges, result, 1)
        return result

    def check(name: str) -> str:
        result = torch.zeros_like(counts)
        HISTOGRAM[name](x, labels, edges, result, 1) if name != TORCH else torch_histogram(x, labels, edges, result)
        wrong = int((result - expected()).abs().sum())
        require(wrong == 0, f"counts differ from the reference's by {wrong} of {shape[0] * shape[1]}")
        return "all counts"

    def call() -> None:
        class_histogram(x, labels, edges, counts)

    return Case(f"float32 {list(shape)}, {EDGES} edges", run, call, check, bytes=x.nbytes, target=TARGET)


def torch_histogram(x: Tensor, labels: Tensor, edges: Tensor, counts: Tensor) -> None:
    """One pass for the means; the rest is small."""
    means = x.mean(tuple(range(2, x.ndim)), dtype=torch.float64)  # [N, C]
    bins = (1 + torch.searchsorted(edges, means.t().contiguous(), right=True)).t()
    bins = torch.where(means == 0, 0, bins)
    units = torch.arange(x.shape[1], device=x.device)
    at = (labels[:, None] * x.shape[1] + units) * counts.shape[2] + bins
    counts.view(-1).index_add_(0, at.flatten(), counts.new_ones(()).expand(at.numel()))


def score_case(shape: tuple[int, int, int], device: torch.device, margin: float | None = None) -> Case:
    """Right predictions and losses, and with a margin the ambiguous ones, as the engine asks for them."""
    k, n, classes = shape
    logits = normal(*shape, device=device)
    labels = (normal(n, device=device, seed=1).mul(0.5**0.5).erf().abs() * classes).long().clamp(max=classes - 1)
    options = (True, 0, False, -1.0 if margin is None else margin)
    run = dict(runs("score", SCORE, (logits, labels, None, *options)))
    if margin is None:
        run[TORCH] = lambda: torch_score(logits, labels)

    @cache
    def expected() -> tuple[Tensor, ...]:
        at_once = max(1, CHUNK // (n * classes))
        parts = [score_reference(part, labels, None, *options) for part in logits.split(at_once)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def check(name: str) -> str:
        result: tuple[Tensor, ...] = run[name]()
        if name == TORCH:
            empty = empty_sums(logits, k, classes, False, options)
            result = (result[0], empty[1], result[1], *empty[3:])
        error = require_close("loss", result[2], expected()[2], LOSS_ERROR)
        for what, at in (("correct", 0), ("ambiguous", 5)):
            wrong = int((result[at] - expected()[at]).abs().sum())
            require(wrong == 0, f"{what} counts differ from the reference's by {wrong} of {k * n}")
        return f"counts equal, losses to {error:.0e}"

    return Case(
        f"float32 {list(shape)}",
        run,
        lambda: score(logits, labels, margin=margin),
        check,
        bytes=logits.nbytes,
        target=TARGET,
    )


def torch_score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Right predictions and losses by torch's own kernels."""
    k, n, _ = logits.shape
    correct = (logits.argmax(-1) == labels).sum(1)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(k), reduction="none").view(k, n)
    return correct, losses.sum(1, dtype=torch.float64)
