"""Sites: the calls of a model's layers whose outputs hold the units."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdkernels.engine.arguments import is_whole
from sdkernels.engine.memory import is_out_of_memory

# Modules whose three-dimensional outputs surely are [N, C, positions], and [N, positions, F].
_MAPS_1D = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.MaxPool1d, nn.AvgPool1d)
_LAST_DIM = (nn.Linear, nn.LayerNorm, nn.Embedding)

Layers = str | nn.Module | Sequence[str | nn.Module]


@dataclass(frozen=True)
class Site:
    """One call of a layer.

    Attributes:
        name: the layer's dotted name, with ``@call`` where the layer fires several times.
        module: the layer.
        call: which of its calls, from 0.
        unit_dim: the dimension of the output ``[N, ...]`` that holds the units, at least 1.
        example_shape: the shape, without N, of what holds the units: the output, or its coordinates.
        select: which of the ``parts`` of a tuple is the output; None where the layer gives one tensor.
        basis: directions [K, C] of the output's channels, float64; then the units are the coordinates along them.
    """

    name: str
    module: nn.Module
    call: int
    unit_dim: int
    example_shape: tuple[int, ...]
    select: int | None = None
    parts: int = 1
    basis: Tensor | None = None

    @property
    def units(self) -> int:
        """The number of units, C, or of directions, K."""
        return self.example_shape[self.unit_dim - 1]

    @property
    def per_unit(self) -> tuple[int, ...]:
        """The shape of a number a unit, to broadcast to one example."""
        return tuple(self.units if d == self.unit_dim - 1 else 1 for d in range(len(self.example_shape)))

    @property
    def hooked(self) -> tuple[nn.Module, int, int, int | None, Tensor | None]:
        """What a hook needs to know: the layer, which call, the units' dimension, which part of a tuple, the basis."""
        return self.module, self.call, self.unit_dim, self.select, self.basis

    def along(self, basis: Tensor) -> "Site":
        """The same call, its units being the coordinates along the rows of ``basis`` [K, C]."""
        shape = list(self.example_shape)
        shape[self.unit_dim - 1] = len(basis)
        return replace(self, basis=basis, example_shape=tuple(shape))

    def read(self, output: Tensor) -> Tensor:
        """What holds the units: an output [N, ...] itself, or its coordinates."""
        if self.basis is None:
            return output
        last: Tensor = torch.tensordot(output, self.basis.to(output), ([self.unit_dim], [1]))
        return last.movedim(-1, self.unit_dim)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile`` wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_eval_mode(model: nn.Module) -> None:
    """Refuse a model of which any part is in train mode: dropout would draw, batch norm would mix examples.

    Raises:
        ValueError: names the modules and the fix.
    """
    training = [(name, module) for name, module in model.named_modules() if module.training]
    if not training:
        return
    random = [f"{name or 'model'} ({type(m).__name__})" for name, m in training if _depends_on_mode(m)]
    because = f": {', '.join(random[:5])}{', ...' if len(random) > 5 else ''} would not repeat itself" if random else ""
    raise ValueError(
        f"the model is in train mode in {len(training)} of its modules{because}. Call model.eval() first; an ablation "
        "is measured on a fixed function"
    )


