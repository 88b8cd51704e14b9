"""What the ops do, written well in plain torch: results into given tensors, no work that can be left out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def three_steps(x: Tensor, scale: Tensor, shift: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """Affine, ReLU and mask, each a pass over all configurations [K, N, C, H, W]; keep [K, 1, C, 1, 1]."""
    torch.addcmul(shift, x.expand(out.shape), scale, out=out)
    torch.clamp_min(out, 0, out=out)
    return torch.mul(out, keep, out=out)


def shared_steps(x: Tensor, scale: Tensor, shift: Tensor, keep: Tensor, once: Tensor, out: Tensor) -> Tensor:
    """The same, noticing that only the mask depends on the configuration."""
    torch.addcmul(shift, x, scale, out=once)
    torch.clamp_min(once, 0, out=once)
    return torch.mul(once, keep, out=out)


def noise(x: Tensor, sigma: Tensor, draws: Tensor, out: Tensor, generator: torch.Generator) -> Tensor:
    """x + sigma * randn; sigma [K, 1, C, 1, 1]."""
    torch.randn(out.shape, generator=generator, out=draws)
    torch.mul(draws, sigma, out=draws)
    return torch.add(x, draws, out=out)


def moments(x: Tensor, labels: Tensor, classes: int, buffer: Tensor) -> dict[str, Tensor]:
    """Class means and M2 of spatial means, M2 over elements, extremes and firing counts of x [N, C, H, W].

    By the fastest reductions that torch has for each: ``var_mean``, ``aminmax`` and sums of bools take several times as
    long as these, and float64 sums five times; the buffer is as large as x.
    """
    maps, buffer = x.flatten(2), buffer.flatten(2)  # [N, C, S]
    positions = maps.shape[2]
    mean = maps.mean(2, keepdim=True)
    spread = torch.linalg.vector_norm(torch.sub(maps, mean, out=buffer), dim=2).double() ** 2
    least, greatest = maps.amin(2), maps.amax(2)
    positive = torch.gt(maps, 0, out=buffer).sum(2)
    mean = mean[..., 0].double()
    count = torch.bincount(labels, minlength=classes).double()[:, None]
    class_mean = mean.new_zeros(classes, mean.shape[1]).index_add_(0, labels, mean) / count
    m2 = torch.zeros_like(class_mean).index_add_(0, labels, (mean - class_mean[labels]) ** 2)
    element_mean = mean.mean(0)
    element_m2 = (spread + positions * (mean - element_mean) ** 2).sum(0)
    return {
        "mean": class_mean,
        "m2": m2,
        "element_mean": element_mean,
        "element_m2": element_m2,
        "minimum": least.amin(0).double(),
        "maximum": greatest.amax(0).double(),
        "fired": (greatest > 0).sum(0),
        "fired_elements": positive.sum(0, dtype=torch.int64),
    }


def histogram(x: Tensor, labels: Tensor, edges: Tensor, classes: int) -> Tensor:
    """Counts [L, C, E + 2] of the spatial means of x [N, C, H, W] among edges [C, E], zeros by themselves."""
    units, bins = len(edges), edges.shape[1] + 2
    mean = x.mean((2, 3), dtype=torch.float64)
    at = torch.searchsorted(edges, mean.t().contiguous(), right=True).t() + 1
    at[mean == 0] = 0
    flat = (labels[:, None] * units + torch.arange(units)) * bins + at
    return torch.bincount(flat.flatten(), minlength=classes * units * bins).view(classes, units, bins)


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and sums of losses [K] of logits [K, N, L]."""
    configurations, _, classes = logits.shape
    correct = (logits.argmax(-1) == labels).sum(1)
    loss = F.cross_entropy(logits.view(-1, classes), labels.repeat(configurations), reduction="none")
    return correct, loss.view(configurations, -1).sum(1, dtype=torch.float64)


def nested_linear_score(
    a: Tensor,
    units: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: Tensor,
    head_bias: Tensor,
    living: Tensor,
    labels: Tensor,
    sums: Tensor,
    hidden: Tensor,
) -> tuple[Tensor, Tensor]:
    """The nested sum in place, units first [D, N]: at each point, a product for the units that return."""
    in_order = a.t()[units]  # [C, N]
    sums.copy_(bias[0][:, None].expand_as(sums))
    correct, loss = torch.zeros(len(living), dtype=torch.int64), torch.zeros(len(living), dtype=torch.float64)
    added = 0
    for t in range(len(living) - 1, -1, -1):
        alive = int(living[t])
        if alive > added:
            sums.addmm_(weight[:, added:alive], in_order[added:alive])
            added = alive
        rectified = torch.clamp_min(sums[:alive], 0, out=hidden[:alive])
        logits = torch.addmm(head_bias[0][:, None], head[:, :alive], rectified)  # [L, N]
        correct[t] = (logits.max(0).indices == labels).sum()
        loss[t] = F.cross_entropy(logits.t(), labels, reduction="sum")
    return correct, loss


def rank_one(z: Tensor, weight: Tensor, a: Tensor, units: Tensor, out: Tensor) -> Tensor:
    """relu(z - w a) for each unit; out [K, N, D]."""
    torch.mul(weight.t()[units][:, None], a.t()[units][..., None], out=out)
    torch.sub(z, out, out=out)
    return torch.clamp_min(out, 0, out=out)


def rank_one_head(
    z: Tensor, weight: Tensor, a: Tensor, units: Tensor, head: Tensor, head_bias: Tensor, hidden: Tensor, out: Tensor
) -> Tensor:
    """relu(z - w a) and the head, a unit at a time: hidden [N, D] stays in cache; out [K, N, L]."""
    sent, fired = weight.t()[units], a.t()[units]
    for k in range(len(units)):
        torch.addcmul(z, fired[k][:, None], sent[k], value=-1, out=hidden)
        torch.clamp_min(hidden, 0, out=hidden)
        torch.addmm(head_bias, hidden, head.t(), out=out[k])
    return out
