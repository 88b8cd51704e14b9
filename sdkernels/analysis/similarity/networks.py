"""Several networks over the same batches, side by side: each with hooks, a device and a precision of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.analysis.similarity.devices import named_device
from sdkernels.analysis.similarity.inputs import Inputs
from sdkernels.analysis.subject import Subject, explained, studied
from sdkernels.engine.sites import Layers, Site, resolve_layers, unwrap, watch

ByLayer = int | Mapping[str, int] | None


@dataclass(frozen=True)
class Way:
    """How networks are run, as :func:`sdkernels.cumulative_ablation` explains it; ``device`` takes in what they give,
    None being the first network's."""

    precision: str | None = None
    unit_dim: ByLayer = None
    select: ByLayer = None
    batch_size: int = 256
    device: str | torch.device | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Way":
        """What a function's ``locals()`` say of it."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})


class Together:
    """Networks that see each batch one after the other.

    Attributes:
        names: what messages call them.
        subjects: the networks, with the sites that are watched.
        inputs: the data; labels are zeros.
        device: where moments are summed.
    """

    def __init__(
        self, names: Sequence[str], subjects: Sequence[Subject], inputs: Inputs, casts: bool, device: torch.device
    ) -> None:
        self.names, self.subjects, self.inputs = tuple(names), tuple(subjects), inputs
        self.device = device
        self._casts = casts

    @property
    def precision(self) -> str:
        """The first network's."""
        return self.subjects[0].precision

    def site(self, network: int, site: int) -> Site:
        return self.subjects[network].sites[site]

    def named(self, network: int, site: int) -> str:
        """A layer as messages call it."""
        name = f"layer {self.site(network, site).name!r}"
        return f"{name} of {self.names[network]}" if self.names[network] else name

    def run(
        self, inputs: Tensor, see: Callable[[int, int, Tensor], None], sites: Sequence[Sequence[int]] | None = None
    ) -> None:
        """Run all networks on a batch, and show what their layers give: ``see(network, site, output)``.

        Hooks are there while a network runs and no longer, so that networks may share modules.

        Args:
            inputs: ``[N, ...]``.
            see: is called while the network runs, which may write into the output afterwards.
            sites: of each network, which of its sites to watch; one of which none is does not run. None: all.
        """
        for number, subject in enumerate(self.subjects):
            wanted = range(len(subject.sites)) if sites is None else sites[number]
            if not len(wanted):
                continue
            own = [subject.sites[site] for site in wanted]

            def show(index: int, output: Tensor, number: int = number, wanted: Sequence[int] = wanted) -> None:
                see(number, wanted[index], self.site(number, wanted[index]).read(output).detach())

            moved = inputs.to(subject.inputs.device)
            if self._casts and moved.is_floating_point():
                moved = moved.to(subject.inputs.dtype)
            with torch.no_grad(), watch(subject.model, own, show):
                subject.model(moved.clone())  # a model may write into its inputs


@contextmanager
def together(models: Mapping[str, nn.Module], layers: Sequence[Layers], data: Any, way: Way) -> Iterator[Together]:
    """Networks, the sites that ``layers`` names of each, and the data, while the caller's state is kept.

    Args:
        models: by what messages call them; "" for one that needs no name.
        layers: of each network.
        data: as :class:`~sdkernels.analysis.similarity.inputs.Inputs` takes it.
        way: how to run them. A ``unit_dim`` or ``select`` by layer may name layers of any of the networks.

    Raises:
        ValueError, TypeError: as :func:`sdkernels.analysis.subject.studied`; names the network.
    """
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name or 'model'} is a {type(model).__name__}; give a torch.nn.Module")
    named = [_names(model, own) for model, own in zip(models.values(), layers, strict=True)]
    for argument, given in (("unit_dim", way.unit_dim), ("select", way.select)):
        known = {name for own in named for name in own}
        if isinstance(given, Mapping) and (unknown := set(given) - known):
            raise ValueError(f"{argument} names {sorted(unknown)}, which are none of the layers {sorted(known)}")
    first, given_device = next(iter(models.values())), named_device(way.device)
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        inputs = Inputs(data, batch_size=way.batch_size, device=_device(first))
        stack.enter_context(explained(inputs))
        probe = inputs.first()
        subjects: list[Subject] = []
        for (name, model), own, names in zip(models.items(), layers, named, strict=True):
            with _naming(name):
                subject = stack.enter_context(
                    studied(
                        *(model, own, (probe[0], probe[1])),
                        precision=way.precision,
                        unit_dim=_own(way.unit_dim, names),
                        select=_own(way.select, names),
                        batch_size=len(probe[1]),
                        scored=False,
                    )
                )
            subjects.append(subject)
        device = subjects[0].inputs.device if given_device is None else given_device
        yield Together(list(models), subjects, inputs, casts=way.precision is not None, device=device)


def names_in(name: str, model: nn.Module, layers: Layers) -> list[str]:
    """The layers' names in a model, which other models may have too; ``name`` is what messages call this one.

    Raises:
        ValueError, TypeError: no such layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is a {type(model).__name__}; give a torch.nn.Module")
    with _naming(name):
        found = resolve_layers(unwrap(model), layers)
    return [own if call is None else f"{own}@{call}" for own, _, call in found]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say whose error it is."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if not name:
            raise
        raise type(error)(f"{name}: {error}") from error


def _device(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _names(model: nn.Module, layers: object) -> set[str]:
    """What a mapping by layer may call these layers."""
    modules = {id(module): name for name, module in unwrap(model).named_modules()}
    given = layers if isinstance(layers, (list, tuple)) else [layers]  # what is no layer is refused elsewhere
    return {layer if isinstance(layer, str) else modules.get(id(layer), "") for layer in given}


def _own(given: ByLayer, names: set[str]) -> ByLayer:
    """Of a mapping by layer the part that is about these."""
    return {name: number for name, number in given.items() if name in names} if isinstance(given, Mapping) else given
