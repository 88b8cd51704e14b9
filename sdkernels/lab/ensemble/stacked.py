"""Several multi-layer perceptrons of one architecture, computed side by side as batched products.

A small network leaves a processor idle: its products are short, and between two of them the interpreter works longer
than the product took. Here the same layer of all networks is one batched product, and the gradients are written out by
hand into memory that every step uses again; automatic differentiation would allocate it afresh, and fresh pages cost
more than the arithmetic on them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

_ALIGNED = 64  # bytes: each weight matrix starts on a cache line, as a tensor of its own would


class StackedMLP:
    """M perceptrons ``Linear, ReLU, ..., Linear``; for each its own examples, labels and gradients.

    Parameters lie network after network, so that one optimiser step for several networks is one pass over memory.

    Args:
        models: the networks; none is changed.

    Attributes:
        parameters: ``[M, P]``, those of each network in a row, in the order of ``model.parameters()``, each from an
            aligned place on; what lies between is zero.
        gradients: ``[M, P]``, what :meth:`step` found.

    Raises:
        ValueError: no network, one that is no such perceptron, networks of two architectures, dtypes or devices, or
            two that share parameters.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if not models:
            raise ValueError("an ensemble needs at least one network")
        self._widths = widths(models[0])
        like = next(models[0].parameters())
        for index, model in enumerate(models):
            first = next(model.parameters(), like)
            if widths(model) != self._widths or (first.dtype, first.device) != (like.dtype, like.device):
                raise ValueError(
                    f"network {index} is {described(model)}, network 0 is {described(models[0])}: train networks of "
                    "one architecture, dtype and device together"
                )
        _check_apart(models)
        self._places: list[tuple[int, torch.Size]] = []
        numbers = _ALIGNED // like.element_size()
        end = 0
        for parameter in models[0].parameters():
            self._places.append((end, parameter.shape))
            end += -(-parameter.numel() // numbers) * numbers
        self._take(like.new_zeros(len(models), end))
        for row, model in enumerate(models):
            for view, parameter in zip(self._views(self.parameters), model.parameters(), strict=True):
                view[row].copy_(parameter.detach())

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def inputs(self) -> int:
        """D, numbers an example."""
        return self._widths[0]

    @property
    def classes(self) -> int:
        """Logits of each network."""
        return self._widths[-1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the networks only, in the order given; gradients are lost."""
        self._take(self.parameters[list(rows)].contiguous())

    def write(self, row: int, model: nn.Module) -> None:
        """Copy a network's parameters into a model of the same architecture."""
        with torch.no_grad():
            for view, parameter in zip(self._views(self.parameters), model.parameters(), strict=True):
                parameter.copy_(view[row])

    def step(self, inputs: Tensor, chosen: Tensor, labels: Tensor, guesses: Tensor, losses: Tensor) -> None:
        """Forward and backward: the gradients of each network's mean cross-entropy on its own examples.

        Args:
            inputs: ``[N, D]``, shared.
            chosen: int64 ``[M, B]``, each network's examples.
            labels: int64 ``[M, B]``, theirs.
            guesses: int64 ``[M, B]``, written: the class of the largest logit.
            losses: ``[M, B]``, written: cross-entropies.
        """
        M, B = chosen.shape
        space = self._workspaces.get(B)
        if space is None:
            space = self._workspaces[B] = _Workspace(self._storage, self._widths, M, B, self.parameters)
        torch.index_select(inputs, 0, chosen.reshape(-1), out=space.examples)
        last = len(self._weights) - 1
        for i, (weight, bias) in enumerate(zip(self._turned, self._rows, strict=True)):
            torch.baddbmm(bias, space.outputs[i], weight, out=space.outputs[i + 1])
            if i < last:
                space.outputs[i + 1].relu_()
        self._cross_entropy(space, labels, guesses, losses)
        for i in range(last, -1, -1):
            torch.bmm(space.turned_slopes[i], space.outputs[i], out=self._products[i])
            self._weight_slopes[i].copy_(self._products[i])  # a product straight into strided rows would be M products
            torch.sum(space.slopes[i], 1, out=self._bias_slopes[i])
            if i:
                slope = space.slopes[i - 1]
                torch.bmm(space.slopes[i], self._weights[i], out=slope)
                torch.ops.aten.threshold_backward.grad_input(slope, space.outputs[i], 0, grad_input=slope)

    def _cross_entropy(self, space: "_Workspace", labels: Tensor, guesses: Tensor, losses: Tensor) -> None:
        """Losses and their slopes by the logits: (softmax - one-hot) / B."""
        logits, slopes, of_label = space.outputs[-1], space.slopes[-1], labels.unsqueeze(2)
        torch.argmax(logits, 2, out=guesses)
        torch.amax(logits, 2, keepdim=True, out=space.column)
        torch.sub(logits, space.column, out=slopes)
        torch.gather(slopes, 2, of_label, out=space.own)
        slopes.exp_()
        torch.sum(slopes, 2, keepdim=True, out=space.column)
        slopes.div_(space.column)
        slopes.scatter_add_(2, of_label, space.minus_one)
        slopes.div_(logits.shape[1])
        torch.sub(space.column.log_(), space.own, out=losses.unsqueeze(2))

    def _take(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.gradients = torch.zeros_like(parameters)
        values, slopes = self._views(self.parameters), self._views(self.gradients)
        self._weights, self._rows = values[::2], [bias.unsqueeze(1) for bias in values[1::2]]
        self._turned = [weight.transpose(1, 2) for weight in self._weights]
        self._weight_slopes, self._bias_slopes = slopes[::2], slopes[1::2]
        self._products = [weight.new_empty(weight.shape) for weight in self._weights]
        self._workspaces: dict[int, _Workspace] = {}
        self._storage: list[Tensor] = []

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Of ``[M, P]``, each parameter's ``[M, *shape]``."""
        return [flat[:, start : start + shape.numel()].view(-1, *shape) for start, shape in self._places]


class _Workspace:
    """The memory of a step on B examples; steps on fewer use the same storage."""

    def __init__(self, storage: list[Tensor], widths: Sequence[int], M: int, B: int, like: Tensor) -> None:
        sizes = [*widths, *widths[1:], 1, 1, 1]
        for index, size in enumerate(sizes):
            if index == len(storage):
                storage.append(like.new_empty(0))
            if storage[index].numel() < M * B * size:
                storage[index] = like.new_empty(M * B * size)
        views = [flat[: M * B * size].view(M, B, size) for flat, size in zip(storage, sizes, strict=True)]
        layers = len(widths)
        self.outputs = views[:layers]  # [M, B, F], the inputs first
        self.examples = self.outputs[0].view(M * B, widths[0])
        self.slopes = views[layers:-3]  # of the loss by what each linear map gives, [M, B, F]
        self.turned_slopes = [slope.transpose(1, 2) for slope in self.slopes]
        self.column, self.own, self.minus_one = views[-3:]
        self.minus_one.fill_(-1)


def widths(model: nn.Module) -> tuple[int, ...]:
    """Units of each layer of a perceptron, the inputs first.

    Raises:
        ValueError: another kind of network; says what it has.
    """
    plain = isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward
    layers: list[nn.Module] = list(model) if plain and isinstance(model, nn.Sequential) else []
    linear, between = layers[::2], layers[1::2]
    found = [layer for layer in linear if type(layer) is nn.Linear and layer.bias is not None]
    fits = all(a.out_features == b.in_features for a, b in pairwise(found))
    relus = all(type(layer) is nn.ReLU for layer in between)
    if not layers or len(found) != len(linear) or len(linear) != len(between) + 1 or not relus or not fits:
        raise ValueError(
            f"an ensemble takes nn.Sequential of Linear (with bias), ReLU, ..., Linear; not {described(model)}"
        )
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise ValueError(f"{', '.join(frozen)} of a network is frozen (requires_grad=False); an ensemble trains all")
    if any(own for module in model.modules() for own in (module._forward_hooks, module._forward_pre_hooks)):
        raise ValueError("a network has forward hooks, which an ensemble would not run: remove them, or train it alone")
    return (found[0].in_features, *(layer.out_features for layer in found))


def _check_apart(models: Sequence[nn.Module]) -> None:
    owner: dict[int, int] = {}
    for index, model in enumerate(models):
        for layer in cast("nn.Sequential", model):
            for parameter in layer.parameters(recurse=False):
                if id(parameter) in owner:
                    raise ValueError(
                        f"networks {owner[id(parameter)]} and {index} share parameters, or layers within one do: give "
                        "each layer its own"
                    )
                owner[id(parameter)] = index


def described(model: nn.Module) -> str:
    """In a line: kinds of layers, or widths, with dtype and device."""
    first = next(model.parameters(), None)
    where = "" if first is None else f" ({str(first.dtype).removeprefix('torch.')} on {first.device})"
    layers = ", ".join(str(layer) for layer in model.children()) or type(model).__name__
    return f"{type(model).__name__}: {layers}{where}"
