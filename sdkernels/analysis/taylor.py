"""Taylor importance: what ablating each unit does to the loss, to first order, by one backward pass a batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdkernels.analysis.measure import progress
from sdkernels.analysis.passes import pass_over
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.states import WithoutRows
from sdkernels.analysis.subject import studied
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.engine.arguments import is_one_of
from sdkernels.engine.batches import check_labels
from sdkernels.engine.checks import check_repeatable
from sdkernels.engine.loop import Hooks
from sdkernels.engine.sites import Layers, Site

_NAMES = {
    "signed": "Taylor importance (nats)",
    "absolute": "absolute Taylor importance (nats)",
    "squared": "squared Taylor importance (nats²)",
}

# Elements of a float64 product, at most, unless one example has more.
LARGEST_PRODUCT = 2**24


def taylor_importance(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    kind: Literal["signed", "absolute", "squared"] = "signed",
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    show_progress: bool = False,
    store: Path_ | None = None,
) -> UnitScore:
    r"""A first-order estimate of what ablating each unit to zero does to the loss, all units by one backward pass.

    With activations :math:`a_{nus}` of unit :math:`u` at position :math:`s`, and the gradient of example :math:`n`'s
    cross-entropy :math:`L_n` with respect to them,

    .. math:: d_{nu} = -\sum_s \frac{\partial L_n}{\partial a_{nus}}\, a_{nus}
        \approx L_n(a_u = 0) - L_n

    ``"signed"`` is the mean of :math:`d_{nu}` over examples, which estimates
    ``unit_importance(...).importance("loss")``: positive, the unit helps. ``"absolute"`` is the mean of
    :math:`|d_{nu}|`, ``"squared"`` that of :math:`d_{nu}^2`. Of a unit in a lower layer, the gradient is of all ways
    to the loss, those through other ``layers`` included; a way that the model itself cuts off, as by ``detach()``, has
    no part in it.

    Args:
        model: any module that gives logits ``[N, L]`` for inputs ``[N, ...]``, in evaluation mode. It is not changed:
            no parameter gets a gradient, frozen ones included.
        layers, data, precision, unit_dim, select, batch_size, show_progress: as for
            :func:`sdkernels.cumulative_ablation`. A smaller batch takes less memory, and gives the same but for
            rounding.
        kind: ``"signed"``, ``"absolute"`` or ``"squared"``.
        store: a file, an SQLite database, in which the sums so far are kept every now and then: the same call, made
            again after a crash or a kill, reads the data from the start and goes on where it was. They are found by a
            digest of the model's code and weights, layers and options, and taken if the examples are the same, in the
            same order; ``batch_size`` may change. ``sdkernels runs`` shows them.

    Returns:
        A :class:`UnitScore`, summed in float64 over examples and positions; ``dead`` says which units were zero
        everywhere.

    Raises:
        ValueError: a model in train mode, or that mixes the examples of a batch; layers that do not exist, that the
            logits do not depend on, or that are cut off from them by ``detach()`` or ``no_grad()``; activations or
            gradients that are not finite; labels out of range; empty data. Each says what, where and the fix.
        TypeError: arguments of a wrong type.

    Source:
        Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference", equation 8, has
        the absolute kind, there of positions' mean; Molchanov et al. 2019, "Importance estimation for neural network
        pruning", equation 8, the squared one.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> data = (torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([0, 1]))
        >>> score = sd.taylor_importance(model, "1", data, kind="absolute")
        >>> score.name, score.values.shape
        ('absolute Taylor importance (nats)', torch.Size([3]))
    """
    if not is_one_of(kind, _NAMES):
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(map(repr, _NAMES))}")
    with (
        torch.inference_mode(False),
        studied(
            model, layers, data, precision=precision, unit_dim=unit_dim, select=select, batch_size=batch_size
        ) as subject,
    ):
        model, sites, batches, inputs, logits, _ = subject
        with torch.no_grad():
            check_repeatable(model, inputs, logits)
        state = _Sums(sites, batches.device)
        with (
            progress(show_progress, batches.examples, 1, doing="differentiating") as advance,
            pass_over(
                subject, state, store, advance, called="taylor_importance", determines=(kind,), scores=logits
            ) as passing,
        ):
            for inputs, labels in passing:
                found = _activations_and_gradients(model, sites, inputs, labels, passing.examples)
                for index, (activation, gradient) in enumerate(found):
                    by_unit = _by_unit(sites[index], activation, gradient)
                    if kind == "absolute":
                        by_unit = by_unit.abs()
                    elif kind == "squared":
                        by_unit = by_unit.square()
                    state.sums[index] += by_unit.sum(0)
                    state.alive[index] |= _is_alive(sites[index], activation)
            passing.finish()
    return UnitScore(
        name=_NAMES[kind],
        values=torch.cat(state.sums) / passing.examples,
        layers=tuple(site.name for site in sites),
        unit_counts=tuple(site.units for site in sites),
        dead=~torch.cat(state.alive),
    )


class _Sums(WithoutRows):
    """Of each site's units the sums of estimates, float64 [C], and which were other than zero, bool [C]."""

    def __init__(self, sites: Sequence[Site], device: torch.device) -> None:
        self.sums = [torch.zeros(site.units, dtype=torch.float64, device=device) for site in sites]
        self.alive = [torch.zeros(site.units, dtype=torch.bool, device=device) for site in sites]

    def tensors(self) -> dict[str, Tensor]:
        return {"sums": torch.cat(self.sums), "alive": torch.cat(self.alive)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for own, name in ((self.sums, "sums"), (self.alive, "alive")):
            for values, kept in zip(own, tensors[name].split([len(one) for one in own]), strict=True):
                values.copy_(kept)


def _activations_and_gradients(
    model: nn.Module, sites: Sequence[Site], inputs: Tensor, labels: Tensor, start: int
) -> list[tuple[Tensor, Tensor]]:
    """For each site what it gives, and the gradient of the examples' losses; ``start`` examples came before."""
    activations: dict[int, Tensor] = {}

    def tap(index: int, output: Tensor) -> Tensor:
        _check_finite("intact activations", sites[index], output.detach(), start)
        # What fires first depends on no other site: what comes before it needs no gradient, though parameters may ask
        # for one.
        cut = not activations or not output.requires_grad
        activations[index] = output.detach().clone().requires_grad_() if cut else output.clone()
        return activations[index].clone()  # which a layer behind may write into

    with torch.enable_grad(), _differentiable(model, inputs.device):
        with Hooks([site.hooked for site in sites], tap):
            logits = model(inputs.clone())
        check_labels(labels, logits.shape[1], start)
        loss = F.cross_entropy(logits.double(), labels.clone(), reduction="sum")  # inference tensors cannot be saved
        if missed := [site.name for index, site in enumerate(sites) if index not in activations]:
            raise ValueError(f"layers {missed} were not called for examples {start} to {start + len(labels) - 1}")
        reached = [activations[index] for index in range(len(sites))]
        gradients = (
            torch.autograd.grad(loss, reached, allow_unused=True) if loss.requires_grad else (None,) * len(reached)
        )
    pairs: list[tuple[Tensor, Tensor]] = []
    for site, activation, gradient in zip(sites, reached, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"layer {site.name!r}: no gradient reaches it; either the logits do not depend on it, or the model "
                "cuts gradients behind it, as by detach(), no_grad() or argmax. sdkernels.unit_importance needs none"
            )
        _check_finite("gradients", site, gradient, start)
        pairs.append((activation.detach(), gradient))
    return pairs


def _by_unit(site: Site, activation: Tensor, gradient: Tensor) -> Tensor:
    """The estimate by example and unit, float64 [N, C]."""
    step = max(1, LARGEST_PRODUCT * len(activation) // activation.numel())
    parts: list[Tensor] = []
    for a, g in zip(activation.split(step), gradient.split(step), strict=True):
        product = (a.double() * g.double()).movedim(site.unit_dim, 1)  # [N, C, *S]
        parts.append(-product.flatten(1).unflatten(1, (site.units, -1)).sum(2))
    return torch.cat(parts)


def _is_alive(site: Site, activation: Tensor) -> Tensor:
    """Which units are not zero everywhere, bool [C]."""
    return (activation != 0).movedim(site.unit_dim, 0).flatten(1).any(1)


def _check_finite(what: str, site: Site, values: Tensor, start: int) -> None:
    if values.sum().isfinite():  # a sum is cheaper than a mask, and finite only if all are
        return
    wrong = ~values.isfinite()
    if not wrong.any():
        return
    example, unit = (
        wrong.movedim(site.unit_dim, 1).flatten(1).unflatten(1, (site.units, -1)).any(2).nonzero()[0].tolist()
    )
    raise ValueError(
        f"layer {site.name!r}: {int(wrong.sum())} of {wrong.numel()} {what} of a batch are not finite, the first of "
        f"unit {unit} in example {start + example}; look at the inputs and weights"
    )


@contextmanager
def _differentiable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """cuDNN gives the gradients of recurrent layers in train mode alone; torch's own ones do in both."""
    before = torch.backends.cudnn.enabled
    without = device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        torch.backends.cudnn.enabled = before and not without
        yield
    finally:
        torch.backends.cudnn.enabled = before
