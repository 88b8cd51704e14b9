"""Clamped directions: ``auto`` equals ``loop``, the loop equals hooks written out here, and the fast ways are taken."""

import math
import warnings
import zlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.lab.models import mlp
from tests.engine.compare import assert_same, assert_same_but_for_rounding, left_as_they_were
from tests.engine.networks import ConvNet, with_lively_batch_norm
from tests.engine.parse import read_plan
from tests.engine.test_zoo import random_sets
from tests.engine.zoo import TUPLES, UNTRACEABLE, ZOO, Network, build
from tests.pairwise import pairwise

FAMILIES = {
    "alone": lambda *a, units, **o: sd.ablate_directions(*a, **o),
    "cumulative": lambda *a, units, **o: sd.ablate_directions(*a, orders=3, points=5, **o),
    "subspaces": lambda *a, units, **o: sd.ablate_directions(*a, subspaces=random_sets(units), **o),
}
KINDS = ("rotation", "few", "principal", "aligned", "oblique")
VALUES = {
    "zero": {},
    "number": {"value": -0.4},
    "mean": {"value": "mean"},
    "element_mean": {"value": "element_mean"},
    "class_mean": {"value": "class_mean"},
    "resample": {"value": "resample"},
    "mean within": {"value": "mean", "within": 0.8},
    "number within": {"value": 0.3, "within": (-1.0, 0.5)},
}


