"""Tables of networks and measurements, against the records and results that they are of."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, run_sweep
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.frames import OUTCOMES, area_frame, network_frame, result_frame, robustness_frame, trained

LAYERS = ["hidden1"]
CONDITIONS = (
    Condition("ablation", "cumulative_ablation", LAYERS, arguments={"orders": 3, "points": [0, 1, 5, 8]}),
    Condition("noise", "noise_robustness", LAYERS, arguments={"repeats": 2, "scales": [0.1, 10, 1]}),
    Condition("silence", "noise_robustness", LAYERS, arguments={"repeats": 2, "scales": [0, 1]}),
    Condition("once", "noise_robustness", LAYERS, arguments={"repeats": 2, "scales": [1]}),
    Condition("units", "unit_importance", LAYERS),
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    kinds = [
        NetworkSettings("digits", "mlp", {"hidden": [8]}, TrainingOptions(epochs=2), examples=100, seed=seed, **more)
        for seed, more in ((3, {}), (4, {"corruption": 0.5, "split": "all"}), (5, {"until": 1}))
    ]
    return run_sweep(Sweep(tuple(kinds), CONDITIONS), tmp_path_factory.mktemp("frames") / "networks.sdk")


def test_a_row_a_network(networks):
    table = network_frame(networks, "seed", "corruption", "until", "epochs")
    assert list(table.columns) == ["network", "seed", "corruption", "until", *OUTCOMES]
    assert table.seed.tolist() == [3, 4, 5]
    assert table.corruption.tolist() == [0, 0.5, 0]
    assert table.until.isna().tolist() == [True, True, False], "a setting that some networks have"
    for index in range(3):
        record = networks.record(index)
        assert table.train_accuracy[index] == record["train_accuracy"]
        assert table.epochs[index] == record["epochs"], "how long it was trained, and not how long it might have been"
    assert math.isnan(table.test_accuracy[1]), "none are left to test on"
    assert table.test_accuracy.notna().tolist() == [True, False, True]


def test_a_row_a_configuration(networks):
    table = result_frame(networks, "ablation", "seed", "corruption")
    assert list(table.columns[:5]) == ["network", "seed", "corruption", "order", "ablated"]
    assert table.index.tolist() == list(range(3 * 3 * 4))
    for index in range(3):
        own = table[table.network == index]
        assert own.correct.tolist() == networks.result(index, "ablation").correct.flatten().tolist()
        assert set(own.seed) == {3 + index}
    units = result_frame(networks, "units")
    assert len(units) == 3 * 8


def test_areas_of_ablation_are_over_the_fraction(networks):
    table = area_frame(networks, "ablation", "seed")
    assert list(table.columns) == ["network", "seed", "order", "auc"]
    assert table.order.tolist() == [0, 1, 2] * 3
    for index in range(3):
        accuracy = networks.result(index, "ablation").correct.double() / 100
        gaps = torch.tensor([1, 4, 3]) / 8
        expected = ((accuracy[:, 1:] + accuracy[:, :-1]) / 2 * gaps).sum(1)
        assert table[table.network == index].auc.tolist() == pytest.approx(expected.tolist())
    losses = area_frame(networks, "ablation", metric="loss")
    expected = torch.cat([networks.result(index, "ablation").auc("loss") for index in range(3)])
    assert losses.auc.tolist() == pytest.approx(expected.tolist())
    assert losses.auc.min() > table.auc.max()


def test_areas_of_noise_are_means_over_the_logarithm_whatever_the_order(networks):
    table = area_frame(networks, "noise", metric="loss")
    for index in range(3):
        loss = networks.result(index, "noise").metric("loss")  # at 0.1, 10, 1
        expected = loss[:, 0] / 4 + loss[:, 2] / 2 + loss[:, 1] / 4
        assert table[table.network == index].auc.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("condition", ["silence", "once"])
def test_noise_without_a_range_of_scales_has_no_area(networks, condition):
    with pytest.raises(ValueError, match=f"{condition}: .* give two or more, greater than 0"):
        area_frame(networks, condition)


def test_what_is_no_curve_has_no_area(networks):
    with pytest.raises(TypeError, match="units: a UnitImportance has no area"):
        area_frame(networks, "units")


def test_robustness_stands_beside_accuracies(networks):
    table = robustness_frame(networks, "ablation", "seed")
    pd.testing.assert_frame_equal(table.drop(columns="auc"), network_frame(networks, "seed"))
    expected = [float(networks.result(index, "ablation").auc().mean()) for index in range(3)]
    assert table.auc.tolist() == pytest.approx(expected)


def test_networks_that_diverged_are_left_out_and_the_others_keep_their_places(networks):
    rest = replace(networks, failed={1: "diverged"})
    assert list(trained(rest)) == [0, 2]
    frames = (network_frame(rest, "seed"), result_frame(rest, "ablation", "seed"), area_frame(rest, "ablation", "seed"))
    for table in frames:
        assert table.network.unique().tolist() == [0, 2]
        assert table.seed.unique().tolist() == [3, 5]
    robust = robustness_frame(rest, "ablation")
    assert robust.auc.tolist() == pytest.approx(robustness_frame(networks, "ablation").auc[[0, 2]].tolist())


def test_a_setting_that_no_network_has_is_a_slip(networks):
    for frame in (network_frame, lambda *a: result_frame(a[0], "ablation", *a[1:])):
        with pytest.raises(ValueError, match=r"no setting 'corupted'; they have .*corruption"):
            frame(networks, "seed", "corupted")


def test_a_setting_that_is_a_list_stands_in_every_row(networks):
    table = result_frame(networks, "ablation", "hidden")
    assert all(hidden == [8] for hidden in table.hidden)
    assert np.isfinite(table.accuracy).all()
