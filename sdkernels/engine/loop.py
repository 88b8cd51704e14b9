"""The oracle: the plain hook loop, one whole forward pass a configuration and batch. Imports nothing of the engine."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Metric = str | Callable[[Tensor, Tensor], Tensor]
Sums = dict[str, Tensor]
# Layer, which of its calls, unit dimension, which part of a tuple, directions [K, C] whose coordinates are the units.
Call = tuple[nn.Module, int, int, int | None, Tensor | None]
# Of a batch and configuration: what an output becomes, by the call's number and the output.
Change = Callable[[int, Tensor], Tensor | None]


def run_loop(
    model: nn.Module,
    calls: Sequence[Call],
    batches: Iterable[Any],  # with inputs [N, ...], labels [N], ids [N], donors [N, ...] or None
    configurations: int,
    change_of: Callable[[int, Any], Change],  # (configuration, batch)
    metrics: Sequence[Metric],
    *,
    check: Callable[[int, Tensor], None],  # sees each call's intact activation
    check_labels: Callable[[Tensor, Tensor], None],  # sees labels and intact logits
    see: Callable[[int, Any, Tensor], None] = lambda *_: None,  # (configuration, batch, which are correct [N])
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Sums, Sums]:
    """Sums of every metric over all examples: of the intact model, each [1], and of K ablated ones, each [K]."""
    intact_sums: Sums = {}
    sums: Sums = {}
    for batch in batches:
        inputs, labels = batch.inputs, batch.labels
        intact = changed_logits(model, calls, inputs, lambda i, out: check(i, out))
        check_labels(labels, intact)
        _add(intact_sums, 0, 1, _score(metrics, intact, labels, intact))
        for k in range(configurations):
            logits = changed_logits(model, calls, inputs, change_of(k, batch))
            _add(sums, k, configurations, _score(metrics, logits, labels, intact))
            see(k, batch, logits.argmax(1) == labels)
            advance(len(labels))
    return intact_sums, sums


def changed_logits(model: nn.Module, calls: Sequence[Call], inputs: Tensor, change: Change) -> Tensor:
    """The model's logits with the calls' outputs changed: one whole forward pass."""
    with torch.no_grad(), Hooks(calls, change):
        logits: Tensor = model(inputs.clone())  # a model may write into its inputs
    return logits


def clamping(
    model: nn.Module,
    calls: Sequence[Call],
    masks: Sequence[Any],  # for each call, [K, C] bool, True = clamped; or what gives [C] by k
    clamps: Sequence[Any],  # for each call, with value, by, low, high
) -> Callable[[int, Any], Change]:
    """Clamp units, or coordinates: z - Q^T (Q z - c) where c are the coordinates with some clamped."""
    given: list[tuple[Any, dict[int, Tensor]]] = []  # the last batch, and what its donors' activations are

    def donated(batch: Any) -> dict[int, Tensor]:
        if not given or given[0][0] is not batch:
            outputs: dict[int, Tensor] = {}

            def keep(i: int, output: Tensor) -> None:
                outputs[i] = _coordinates(output, calls[i]).clone()  # what follows may write into it

            changed_logits(model, calls, batch.donors, keep)
            given[:] = [(batch, outputs)]
        return given[0][1]

    def change_of(k: int, batch: Any) -> Change:
        outputs = {} if batch.donors is None else donated(batch)  # now: within a hook, a pass would fire it again

        def change(i: int, output: Tensor) -> Tensor | None:
            mask, clamp, (_, _, unit_dim, _, basis) = masks[i][k], clamps[i], calls[i]
            if not mask.any():
                return None
            x = _coordinates(output, calls[i])
            if clamp.by == "donor":
                value = outputs[i]
            else:
                value = clamp.value[batch.labels] if clamp.by == "class" else clamp.value
            shape = [1] * x.ndim
            shape[unit_dim] = len(mask)
            where = mask.to(x.device).view(shape)
            if clamp.low is not None:
                where = where & (x >= clamp.low.to(x)) & (x <= clamp.high.to(x))
            clamped = torch.where(where, value.to(x.device, x.dtype), x)
            if basis is None:
                return clamped
            removed: Tensor = torch.tensordot(x - clamped, basis.to(x), ([unit_dim], [0]))
            return output - removed.movedim(-1, unit_dim)

        return change

    return change_of


def adding_noise(
    calls: Sequence[Call],
    scales: Sequence[Tensor],  # for each call, [K, C]: standard deviations
    normals: Callable[[int, int, Tensor, int], Tensor],  # (call, configuration, ids [N], elements) -> [N, elements]
    per_map: bool,
) -> Callable[[int, Any], Change]:
    """Add noise to every unit of every call: one draw an element, or one a unit."""

    def change_of(k: int, batch: Any) -> Change:
        def change(i: int, output: Tensor) -> Tensor:
            unit_dim = calls[i][2]
            shape = [1] * output.ndim
            shape[unit_dim] = output.shape[unit_dim]
            drawn = torch.Size(shape[1:]) if per_map else output.shape[1:]
            noise = normals(i, k, batch.ids, drawn.numel()).view(len(output), *drawn)
            sigma = scales[i][k].to(output.device).view(shape)
            return (output.to(sigma.dtype) + sigma * noise.to(sigma.dtype)).to(output.dtype)

        return change

    return change_of


class Hooks:
    """Within the context, each call's output is replaced by ``change(index, output)`` unless that is None."""

    def __init__(self, calls: Sequence[Call], change: Change | Callable[..., Any]) -> None:
        self._calls, self._change = calls, change

    def __enter__(self) -> None:
        self._handles: list[RemovableHandle] = []
        try:
            self._register()
        except BaseException:  # as Ctrl-C
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _register(self) -> None:
        for module in {id(call[0]): call[0] for call in self._calls}.values():
            fired = [0]

            def hook(m: nn.Module, _args: Any, output: Any, fired: list[int] = fired) -> Any:
                call = fired[0]
                fired[0] += 1
                for index, (module, wanted, _, part, _) in enumerate(self._calls):
                    if module is m and wanted == call:
                        changed = self._change(index, output if part is None else output[part])
                        if part is None or changed is None:
                            return changed
                        return (*output[:part], changed, *output[part + 1 :])
                return None

            self._handles.append(module.register_forward_hook(hook))


def _coordinates(output: Tensor, call: Call) -> Tensor:
    """What holds the units of a call: its output, or the coordinates of its channels along the directions."""
    _, _, unit_dim, _, basis = call
    if basis is None:
        return output
    last: Tensor = torch.tensordot(output, basis.to(output), ([unit_dim], [1]))
    return last.movedim(-1, unit_dim)


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