def rows_of(kind: str, channels: int) -> Any:
    """What ``directions=`` gets for a layer of so many channels."""
    generator = torch.Generator().manual_seed(channels)
    if kind == "rotation":
        return sd.random_directions(channels, seed=channels)
    if kind == "few":
        return sd.random_directions(channels, max(2, channels // 3), seed=channels)
    if kind == "aligned":
        return torch.eye(channels)[torch.randperm(channels, generator=generator)[: max(2, channels // 2)]]
    if kind == "oblique":
        count = channels + channels % 2  # as many as channels, or more
        rows = torch.randn(count, channels, dtype=torch.float64, generator=generator)
        return rows / rows.norm(dim=1, keepdim=True)
    return kind


def assert_as_the_loop(network: Network, layers: Any, family: str, kind: str, value: str, **options: Any) -> None:
    """``auto`` in batches of seven gives what ``loop`` gives in one; what it warns of is an error.

    Principal directions of little variance are known to few digits; so those are taken from the same batches.
    """
    model, data = build(network)
    unit_dim = {layer: network.unit_dim[layer] for layer in layers if layer in network.unit_dim} or None
    options = {"unit_dim": unit_dim, **options}
    look = sd.cumulative_ablation(model, layers, data, orders=1, points=[0], method="loop", **options)
    given = {layer: rows_of(kind, c) for layer, c in zip(look.layers, look.unit_counts, strict=True)}
    counts = zip(given.values(), look.unit_counts, strict=True)
    units = sum(channels if isinstance(rows, str) else len(rows) for rows, channels in counts)
    options |= {"directions": given, "units": units, "metrics": ("accuracy", "loss", "class_accuracy", "agreement")}
    options |= VALUES[value]
    oracle_batch = 7 if kind == "principal" else 256
    oracle = FAMILIES[family](model, layers, data, method="loop", batch_size=oracle_batch, **options)
    with left_as_they_were(model, data[0]):
        auto = FAMILIES[family](model, layers, data, batch_size=7, **options)
    assert_same(auto, oracle)
    assert len(oracle.loss.unique()) > 1  # the ablation is seen


def zoo_cases() -> list[Any]:
    """Every network and set of layers, alone and by one other family, each with one kind of directions and value.

    Every other is slow: of a network's sets of layers in turns one alone, one by the other families.
    """
    found = []
    for name, network in ZOO.items():
        for i, layers in enumerate(network.sites):
            for j, family in enumerate(("alone", ("cumulative", "subspaces")[i // 2 % 2])):
                label = f"{name}-{'+'.join(layers)}-{family}"
                number = zlib.crc32(label.encode())
                kind = KINDS[number % (5 if family == "alone" else 4)]
                value = list(VALUES)[number // 5 % len(VALUES)]
                marks = [pytest.mark.slow] * ((i + j) % 2)
                found.append(
                    pytest.param(network, layers, family, kind, value, id=f"{label}-{kind}-{value}", marks=marks)
                )
    return found


@pytest.mark.parametrize(("network", "layers", "family", "kind", "value"), zoo_cases())
def test_zoo(network, layers, family, kind, value):
    assert_as_the_loop(network, layers, family, kind, value)


FAMILIES_AND_KINDS = [(f, k) for f in FAMILIES for k in KINDS if f == "alone" or k != "oblique"]


@pytest.mark.parametrize(
    *pairwise(family_and_kind=FAMILIES_AND_KINDS, value=VALUES, layers=[("relu1",), ("fc1", "relu2")]), ids=str
)
def test_every_kind_and_value(family_and_kind, value, layers):
    assert_as_the_loop(ZOO["mlp"], layers, *family_and_kind, value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS[:4])
def test_layers_that_give_tuples(family, kind):
    assert_as_the_loop(TUPLES["lstm"], ("lstm",), family, kind, "number", select=0)


@pytest.mark.parametrize(*pairwise(family=FAMILIES, kind=["rotation", "few"], unit_dim=[2, 3]), ids=str)
def test_units_in_any_dimension(family, kind, unit_dim):
    """Rows or columns of maps, whose directions no product behind takes in."""
    assert_as_the_loop(ZOO["vgg"], ("pool1", "relu3"), family, kind, "mean", unit_dim=unit_dim)


def test_what_no_tracer_can_follow_runs_as_a_loop_and_says_so_once():
    network = UNTRACEABLE["branching-on-data"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_as_the_loop(network, network.sites[0], "cumulative", "few", "number")
    assert [w.category for w in caught] == [sd.SdkernelsWarning]
    assert "runs as a hook loop" in str(caught[0].message)


class Raising(nn.Module):
    """What torch.fx cannot follow: it asks for a shape, and takes the number of examples by ``len``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.relu, self.conv2 = nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3)
        self.fc, self.out = nn.Linear(6 * 9, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 2 or x.shape[0] < 1:
            raise ValueError("no pictures")
        x = F.avg_pool2d(self.conv2(self.relu(self.conv1(x))), 2)
        return self.out(F.relu(self.fc(x.reshape(len(x), -1))))


@pytest.mark.parametrize(
    *pairwise(family=FAMILIES, kind=["rotation", "few"], layers=[("relu", "conv2"), ("conv2",)]), ids=str
)
def test_exported(family, kind, layers):
    assert_as_the_loop(Network(Raising, (2, 8, 8), ()), layers, family, kind, "number")


def conv_net() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = with_lively_batch_norm(ConvNet())
        inputs = torch.randn(23, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[::3] = (labels[::3] + 1) % 5
    return model, (inputs, labels)


def hooked_scores(
    model: nn.Module, data: tuple[Tensor, Tensor], layers: dict[str, tuple[Tensor, list[int], float]]
) -> tuple[int, float]:
    """Correct predictions and the loss with z - Q^T M (Q z - v) for z, written out as a user would."""
    handles = []
    for name, (q, ablated, value) in layers.items():

        def hook(_module, _args, z, q=q, ablated=ablated, value=value):
            changed = z.clone()
            for k in ablated:
                along = sum(q[k, c] * z[:, c] for c in range(z.shape[1]))  # [N, ...]
                for c in range(z.shape[1]):
                    changed[:, c] -= q[k, c] * (along - value)
            return changed

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        with torch.no_grad():
            logits = model(data[0].clone())
    finally:
        for handle in handles:
            handle.remove()
    return int((logits.argmax(1) == data[1]).sum()), float(F.cross_entropy(logits, data[1], reduction="sum"))


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("kind", ["rotation", "few", "oblique"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_hooks(method, kind, value):
    """Two layers, of maps and of features, the ReLU being in place."""
    model, data = conv_net()
    q = {"relu1": rows_of(kind, 5), "fc1": rows_of(kind, 9)}
    options = {"directions": q, "value": value, "method": method}
    alone = sd.ablate_directions(model, list(q), data, **options)
    first = len(q["relu1"])
    for k in range(first + len(q["fc1"])):
        layer, index = ("relu1", k) if k < first else ("fc1", k - first)
        correct, loss = hooked_scores(model, data, {layer: (q[layer], [index], value)})
        assert int(alone.correct[k]) == correct
        assert float(alone.sums["loss"][k]) == pytest.approx(loss, rel=1e-10)
    if kind == "oblique":
        return
    curve = sd.ablate_directions(model, list(q), data, orders=2, points=4, **options)
    for order, row in zip(curve.orders, curve.correct, strict=True):
        for count, correct in zip(curve.points.tolist(), row.tolist(), strict=True):
            chosen = order[:count].tolist()
            ablated = {"relu1": [k for k in chosen if k < first], "fc1": [k - first for k in chosen if k >= first]}
            expected, _ = hooked_scores(model, data, {name: (q[name], ablated[name], value) for name in q})
            assert correct == expected


@pytest.mark.parametrize(
    *pairwise(
        layers=[("relu1", "fc1"), ("bn2",), ("relu2",)], value=[0.0, "mean"], dtype=[torch.float64, torch.float32]
    ),
    ids=str,
)
def test_rows_of_an_identity_are_units(layers, value, dtype):
    """Integer for integer: a product with zeros and ones is exact."""
    model, (inputs, labels) = conv_net()
    model, data = model.to(dtype), (inputs.to(dtype), labels)
    channels = [{"relu1": 5, "bn2": 6, "relu2": 6, "fc1": 9}[layer] for layer in layers]
    units = sd.unit_importance(model, layers, data, value=value)
    whole = {layer: torch.eye(c) for layer, c in zip(layers, channels, strict=True)}
    some = {layer: torch.eye(c)[torch.arange(c - 1, -1, -2)] for layer, c in zip(layers, channels, strict=True)}
    alone = sd.ablate_directions(model, layers, data, directions=whole, value=value)
    assert torch.equal(alone.correct, units.correct)
    firsts = [sum(channels[:i]) for i in range(len(channels))]
    picked = torch.cat([first + torch.arange(c - 1, -1, -2) for c, first in zip(channels, firsts, strict=True)])
    assert torch.equal(
        sd.ablate_directions(model, layers, data, directions=some, value=value).correct, units.correct[picked]
    )
    curve = sd.ablate_directions(model, layers, data, directions=whole, value=value, orders=3, points="all")
    of_units = sd.cumulative_ablation(model, layers, data, value=value, orders=3, points="all")
    assert torch.equal(curve.orders, of_units.orders)
    assert torch.equal(curve.correct, of_units.correct)
    sets = random_sets(len(picked))
    own = torch.zeros(len(sets), sum(channels), dtype=torch.bool)
    own[:, picked] = sets
    by_subspace = sd.ablate_directions(model, layers, data, directions=some, value=value, subspaces=sets)
    assert torch.equal(by_subspace.correct, sd.ablate(model, layers, data, units=own, value=value).correct)


@pytest.mark.parametrize(
    *pairwise(
        name=["mlp", "convnet-bn", "resnet-basic", "vit"], kind=["rotation", "few", "principal"], family=FAMILIES
    ),
    ids=str,
)
def test_single_precision(name, kind, family):
    network = ZOO[name]
    model, (inputs, labels) = build(network)
    options = {"directions": kind, "precision": "float32", "units": 0, "value": "mean"}
    if kind in ("few", "rotation"):
        options["directions"] = "random"
    if family == "subspaces":
        look = sd.cumulative_ablation(model, network.sites[0], (inputs, labels), orders=1, points=[0], method="loop")
        options["units"] = sum(look.unit_counts)
    auto, loop = (
        FAMILIES[family](model, network.sites[0], (inputs, labels), method=method, **options)
        for method in ("auto", "loop")
    )
    assert_same_but_for_rounding(auto, loop)


# The fast ways.


def plan_of(network: str, layers: Any, family: str, kind: str) -> Any:
    model, data = build(ZOO[network])
    look = sd.cumulative_ablation(model, layers, data, orders=1, points=[0], method="loop")
    given = {layer: rows_of(kind, c) for layer, c in zip(look.layers, look.unit_counts, strict=True)}
    return read_plan(FAMILIES[family](model, layers, data, directions=given, units=0).plan)


@pytest.mark.parametrize(("family", "mode"), [("alone", "rank-one"), ("cumulative", "nested")])
@pytest.mark.parametrize(("kind", "is_all"), [("rotation", True), ("few", False)])
def test_a_linear_layer_takes_directions_into_its_weights(family, mode, kind, is_all):
    plan = plan_of("mlp", "relu1", family, kind)
    assert plan.modes["fc2_along_directions"] == mode
    assert plan.modes["relu1_coordinates"] == "shared"
    assert "relu1_turned_back" not in plan.modes
    assert ("fc2_rest" in plan.modes) == (not is_all)
    assert plan.modes.get("fc2_rest", "shared") == "shared"
    if family == "cumulative":
        assert plan.notes == ("one kernel, nested_linear, runs fc2_along_directions to out",)


@pytest.mark.parametrize("kind", ["rotation", "few", "oblique"])
def test_directions_alone_run_in_one_kernel(monkeypatch, kind):
    """Whether there is a rest or not."""
    from sdkernels.engine import singles

    calls: list[int] = []
    kernel = singles.rank_one
    monkeypatch.setattr(singles, "rank_one", lambda *a, **options: calls.append(len(a[3])) or kernel(*a, **options))
    plan_of("mlp", "relu1", "alone", kind)
    assert calls
    assert calls[-1] == len(rows_of(kind, 9)), "the last call is that of the data: all directions at once"


@pytest.mark.parametrize(("family", "mode"), [("alone", "rank-one"), ("cumulative", "nested")])
def test_both_convolutions_behind_a_residual_block_take_directions_in(family, mode):
    plan = plan_of("resnet-basic", "layer1.0", family, "rotation")
    assert plan.modes["layer2_0_conv1_along_directions"] == mode
    assert plan.modes["layer2_0_downsample_0_along_directions"] == mode
    assert not {"layer1_0_turned_back", "layer2_0_conv1", "layer2_0_downsample_0"} & set(plan.modes)


def test_a_shortcut_reads_what_is_turned_back():
    plan = plan_of("resnet-basic", "layer2.0", "cumulative", "few")
    assert plan.modes["layer2_1_conv1_along_directions"] == plan.modes["layer2_0_turned_back"] == "nested"
    assert plan.modes["layer2_0_rest"] == "shared"


@pytest.mark.parametrize(
    ("network", "layer", "product"),
    [("resnet-basic", "layer2", "fc"), ("conv1d", "bn2", None), ("conv3d", "relu1", "conv2"), ("vgg", "pool2", "fc1")],
)
def test_what_is_linear_in_between_is_passed(network, layer, product):
    """Average pooling, flatten, dropout; a leaky ReLU is not."""
    plan = plan_of(network, layer, "cumulative", "rotation")
    if product is None:
        assert plan.modes[f"{layer}_turned_back"] == "nested"
    else:
        assert plan.modes[f"{product}_along_directions"] == "nested"
        assert f"{layer}_turned_back" not in plan.modes


@pytest.mark.parametrize(
    ("network", "layer", "reader"),
    [
        ("odd-convolutions", "relu2", "circular"),
        ("mobilenet", "stem", "separable_0"),
        ("resnext", "relu@0", "grouped"),
    ],
)
def test_what_cannot_take_directions_in_reads_what_is_turned_back(network, layer, reader):
    """Padding that is not by zeros, and groups of channels."""
    plan = plan_of(network, layer, "cumulative", "rotation")
    turned_back = [mode for name, mode in plan.modes.items() if name.endswith("turned_back")]
    assert turned_back == ["nested"]
    assert reader in plan.modes  # by the name that torch.fx gives it
    assert not any(name.startswith(f"{reader}_along") for name in plan.modes)


class Skipping(nn.Module):
    """What a linear layer gives is added to a shortcut around it, or to a bias of no example's own."""

    def __init__(self, skip: str) -> None:
        super().__init__()
        self.fc1, self.relu1, self.fc2, self.out = nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6), nn.Linear(6, 5)
        self.skip, self.bias = skip, nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.relu1(self.fc1(x)))
        added = {"inputs": x, "bias": self.bias, "row": self.bias[None] * 2, "number": 0.25, "twice": y}[self.skip]
        return self.out(F.relu(y + added))


@pytest.mark.parametrize("skip", ["inputs", "bias", "row", "number", "twice"])
@pytest.mark.parametrize("value", [0.0, 0.3, "mean", "class_mean", "resample"])
def test_kernels_with_something_added(seeds_torch, skip, value):
    """Of units too: the kernels take what is added in."""
    model = Skipping(skip).double().eval()
    data = torch.randn(20, 6).double(), torch.arange(20) % 5
    options = {"value": value, "batch_size": 7}
    curve = sd.cumulative_ablation(model, "relu1", data, orders=2, points=5, **options)
    assert_same(curve, sd.cumulative_ablation(model, "relu1", data, orders=2, points=5, value=value, method="loop"))
    is_fused = any("nested_linear" in note for note in read_plan(curve.plan).notes)
    assert is_fused == (skip in ("inputs", "bias", "row"))
    alone = sd.unit_importance(model, "relu1", data, **options)
    assert_same(alone, sd.unit_importance(model, "relu1", data, value=value, method="loop"))
    options |= {"directions": sd.random_directions(9, 4), "orders": 2}
    few = sd.ablate_directions(model, "relu1", data, **options)
    assert_same(few, sd.ablate_directions(model, "relu1", data, method="loop", **options))


def test_half_precision_is_no_loop():
    model = mlp(6, (8, 8), 4, seed=0).to(torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(6, 6, generator=generator).to(torch.bfloat16), torch.arange(6) % 4
    result = sd.ablate_directions(model, "relu1", data, directions="random", orders=2, points=5)
    assert read_plan(result.plan).modes["fc2_along_directions"] == "compact"


@pytest.mark.parametrize("layer", ["fc1", "relu1"])
def test_nothing_but_rounding_left_is_no_reason_for_a_loop(layer):
    """With no bias behind, logits are zeros one way and rounding the other, once every direction is projected out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp(6, (8,), 4, seed=0).double().eval()
        model.out.bias = None
        data = torch.randn(20, 6).double(), torch.arange(20) % 4
    curve = sd.ablate_directions(model, layer, data, directions="random", orders=2, points=[0, 4, 8])
    assert curve.loss[:, -1].tolist() == pytest.approx([math.log(4)] * 2)
    read_plan(curve.plan)
