"""Figures 7 and A4: units' numbers against hooks and sums, the claims where they are true, false and undecided."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import sdkernels as sd
from sdkernels.lab.models import layer_names
from sdkernels.lab.sweep.data import measured_data
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import fig5_batch_norm, fig6, fig7
from sdkernels.paper.directions.parts import BLOCKS, joined
from sdkernels.paper.recipe import Done
from tests.paper.small_units import ALL, run, units

QUICK = fig7.FIG7.presets["quick"]
LOSS = fig7.LOSS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fig7")


@pytest.fixture(scope="module")
def done(folder):
    return run(fig7.FIG7, ALL, folder)


@pytest.fixture(scope="module")
def table(done):
    return fig7.table(done)


def _data(networks, index, examples=None):
    data = measured_data(networks.sweep.networks[index], "test", examples, networks.data_dir)
    return data.inputs, data.labels


def _loss_without(model, layer, unit, data):
    """With one unit's output replaced by zero, by a hook."""

    def clamp(_, __, output):
        output = output.clone()
        output[:, unit] = 0
        return output

    with model.get_submodule(layer).register_forward_hook(clamp):
        return _loss_and_accuracy(model, data)


@torch.no_grad()
def _loss_and_accuracy(model, data):
    logits = model(data[0]).double()
    return float(F.cross_entropy(logits, data[1])), float((logits.argmax(1) == data[1]).double().mean())


def _class_means(model, layer, data):
    """By class and unit, of the spatial mean."""
    kept = []
    with torch.no_grad(), model.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2].double())):
        model(data[0])
    means = kept[0].flatten(2).mean(2) if kept[0].ndim > 2 else kept[0]
    return torch.stack([means[data[1] == label].mean(0) for label in range(10)]), means


@pytest.mark.parametrize(("part", "layer"), [("MNIST", 2), ("CIFAR-10", 1), ("CIFAR-10", 9)])
@pytest.mark.parametrize("network", [0, 1])
def test_the_data_are_units_ablated_and_their_selectivity(done, table, part, layer, network):
    networks = done.networks[part]
    rows = table[(table.part == part) & (table.network == network) & (table.depth == layer)]
    model, site = networks.model(network), f"relu{layer}"
    assert set(rows.layer) == {f"hidden{layer}" if part == "MNIST" else f"conv{layer}"}

    class_means, means = _class_means(model, site, _data(networks, network))
    highest = class_means.max(0).values
    others = (class_means.sum(0) - highest) / 9
    assert rows.dead.tolist() == (means == 0).all(0).tolist()
    expected = torch.where(highest > 0, (highest - others) / (highest + others), torch.nan)
    assert rows.selectivity.tolist() == pytest.approx(expected.tolist(), rel=1e-4, nan_ok=True)

    ablated_on = _data(networks, network, 50 if part == "CIFAR-10" else None)
    loss, accuracy = _loss_and_accuracy(model, ablated_on)
    for row in rows.iloc[:6].itertuples():
        loss_without, accuracy_without = _loss_without(model, site, row.unit, ablated_on)
        assert row.loss_gained == pytest.approx(loss_without - loss, abs=1e-5)
        assert row.accuracy_lost == pytest.approx(accuracy - accuracy_without, abs=1e-9)


def test_every_unit_has_its_row(done, table):
    counts = table.groupby(["part", "network", "layer"], sort=False).size()
    assert counts["MNIST"].tolist() == [12, 9] * 2
    channels = [2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16]
    assert counts["CIFAR-10"].tolist() == channels * 2
    assert counts["ImageNet"].tolist() == [8, 64]
    assert list(counts["ImageNet"].index) == [(0, "block1.1"), (0, "block4.3")]
    assert list(table.columns) == [
        *("part", "network", "layer", "depth", "unit", "dead", "selectivity", "mutual_information"),
        *(LOSS, "accuracy_lost"),
    ]
    assert table[table.part == "ImageNet"].mutual_information.isna().all()  # which figure A4 has, by layer


