"""Figure 5b: curves against the results they are of, and its claims on data in which they are true or false."""

from dataclasses import replace

import pandas as pd
import pytest

import sdkernels as sd
from sdkernels.lab.sweep import run_sweep
from sdkernels.lab.sweep.data import measured_data
from sdkernels.paper.claims import FAILS, HOLDS
from sdkernels.paper.directions import fig5_batch_norm
from sdkernels.paper.directions.fig5_batch_norm import FIG5B, PART, above_chance
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from tests.paper import small_runs


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(FIG5B.presets["quick"], {**small_runs.CONVNETS, "orders": 3, "points": 6})
    (sweep,) = FIG5B.sweeps(options).values()
    return Done(options, {PART: run_sweep(sweep, tmp_path_factory.mktemp("fig5b") / "networks.sdk")})


def test_the_data_are_the_curves(done):
    table, found = FIG5B.table(done), done.networks[PART]
    assert len(table) == 4 * 3 * 6
    for index, settings in enumerate(found.sweep.networks):
        data = measured_data(settings, "train", None, None)
        seed = found.sweep.conditions[0].arguments["seed"]
        how = {"orders": 3, "points": 6, "seed": seed, "method": "loop"}
        curve = sd.cumulative_ablation(
            found.model(index), ["relu9", "relu10", "relu11"], (data.inputs, data.labels), **how
        )
        own = table[table.network == index]
        assert own.correct.tolist() == curve.correct.flatten().tolist()
        assert set(own.batch_norm) == {index < 2}
        assert len(data.labels) == 100


def test_the_figure_shows_means_with_and_without(done):
    table = FIG5B.table(done)
    figure = FIG5B.draw(done, table)
    (ax,) = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["with batch norm", "without batch norm"]
    lines = {line.get_label(): line for line in ax.lines}
    for norm, label in ((True, "with batch norm"), (False, "without batch norm")):
        means = table[table.batch_norm == norm].groupby("ablated").accuracy.mean()
        assert lines[label].get_ydata().tolist() == pytest.approx(means.tolist())
    assert ax.get_xlabel() == "fraction of feature maps ablated (conv9, conv10, conv11)"
    assert legend.legend_handles[0].get_color() == lines["with batch norm"].get_color()


def test_the_claims_are_of_the_networks_means(done):
    found = done.networks[PART]
    robust, beyond = FIG5B.claims(done, FIG5B.table(done))
    results = [found.result(index, "ablation") for index in range(4)]
    areas = [float(result.auc().mean()) for result in results]
    difference = (areas[0] + areas[1] - areas[2] - areas[3]) / 2
    assert (robust.low + robust.high) / 2 == pytest.approx(difference)
    assert "over 2 and 2 networks (with batch norm" in robust.reason
    parts = [(area - 0.1) / (float(result.accuracy[0, 0]) - 0.1) for area, result in zip(areas, results, strict=True)]
    assert (beyond.low + beyond.high) / 2 == pytest.approx((parts[0] + parts[1] - parts[2] - parts[3]) / 2)


def _claims(monkeypatch, with_it, without):
    """Of areas, one a network and order, all of intact accuracy 1 but for what stands in ``intact``."""
    rows = [
        {"network": place, "batch_norm": norm, "order": order, "auc": area + 0.01 * (order + place % 2)}
        for place, (norm, area) in enumerate([(True, area) for area in with_it] + [(False, area) for area in without])
        for order in range(2)
    ]
    areas = pd.DataFrame(rows)
    monkeypatch.setattr(fig5_batch_norm, "area_frame", lambda *_args, **_kwargs: areas)
    monkeypatch.setattr(fig5_batch_norm, "chance_of", lambda *_args: 0.1)
    intact = areas.drop_duplicates("network").assign(ablated=0, accuracy=[1.0] * len(with_it) + [0.8] * len(without))
    fake = Done(FIG5B.presets["quick"], {PART: None})
    return [claim.verdict for claim in FIG5B.claims(fake, pd.concat([intact, intact.assign(ablated=5, accuracy=0.1)]))]


def test_claims_hold_where_they_are_true_and_fail_where_not(monkeypatch):
    assert _claims(monkeypatch, [0.8, 0.81, 0.8], [0.5, 0.51, 0.5]) == [HOLDS, HOLDS]
    assert _claims(monkeypatch, [0.5, 0.51, 0.5], [0.8, 0.81, 0.8]) == [FAILS, FAILS]
    assert _claims(monkeypatch, [0.5, 0.7, 0.6], [0.5, 0.6, 0.65]) == [FAILS, FAILS]
    # 0.6 of 1 above 0.55 of 0.8: more robust only because it is more accurate
    assert _claims(monkeypatch, [0.6, 0.61, 0.6], [0.55, 0.56, 0.55]) == [HOLDS, FAILS]


def test_area_above_chance_is_a_part_of_the_intact_networks():
    areas = pd.DataFrame({"network": [0, 0, 1], "auc": [0.55, 0.1, 0.8]})
    table = pd.DataFrame({"network": [1, 1, 0, 0], "ablated": [4, 0, 0, 4], "accuracy": [0.1, 0.8, 1.0, 0.1]})
    assert above_chance(areas, table, 0.1).auc.tolist() == pytest.approx([0.5, 0.0, 1.0])


def test_preset_paper_is_the_published_protocol():
    paper = FIG5B.presets["paper"]
    assert (paper.networks.data, paper.networks.examples, paper.networks.shape) == ("cifar10", None, {"width": 1.0})
    training = paper.networks.training
    assert (training.optimiser, training.learning_rate, training.batch_size, training.epochs) == ("adam", 1e-3, 32, 100)
    assert paper.networks.repeats == 4
    assert (paper.ablation.orders, paper.ablation.measured) == (10, None)
    assert paper.ablation.layers == ("conv9", "conv10", "conv11")
    (sweep,) = FIG5B.sweeps(replace(paper, seed=1)).values()
    assert [network.options["batch_norm"] for network in sweep.networks] == [True] * 4 + [False] * 4
