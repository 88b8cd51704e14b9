"""What users write today for cumulative ablation of an MLP, written well. Imports nothing of the package."""

from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Counts = tuple[Tensor, Tensor]  # correct [R, T] int64, mean loss [R, T]


def hook_loop(
    model: nn.Sequential,
    layers: list[str],
    inputs: Tensor,
    labels: Tensor,
    orders: Tensor,
    points: Tensor,
    batch_size: int,
) -> Counts:
    """The whole network over the whole data set, once a configuration, with mask hooks."""
    modules = dict(model.named_modules())
    widths = [modules[name.replace("relu", "fc")].out_features for name in layers]
    correct = torch.zeros(len(orders), len(points), dtype=torch.int64, device=inputs.device)
    loss = torch.zeros(len(orders), len(points), dtype=torch.float64, device=inputs.device)
    with torch.no_grad():
        for r, order in enumerate(orders):
            for t, point in enumerate(points.tolist()):
                keep = torch.ones(sum(widths), device=inputs.device)
                keep[order[:point]] = 0
                handles = [
                    modules[name].register_forward_hook(lambda _m, _a, out, mask=mask: out * mask)
                    for name, mask in zip(layers, keep.split(widths), strict=True)
                ]
                for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
                    logits = model(x)
                    correct[r, t] += (logits.argmax(1) == y).sum()
                    loss[r, t] += F.cross_entropy(logits, y, reduction="sum")
                for handle in handles:
                    handle.remove()
    return correct, loss / len(labels)


def prefix_cache(
    model: nn.Sequential,
    layers: list[str],
    inputs: Tensor,
    labels: Tensor,
    orders: Tensor,
    points: Tensor,
    batch_size: int,
) -> Counts:
    """By hand for this network: the first hidden layer once a batch, the rest once a configuration."""
    first, second = (model.get_submodule(name) for name in ("fc2", "out"))
    prefix = nn.Sequential(model.get_submodule("fc1"), model.get_submodule("relu1"))
    width = first.in_features
    keep = torch.ones(len(orders), len(points), orders.shape[1], device=inputs.device)
    for r, order in enumerate(orders):
        for t, point in enumerate(points.tolist()):
            keep[r, t, order[:point]] = 0
    correct = torch.zeros(len(orders), len(points), dtype=torch.int64, device=inputs.device)
    loss = torch.zeros(len(orders), len(points), dtype=torch.float64, device=inputs.device)
    with torch.no_grad():
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            hidden = prefix(x)
            for r in range(len(orders)):
                for t in range(len(points)):
                    mask = keep[r, t]
                    after = first(hidden * mask[:width]).relu_().mul_(mask[width:])
                    logits = second(after)
                    correct[r, t] += (logits.argmax(1) == y).sum()
                    loss[r, t] += F.cross_entropy(logits, y, reduction="sum")
    return correct, loss / len(labels)


def tuned_batch_size(opponent: Callable[..., Counts], candidates: list[int], *arguments: object) -> int:
    """The batch size at which a small part of the work (the arguments) is done fastest; best of two each."""

    def seconds(batch_size: int) -> float:
        start = perf_counter()
        opponent(*arguments, batch_size)
        return perf_counter() - start

    return min(candidates, key=lambda size: min(seconds(size) for _ in range(2)))
