"""Random small networks and random ablations of them, as plain specifications that hypothesis can shrink and print.

A :class:`Case` holds numbers, words and nested tuples, and any such case is valid: what does not fit (a kernel larger
than its map, groups that do not divide) is made to fit by :func:`build`. To look at a failure, paste the printed case:
``model, data = build(Case(...))``. What its parts mean stands in :mod:`tests.engine.parts`.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.engine.calls import calls_of
from tests.engine.parts import ACTIVATIONS, NORMS, Maker, Maps
from tests.engine.zoo import CLASSES, lively, standardised

HEADS = ("mean", "flatten", "adaptive", "amax")
WORDS = ("mean", "element_mean", "class_mean", "class_element_mean", "resample")
VALUES = ("zero", "number", "unit", "element", *WORDS)


@dataclass(frozen=True)
class Case:
    """A network, data, and an ablation of it.

    Attributes:
        parts: the network up to its head.
        head: how maps become features.
        linears: of the layers before the last, (units, bias, activation).
        axes: how many position axes maps have, 1 or 2.
        size: the length of each position axis of the inputs, which have two channels.
        sites: which of the calls of the network's layers are ablated, counted in the order in which they end.
        odd_unit_dim: whether units are any dimension, and not the one of channels or features.
        values: kinds of value, for the sites in turn; one kind that needs no shape is given without layers' names.
        within: where units are clamped.
        family: ``("cumulative", orders, points)``, ``("singles",)``, ``("sets", number)``, ``("noise", whether scales
            share draws, whether maps have one)`` or ``("directions", how, how many at most)``.
        examples, batch_size, configs_per_batch, backend, working_set: how the data comes, and how it is cut.
        winograd: whether 3x3 convolutions of any size go by Winograd's products.
        seed: of weights, data, labels, orders, sets and values.
    """

    parts: tuple
    head: str
    linears: tuple
    axes: int
    size: int
    sites: tuple
    odd_unit_dim: bool
    values: tuple
    within: Any
    family: tuple
    examples: int
    batch_size: int
    configs_per_batch: int | str
    backend: str
    working_set: int
    winograd: bool
    seed: int


def build(case: Case, *, standard: bool = True) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The network in float64 and evaluation mode, and its data.

    ``standard``: its logits vary over the examples as much as the classes differ; else their largest is 1 or -1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        model = lively(Generated(case))
        inputs = torch.randn(case.examples, 2, *[case.size] * case.axes, dtype=torch.float64)
        labels = torch.randint(0, CLASSES, (case.examples,))
    with torch.no_grad():
        if standard:
            logits = standardised(model, inputs if case.examples > 1 else torch.cat([inputs, -inputs]))[: case.examples]
        else:
            logits = model(inputs)
            model.out.weight.div_(logits.abs().max())
            model.out.bias.div_(logits.abs().max())
    labels[::2] = logits.argmax(1)[::2]
    return model, (inputs, labels)


def resolve(case: Case, model: nn.Module, inputs: Tensor) -> tuple[list[str], dict[str, int], list[int], Any]:
    """The layers to ablate, their unit dimensions, their numbers of units, and what they are clamped to."""
    draw = random.Random(case.seed)
    shapes = calls_of(model, inputs)
    calls = list(shapes)
    layers = list(dict.fromkeys(calls[site % len(calls)] for site in case.sites))
    dims: dict[str, int] = {}
    for layer in layers:
        usual = len(shapes[layer]) if ".features." in f"{layer}." or len(shapes[layer]) == 1 else 1
        dims[layer] = draw.randint(1, len(shapes[layer])) if case.odd_unit_dim else usual
    counts = [shapes[layer][dims[layer] - 1] for layer in layers]
    generator = torch.Generator().manual_seed(case.seed)
    by_layer: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        kind = case.values[i % len(case.values)]
        kind = "mean" if kind == "resample" and case.examples == 1 else kind  # there is no other example
        shape = {"unit": (counts[i],), "element": shapes[layer]}.get(kind)
        by_layer[layer] = _value(kind, draw) if shape is None else torch.randn(shape, generator=generator).double()
    values = list(by_layer.values())
    is_one = len(case.values) == 1 and not isinstance(values[0], Tensor)
    return layers, dims, counts, values[0] if is_one else by_layer


def _value(kind: str, draw: random.Random) -> float | str:
    return {"zero": 0.0, "number": draw.choice([-0.7, 0.3])}.get(kind, kind)


class Generated(nn.Module):
    """The network of a case: ``body``, a head, ``linears``, ``out``."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        make = Maker(case.axes)
        self.body, maps = make.sequence(case.parts, Maps(2, case.size, fresh=True), keep_size=False)
        self.head = case.head
        self.positions = tuple(range(2, 2 + case.axes))
        self.pool = (nn.AdaptiveAvgPool1d if case.axes == 1 else nn.AdaptiveAvgPool2d)(1)
        features = maps.channels * (maps.size**case.axes if case.head == "flatten" else 1)
        linears: list[nn.Module] = []
        for units, bias, activation in case.linears:
            linears += [nn.Linear(features, units, bias=bias), make.activation(activation, fresh=True)]
            features = units
        self.linears, self.out = nn.Sequential(*linears), nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.head == "mean":
            x = x.mean(self.positions)
        elif self.head == "amax":
            x = x.amax(self.positions)
        else:
            x = torch.flatten(self.pool(x) if self.head == "adaptive" else x, 1)
        return self.out(self.linears(x))


