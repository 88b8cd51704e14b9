"""Figure 1: curves against the results they are of, the claims on data in which they are true or false."""

import pandas as pd
import pytest

import sdkernels as sd
from sdkernels.lab.datasets import load
from sdkernels.lab.sweep import run_sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, HOLDS
from sdkernels.paper.directions import fig1, fig2
from sdkernels.paper.directions.corruption import LEVELS, claim_more_corrupted_is_worse
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from tests.paper.small_runs import FIG1A


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(fig1.FIG1A.presets["quick"], FIG1A)
    (sweep,) = fig1.sweeps(options).values()
    return Done(options, {"corruption": run_sweep(sweep, tmp_path_factory.mktemp("fig1") / "networks.sdk")})


def test_the_data_are_the_curves(done):
    table = fig1.table(done)
    found = done.networks["corruption"]
    for index, settings in enumerate(found.sweep.networks):
        data = load("digits", split="all").first(80)
        curve = sd.cumulative_ablation(
            found.model(index),
            ["relu1", "relu2"],
            (data.inputs, found.labels(index)),
            orders=3,
            points=9,
            seed=found.sweep.conditions[0].arguments["seed"],
            method="loop",
        )
        own = table[table.network == index]
        assert set(own.corruption) == {settings.corruption}
        assert own.correct.tolist() == curve.correct.flatten().tolist()
        assert own.accuracy.tolist() == pytest.approx(curve.accuracy.flatten().tolist())


def test_the_figure_shows_the_mean_over_networks_and_orders(done):
    table = fig1.table(done)
    (ax,) = fig1.draw(done, table).axes
    assert ax.get_ylabel() == "training accuracy"
    assert ax.get_xlabel() == "fraction of units ablated (hidden1, hidden2)"
    for level, line in zip((0.0, 1.0), ax.lines, strict=False):
        own = table[table.corruption == level]
        expected = [own[own.ablated == count].accuracy.mean() for count in sorted(own.ablated.unique())]
        assert line.get_ydata().tolist() == pytest.approx(expected)
        assert line.get_label() == f"{level:g}"
    assert ax.lines[2].get_ydata()[0] == 0.1  # chance


def test_claims_of_a_run(done):
    *ordered, near_one, chance = fig1.claims(done, fig1.table(done))
    assert near_one.verdict == HOLDS
    assert float(near_one.ours) == 1
    assert chance.published == "0.10"
    areas = [done.networks["corruption"].result(i, "ablation").auc().mean() for i in range(4)]
    assert ordered[1].low < float((areas[0] + areas[1] - areas[2] - areas[3]) / 2) < ordered[1].high


def _areas(by_level, noise=0.01):
    rows = [
        {"corruption": level, "network": 10 * place + repeat, "order": order, "auc": auc + noise * (order - repeat)}
        for place, (level, auc) in enumerate(by_level.items())
        for repeat in range(3)
        for order in range(2)
    ]
    return pd.DataFrame(rows)


def test_the_claims_hold_where_they_are_true_and_fail_where_not():
    falling = _areas({0.0: 0.8, 0.5: 0.5, 1.0: 0.3})
    assert [claim.verdict for claim in claim_more_corrupted_is_worse(falling, "ablation")] == [HOLDS, HOLDS, FAILS]
    rising = _areas({0.0: 0.3, 0.5: 0.5, 1.0: 0.8})
    assert [claim.verdict for claim in claim_more_corrupted_is_worse(rising, "ablation")] == [FAILS, FAILS, HOLDS]
    flat = _areas({0.0: 0.5, 0.5: 0.5, 1.0: 0.5}, noise=0.1)
    assert [claim.verdict for claim in claim_more_corrupted_is_worse(flat, "ablation")][:2] == [FAILS, FAILS]


def test_claims_that_fail_say_how_far_networks_of_true_labels_memorise_too():
    outcomes = pd.DataFrame({"corruption": [0.0, 0.0, 1.0], "test_accuracy": [0.3, 0.5, 0.1]})
    rising, falling = _areas({0.0: 0.3, 0.5: 0.5, 1.0: 0.8}), _areas({0.0: 0.8, 0.5: 0.5, 1.0: 0.3})
    for claim in claim_more_corrupted_is_worse(rising, "ablation", outcomes)[:2]:
        assert claim.reason.endswith("level 0 classify 0.40 of the test images: what they fit beyond is memorised")
    untested = outcomes.assign(test_accuracy=float("nan"))  # all examples were trained on
    for claims in (
        claim_more_corrupted_is_worse(falling, "ablation", outcomes),
        claim_more_corrupted_is_worse(rising, "ablation", untested),
    ):
        assert not any("memorised" in claim.reason for claim in claims)


def test_one_network_a_level_is_tested_over_orders():
    table = _areas({0.0: 0.8, 1.0: 0.3})
    alone = table[table.network % 10 == 0]
    claim = claim_more_corrupted_is_worse(alone, "ablation")[1]
    assert claim.verdict == HOLDS
    assert "orders of one network each" in claim.reason


def test_preset_paper_is_the_published_protocol():
    mlp = fig1.FIG1A.presets["paper"]
    assert (mlp.networks.data, mlp.networks.examples, mlp.networks.shape) == ("mnist", None, {"hidden": [512, 512]})
    assert mlp.networks.training.epochs == 640
    assert not mlp.networks.training.stop_when_memorised
    assert mlp.levels == LEVELS == (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert mlp.ablation.orders == 10
    convnet = fig1.FIG1B.presets["paper"]
    assert convnet.ablation.layers == ("conv9", "conv10", "conv11")
    training = convnet.networks.training
    assert (training.optimiser, training.learning_rate, training.batch_size, training.epochs) == ("adam", 1e-3, 32, 100)
    assert (convnet.networks.shape, convnet.networks.examples) == ({"width": 1.0}, None)
    resnet = fig1.FIG1C.presets["paper"]
    assert (resnet.networks.training.steps, resnet.networks.training.batch_size) == (200_000, 32 * 32)
    assert resnet.networks.training.augmentation == "none"
    assert resnet.networks.shape == {"stride": "last", "width": 1.0}
    assert resnet.ablation.metrics[0] == "top5"
    noise = fig2.FIG2B.presets["paper"].noise
    assert (noise.runs, noise.measured, len(noise.layers)) == (10, None, 11)


def test_figure_2_takes_the_networks_of_figure_1():
    for ablation, noise in ((fig1.FIG1A, fig2.FIG2A), (fig1.FIG1B, fig2.FIG2B)):
        for preset, options in ablation.presets.items():
            (one,), (other,) = ablation.sweeps(options).values(), noise.sweeps(noise.presets[preset]).values()
            assert one.networks == other.networks
            assert one.groups == other.groups


def test_networks_are_named_once():
    assert fig1.FIG1A.presets["small"].networks is networks.CORRUPTED_MLPS["small"]
