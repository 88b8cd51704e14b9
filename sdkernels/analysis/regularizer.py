"""A term of the training loss that raises or lowers the class selectivity of units."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdkernels.analysis.subject import remover_of_hooks
from sdkernels.engine.arguments import is_one_of, number, whole_number
from sdkernels.engine.sites import Layers, resolve_layers, site_of, unwrap
from sdkernels.ops import class_means

MOST_CLASSES = 2**24  # each has a mean for every unit


class SelectivityRegularizer:
    r"""Watch layers in training, and give ``-weight`` times the mean class selectivity of their units as a loss.

    .. math::

       \text{loss} = \text{cross-entropy} - \alpha \, \frac{1}{|\text{layers}|} \sum_{\text{layers}} \frac1C \sum_c
       \frac{\mu^{\max}_c - \mu^{-\max}_c}{\mu^{\max}_c + \mu^{-\max}_c + \epsilon}

    :math:`\mu^{\max}_c` is the largest class-conditional mean of unit c over the batch, of its mean over positions, and
    :math:`\mu^{-\max}_c` the mean over the other classes of the batch. :math:`\alpha`, the ``weight``, above 0 trains
    selective units, below 0 unselective ones.

    A call speaks of the last forward pass of the model, whatever its mode, and lets its activations go; so does the
    next forward pass. Nothing is detached, and gradients flow through every activation. The means are taken in float64,
    and are float32 (float64 for float64) also under autocast. What is undefined is 0: a batch of one class, which also
    gives no gradient. Each replica of ``DistributedDataParallel`` regards its own part of a batch. Activation
    checkpointing of the named layers is not supported.

    Reading labels and refusing negative means wait for a GPU to finish its forward pass.

    Args:
        model: any network; ``torch.compile``, ``DistributedDataParallel`` and ``DataParallel`` on one device are looked
            through. A compiled one must be watched before its first forward pass, as compiled code sees no later hooks.
        layers: dotted names or modules, whose outputs are non-negative, as ReLUs' are; ``"relu@1"`` is the second call
            of a layer that is called several times.
        weight: :math:`\alpha`, any finite number; ``regularizer.weight`` may be set between calls. With 0 the loss is
            no function of the model, so training goes as without; the selectivity is measured all the same.
        num_classes: L; by default the labels' greatest, and one. Classes that are not in a batch do not count.
        epsilon: what keeps the quotient of silent units at 0, positive.
        kind: ``"macro"``: :math:`\mu^{-\max}` is the mean of the other classes' means; ``"micro"``: the mean over all
            other examples.
        negative: ``"raise"`` where a class-conditional mean is below 0, for which the index has no meaning;
            ``"ignore"`` uses the formula as it stands, and does not look.
        unit_dim, select: as for :func:`sdkernels.cumulative_ablation`, by layer as ``layers`` names them.

    Raises:
        ValueError, TypeError: an unknown layer (close matches are listed) or one named twice, arguments out of range; a
            call: labels of another number than the examples of the last forward pass, a layer that was not called in
            it, or several times, or holds no units, or has no gradient, or was changed in place since, or has negative
            means; each names the layer and the fix.
        RuntimeError: a call without a forward pass since the last, or after :meth:`close`.

    Source:
        Leavitt, Morcos 2020, "Selectivity considered harmful: evaluating the causal impact of class selectivity in
        DNNs", arXiv 2003.01262, with :math:`\epsilon` = 1e-6.

    Example:
        >>> import torch
        >>> from sdkernels.lab.models import mlp
        >>> inputs = torch.linspace(-1, 1, 60).view(20, 3)
        >>> labels = (inputs[:, 0] > 0).long()
        >>> model = mlp(3, (8,), 2, seed=0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> selectivity = []
        >>> with SelectivityRegularizer(model, "relu1", weight=1.0) as regularizer:
        ...     for _ in range(20):
        ...         loss = torch.nn.functional.cross_entropy(model(inputs), labels) + regularizer(labels)
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         selectivity.append(regularizer.selectivity["relu1"])
        >>> selectivity[-1] > selectivity[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        weight: float,
        *,
        num_classes: int | None = None,
        epsilon: float = 1e-6,
        kind: Literal["macro", "micro"] = "macro",
        negative: Literal["raise", "ignore"] = "raise",
        unit_dim: int | Mapping[str, int] | None = None,
        select: int | Mapping[str, int] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        if any(isinstance(part, nn.DataParallel) and len(part.device_ids) > 1 for part in model.modules()):
            raise ValueError(
                "DataParallel runs copies of the model on several devices, whose activations cannot be watched; use "
                "DistributedDataParallel"
            )
        if num_classes is not None:
            num_classes = whole_number("num_classes", num_classes, 1, MOST_CLASSES, what="an int, or None")
        if number("epsilon", epsilon) <= 0:
            raise ValueError(f"epsilon={epsilon!r} must be positive: silent units are divided by it")
        if not is_one_of(kind, ("macro", "micro")):
            raise ValueError(f"kind={kind!r}: choose 'macro' or 'micro'")
        if not is_one_of(negative, ("raise", "ignore")):
            raise ValueError(f"negative={negative!r}: choose 'raise' or 'ignore'")
        self.weight = weight
        self._model = unwrap(model)
        self._layers = _named(resolve_layers(self._model, layers))
        for argument, given in (("unit_dim", unit_dim), ("select", select)):
            if isinstance(given, Mapping) and (unknown := set(given) - set(self._layers)):
                raise ValueError(f"{argument} names {sorted(unknown)}, which are none of {list(self._layers)}")
        self._classes, self._epsilon, self._kind, self._negative = num_classes, float(epsilon), kind, negative
        self._unit_dim, self._select = unit_dim, select
        self._kept: dict[str, tuple[Any, list[int]]] = {}  # outputs of the calls that are wanted
        self._calls: dict[str, int] = {}
        self._last: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        remove = remover_of_hooks(self._model)
        try:
            self._attach()
        except BaseException:  # as Ctrl-C
            remove()
            raise

    @property
    def weight(self) -> float:
        """What the mean selectivity is multiplied by, and taken from the loss."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        self._weight = number("weight", weight)

    @property
    def selectivity(self) -> dict[str, float]:
        """The mean selectivity of each layer's units, in the last call; nan if its batch was of one class."""
        return {name: float(value) for name, value in self._last.items()}

    def __call__(self, labels: Tensor) -> Tensor:
        """The term to add to the loss of the last forward pass, ``[]``.

        Args:
            labels: int64 ``[N]``, those of that pass.
        """
        if not self._handles:
            raise RuntimeError("the regularizer is closed: its hooks are gone; make another")
        kept, calls = dict(self._kept), dict(self._calls)
        self._forget()
        if not calls:
            raise RuntimeError(
                "no forward pass since the last call: call model(x), then regularizer(y), once a batch. A network that "
                "torch.compile has compiled before does not see the regularizer: make it before the first forward pass"
            )
        _check_labels(labels)
        greatest = int(labels.max())
        classes = greatest + 1 if self._classes is None else self._classes
        if greatest >= MOST_CLASSES:
            raise ValueError(f"labels go up to {greatest}, and each class up to there takes memory; renumber them")
        # With weight 0 backward must not even add zeros, which may lie in memory as another convolution likes them.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight != 0):
            means: dict[str, Tensor] = {}
            for name in self._layers:
                activation, unit_dim = self._activation(name, kept, calls, len(labels))
                means[name], count = class_means(
                    activation, labels.to(activation.device), max(classes, 1), unit_dim=unit_dim
                )
            if self._negative == "raise":
                _check_non_negative(means, labels.device)
            is_defined = (count > 0).sum().to(labels.device) > 1
            indices = [
                _index(m, count.to(m.device), self._kind, self._epsilon).mean().to(labels.device)
                for m in means.values()
            ]
            mean = torch.where(is_defined, torch.stack(indices).mean(), 0)
        self._last = {
            name: torch.where(is_defined, index.detach(), torch.nan) for name, index in zip(means, indices, strict=True)
        }
        if self.weight == 0:
            return torch.zeros_like(mean).requires_grad_(torch.is_grad_enabled())
        return -self.weight * mean

    def close(self) -> None:
        """Remove the hooks, and let activations go."""
        try:
            self._detach()
        finally:  # again, where Ctrl-C came while it did so
            self._detach()
            self._handles.clear()
            self._forget()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "SelectivityRegularizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach(self) -> None:
        """Hooks on the model, before it runs, and on each layer."""

        def begin(module: nn.Module, _args: Any) -> None:
            if module is self._model:  # a deep copy takes the hooks along, and is another model
                self._forget()

        self._handles.append(self._model.register_forward_pre_hook(begin))
        wanted: dict[nn.Module, list[tuple[str, int]]] = {}
        for name, (module, call) in self._layers.items():
            wanted.setdefault(module, []).append((name, call or 0))
        for module, names in wanted.items():
            self._handles.append(module.register_forward_hook(self._hook(module, names)))

    def _hook(self, watched: nn.Module, names: list[tuple[str, int]]) -> Any:
        def see(module: nn.Module, _args: Any, output: Any) -> None:
            if module is not watched:
                return
            for name, wanted in names:
                call = self._calls.get(name, 0)
                self._calls[name] = call + 1
                if call == wanted:
                    if torch.compiler.is_compiling():  # a copy, as compiled code does not count what is written to
                        output = _copied(output)
                    self._kept[name] = output, _versions(output)

        return see

    def _forget(self) -> None:
        self._kept.clear()
        self._calls.clear()

    def _activation(
        self, name: str, kept: dict[str, tuple[Any, list[int]]], calls: dict[str, int], examples: int
    ) -> tuple[Tensor, int]:
        """What a layer gave in the last forward pass, [N, ...], and its units' dimension."""
        module, call = self._layers[name]
        times = calls.get(name, 0)
        if times == 0:
            raise ValueError(f"layer {name!r} was not called in the last forward pass; leave it out of layers")
        if call is None and times > 1:
            raise ValueError(
                f"layer {name!r} was called {times} times since the model was; pick calls by name, {name + '@0'!r} to "
                f"'{name}@{times - 1}'"
            )
        if call is not None and call >= times:
            raise ValueError(f"layer {name!r}: it was called {times} times, so calls are 0..{times - 1}")
        output, versions = kept.pop(name)
        lengths = [len(part) for part in _tensors(output) if part.ndim]
        if lengths and examples not in lengths:
            raise ValueError(
                f"{examples} labels, but layer {name!r} had a batch of {lengths[0]} in the last forward pass: call the "
                "regularizer with the labels of the batch that the model has just seen"
            )
        site = site_of(self._model, name, module, call or 0, output, examples, self._unit_dim, self._select)
        activation: Tensor = output if site.select is None else output[site.select]
        if versions and versions != _versions(output):
            raise ValueError(
                f"the output of layer {name!r} was changed in place after it; name the module that does it instead, or "
                "give that inplace=False"
            )
        if torch.is_grad_enabled() and not activation.requires_grad:
            raise ValueError(
                f"no gradient flows through layer {name!r}: the last forward pass ran under torch.no_grad(), or all "
                "before the layer is frozen. Call the regularizer under torch.no_grad() only to measure selectivity"
            )
        return activation, site.unit_dim


def _index(means: Tensor, count: Tensor, kind: str, epsilon: float) -> Tensor:
    """The selectivity of each unit, [C], from class-conditional means [L, C] and counts [L]; one class: anything."""
    present = count > 0
    top, which = means.masked_fill(~present[:, None], -torch.inf).max(0)
    shares = (count if kind == "micro" else present).to(means.dtype)[:, None].expand_as(means)
    shares = shares.scatter(0, which[None], 0)  # of the others
    rest = (shares * means).sum(0) / shares.sum(0).clamp(min=1)
    return (top - rest) / (top + rest + epsilon)


def _check_non_negative(means: Mapping[str, Tensor], device: torch.device) -> None:
    """Refuse negative class-conditional means; waits for a GPU once, whatever the number of layers."""
    lowest = torch.stack([m.detach().amin().to(device) for m in means.values()]).tolist()
    for (name, m), value in zip(means.items(), lowest, strict=True):
        if value < 0:
            label, unit = divmod(int(m.detach().argmin()), m.shape[1])
            raise ValueError(
                f"layer {name!r}: the mean of unit {unit} over class {label} is {value:.3g}; the selectivity index is "
                "for non-negative activations, so name the ReLU behind the layer, or say negative='ignore'"
            )


def _check_labels(labels: Tensor) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        what = labels.dtype if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise TypeError(f"labels are {what}; give the class of every example, int64 [N]")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels {list(labels.shape)} must be [N], the class of every example")


def _named(
    layers: list[tuple[str, nn.Module, int | None]],
) -> dict[str, tuple[nn.Module, int | None]]:
    """By name, with the call where one is picked."""
    result: dict[str, tuple[nn.Module, int | None]] = {}
    for name, module, call in layers:
        full_name = name if call is None else f"{name}@{call}"
        if any(module is other and (call or 0) == (taken or 0) for other, taken in result.values()):
            raise ValueError(f"layer {full_name!r} is named twice")
        result[full_name] = module, call
    return result


def _tensors(output: Any) -> list[Tensor]:
    return [part for part in (output if isinstance(output, tuple) else (output,)) if isinstance(part, Tensor)]


def _versions(output: Any) -> list[int]:
    """How often each tensor was written to in place, where that is counted."""
    if torch.compiler.is_compiling() or any(part.is_inference() for part in _tensors(output)):
        return []
    return [part._version for part in _tensors(output)]


def _copied(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(part.clone() if isinstance(part, Tensor) else part for part in output)
    return output.clone() if isinstance(output, Tensor) else output
