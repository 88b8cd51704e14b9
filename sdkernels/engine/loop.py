"""The oracle: the plain hook loop, one whole forward pass a configuration and batch. Imports nothing of the engine."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Metric = str | Callable[[Tensor, Tensor], Tensor]
Sums = dict[str, Tensor]
Call = tuple[nn.Module, int, int, int | None]  # layer, which of its calls, unit dimension, which part of a tuple


def run_loop(
    model: nn.Module,
    calls: Sequence[Call],
    batches: Iterable[tuple[Tensor, Tensor]],  # inputs [N, ...], labels [N]
    masks: Sequence[Tensor],  # for each call, [K, C] bool, True = clamped
    values: Sequence[Tensor],  # for each call, broadcasts to one example
    metrics: Sequence[Metric],
    *,
    check: Callable[[int, Tensor], None],  # sees each call's intact activation
    check_labels: Callable[[Tensor, Tensor], None],  # sees labels and intact logits
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Sums, Sums]:
    """Sums of every metric over all examples: of the intact model, each [1], and of K ablated ones, each [K]."""
    intact_sums: Sums = {}
    sums: Sums = {}
    configurations = len(masks[0])
    for inputs, labels in batches:
        with torch.no_grad(), Hooks(calls, lambda i, out: check(i, out)):
            intact = model(inputs.clone())  # a model may write into its inputs
        check_labels(labels, intact)
        _add(intact_sums, 0, 1, _score(metrics, intact, labels, intact))
        for k in range(configurations):
            logits = ablated_logits(model, calls, inputs, [mask[k] for mask in masks], values)
            _add(sums, k, configurations, _score(metrics, logits, labels, intact))
            advance(len(labels))
    return intact_sums, sums


def ablated_logits(
    model: nn.Module,
    calls: Sequence[Call],
    inputs: Tensor,
    masks: Sequence[Tensor],  # for each call, [C] bool
    values: Sequence[Tensor],
) -> Tensor:
    """The model's logits with units clamped: one whole forward pass."""
    with torch.no_grad(), Hooks(calls, lambda i, out: _clamp(out, masks[i], values[i], calls[i][2])):
        logits: Tensor = model(inputs.clone())
    return logits


class Hooks:
    """Within the context, each call's output is replaced by ``change(index, output)`` unless that is None."""

    def __init__(self, calls: Sequence[Call], change: Callable[..., Any]) -> None:
        self._calls, self._change = calls, change

    def __enter__(self) -> None:
        self._handles = []
        for module in {id(call[0]): call[0] for call in self._calls}.values():
            fired = [0]

            def hook(m: nn.Module, _args: Any, output: Any, fired: list[int] = fired) -> Any:
                call = fired[0]
                fired[0] += 1
                for index, (module, wanted, _, part) in enumerate(self._calls):
                    if module is m and wanted == call:
                        changed = self._change(index, output if part is None else output[part])
                        if part is None or changed is None:
                            return changed
                        return (*output[:part], changed, *output[part + 1 :])
                return None

            self._handles.append(module.register_forward_hook(hook))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _clamp(output: Tensor, mask: Tensor, value: Tensor, unit_dim: int) -> Tensor:
    shape = [1] * output.ndim
    shape[unit_dim] = len(mask)
    return torch.where(mask.to(output.device).view(shape), value.to(output.device, output.dtype), output)


def _score(metrics: Sequence[Metric], logits: Tensor, labels: Tensor, intact: Tensor) -> Sums:
    predicted = logits.argmax(1)
    scores: Sums = {}
    for metric in metrics:
        if callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
            values = metric(logits.clone(), labels)
            if not isinstance(values, Tensor) or values.shape != labels.shape:
                got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ValueError(
                    f"metric {name!r} gave {got}; it must give one number an example, {list(labels.shape)}"
                )
            scores[name] = values.double().sum()
        elif metric == "accuracy":
            scores[metric] = (predicted == labels).sum()
        elif metric == "loss":
            scores[metric] = F.cross_entropy(logits.double(), labels, reduction="sum")
        elif metric == "top5":
            best = logits.sort(dim=1, descending=True, stable=True).indices[
                :, :5
            ]  # of equal logits the first comes first
            scores[metric] = (best == labels[:, None]).sum()
        elif metric == "agreement":
            scores[metric] = (predicted == intact.argmax(1)).sum()
        elif metric == "class_accuracy":
            scores[metric] = labels[predicted == labels].bincount(minlength=logits.shape[1])
    # The margin below which rounding may swap the first two classes; the same numbers as the contract states.
    margin = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[logits.dtype]
    if logits.is_cuda and logits.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        margin = 1e-2
    if logits.shape[1] > 1:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        first, second = wide.topk(2).values.unbind(1)
        largest = torch.where(wide > -1e3, wide.abs(), first.abs()[:, None]).amax(1)  # masks do not count
        scores["ambiguous"] = (second >= first - margin * largest).sum()
    else:
        scores["ambiguous"] = torch.zeros((), dtype=torch.int64)
    return scores


def _add(sums: Sums, configuration: int, configurations: int, scores: Sums) -> None:
    for name, score in scores.items():
        if name not in sums:
            sums[name] = torch.zeros(configurations, *score.shape, dtype=score.dtype, device=score.device)
        sums[name][configuration] += score