def find_sites(
    model: nn.Module,
    layers: Layers,
    inputs: Tensor,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    *,
    scored: bool = True,
) -> tuple[list[Site], Tensor]:
    """Find the sites that ``layers`` names, by one forward pass over ``inputs``.

    Args:
        model: in evaluation mode.
        layers: a dotted name, a module of ``model``, or a sequence of them; ``"name@2"`` picks a call.
        inputs: a batch, ``[N, ...]``.
        unit_dim: the units' dimension for every layer, or a dict by layer; by default 1 for outputs of four or more
            dimensions and of 1-d convolutions, batch norms and poolings, else the last; other three-dimensional
            outputs of a model with 1-d convolutions must be told.
        select: of layers that give a tuple, as recurrent ones, which part holds the units; for all or by layer.
        scored: the model's output is to be scored, and so must be logits.

    Returns:
        The sites in the order of ``layers``, and the model's output: logits ``[N, L]`` where they are to be scored.

    Raises:
        ValueError: an unknown layer (close matches are listed), a layer named twice, a layer that fires several times
            (its calls are listed) or never, an output that is no tensor ``[N, ..., C, ...]``, logits that are not
            ``[N, L]``.
        TypeError: inputs of another dtype than the model's.
    """
    wanted = resolve_layers(model, layers)
    outputs, logits = _record_calls(model, {name: module for name, module, _ in wanted}, inputs)
    is_right = isinstance(logits, Tensor) and logits.ndim == 2 and logits.is_floating_point()
    if scored and (not is_right or logits.shape[0] != inputs.shape[0] or not logits.shape[1]):
        raise ValueError(
            f"the model must give floating logits [N, L] for inputs of data {list(inputs.shape)}; it gave "
            f"{_describe(logits)}"
        )
    sites: list[Site] = []
    for name, module, call in wanted:
        calls = outputs[name]
        if not calls:
            raise ValueError(f"layer {name!r} was never called in a forward pass, so it has no units to ablate")
        if call is None and len(calls) > 1:
            listed = "; ".join(f"'{name}@{i}' {_describe(output)}" for i, output in enumerate(calls))
            raise ValueError(
                f"layer {name!r} is called {len(calls)} times a forward pass; pick calls by name: {listed}"
            )
        if call is not None and call >= len(calls):
            raise ValueError(
                f"layer '{name}@{call}': {name!r} is called {len(calls)} times, so calls are 0..{len(calls) - 1}"
            )
        full_name = name if call is None or len(calls) == 1 else f"{name}@{call}"
        site = site_of(model, full_name, module, call or 0, calls[call or 0], len(inputs), unit_dim, select)
        if any(other.module is site.module and other.call == site.call for other in sites):
            raise ValueError(f"layer {full_name!r} is named twice")
        sites.append(site)
    for argument, given in (("unit_dim", unit_dim), ("select", select)):
        if isinstance(given, Mapping) and (unknown := set(given) - {site.name for site in sites}):
            raise ValueError(
                f"{argument} names {sorted(unknown)}, which are none of the layers {[s.name for s in sites]}"
            )
    return sites, logits


def resolve_layers(model: nn.Module, layers: Layers) -> list[tuple[str, nn.Module, int | None]]:
    """(dotted name, module, which call or None) of each of ``layers``, in their order.

    Raises:
        TypeError, ValueError: a layer that the model has not, or a call that is no number.
    """
    return [_resolve(model, layer) for layer in _as_list(layers)]


def site_of(
    model: nn.Module,
    name: str,
    module: nn.Module,
    call: int,
    output: Any,
    examples: int,
    unit_dim: int | Mapping[str, int] | None,
    select: int | Mapping[str, int] | None,
) -> Site:
    """The site of one call of a layer, from what that call gave for so many examples.

    Raises:
        TypeError, ValueError: an output that holds no units, or one that ``unit_dim`` or ``select`` do not fit.
    """
    output, part = _select(name, output, select)
    dim = _unit_dim(model, name, module, output, unit_dim)
    return _make_site(name, module, call, output, examples, dim, part)


@contextmanager
def running(model: nn.Module, inputs: Tensor, called: str = "data") -> Iterator[None]:
    """Around a model's first pass over data: where torch refuses the inputs, say which these were.

    What a model raises of a class of its own is its own affair, and passed on.

    Raises:
        ValueError: inputs [N, ...] of ``called`` that the model does not take; the model's own error is its cause.
        TypeError: they are of another dtype than the model.
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error) or type(error) not in (RuntimeError, NotImplementedError, IndexError):
            raise
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if inputs.is_floating_point() and inputs.dtype not in dtypes and dtypes:
            raise TypeError(
                f"{called} gives {inputs.dtype} inputs but the model is {' and '.join(map(str, dtypes))}: cast one of "
                f"them, or give precision= ({error})"
            ) from error
        raise ValueError(
            f"the model does not run on the first inputs of {called}, {inputs.dtype} {list(inputs.shape)}: {error}"
        ) from error


@contextmanager
def watch(model: nn.Module, sites: Sequence[Site], see: Callable[[int, Any], None]) -> Iterator[None]:
    """Within the context, call ``see(index, output)`` for each site at every forward pass of ``model``."""
    handles: list[RemovableHandle] = []
    counts: dict[int, int] = {}

    def hook_for(module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            call = counts.get(id(module), 0)
            counts[id(module)] = call + 1
            for index, site in enumerate(sites):
                if site.module is module and site.call == call:
                    see(index, output if site.select is None else output[site.select])

        return hook

    try:
        handles.append(model.register_forward_pre_hook(lambda _model, _args: counts.clear()))
        for module in {id(site.module): site.module for site in sites}.values():
            handles.append(module.register_forward_hook(hook_for(module)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_list(layers: Layers) -> list[str | nn.Module]:
    if isinstance(layers, (str, nn.Module)):
        return [layers]
    if not isinstance(layers, Sequence):
        raise TypeError(f"layers is a {type(layers).__name__}; give a dotted name, a module, or a list of them")
    if not layers:
        raise ValueError("layers is empty: name at least one layer")
    return list(layers)


def _resolve(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module, int | None]:
    """(dotted name, module, call or None)."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if layer is model or layer == "":
        raise ValueError("layers: the model itself is no layer of it: its output is the logits; name a layer inside")
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name, module, None
        raise ValueError(f"layers: the given {type(layer).__name__} is not a module of this model")
    if not isinstance(layer, str):
        raise TypeError(f"layers: a layer is a dotted name or a module, not a {type(layer).__name__}")
    name, at, call = layer.partition("@")
    if name and name in modules:
        if not at:
            return name, modules[name], None
        if call.isdecimal():
            return name, modules[name], int(call)
        raise ValueError(f"layer {layer!r}: a call is picked by a number, as in '{name}@0'")
    known = [candidate for candidate in modules if candidate]
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"its layers are {known[:20]}"
    raise ValueError(f"the model has no layer {name!r}; {hint}")