def test_figure_a4_has_information_of_every_part(folder):
    done = run(fig7.FIGA4, ALL, folder)
    table = fig7.table(done)
    assert table.mutual_information.notna().all()
    for part, cells in (("CIFAR-10", 60), ("ImageNet", 20)):
        networks = done.networks[part]
        model = networks.model(0)
        data = measured_data(networks.sweep.networks[0], "test", None, networks.data_dir)
        loader = data.loader(batch_size=8) if part == "ImageNet" else (data.inputs, data.labels)
        layers = layer_names(model, done.options.parts[part].layers)
        all_at_once = sd.unit_statistics(model, layers, loader, cells=cells, num_classes=data.classes)
        own = table[(table.part == part) & (table.network == 0)]
        assert own.mutual_information.tolist() == pytest.approx(all_at_once.mutual_information(20).values.tolist())
    assert [claim.claim.partition(":")[0] for claim in fig7.claims(done, table)] == ["MNIST", "CIFAR-10", "ImageNet"]


def _rhos(rows, x, y=LOSS):
    rows = rows[~rows.dead]
    return [stats.spearmanr(own[x], own[y]).statistic for _, own in rows.groupby("network")]


def _mean_rho(rhos):
    return np.tanh(np.arctanh(rhos).mean())


def test_claims_of_a_run(done, table):
    on_mnist, on_cifar10, drive, matter, on_imagenet, matter_on_imagenet = fig7.claims(done, table)
    rows = dict(iter(table.groupby("part")))
    for part, claim in (("MNIST", on_mnist), ("CIFAR-10", on_cifar10)):
        z = np.arctanh(_rhos(rows[part], "selectivity"))
        low, high = np.tanh(stats.t.interval(0.95, 1, loc=z.mean(), scale=stats.sem(z)))
        assert (claim.low, claim.high) == pytest.approx((low, high))
    early, late = (rows["CIFAR-10"].depth <= 5), (rows["CIFAR-10"].depth > 5)
    of_early, of_late = (_rhos(rows["CIFAR-10"][half], "selectivity") for half in (early, late))
    assert (drive.low + drive.high) / 2 == pytest.approx(np.mean(of_late) - np.mean(of_early))
    assert "conv6 on" in drive.reason
    assert "up to conv5" in drive.reason
    assert float(on_imagenet.ours) == pytest.approx(_rhos(rows["ImageNet"], "selectivity")[0], abs=0.02)
    assert matter_on_imagenet.verdict == UNTESTABLE  # of two layers
    live = rows["CIFAR-10"][~rows["CIFAR-10"].dead]
    means = [own.groupby("depth")[LOSS].mean() for _, own in live.groupby("network")]
    expected = _mean_rho([stats.spearmanr(mean.index, mean).statistic for mean in means])
    assert np.tanh((np.arctanh(matter.low) + np.arctanh(matter.high)) / 2) == pytest.approx(expected)


def _stand_in(against="selectivity"):
    recipe = fig7.FIG7 if against == "selectivity" else fig7.FIGA4
    return Done(recipe.presets["quick"], {})


def _noise(depth, noise, network):
    return noise


def _shuffled(depth, noise, network):
    return np.random.default_rng(100 + network).permutation(noise)


def _mnist(against="selectivity", **columns):
    return units("MNIST", layers=2, per_layer=100, name="hidden", **{against: _noise, LOSS: _shuffled, **columns})


def _cifar10(**columns):
    return units("CIFAR-10", layers=11, per_layer=12, **{"selectivity": _noise, LOSS: _shuffled, **columns})


def _verdicts(*parts):
    return [claim.verdict for claim in fig7.claims(_stand_in(), pd.concat(parts, ignore_index=True))]


def test_the_claims_hold_where_they_are_true():
    def driven(depth, noise, network):  # in early layers alone, and less of it the deeper
        return np.where(depth <= 5, 6 - depth - 6 * noise, 0.3 * _shuffled(depth, noise, network) - 0.5 * depth)

    found = fig7.claims(_stand_in(), pd.concat([_mnist(), _cifar10(loss_gained=driven)], ignore_index=True))
    assert [claim.verdict for claim in found] == [HOLDS] * 4 + [UNTESTABLE] * 2
    assert [claim.reason for claim in found[4:]] == ["needs ImageNet"] * 2
    assert [claim.published for claim in found[:2]] == ["0.095, slight", "-0.428"]


