"""Single units and explicit sets: ``auto`` equals ``loop``, both equal a raw hook loop, and bad calls are refused."""

import inspect

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.lab.models import mlp
from tests.engine.compare import assert_same
from tests.engine.networks import Branching, image_networks, raw_hook_counts
from tests.pairwise import pairwise

METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")


@pytest.fixture
def images(seeds_torch):
    return torch.randn(24, 2, 6, 6).double(), torch.randint(0, 5, (24,))


def network(name: str):
    """A small network, its layers, and how many units they have."""
    if name == "mlp":
        return torch.nn.Sequential(torch.nn.Flatten(), mlp(72, (6, 5), 5, seed=0)).double().eval(), [
            "1.relu1",
            "1.relu2",
        ]
    return image_networks()[name]


def some_sets(units: int) -> list[list[int]]:
    """One set of each kind: nothing, one unit, some of all layers, everything."""
    generator = torch.Generator().manual_seed(0)
    return [[], [units - 1], torch.randperm(units, generator=generator)[: units // 2].tolist(), list(range(units))]


@pytest.mark.parametrize(
    *pairwise(name=["mlp", *image_networks()], value=[0.0, 0.3, "mean", "element_mean"], configs_per_batch=["auto", 3]),
    ids=str,
)
def test_auto_equals_loop(images, name, value, configs_per_batch):
    model, layers = network(name)
    options = {"value": value, "metrics": METRICS, "batch_size": 9}
    oracle = sd.unit_importance(model, layers, images, method="loop", **options)
    sets = some_sets(len(oracle.correct))
    oracle_of_sets = sd.ablate(model, layers, images, units=sets, method="loop", **options)
    options["configs_per_batch"] = configs_per_batch
    assert_same(sd.unit_importance(model, layers, images, **options), oracle)
    assert_same(sd.ablate(model, layers, images, units=sets, **options), oracle_of_sets)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("name", ["mlp", "convnet-relu", "convnet-conv", "concatenating", "residual-inner"])
def test_equal_to_a_raw_hook_loop(images, name, method):
    model, layers = network(name)
    single = sd.unit_importance(model, layers, images, value=0.3, method=method)
    units = len(single.correct)
    sets = sd.ablate(model, layers, images, units=some_sets(units), value=0.3, method=method)
    masks = torch.cat([torch.eye(units).bool(), sets.units])
    correct, losses = torch.cat([single.correct, sets.correct]), torch.cat([single.sums["loss"], sets.sums["loss"]])
    for mask, count, loss in zip(masks, correct, losses, strict=True):
        expected = raw_hook_counts(model, layers, *images, mask.split(single.unit_counts), 0.3)
        assert expected[0] == count
        assert expected[1] == pytest.approx(float(loss), rel=1e-12)


def test_sets_of_one_unit_are_single_units(images):
    model, layers = image_networks()["convnet-relu"]
    single = sd.unit_importance(model, layers, images)
    lists = sd.ablate(model, layers, images, units=[[unit] for unit in range(11)])
    mask = sd.ablate(model, layers, images, units=torch.eye(11).bool())
    assert_same(lists, mask)
    assert torch.equal(lists.correct, single.correct)
    assert torch.equal(lists.loss, single.loss)


def test_sets_are_points_of_a_curve(images):
    model, layers = image_networks()["convnet-relu"]
    curve = sd.cumulative_ablation(model, layers, images, orders=1, points=[0, 4, 11])
    scores = sd.ablate(model, layers, images, units=[curve.orders[0, :point] for point in curve.points])
    assert torch.equal(scores.correct, curve.correct[0])
    torch.testing.assert_close(scores.loss, curve.loss[0], rtol=1e-12, atol=0)


def test_layers_are_pooled_in_the_order_they_are_given(images):
    model, (first, second) = image_networks()["convnet-relu"]
    there, back = (sd.unit_importance(model, layers, images) for layers in ([first, second], [second, first]))
    assert back.unit_counts == (6, 5)
    assert torch.equal(back.correct, there.correct.roll(6))


def test_an_untraceable_model_runs_as_a_loop_and_says_so_where_it_was_called(seeds_torch):
    model = Branching().double().eval()
    data = torch.randn(20, 4).double(), torch.randint(0, 5, (20,))
    for call in (
        lambda **o: sd.unit_importance(model, "relu", data, **o),
        lambda **o: sd.ablate(model, "relu", data, units=[[0, 2]], **o),
    ):
        with pytest.warns(sd.SdkernelsWarning, match="runs as a hook loop") as warned:
            auto = call()
        assert warned[0].filename == __file__
        assert_same(auto, call(method="loop"))


def test_units_that_do_nothing_are_said(seeds_torch):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double().eval()
    torch.nn.init.constant_(model[0].bias, -100)  # all dead
    data = torch.randn(20, 4).double(), torch.randint(0, 2, (20,))
    with pytest.warns(sd.SdkernelsWarning, match="did not change the loss") as warned:
        sd.unit_importance(model, "1", data)
    assert warned[0].filename == __file__
    with pytest.warns(sd.SdkernelsWarning, match="did not change the loss"):
        sd.ablate(model, "1", data, units=[[], [1]])
    sd.ablate(model, "1", data, units=[[]])  # nothing is ablated: nothing to say


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_bad_units_are_refused_with_the_row(images, method):
    model, layers = image_networks()["convnet-relu"]
    with pytest.raises(ValueError, match=r"units\[1\] names unit 11; the pooled units of all layers are 0\.\.10"):
        sd.ablate(model, layers, images, units=[[0], [11]], method=method)
    with pytest.raises(ValueError, match=r"units is a flat torch.int64 tensor"):
        sd.ablate(model, layers, images, units=torch.arange(3), method=method)
    with pytest.raises(TypeError, match="units is a int"):
        sd.ablate(model, layers, images, units=3, method=method)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "fast"}, ValueError),
        ({"precision": "float16"}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"configs_per_batch": 0}, ValueError),
        ({"metrics": "f1"}, ValueError),
        ({"value": "median"}, ValueError),
        ({"unit_dim": "last"}, TypeError),
    ],
    ids=str,
)
def test_other_options_are_checked(images, options, error):
    model, layers = image_networks()["convnet-relu"]
    for call in (sd.unit_importance, lambda *a, **o: sd.ablate(*a, units=[[0]], **o)):
        with pytest.raises(error, match=next(iter(options))):
            call(model, layers, images, **options)


def test_the_functions_share_their_options():
    curve, single, sets = (
        inspect.signature(f).parameters for f in (sd.cumulative_ablation, sd.unit_importance, sd.ablate)
    )
    assert set(curve) - set(single) == {"orders", "points", "tolerance_of"}
    assert set(sets) - set(single) == {"units"}
    for name, parameter in single.items():
        for other in (curve, sets):
            assert other[name].default == parameter.default, name
            assert other[name].annotation == parameter.annotation, name


def test_a_site_between_a_unit_and_the_product_that_reads_it(seeds_torch):
    """The other site clamps nothing, whatever its value is."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).double().eval()
    data = torch.randn(20, 4).double(), torch.randint(0, 5, (20,))
    options = {"value": {"0": 0.7, "1": -0.4}}
    auto = sd.unit_importance(model, ["0", "1"], data, **options)
    assert "rank-one" in auto.plan
    assert_same(auto, sd.unit_importance(model, ["0", "1"], data, method="loop", **options))
