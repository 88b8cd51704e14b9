"""Pairs of units through the engine: the family, ``auto`` against ``loop`` on networks of every kind, what was run."""

import warnings
import zlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.analysis.pairs import pair_importance
from sdkernels.engine import pairwise, singles, tiles
from sdkernels.engine.pairs import Common, Pairs
from sdkernels.engine.singles import find_folding
from sdkernels.lab.models import mlp
from tests.engine.calls import calls_of
from tests.engine.compare import assert_same, assert_same_but_for_rounding, left_as_they_were
from tests.engine.parse import read_plan
from tests.engine.test_zoo import METRICS, OTHER_VALUES, value_of
from tests.engine.zoo import ZOO, Network, build

COUNTS = (3, 2)
ROWS = [(4, 0), (1, 2), (3, 4)]


def masks(*sets: tuple[int, ...]) -> Tensor:
    """bool [K, 5]."""
    found = torch.zeros(len(sets), 5, dtype=torch.bool)
    for row, units in enumerate(sets):
        found[row, list(units)] = True
    return found


def test_each_unit_alone_and_then_the_pairs():
    family = Pairs(torch.tensor([*ROWS[:2], (2, 0)]), COUNTS)
    expected = masks((0,), (1,), (2,), (4,), (0, 4), (1, 2), (0, 2))
    assert family.units.tolist() == [0, 1, 2, 4]
    assert family.configurations == 7
    assert family.is_ablating.tolist() == [True] * 7
    assert family.curves() == []
    for start in range(7):
        for stop in range(start + 1, 8):
            assert torch.equal(torch.cat(family.ablated(slice(start, stop)), 1), expected[start:stop])
    first, second = family.one_by_one()
    assert all(torch.equal(torch.cat([first[k], second[k]]), expected[k]) for k in range(7))
    assert [(g.site, g.configurations.tolist(), g.units.tolist()) for g in family.alone()] == [
        (0, [0, 1, 2], [0, 1, 2]),
        (1, [3], [1]),
    ]
    chosen = family.only(torch.tensor([1, 4, 6]))
    assert torch.equal(chosen.masks, expected[[1, 4, 6]])
    assert chosen.unit_counts == COUNTS


def test_masks_are_made_one_by_one():
    """All together they would take 2 TiB."""
    units = 1 << 20
    family = Pairs(torch.stack([torch.zeros(units - 1, dtype=torch.int64), torch.arange(1, units)], 1), (units,))
    assert family.one_by_one()[0][units + 6].nonzero().flatten().tolist() == [0, 7]


def pairs_of(common: list[Common], family: Pairs) -> dict[int, tuple[int, int]]:
    """By configuration, the unit in common and the other one, pooled."""
    starts = [sum(family.unit_counts[:site]) for site in range(len(family.unit_counts))]
    found: dict[int, tuple[int, int]] = {}
    for c in common:
        for group in c.others:
            for k, unit in zip(group.configurations.tolist(), group.units.tolist(), strict=True):
                assert k not in found
                found[k] = starts[c.site] + c.unit, starts[group.site] + unit
    return found


def test_pairs_stand_once_each_with_a_unit_in_common():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.triu_indices(9, 9, 1).t()[torch.randperm(36, generator=generator)[:20]]
    family = Pairs(torch.where(torch.rand(20, 1, generator=generator) < 0.5, pairs, pairs.flip(1)), (4, 3, 2))
    allowed = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 1, 1]]).bool()
    found = pairs_of(family.in_common(allowed), family)
    site = [0] * 4 + [1] * 3 + [2] * 2
    assert sorted(found) == list(range(len(family.units), family.configurations))
    for k, (first, second) in found.items():
        assert {first, second} == set(family.pairs[k - len(family.units)].tolist())
        assert allowed[site[first], site[second]]