def test_the_claims_fail_where_the_opposite_is_true():
    def related(depth, noise, network):
        return noise + 0.1 * network

    def driven(depth, noise, network):  # positive, in early layers alone
        return np.where(depth <= 5, noise, 0.5 * _shuffled(depth, noise, network)) + 0.3 * depth

    assert _verdicts(_mnist(loss_gained=related), _cifar10(loss_gained=driven))[:4] == [FAILS, FAILS, FAILS, FAILS]
    found = fig7.claims(_stand_in(), pd.concat([_mnist(loss_gained=related), _cifar10(loss_gained=driven)]))
    assert "related" in found[0].reason
    assert all("the opposite" in claim.reason for claim in found[1:3])
    assert "the opposite" in found[3].reason


def test_the_claims_are_undecided_of_noise():
    found = fig7.claims(_stand_in(), pd.concat([_mnist(), _cifar10()], ignore_index=True))
    assert [claim.verdict for claim in found[1:4]] == [FAILS] * 3
    assert all("undecided" in claim.reason for claim in found[1:4])


def test_late_layers_that_are_negative_do_not_count_as_early():
    def driven(depth, noise, network):
        return np.where(depth > 5, -noise, _shuffled(depth, noise, network))

    drive = fig7.claims(_stand_in(), pd.concat([_mnist(), _cifar10(loss_gained=driven)], ignore_index=True))[2]
    assert drive.verdict == FAILS
    assert "the opposite" in drive.reason


def test_what_pooling_hides_and_what_dead_units_do_stand_in_the_reason():
    def between(depth, noise, network):  # falls from layer to layer, rises within each
        return noise - 10 * depth

    table = pd.concat([_mnist(), _cifar10(selectivity=lambda d, n, _: d + 0.1 * n, loss_gained=between)])
    table.loc[(table.part == "MNIST") & (table.unit < 5), ["dead", "selectivity", LOSS]] = [True, np.nan, 50.0]
    on_mnist, on_cifar10 = fig7.claims(_stand_in(), table)[:2]
    assert on_cifar10.verdict == HOLDS
    assert "within single layers, 0.99" in on_cifar10.reason
    assert "dead" not in on_cifar10.reason
    rows = table[table.part == "MNIST"]
    filled = rows.assign(selectivity=rows.selectivity.fillna(0.0), dead=False)
    counted = f"{_mean_rho(_rhos(filled, 'selectivity')):.2f}"
    assert f"with 40 dead of 800 units counted, {counted.removesuffix('0')}" in on_mnist.reason


def test_a_single_network_is_tested_over_its_units_and_layers():
    def falling(depth, noise, network):
        return -noise - 2 * depth

    one = {"networks": 1, "per_layer": 30}
    imagenet = units("ImageNet", name="block", selectivity=_noise, loss_gained=falling, **one)
    found = fig7.claims(_stand_in(), pd.concat([_mnist(), _cifar10(), imagenet]))
    assert "180 units of a single network" in found[4].reason
    assert found[5].verdict == HOLDS
    assert "6 layers" in found[5].reason
    alone = fig7.claims(_stand_in(), pd.concat([_mnist(), _cifar10().query("network == 0")]))
    assert alone[2].verdict == UNTESTABLE


def test_without_later_layers_nothing_is_said_of_early_ones():
    drive = fig7.claims(_stand_in(), pd.concat([_mnist(), _cifar10().query("depth <= 5")]))[2]
    assert (drive.verdict, drive.reason) == (UNTESTABLE, "early=5 of 5 layers leaves none on one side")


def test_a_layers_importance_is_that_of_its_live_units():
    table = _cifar10(loss_gained=lambda depth, noise, network: noise - 2 * depth)
    table.loc[(table.depth > 5) & (table.unit < 6), ["dead", "selectivity", LOSS]] = [True, np.nan, 1000.0]
    assert fig7.claims(_stand_in(), pd.concat([_mnist(), table]))[3].verdict == HOLDS


def test_information_that_says_something_fails():
    for made, verdict in ((_shuffled, HOLDS), (lambda d, noise, n: noise + 0.2 * n, FAILS)):
        parts = [_mnist("mutual_information", loss_gained=made), _cifar10(mutual_information=_shuffled)]
        found = fig7.claims(_stand_in("mutual_information"), pd.concat(parts))
        assert [claim.verdict for claim in found][::2] == [verdict, UNTESTABLE]
        assert {claim.published for claim in found} == {"mostly none"}