_ACT = st.tuples(st.just("act"), st.sampled_from(ACTIVATIONS))
_NORM = st.tuples(st.just("norm"), st.sampled_from(NORMS))
_CONV = st.tuples(
    st.just("conv"),
    st.sampled_from([3, 4, 2, 5, 6, 1]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.booleans(),
    st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]),
)
_POOL = st.tuples(
    st.just("pool"),
    st.sampled_from(["max", "avg", "adaptive-avg", "adaptive-max"]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
)
_LEAF = st.one_of(
    _ACT,
    _CONV,
    _NORM,
    _POOL,
    st.tuples(st.just("depthwise"), st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.just("gate"), st.integers(1, 3)),
    st.tuples(st.just("last"), st.integers(1, 4)),
    st.tuples(st.just("scale"), st.sampled_from(["number", "x.mul_", "gamma", "shift"])),
    st.just(("drop",)),
)
_USUAL = st.sampled_from(
    [
        (_CONV, _ACT),
        (_CONV, _NORM, _ACT),
        (_NORM, _ACT, _CONV),
        (_CONV, _ACT, _POOL),
        (_CONV, _NORM, _ACT, _CONV, _NORM, _ACT),
        (_CONV, _ACT, _CONV, _ACT, _CONV),
    ]
).flatmap(lambda parts: st.tuples(*parts))


def _sequence(smallest: int, largest: int, container: st.SearchStrategy | None) -> st.SearchStrategy:
    """Tuples of parts: the usual convolution with its norm and nonlinearity, or any single part, or a container."""
    choices = [_USUAL, st.tuples(_LEAF)] + ([] if container is None else [st.tuples(container)])
    groups = st.lists(
        st.integers(0, len(choices) - 1).flatmap(choices.__getitem__), min_size=smallest, max_size=largest
    )
    return groups.map(lambda groups: tuple(part for group in groups for part in group))


def _container(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Parts around sequences of parts."""
    forms = st.sampled_from(["x + y", "y += x", "y.add_(x)", "torch.add", "x - y", "x + y / 2"])
    return st.one_of(
        st.tuples(st.just("residual"), inner, forms, st.integers(1, 2)),
        st.tuples(st.just("cat"), st.lists(inner, min_size=1, max_size=3).map(tuple), st.booleans()),
    )


_FLAT = _sequence(0, 2, None)
_BRANCHED = _sequence(2, 5, _container(_sequence(0, 2, _container(_FLAT))))
_POINTS = st.sampled_from(["all", 4, 7, (2,)])
_FAMILIES = st.one_of(
    st.tuples(st.just("cumulative"), st.integers(1, 3), _POINTS),
    st.just(("singles",)),
    st.tuples(st.just("sets"), st.sampled_from([4, 8, 1])),
    st.tuples(st.just("noise"), st.booleans(), st.booleans()),
    st.tuples(st.just("directions"), st.sampled_from(["alone", "orders", "subspaces"]), st.integers(1, 4)),
)

CASES = st.builds(
    Case,
    parts=st.sampled_from([_BRANCHED] * 5 + [st.just(())]).flatmap(lambda parts: parts),
    head=st.sampled_from(HEADS),
    linears=st.lists(st.tuples(st.integers(1, 7), st.booleans(), st.sampled_from(ACTIVATIONS)), max_size=3).map(tuple),
    axes=st.sampled_from([2, 2, 1]),
    size=st.sampled_from([4, 5, 6, 7, 3, 2, 1]),
    sites=st.lists(st.integers(0, 60), min_size=1, max_size=4, unique=True).map(tuple),
    odd_unit_dim=st.sampled_from([False] * 7 + [True]),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=2).map(tuple),
    within=st.sampled_from([None] * 6 + [0.7, (-0.31, 0.52)]),
    family=_FAMILIES,
    examples=st.sampled_from([6, 9, 12, 16, 2, 1]),
    batch_size=st.integers(1, 20),
    configs_per_batch=st.sampled_from(["auto", 1, 2, 5]),
    backend=st.sampled_from(["native", "reference"]),
    working_set=st.sampled_from([2**24, 2**12, 1]),
    winograd=st.booleans(),
    seed=st.integers(0, 2**16),
)
