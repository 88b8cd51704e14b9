"""``auto`` equals ``loop`` on networks of every kind, for every family of ablations and every kind of value."""

import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from tests.engine.calls import calls_of
from tests.engine.compare import assert_same, left_as_they_were
from tests.engine.zoo import TUPLES, UNTRACEABLE, ZOO, Network, build

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")
OTHER_VALUES = (
    *("constant", "mean", "element_mean", "class_mean", "class_element_mean", "resample", "tensors"),
    *("mean within", "resample within", "constant within"),
)
FAMILIES = {
    "cumulative": lambda *a, units, **o: sd.cumulative_ablation(*a, orders=3, points=5, seed=units, **o),
    "singles": lambda *a, units, **o: sd.unit_importance(*a, **o),
    "sets": lambda *a, units, **o: sd.ablate(*a, units=random_sets(units), **o),
}


def random_sets(units: int) -> Tensor:
    """bool [6, U]: nothing, everything, one unit, and about a quarter, a half and three quarters of the units."""
    generator = torch.Generator().manual_seed(units)
    share = torch.tensor([0, 1, 0, 0.25, 0.5, 0.75])[:, None]
    sets = torch.rand(6, units, generator=generator) < share
    sets[2, units // 2] = True
    return sets


def value_of(kind: str, layers: Sequence[str], shapes: Sequence[tuple[int, ...]], units: Sequence[int]) -> Any:
    """What ``value=`` gets; ``"tensors"`` are, layer by layer, a value per element, one per unit, and a number."""
    kind = kind.removesuffix(" within")
    if kind != "tensors":
        return {"zero": 0.0, "constant": -0.4}.get(kind, kind)
    generator = torch.Generator().manual_seed(0)
    by_layer: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        shape = (shapes[i], (units[i],), ())[i % 3]
        by_layer[layer] = torch.randn(shape, generator=generator) if shape else 0.25
    return by_layer


def cases() -> list[Any]:
    """Every network, set of layers and family: with zeros, and with one of the other values, always the same.

    One of the two is slow, in turns, so that every set of layers meets both.
    """
    found = []
    for name, network in ZOO.items():
        for i, layers in enumerate(network.sites):
            for j, family in enumerate(FAMILIES):
                label = f"{name}-{'+'.join(layers)}-{family}"
                other = OTHER_VALUES[zlib.crc32(label.encode()) % len(OTHER_VALUES)]
                for k, kind in enumerate(("zero", other)):
                    marks = [pytest.mark.slow] * ((i + j + k) % 2)
                    found.append(pytest.param(network, layers, family, kind, id=f"{label}-{kind}", marks=marks))
    return found


def both_ways(network: Network, layers: Sequence[str], family: str, kind: str) -> tuple[Any, Any]:
    """What ``auto`` gives, in batches of seven examples, and what ``loop`` gives in one."""
    model, data = build(network)
    shapes = [calls_of(model, data[0])[layer] for layer in layers]
    unit_dim = {layer: network.unit_dim[layer] for layer in layers if layer in network.unit_dim} or None
    options = {"metrics": METRICS, "unit_dim": unit_dim}
    look = sd.cumulative_ablation(model, layers, data, orders=1, points=[0], method="loop", unit_dim=unit_dim)
    options |= {"units": sum(look.unit_counts), "value": value_of(kind, layers, shapes, look.unit_counts)}
    options |= {"within": 0.8 if kind.endswith("within") else None, "outcomes": True}
    oracle = FAMILIES[family](model, layers, data, method="loop", **options)
    configs_per_batch = "auto" if kind == "zero" else 3
    options |= {"batch_size": 7, "configs_per_batch": configs_per_batch}
    with left_as_they_were(model, data[0]):
        auto = FAMILIES[family](model, layers, data, **options)
    return auto, oracle


@pytest.mark.parametrize(("network", "layers", "family", "kind"), cases())
def test_zoo(network, layers, family, kind):
    auto, oracle = both_ways(network, layers, family, kind)
    assert_same(auto, oracle)
    assert len(oracle.loss.unique()) > 1  # the ablation is seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_no_tracer_can_follow_runs_as_a_loop_and_says_so_once(name, family):
    network = UNTRACEABLE[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        auto, oracle = both_ways(network, network.sites[0], family, "zero")
    assert [w.category for w in caught] == [sd.SdkernelsWarning]
    assert "runs as a hook loop" in str(caught[0].message)
    assert_same(auto, oracle)


@pytest.mark.parametrize("value", [0.0, 0.3, "mean", "element_mean"], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TUPLES)
def test_layers_that_give_tuples(name, family, value):
    network = TUPLES[name]
    model, data = build(network)
    for layers in network.sites:
        look = sd.cumulative_ablation(model, layers, data, orders=1, points=[0], method="loop", select=0)
        options = {"select": 0, "value": value, "metrics": METRICS, "units": sum(look.unit_counts)}
        oracle = FAMILIES[family](model, layers, data, method="loop", **options)
        assert_same(FAMILIES[family](model, layers, data, batch_size=7, **options), oracle)
        assert len(oracle.loss.unique()) > 1