def _record_calls(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Tensor
) -> tuple[dict[str, list[Any]], Any]:
    """Every output of every module in one forward pass."""
    outputs: dict[str, list[Any]] = {name: [] for name in modules}
    handles: list[RemovableHandle] = []
    try:
        for name, module in modules.items():
            handles.append(
                module.register_forward_hook(lambda _m, _a, out, name=name: outputs[name].append(_outline(out)))
            )
        with torch.no_grad(), running(model, inputs):
            logits = model(inputs.clone())  # a model may write into its inputs
    finally:
        for handle in handles:
            handle.remove()
    return outputs, logits


def _outline(output: Any) -> Any:
    """A tensor's shape and type without its memory; of tuples, that of each part."""
    if isinstance(output, (tuple, list)):
        return tuple(_outline(part) for part in output)
    return output.to("meta") if isinstance(output, Tensor) else output


def _select(name: str, output: Any, select: int | Mapping[str, int] | None) -> tuple[Any, tuple[int | None, int]]:
    """The part of a layer's output that holds the units, which it is, and of how many."""
    part = select.get(name) if isinstance(select, Mapping) else select
    if not isinstance(output, tuple):
        if isinstance(select, Mapping) and part is not None:
            raise ValueError(f"select={part} for layer {name!r}, which gives {_describe(output)} and no tuple")
        return output, (None, 1)
    parts = "; ".join(f"{i}: {_describe(element)}" for i, element in enumerate(output))
    if part is None:
        raise ValueError(
            f"layer {name!r} gives a tuple, not one tensor; say which part holds units by select= ({parts})"
        )
    if not is_whole(part) or not 0 <= part < len(output):
        raise ValueError(f"select={part!r} for layer {name!r}, which gives a tuple of {len(output)} parts ({parts})")
    return output[part], (part, len(output))


def _unit_dim(
    model: nn.Module, name: str, module: nn.Module, output: Any, given: int | Mapping[str, int] | None
) -> int:
    """The units' dimension as given, or by the rule; refuses where the rule would have to guess."""
    dim = given.get(name) if isinstance(given, Mapping) else given
    if dim is not None:
        if not is_whole(dim):
            raise TypeError(f"unit_dim for layer {name!r} is a {type(dim).__name__}; give an int, or a dict by layer")
        return dim
    ndim = output.ndim if isinstance(output, Tensor) else 0
    if ndim != 3:
        return 1 if ndim >= 4 else -1
    if isinstance(module, _MAPS_1D):
        return 1
    has_maps = any(isinstance(m, _MAPS_1D[:2]) for m in model.modules())
    if has_maps and not isinstance(module, _LAST_DIM):
        raise ValueError(
            f"layer {name!r} gives {_describe(output)} in a model with 1-d convolutions: are its units dimension 1, as "
            f"channels, or the last, as features? Say unit_dim={{{name!r}: 1}} or unit_dim={{{name!r}: 2}}"
        )
    return -1


def _make_site(
    name: str, module: nn.Module, call: int, output: Any, batch: int, dim: int, select: tuple[int | None, int]
) -> Site:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"layer {name!r} gives {_describe(output)}, not one tensor; name a layer inside it that does, or another "
            "part by select="
        )
    if output.ndim < 2 or output.shape[0] != batch or not output.is_floating_point() or output.numel() == 0:
        raise ValueError(
            f"layer {name!r} gives {_describe(output)}; units need a floating output [N, ...] with N = {batch}"
        )
    positive = dim + output.ndim if dim < 0 else dim
    if not 1 <= positive < output.ndim:
        raise ValueError(f"unit_dim={dim} does not fit layer {name!r}, whose output is {list(output.shape)}")
    return Site(name, module, call, positive, tuple(output.shape[1:]), *select)


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{output.dtype} {list(output.shape)}"
    return f"a {type(output).__name__}"


def _depends_on_mode(module: nn.Module) -> bool:
    random = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    return isinstance(module, random)
