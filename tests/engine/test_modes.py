"""Every fast way is taken where it can be: its name stands beside the right nodes, and the work is what it should be.

Results would be right if everything ran dense, only late; so the plan is what these tests read.
"""

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.engine import singles
from sdkernels.engine.graph import trace
from sdkernels.engine.products import Unrolled
from sdkernels.engine.rules import Linear, learn
from sdkernels.engine.sites import find_sites
from sdkernels.lab.models import BasicBlock, ResNet, convnet, mlp
from tests.engine.networks import with_lively_batch_norm
from tests.engine.parse import read_plan

LAST = ["relu9", "relu10", "relu11"]


def images(side: int, channels: int = 3, examples: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(examples, channels, side, side).double(), torch.randint(0, 10, (examples,))


def small_convnet() -> nn.Module:
    return with_lively_batch_norm(convnet(width=1 / 32, seed=0))


def small_resnet() -> nn.Module:
    return with_lively_batch_norm(ResNet(BasicBlock, (1, 2), classes=10, width=1 / 16, seed=0))


def test_the_last_layers_of_the_convnet(seeds_torch):
    plan = read_plan(sd.cumulative_ablation(small_convnet(), LAST, images(40), orders=2, points=5).plan)
    last = ("conv10", "bn10", "relu10", "conv11", "bn11", "relu11", "pool", "flatten", "out")
    assert {name: mode for name, mode in plan.modes.items() if name in last} == {
        **dict.fromkeys(last, "compact"),
        "conv10": "nested",
    }
    assert {mode for name, mode in plan.modes.items() if name not in last} == {"shared"}
    assert plan.configurations == 10
    assert plan.work < plan.loop_work / 6


def test_the_work_of_the_convnet_is_what_lives(seeds_torch):
    """Counted from the orders, with nothing of the plan: a product multiplies living inputs into living outputs."""
    model = small_convnet()
    curve = sd.cumulative_ablation(model, LAST, images(40), orders=3, points=7)
    place = curve.orders.argsort(1)
    lives = place[:, None] >= curve.points[:, None]  # [R, T, U]
    fraction = {name: part.double().mean(2) for name, part in zip(LAST, lives.split(curve.unit_counts, 2), strict=True)}
    c9, c10, c11 = (getattr(model, name).out_channels for name in ("conv9", "conv10", "conv11"))
    runs = {  # beyond the intact model's one, of all configurations
        "conv10": 3.0,  # once an order
        "relu10": float(fraction["relu10"].sum()),
        "conv11": float((fraction["relu10"] * fraction["relu11"]).sum()),
        "relu11": float(fraction["relu11"].sum()),
        "pool": float(fraction["relu11"].sum()),
        "flatten": float(fraction["relu11"].sum()),
        "out": float(fraction["relu11"].sum()),
    }
    positions = 25
    once = {
        "conv10": 2 * c9 * 9 * c10 * positions,
        "relu10": c10 * positions,
        "conv11": 2 * c10 * 9 * c11 * positions,
        "relu11": c11 * positions,
        "pool": c11,
        "flatten": c11,
        "out": 2 * c11 * 10,
    }
    rows = read_plan(curve.plan).rows
    for name, times in runs.items():
        assert rows[name].work == pytest.approx((1 + times) * once[name], abs=0.5e3), name
        assert rows[name].loop_work == pytest.approx(21 * once[name], abs=0.5e3), name
    for name, row in rows.items():
        if row.mode == "shared":
            assert row.work * 21 == pytest.approx(row.loop_work, abs=21 * 0.5e3), name


def test_both_products_below_a_residual_block_are_nested(seeds_torch):
    """The next block's convolution and its shortcut read what dies; behind them everything lives."""
    plan = read_plan(sd.cumulative_ablation(small_resnet(), "layer1.0", images(20), orders=2, points=5).plan)
    nested = {name for name, mode in plan.modes.items() if mode == "nested"}
    assert nested == {"layer2_0_conv1", "layer2_0_downsample_0"}
    names = list(plan.rows)
    behind = names[names.index("layer2_0_conv1") :]
    assert {plan.modes[name] for name in behind if name not in nested} == {"dense"}
    assert {plan.modes[name] for name in names if name not in behind} == {"shared"}
    for name in nested:  # the intact model, and once an order
        assert plan.rows[name].work == pytest.approx(plan.rows[name].loop_work * 3 / 10, abs=0.5e3)


def test_inside_a_residual_block(seeds_torch):
    """Units that die on both sides of the block's second convolution; the shortcut around it is shared."""
    layers = ["layer2.0.relu@0", "layer2.0.relu@1"]
    plan = read_plan(sd.cumulative_ablation(small_resnet(), layers, images(20), orders=2, points=5).plan)
    expected = {
        "layer2_0_conv1": "shared",
        "layer2_0_downsample_0": "shared",
        "layer2_0_conv2": "nested",
        "add_1": "compact",  # only what the dying ReLU behind it still reads
        "layer2_0_relu_1": "compact",
        "layer2_1_conv1": "compact",  # reads living channels, and all its own are read
        "layer2_1_relu": "dense",
        "layer2_1_conv2": "dense",
        "add_2": "dense",
        "fc": "dense",
    }
    assert {name: plan.modes[name] for name in expected} == expected
    conv = plan.rows["layer2_1_conv1"]
    assert conv.work < 0.65 * conv.loop_work


def test_what_every_configuration_reads_is_shared(seeds_torch):
    plan = read_plan(sd.cumulative_ablation(small_convnet(), "relu11", images(8), orders=2, points=5).plan)
    dependent = {name for name, mode in plan.modes.items() if mode != "shared"}
    assert dependent == {"out"}  # what lives of the pooled maps is the intact model's
    assert plan.modes["out"] == "nested"


def test_single_units_of_a_map(seeds_torch):
    """One channel through the pooling, one column of the convolution that reads it."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 9, 10)),
    )
    result = sd.unit_importance(model.double().eval(), "1", images(12), value=-1.0)
    plan = read_plan(result.plan)
    expected = ["shared", "shared", "one channel", "rank-one", "dense", "dense", "dense"]
    assert list(plan.modes.values()) == expected
    assert plan.notes == ("absent already: 0.0% of the pairs of unit and example",)
    conv = plan.rows["_3"]
    assert conv.work == pytest.approx(2 * conv.loop_work / 8, abs=0.5e3)  # the intact model, and eight times an eighth


def test_single_units_of_the_convnet(seeds_torch):
    plan = read_plan(sd.unit_importance(small_convnet(), "relu10", images(40)).plan)
    assert plan.modes["conv10"] == "shared"
    assert plan.modes["conv11"] == "rank-one"
    assert {plan.modes[name] for name in ("bn11", "relu11", "pool", "flatten", "out")} == {"dense"}
    conv = plan.rows["conv11"]
    assert conv.work <= 2 * conv.loop_work / 16 + 0.5e3  # the intact model, and at most sixteen times a sixteenth


@pytest.mark.parametrize("depth", [2, 3], ids=["kernel", "rows"])
def test_absent_units_are_counted(seeds_torch, depth):
    """Units that do not fire are no work, whether a kernel finds them or the rows of a batch."""
    model = mlp(8, (20,) * depth, 4, seed=0).double().eval()
    model.fc1.bias.data[:12] = -3  # mostly dead
    data = torch.randn(37, 8).double(), torch.randint(0, 4, (37,))
    with torch.no_grad():
        absent = float((model.relu1(model.fc1(data[0])) == 0).double().mean())
    assert 0.5 < absent < 0.95
    plan = read_plan(sd.unit_importance(model, "relu1", data).plan)
    assert plan.notes == (f"absent already: {absent:.1%} of the pairs of unit and example",)
    assert plan.modes["fc2"] == "rank-one"
    for row in (plan.rows["relu2"], plan.rows["out"]):
        assert row.mode == "dense"
        assert row.work == pytest.approx((1 + 20 * (1 - absent)) * row.loop_work / 20, abs=0.5e3)


@pytest.mark.parametrize(("side", "unrolled"), [(8, True), (16, True), (40, False)])
def test_tiny_maps_run_as_one_matrix(seeds_torch, side, unrolled):
    """Of a 3x3 kernel on maps of one or two positions a side most meets padding."""
    model, (inputs, _) = small_convnet(), images(side)
    sites, logits = find_sites(model, LAST, inputs)
    know = learn(trace(model, sites, inputs, logits), sites)
    rules = {node.name: rule for node, rule in know.rules.items() if isinstance(rule, Linear)}
    assert list(rules) == ["conv10", "conv11", "out"]
    assert [isinstance(rules[name].product, Unrolled) for name in ("conv10", "conv11")] == [unrolled] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_has_no_nested_sums_and_says_why(seeds_torch, dtype):
    model = mlp(6, (8, 8), 4, seed=0).to(dtype).eval()
    data = torch.randn(6, 6).to(dtype), torch.randint(0, 4, (6,))
    plan = read_plan(sd.cumulative_ablation(model, "relu1", data, orders=2, points=5).plan)
    assert plan.modes["fc2"] == "compact"
    assert plan.notes == (f"no nested sums: running sums in {dtype} would lose digits",)


@pytest.mark.parametrize("layers", [["relu1", "relu2"], ["relu1"]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_linear_tail_runs_in_one_kernel(seeds_torch, layers, dtype):
    model = mlp(6, (8, 8), 4, seed=0).to(dtype).eval()
    data = torch.randn(6, 6).to(dtype), torch.randint(0, 4, (6,))
    plan = read_plan(sd.cumulative_ablation(model, layers, data, orders=2, points=5).plan)
    assert plan.modes["fc2"] == "nested"
    assert plan.notes == ("one kernel, nested_linear, runs fc2 to out",)


@pytest.mark.parametrize("layer", ["fc1", "relu1", "relu2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_single_units_of_a_linear_tail_run_in_one_kernel(seeds_torch, monkeypatch, layer, dtype):
    model = mlp(6, (8, 8), 4, seed=0).to(dtype).eval()
    data = torch.randn(6, 6).to(dtype), torch.randint(0, 4, (6,))
    calls: list[int] = []
    kernel = singles.rank_one
    monkeypatch.setattr(singles, "rank_one", lambda *a, **options: calls.append(len(a[3])) or kernel(*a, **options))
    plan = read_plan(sd.unit_importance(model, layer, data).plan)
    assert plan.modes["fc2" if layer != "relu2" else "out"] == "rank-one"
    assert calls[-1] == 8, "the last call is that of the data: all units at once"


def test_sets_of_few_units_run_whole_and_large_ones_on_living_channels(seeds_torch):
    """Unless they are nested: then they are points of a curve."""
    model = convnet(width=1 / 8, seed=0).double().eval()
    data = torch.randn(6, 3, 16, 16).double(), torch.randint(0, 10, (6,))
    pairs = [[0, 1], [2, 3], [4, 5]]
    apart = read_plan(sd.ablate(model, ["relu9", "relu10"], data, units=pairs).plan)
    assert apart.modes["conv10"] == apart.modes["conv11"] == "dense"
    nested = read_plan(sd.ablate(model, ["relu9", "relu10"], data, units=[[0, 1], [0, 1, 2], [0, 1, 2, 4]]).plan)
    assert nested.modes["conv10"] == "nested"
    large = read_plan(sd.ablate(model, ["relu9", "relu10"], data, units=[range(70), range(60, 128)]).plan)
    assert large.modes["conv10"] == "nested"
    assert large.modes["conv11"] == "compact"