def test_what_most_pairs_share_is_clamped_once():
    star = Pairs(torch.tensor([[0, 3], [3, 1], [2, 3], [3, 4]]), COUNTS)
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    (common,) = star.in_common(everywhere)
    assert (common.site, common.unit) == (1, 0)
    assert [(g.site, g.units.tolist()) for g in common.others] == [(0, [0, 1, 2]), (1, [1])]
    whole = Pairs(torch.triu_indices(5, 5, 1).t(), COUNTS)
    assert [(c.site, c.unit) for c in whole.in_common(everywhere)] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def some_pairs(units: int) -> Tensor:
    """int64 [P, 2]: a few at random, in either order, and one unit with a few others."""
    generator = torch.Generator().manual_seed(units)
    every = torch.triu_indices(units, units, 1).t()
    drawn = every[torch.randperm(len(every), generator=generator)[:12]]
    hub = torch.tensor([[units // 2, other] for other in range(min(3, units // 2))])
    return torch.cat([drawn, hub]).sort(1).values.unique(dim=0).flip(1)


def cases() -> list[tuple[Network, tuple[str, ...], str]]:
    """Of every network each set of layers with one kind of value, always the same; of large networks one set."""
    found = []
    for name, network in ZOO.items():
        slow = ("convnet", "resnet")
        for layers in network.sites[:1] if name.startswith(slow) else network.sites[:2]:
            kinds = ("zero", *OTHER_VALUES)
            label = f"{name}-{'+'.join(layers)}"
            kind = kinds[zlib.crc32(label.encode()) % len(kinds)]
            found.append(pytest.param(network, layers, kind, id=f"{label}-{kind}"))
    return found


@pytest.mark.parametrize(("network", "layers", "kind"), cases())
def test_auto_equals_loop(network, layers, kind):
    model, data = build(network)
    shapes = [calls_of(model, data[0])[layer] for layer in layers]
    unit_dim = {layer: network.unit_dim[layer] for layer in layers if layer in network.unit_dim} or None
    look = sd.cumulative_ablation(model, layers, data, orders=1, points=[0], method="loop", unit_dim=unit_dim)
    options = {"pairs": some_pairs(sum(look.unit_counts)), "metrics": METRICS, "unit_dim": unit_dim, "outcomes": True}
    options |= {"value": value_of(kind, layers, shapes, look.unit_counts)}
    options |= {"within": 0.8 if kind.endswith("within") else None}
    oracle = pair_importance(model, layers, data, method="loop", **options)
    configs_per_batch = "auto" if kind == "zero" else 2
    with left_as_they_were(model, data[0]), warnings.catch_warnings():
        warnings.simplefilter("error")
        auto = pair_importance(model, layers, data, batch_size=5, configs_per_batch=configs_per_batch, **options)
    assert "pairs: " in auto.plan
    assert_same(auto, oracle)
    assert len(oracle.loss.unique()) > 1


@pytest.fixture
def small(seeds_torch):
    """A perceptron of three hidden layers, half of whose units do not fire, and data."""
    model = mlp(8, (9, 7, 6), 5, seed=0).double().eval()
    return model, (torch.randn(37, 8).double(), torch.randint(0, 5, (37,)))


@pytest.mark.parametrize("way", ["logits-not-kept", "examples-not-divided"])
def test_other_ways_give_the_same(small, monkeypatch, way):
    model, data = small
    options = {"metrics": METRICS, "outcomes": True, "value": "class_mean"}
    for layers in (["relu1", "relu2"], ["relu3"]):
        expected = pair_importance(model, layers, data, pairs="all", **options)
        if way == "logits-not-kept":
            monkeypatch.setattr(pairwise, "KEPT_LOGITS", 0)
        else:
            monkeypatch.setattr(tiles, "find_folding", lambda *a: replace(find_folding(*a), is_possible=False))
        assert_same(pair_importance(model, layers, data, pairs="all", **options), expected)


@pytest.mark.parametrize("layers", [["relu1"], ["fc1", "relu1"], ["relu2", "relu1"], ["relu3"]], ids="+".join)
def test_neither_tiles_nor_passes_nor_batches_matter(small, monkeypatch, layers):
    model, data = small
    units = {"relu1": 9, "fc1": 9, "relu2": 7, "relu3": 6}
    every = torch.triu_indices(*[sum(units[layer] for layer in layers)] * 2, 1).t()  # across layers too
    expected = pair_importance(model, layers, data, pairs=every, method="loop")
    monkeypatch.setattr("sdkernels.engine.runner._even", lambda tile, _examples: min(tile, 5))
    for configs_per_batch, batch_size in (("auto", 256), (4, 3)):
        options = {"configs_per_batch": configs_per_batch, "batch_size": batch_size}
        assert_same(pair_importance(model, layers, data, pairs=every, **options), expected)


def test_in_single_precision_counts_differ_by_ambiguous_examples_alone(seeds_torch):
    model = mlp(20, (40, 30), 10, seed=0).eval()
    data = torch.randn(200, 20), torch.randint(0, 10, (200,))
    pairs = torch.triu_indices(70, 70, 1).t()[::7]
    auto, oracle = (pair_importance(model, ["relu1", "relu2"], data, pairs=pairs, method=m) for m in ("auto", "loop"))
    assert_same_but_for_rounding(auto, oracle)


class Sideways(nn.Module):
    """Has examples in another dimension than the first, in a tensor that no site reaches and in one behind a site."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate, self.relu, self.out = nn.Linear(4, 5), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.relu(self.fc(x)).t() * self.gate(x).t()).t())


def test_examples_that_stand_in_another_dimension(seeds_torch):
    model = Sideways().double().eval()
    data = torch.randn(9, 4).double(), torch.randint(0, 3, (9,))
    auto = pair_importance(model, "relu", data)
    assert "pairs: " in auto.plan
    assert_same(auto, pair_importance(model, "relu", data, method="loop"))


def test_a_layer_that_nobody_reads():
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.unread, self.out = nn.Linear(4, 5), nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.unread(x)
            return self.out(self.fc(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Unread().double().eval()
        data = torch.randn(9, 4).double(), torch.randint(0, 3, (9,))
    options = {"pairs": [[5, 6], [0, 5], [6, 0], [6, 1], [1, 2]]}
    layers = ["fc", "unread"]
    with pytest.warns(sd.SdkernelsWarning, match=r"do not depend on layers \['unread'\]"):
        auto = pair_importance(model, layers, data, **options)
    assert_same(auto, pair_importance(model, layers, data, method="loop", **options))


def test_the_plan_says_what_was_done(seeds_torch, monkeypatch):
    units, pairs = 30, 30 * 29 // 2
    model = mlp(8, (9, units, 60), 5, seed=0).double().eval()
    data = torch.randn(37, 8).double(), torch.randint(0, 5, (37,))
    calls: list[tuple[int, int]] = []
    kernel = singles.rank_one
    monkeypatch.setattr(singles, "rank_one", lambda *a, **o: calls.append((len(a[0]), len(a[3]))) or kernel(*a, **o))
    result = pair_importance(model, "relu2", data)
    with torch.no_grad():
        fires = (model.relu2(model.fc2(model.relu1(model.fc1(data[0])))) != 0).double()  # [N, C]
    run = float((fires.t() @ fires).triu(1).sum()) / (37 * pairs)
    plan = read_plan(result.plan)
    assert plan.configurations == units + pairs
    assert plan.notes[1] == (
        f"pairs: {units - 1} units are clamped once each, and on that their partners, as single units; absent already: "
        f"{1 - run:.1%} of the rows of pair and example"
    )
    assert plan.modes["fc3"] == "rank-one, dense"
    assert plan.modes["fc2"] == "shared"
    out = plan.rows["out"]
    runs = 1 + float(fires.mean(0).sum()) + float(fires[:, :-1].mean(0).sum()) + pairs * run
    assert out.work == pytest.approx(runs * out.loop_work / (units + pairs), rel=0.01)
    fired = [int(fires[:, unit].sum()) for unit in range(units - 1)]
    expected = [(37, units), *((count, units - 1 - unit) for unit, count in enumerate(fired) if count)]
    assert calls[-len(expected) :] == expected, "examples for which the unit in common is absent are left out"