@pytest.mark.parametrize("parts", [("MNIST",), ("MNIST", "CIFAR-10"), ("MNIST", "CIFAR-10", "ImageNet")])
def test_the_figure_has_a_column_a_part(parts):
    made = {
        "MNIST": _mnist(),
        "CIFAR-10": _cifar10(),
        "ImageNet": units("ImageNet", networks=1, layers=16, name="block", selectivity=_noise, loss_gained=_shuffled),
    }
    table = pd.concat([made[part] for part in parts], ignore_index=True)
    figure = fig7.draw(_stand_in(), table)
    above, below = figure.axes[: len(parts)], figure.axes[len(parts) :]
    titles = {"MNIST": "digits, MLP", "CIFAR-10": "digits, ConvNet", "ImageNet": "ImageNet, ResNet-50"}
    assert [ax.get_title() for ax in above] == [titles[part] for part in parts]
    for part, points, summary in zip(parts, above, below, strict=True):
        assert len(points.collections[0].get_offsets()) == len(made[part])
        assert points.get_xlabel() == "class selectivity"
        layers = made[part].layer.unique()
        rhos = [_mean_rho(_rhos(made[part][made[part].layer == layer], "selectivity")) for layer in layers]
        drawn = [bars.lines[0].get_ydata()[0] for bars in summary.containers]
        assert drawn == pytest.approx(rhos)
        assert len(summary.get_xticks()) == len(layers)
    figure.canvas.draw()


def test_dead_units_are_not_drawn():
    table = _mnist()
    table.loc[table.unit == 3, ["dead", "selectivity"]] = [True, np.nan]
    (points, _) = fig7.draw(_stand_in(), table).axes
    assert len(points.collections[0].get_offsets()) == 800 - 8


def test_preset_paper_is_the_published_protocol():
    for recipe in (fig7.FIG7, fig7.FIGA4):
        paper = recipe.presets["paper"]
        mlp, convnet, resnet = paper.parts.values()
        assert (mlp.networks.data, mlp.networks.shape, mlp.networks.examples) == ("mnist", {"hidden": [128, 128]}, None)
        assert mlp.networks.training.epochs == 640
        assert mlp.layers == ("hidden1", "hidden2")
        assert (convnet.networks.data, convnet.networks.shape) == ("cifar10", {"width": 1.0})
        assert convnet.layers == tuple(f"conv{i}" for i in range(1, 12))
        assert (resnet.networks.data, resnet.networks.training.steps) == ("imagenet", 200_000)
        assert resnet.layers == BLOCKS
        assert len(BLOCKS) == 16
        for part in (mlp, convnet, resnet):
            assert part.ablated_on is None
            (*statistics, importance) = part.sweep(0, part.importance()).conditions
            assert importance.on == "test"
            assert importance.arguments == {"metrics": ["loss", "accuracy"]}
            assert {condition.on for condition in statistics} == {"test"}
            assert [layer for condition in statistics for layer in condition.layers] == list(part.layers)
    assert fig7.FIG7.needs == {"ImageNet": "ImageNet"}


@pytest.mark.parametrize("preset", ["quick", "small", "paper"])
def test_networks_and_statistics_are_those_of_figures_5b_and_6(preset):
    sweep = fig7.sweeps(fig7.FIG7.presets[preset])["CIFAR-10"]
    (of_6,) = fig6.sweeps(fig6.FIG6A.presets[preset]).values()
    (of_5b,) = fig5_batch_norm.sweeps(fig5_batch_norm.FIG5B.presets[preset]).values()
    assert set(map(repr, sweep.networks)) < set(map(repr, of_6.networks)) & set(map(repr, of_5b.networks))
    assert {network.options["batch_norm"] for network in sweep.networks} == {True}
    assert of_6.conditions[0] in sweep.conditions
    of_a4 = fig7.sweeps(fig7.FIGA4.presets[preset])
    assert of_a4["CIFAR-10"] == sweep
    assert of_a4["MNIST"] == fig7.sweeps(fig7.FIG7.presets[preset])["MNIST"]


def test_parts_are_joined_without_touching_them():
    rows = _mnist().drop(columns="part")
    both = joined({"MNIST": rows, "CIFAR-10": rows})
    assert "part" not in rows
    assert both.groupby("part", sort=False).size().to_dict() == {"MNIST": 800, "CIFAR-10": 800}
