"""Leave a network in training, its data and all random generators bit for bit as they were."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

Restore = Callable[[], object]


@contextmanager
def preserved(model: nn.Module, *data: Any) -> Iterator[None]:
    """Within the context anything may be done to the state of ``model``; after it, or an exception, it is as before.

    Restored are each module's attributes (its own ``training`` flag, its dicts of hooks, counters, caches; containers
    one level deep), the bits of its parameters, buffers and other strided tensors, the global random states of torch
    (CPU, CUDA), Python and NumPy, and the generators of ``data``'s loaders, samplers and data sets. That takes the
    memory of one more copy of the weights. What hooks of the user write elsewhere is theirs.

    Example:
        >>> model = torch.nn.BatchNorm1d(2)
        >>> with preserved(model):
        ...     _ = model.eval().running_mean.fill_(3.0)
        >>> model.training, model.running_mean.tolist()
        (True, [0.0, 0.0])
    """
    modules = list(model.modules())
    saved = (
        _random_states(),
        _generators(data),
        _iterators(data),
        map(_attributes, modules),
        map(_bits, _tensors(modules)),
    )
    restores = list(chain(*saved))
    try:
        with _all_made(restores):
            yield
    except KeyboardInterrupt:  # which may have come in the middle of one
        with _all_made(restores):
            raise


def _all_made(restores: Iterable[Restore]) -> ExitStack:
    """A context at whose end all are made, where one fails the others nevertheless."""
    stack = ExitStack()
    for restore in restores:
        stack.callback(restore)
    return stack


def _random_states() -> Iterator[Restore]:
    yield partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    yield partial(random.setstate, random.getstate())
    yield partial(np.random.set_state, np.random.get_state())


def _generators(data: Iterable[Any]) -> Iterator[Restore]:
    """Generators that loaders, samplers and data sets hold: the monitor's loader may be that of training."""
    for held in _parts(data):
        if isinstance(held, torch.Generator):
            yield partial(held.set_state, held.get_state())
        elif isinstance(held, random.Random):
            yield partial(held.setstate, held.getstate())
        elif isinstance(held, np.random.RandomState):
            yield partial(held.set_state, held.get_state())
        elif isinstance(held, np.random.Generator):
            yield partial(setattr, held.bit_generator, "state", held.bit_generator.state)


def _iterators(data: Iterable[Any]) -> Iterator[Restore]:
    """A loader with persistent workers has one iterator; in the midst of a training epoch it must not be restarted."""
    for loader in _parts(data):
        if isinstance(loader, DataLoader) and loader._iterator is not None:
            running, loader._iterator = loader._iterator, None
            yield partial(setattr, loader, "_iterator", running)


def _parts(data: Iterable[Any]) -> list[Any]:
    """What data consists of: loaders, samplers, data sets, and the generators that these hold."""
    kinds = (DataLoader, Dataset, Sampler)
    drawing = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)
    found: dict[int, Any] = {}
    waiting = list(data)
    while waiting:
        part = waiting.pop()
        if id(part) in found:
            continue
        if isinstance(part, (*kinds, *drawing)):
            found[id(part)] = part
        if isinstance(part, kinds):
            for value in vars(part).values():
                is_list_of_parts = isinstance(value, (list, tuple)) and value and isinstance(value[0], kinds)
                waiting += value if is_list_of_parts else [value]
    return list(found.values())


def _attributes(module: nn.Module) -> Restore:
    """A module's attributes by identity, and the contents of those that are containers."""
    training, before = module.training, dict(vars(module))
    containers = [(held, _contents(held)) for held in before.values() if isinstance(held, (dict, list, set, deque))]

    def restore() -> None:
        now = vars(module)
        for name in now.keys() - before.keys():
            del now[name]
        now.update({name: value for name, value in before.items() if name not in now or now[name] is not value})
        if module.training != training:  # a script module's is no attribute
            module.training = training
        for held, contents in containers:
            if not _is_same(held, contents):
                held.clear()
                (held.extend if isinstance(held, (list, deque)) else held.update)(contents)

    return restore


def _contents(held: Any) -> Any:
    return dict(held) if isinstance(held, dict) else list(held)


def _is_same(held: Any, contents: Any) -> bool:
    """Whether a container holds the very same objects, in the same order."""
    now, before = ([*part, *part.values()] if isinstance(part, dict) else list(part) for part in (held, contents))
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes or stand in a dict or list that is one."""
    found: dict[int, Tensor] = {}
    for module in modules:
        held: list[Any] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for value in vars(module).values():
            if isinstance(value, (dict, list, deque)):
                held += value.values() if isinstance(value, dict) else value
            else:
                held.append(value)
        found |= {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}
    return (tensor for tensor in found.values() if tensor.layout is torch.strided)


def _bits(tensor: Tensor) -> Restore:
    """By ``.data``, whose writes autograd does not count: a graph that waits for its backward pass stays valid."""
    data = tensor.data
    copy = data.clone()

    def restore() -> None:
        if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
            tensor.data = data
        if not torch.equal(data, copy):
            data.copy_(copy)

    return restore
