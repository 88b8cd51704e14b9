"""Figures 4a and 4b: looks, areas and losses against networks trained again; claims on data that decide them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from torch.nn.functional import cross_entropy

import sdkernels as sd
from sdkernels.lab.datasets import load
from sdkernels.lab.sweep import Sweep, run_sweep
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import fig4_early_stopping as fig4
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done

QUICK = fig4.FIG4A.presets["quick"]
SMALL = {
    "examples": 100,
    "shape": {"hidden": [24, 24]},
    "epochs": 4,
    "learning_rate": 1e-2,
    "repeats": 2,
    "every": 2,
    "early": [1],
    "levels": [0.0, 0.5],
    "orders": 2,
    "points": 5,
    "settled": 0.0,
}
EPOCHS = (1, 2, 5, 10, 20, 30, 40, 50)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(QUICK, SMALL)
    (sweep,) = fig4.sweeps(options).values()
    return Done(options, {fig4.PART: run_sweep(sweep, tmp_path_factory.mktemp("fig4") / "networks.sdk")})


def test_areas_and_losses_are_those_of_the_network_after_so_many_epochs(done, tmp_path):
    table, found = fig4.table(done), done.networks[fig4.PART]
    test = load("digits", split="test").flattened()

    def loss_on(model, inputs, labels):
        return float(cross_entropy(model(inputs).detach().double(), labels))

    for seed, level, epoch in ((0, 0.0, 2), (1, 0.5, 4)):
        own = table[(table.seed == seed) & (table.corruption == level) & (table.epoch == epoch)]
        family = replace(done.options.networks, training=replace(done.options.networks.training, epochs=epoch))
        again = run_sweep(Sweep((family.network(0, seed, corruption=level),)), tmp_path / f"{seed}.sdk")
        model, data = again.model(0), load("digits").first(100).flattened()
        labels = again.labels(0)
        curve = sd.cumulative_ablation(
            model,
            ["relu1", "relu2"],
            (data.inputs, labels),
            orders=2,
            points=5,
            seed=found.sweep.conditions[0].arguments["seed"],
            method="loop",
        )
        areas = np.trapezoid(curve.accuracy.numpy(), curve.points.numpy() / 48, axis=1)
        intact = float((model(data.inputs).argmax(1) == labels).double().mean())
        assert own.order.tolist() == [0, 1]
        assert own.auc.tolist() == pytest.approx(areas.tolist())
        assert intact > 0.1
        assert own.relative_auc.tolist() == pytest.approx(((areas - 0.1) / (intact - 0.1)).tolist())
        assert own.test_loss.tolist() == pytest.approx([loss_on(model, test.inputs, test.labels)] * 2)
        assert own.train_loss.tolist() == pytest.approx([loss_on(model, data.inputs, labels)] * 2)
    assert len(table) == 2 * 2 * 3 * 2  # levels, repeats, looks, orders
    assert sorted(table.epoch.unique()) == [1, 2, 4]


def test_areas_count_once_the_network_has_settled(done):
    table = fig4.table(done)
    accuracies = sorted(table.train_accuracy.unique())
    strict = Done(replace(done.options, settled=accuracies[2]), done.networks)
    assert (fig4.table(strict).relative_auc.isna() == (table.train_accuracy < accuracies[2])).all()


def test_the_figure_shows_means_and_where_they_turn(done):
    table = fig4.table(done)
    figure = fig4.draw(done, table)
    above, beside, middle, _, below = figure.axes[:5]
    assert (above.get_title(), beside.get_title()) == ("true labels", "50% of labels corrupted")
    own = table[table.corruption == 0]
    areas, losses = own.groupby("epoch").relative_auc.mean(), own.groupby("epoch").test_loss.mean()
    assert above.lines[0].get_ydata().tolist() == pytest.approx(areas.tolist())
    assert above.lines[0].get_xdata().tolist() == [1, 2, 4]
    assert middle.lines[0].get_ydata().tolist() == pytest.approx(losses.tolist())
    assert middle.lines[1].get_ydata().tolist() == pytest.approx(own.groupby("epoch").train_loss.mean().tolist())
    for ax, lines in ((above, above.lines[1:]), (middle, middle.lines[2:])):
        assert [line.get_xdata()[0] for line in lines] == [areas.idxmax(), losses.idxmin()], ax.get_ylabel()
    (legend,) = figure.legends
    labels = ["test loss", "training loss", "greatest area", "least test loss"]
    assert [text.get_text() for text in legend.texts] == labels
    assert [line.get_label() for line in middle.lines] == labels
    (points,) = below.collections
    assert len(points.get_offsets()) == 2 * 3
    assert points.get_offsets()[0].tolist() == pytest.approx(
        own[(own.seed == 0) & (own.epoch == 1)][["test_loss", "relative_auc"]].mean().tolist()
    )


def observations(area, loss, *, seeds=4, corruption=0.0, accuracy=None):
    """A table of areas and test losses by epoch; seeds differ a little, orders more."""
    rows = [
        {
            "corruption": corruption,
            "seed": seed,
            "epoch": epoch,
            "order": order,
            "relative_auc": area[place] + 0.001 * seed + (0.2 if order else -0.2),
            "auc": -area[place],
            "test_loss": loss[place] + 0.001 * seed * place,
            "train_loss": 1 / epoch,
            "test_accuracy": (accuracy or [0.9] * len(EPOCHS))[place],
        }
        for seed in range(seeds)
        for place, epoch in enumerate(EPOCHS)
        for order in (0, 1)
    ]
    return pd.DataFrame(rows)


LOSS = (2.0, 1.5, 1.0, 0.6, 0.5, 0.7, 0.9, 1.1)  # least at 20
ROUND = (0.2, 0.3, 0.5, 0.7, 0.8, 0.6, 0.5, 0.4)  # greatest there
RISING = (0.5, 0.45, 0.4, 0.35, 0.6, 0.7, 0.8, 0.9)


def claims_of(table, **changes):
    return fig4.claims(Done(replace(QUICK, **changes), {}), table)


def test_claims_hold_where_areas_fall_as_losses_rise():
    related, after, dropped, near = claims_of(observations(ROUND, LOSS))
    assert {claim.verdict for claim in (related, after, dropped, near)} == {HOLDS}
    expected = pd.Series(ROUND).corr(pd.Series(LOSS), method="spearman")
    assert float(related.ours) == pytest.approx(expected, abs=0.006)
    assert related.published == "-0.728"
    assert "4 networks" in related.reason
    assert float(dropped.ours) == pytest.approx(0.8 - 0.4)
    assert float(near.ours) == 0


def test_claims_fail_where_areas_rise_all_along():
    related, after, dropped, near = claims_of(observations(RISING, LOSS))
    assert related.verdict == FAILS
    assert after.verdict == FAILS
    assert float(after.ours) > 0.9
    assert dropped.verdict == FAILS
    assert float(dropped.ours) == pytest.approx(0.6 - 0.9)
    assert "test accuracy is 0.900 there and 0.900 at the end: test loss rises without more errors" in dropped.reason
    assert near.verdict == FAILS
    assert float(near.ours) == pytest.approx((50 - 20) / 50)
    assert claims_of(observations(RISING, LOSS), margin=0.6)[3].verdict == HOLDS


def test_a_fall_of_test_accuracy_is_not_put_down_to_confidence():
    accuracy = [0.5, 0.6, 0.7, 0.8, 0.9, 0.85, 0.8, 0.7]
    dropped = claims_of(observations(RISING, LOSS, accuracy=accuracy))[2]
    assert dropped.reason.endswith("test accuracy is 0.900 there and 0.700 at the end")


def test_the_whole_training_and_its_overfitting_are_told_apart():
    early = (0.2, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95)
    related, after, *_ = claims_of(observations(early, (2.0, 1.9, 1.8, 1.7, 0.5, 0.6, 0.7, 0.8)))
    assert related.verdict == HOLDS  # through what comes before
    assert after.verdict == FAILS


def test_networks_that_never_overfit_test_nothing():
    falling = tuple(sorted(LOSS, reverse=True))
    related, after, *dropping = claims_of(observations(RISING, falling))
    assert related.verdict == HOLDS
    assert {claim.verdict for claim in (after, *dropping)} == {UNTESTABLE}
    assert "in 0 of 4 networks" in dropping[0].reason


def test_three_looks_make_no_correlation():
    late = (2.0, 1.5, 1.0, 0.9, 0.8, 0.5, 0.7, 0.9)  # least at 30
    after = claims_of(observations(ROUND, late))[1]
    assert after.verdict == UNTESTABLE
    assert "here 0" in after.reason


def test_areas_that_fall_long_before_do_not_begin_to_fall_there():
    falling = tuple(sorted(ROUND, reverse=True))
    near = claims_of(observations(falling, LOSS))[3]
    assert near.verdict == FAILS
    assert float(near.ours) == pytest.approx((20 - 1) / 50)


def test_a_single_network_is_tested_over_its_epochs():
    related, *dropping = claims_of(observations(ROUND, LOSS, seeds=1))
    assert related.verdict == HOLDS
    assert "over 8 epochs of one network" in related.reason
    assert {claim.verdict for claim in dropping} == {UNTESTABLE}


def test_areas_that_are_not_relative_are_another_choice():
    assert claims_of(observations(ROUND, LOSS), relative=False)[0].verdict == FAILS  # there, they have the other sign


def test_looks_without_an_area_are_left_out():
    table = observations(ROUND, LOSS)
    table.loc[table.epoch == 1, "relative_auc"] = np.nan
    related, *_ = claims_of(table)
    assert float(related.ours) == pytest.approx(
        pd.Series(ROUND[1:]).corr(pd.Series(LOSS[1:]), method="spearman"), abs=0.006
    )


def test_levels_are_tested_apart():
    both = pd.concat([observations(RISING, LOSS), observations(ROUND, LOSS, corruption=0.2)])
    found = claims_of(both)
    assert [claim.verdict for claim in found] == [FAILS] * 4 + [HOLDS] * 4
    assert all(claim.claim.startswith("With 20% of the labels corrupted, as the paper does not") for claim in found[4:])
    assert [bool(claim.published) for claim in found] == [True, False, True, True] + [False] * 4


def test_the_last_epoch_is_looked_at_and_none_beyond():
    options = change_options(QUICK, {"epochs": 25, "every": 10, "early": [1, 3, 25, 40]})
    assert fig4.looks(options) == [1, 3, 10, 20, 25]
    with pytest.raises(ValueError, match="every=0 must be"):
        fig4.looks(replace(options, every=0))
    by_steps = replace(options.networks, training=TrainingOptions(steps=5))
    with pytest.raises(ValueError, match="steps=5: give epochs"):
        fig4.looks(replace(options, networks=by_steps))


def test_preset_paper_is_the_published_protocol():
    mlp, convnet = (recipe.presets["paper"] for recipe in (fig4.FIG4A, fig4.FIG4B))
    assert (mlp.networks.data, mlp.networks.shape) == ("mnist", {"hidden": [2048, 2048]})
    assert mlp.networks.training == TrainingOptions(epochs=640)
    assert (convnet.networks.data, convnet.networks.shape) == ("cifar10", {"width": 1.0})
    assert convnet.networks.training == TrainingOptions(epochs=100, batch_size=32)
    assert convnet.networks is networks.OVERFITTING_CONVNETS["paper"]
    assert mlp.ablation.layers == ("hidden1", "hidden2")
    assert convnet.ablation.layers == ("conv9", "conv10", "conv11")
    for options in (mlp, convnet):
        assert options.networks.examples is None
        assert options.networks.split == "train"
        assert options.levels == (0.0,)
        assert options.ablation.orders == 10
        assert options.ablation.measured is None
        assert fig4.looks(options)[-1] == options.networks.training.epochs
