"""Figure 5a: curves against the results they are of, accuracies between points, claims on data that decide them."""

from dataclasses import replace

import pandas as pd
import pytest

import sdkernels as sd
from sdkernels.lab.datasets import load
from sdkernels.lab.sweep import run_sweep
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import fig5_dropout as fig5
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done

QUICK = fig5.FIG5A.presets["quick"]
SMALL = {
    "examples": 80,
    "shape": {"hidden": [24, 24]},
    "epochs": 3,
    "dropouts": [0.0, 0.1, 0.3],
    "repeats": 2,
    "orders": 3,
    "points": 7,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(QUICK, SMALL)
    (sweep,) = fig5.sweeps(options).values()
    return Done(options, {fig5.PART: run_sweep(sweep, tmp_path_factory.mktemp("fig5") / "networks.sdk")})


def test_there_is_a_network_for_each_kind(done):
    kinds = done.networks[fig5.PART].sweep.networks
    found = [(kind.corruption, kind.options.get("dropout"), kind.seed) for kind in kinds]
    assert found == [(level, d, seed) for level in (0.0, 1.0) for d in (None, 0.1, 0.3) for seed in (0, 1)]
    assert all(kind.options["hidden"] == [24, 24] for kind in kinds)


def test_the_data_are_the_curves(done):
    table, found = fig5.table(done), done.networks[fig5.PART]
    data = load("digits").first(80).flattened()
    for index, settings in enumerate(found.sweep.networks):
        curve = sd.cumulative_ablation(
            found.model(index),
            ["relu1", "relu2"],
            (data.inputs, found.labels(index)),
            orders=3,
            points=7,
            seed=found.sweep.conditions[0].arguments["seed"],
            method="loop",
        )
        own = table[table.network == index]
        assert own.correct.tolist() == curve.correct.flatten().tolist()
        assert set(own.dropout) == {settings.options.get("dropout", 0.0)}
        assert set(own.corruption) == {settings.corruption}
        assert set(own.train_accuracy) == {found.record(index)["train_accuracy"]}
        assert set(own.epochs) == {found.record(index)["epochs"]}


def test_the_figure_shows_both_kinds_of_labels_and_where_dropout_ends(done):
    table = fig5.table(done)
    figure = fig5.draw(done, table)
    for ax, level in zip(figure.axes, (0.0, 1.0), strict=True):
        for place, dropout in enumerate((0.0, 0.1, 0.3)):
            own = table[(table.corruption == level) & (table.dropout == dropout)]
            expected = [own[own.ablated == count].accuracy.mean() for count in sorted(own.ablated.unique())]
            assert ax.lines[place].get_ydata().tolist() == pytest.approx(expected)
        assert [line.get_xdata()[0] for line in ax.lines[3:5]] == [0.1, 0.3]
        assert [line.get_color() for line in ax.lines[3:5]] == [line.get_color() for line in ax.lines[1:3]]
        assert ax.lines[5].get_ydata()[0] == 0.1  # chance
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["none", "0.1", "0.3"]


FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)


def rows(curve, *, level, dropout, seed=0, epochs=100, train_accuracy=1.0):
    """A network's part of the table: two orders about a curve."""
    own = {"corruption": level, "dropout": dropout, "seed": seed, "network": f"{level} {dropout} {seed}"}
    return [
        {**own, "order": order, "fraction": fraction, "accuracy": accuracy + (0.02 if order else -0.02) * (seed + 1),
         "epochs": epochs, "train_accuracy": train_accuracy}
        for order in (0, 1)
        for fraction, accuracy in zip(FRACTIONS, curve, strict=True)
    ]  # fmt: skip


SHIELDED = {  # random labels: protected up to the dropout fraction, and no further
    0.0: (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.1),
    0.1: (1.0, 0.97, 0.7, 0.5, 0.4, 0.3, 0.1),
    0.2: (1.0, 0.98, 0.95, 0.7, 0.5, 0.3, 0.1),
    0.3: (1.0, 0.99, 0.98, 0.93, 0.7, 0.45, 0.1),
}
FLAT = (1.0, 0.99, 0.99, 0.98, 0.97, 0.95, 0.1)


def observations(random=None, *, true=FLAT, epochs=None, accuracies=None, seeds=3):
    found = []
    for seed in range(seeds):
        for dropout, curve in (random or SHIELDED).items():
            less = 0.005 * seed
            own = {"dropout": dropout, "seed": seed}
            ends = {"epochs": (epochs or {}).get(dropout, 100), "train_accuracy": (accuracies or {}).get(dropout, 1.0)}
            found += rows([a - less * f for a, f in zip(curve, FRACTIONS, strict=True)], level=1.0, **own, **ends)
            curve = true[dropout] if isinstance(true, dict) else true
            found += rows([a - less * f for a, f in zip(curve, FRACTIONS, strict=True)], level=0.0, **own)
    return pd.DataFrame(found)


def claims_of(table, **changes):
    names = ("true", "true beside none", "random", "random beside none", "true beside random", "past", "epochs",
             "worse", "alike")  # fmt: skip
    return dict(zip(names, fig5.claims(Done(change_options(QUICK, changes), {}), table), strict=True))


def test_accuracies_lie_on_lines_between_the_points():
    curve = (1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
    table = pd.DataFrame(
        rows(curve, level=1.0, dropout=0.25, seed=3) + rows(SHIELDED[0.0], level=1.0, dropout=0.0, seed=3)
    )
    (row,) = fig5.at_fractions(table, 0.3).to_dict("records")
    expected = {"corruption": 1, "dropout": 0.25, "seed": 3, "intact": 1, "at_dropout": 0.7, "without": 0.55}
    assert row == pytest.approx({**expected, "beyond": 0.2 * 0.9})
    alone = fig5.at_fractions(table[table.dropout > 0], 0.3)
    assert alone.without.isna().tolist() == [True]


def test_claims_hold_where_dropout_protects_up_to_its_fraction():
    found = claims_of(observations(epochs={0.0: 50, 0.1: 70, 0.2: 80, 0.3: 99}))
    assert {name for name, claim in found.items() if claim.verdict != HOLDS} == {"true beside none", "worse"}
    assert float(found["random"].ours) == pytest.approx((0.03 + 0.05 + 0.07) / 3, abs=2e-3)
    assert float(found["random beside none"].ours) == pytest.approx((0.17 + 0.35 + 0.43) / 3, abs=5e-3)
    assert float(found["true beside random"].ours) == pytest.approx((0.48 + 0.47 + 0.5) / 3, abs=5e-3)
    rates = [(0.47 / 0.2, 0.3), (0.45 / 0.2, 0.25), (0.48 / 0.2, 0.07 / 0.3)]
    assert float(found["past"].ours) == pytest.approx(sum(past - before for past, before in rates) / 3, abs=0.02)
    assert "9 networks" in found["random"].reason
    assert "9 pairs of networks" in found["true beside random"].reason
    assert "over 12 networks" in found["epochs"].reason
    assert found["worse"].verdict == UNTESTABLE
    assert "12 of 12 networks" in found["worse"].reason


def test_claims_fail_where_dropout_does_not_protect():
    found = claims_of(observations(dict.fromkeys(SHIELDED, SHIELDED[0.0])))
    failing = {"true beside none", "random", "random beside none", "past"}
    assert {name for name, claim in found.items() if claim.verdict == FAILS} == failing
    assert found["epochs"].verdict == UNTESTABLE  # all alike


def test_claims_fail_where_random_labels_are_as_robust_as_true_ones():
    found = claims_of(observations(dict.fromkeys(SHIELDED, FLAT)))
    assert found["true beside random"].verdict == FAILS


def test_little_and_beyond_are_options():
    table = observations()
    assert claims_of(table, little=0.01)["random"].verdict == FAILS
    assert "0.1 more units" in claims_of(table, beyond=0.1)["true beside random"].claim


def test_worse_solutions_are_those_of_less_training_accuracy():
    worse = {0.0: 1.0, 0.1: 0.99, 0.2: 0.95, 0.3: 0.9}
    assert claims_of(observations(accuracies=worse))["worse"].verdict == HOLDS
    better = dict(zip(worse, reversed(worse.values()), strict=True))
    assert claims_of(observations(accuracies=better))["worse"].verdict == FAILS
    full = claims_of(observations(accuracies={0.3: 0.9}), stop_when_memorised=False)["worse"]
    assert full.verdict == HOLDS  # of trainings that go on, those that memorise all count too


def test_networks_with_true_labels_are_alike_if_their_areas_are():
    apart = {dropout: [a - dropout * f for a, f in zip(FLAT, FRACTIONS, strict=True)] for dropout in SHIELDED}
    found = claims_of(observations(true=apart))["alike"]
    assert found.verdict == FAILS
    assert float(found.ours) == pytest.approx((0.3 - 0.1) / 2, abs=5e-3)  # without the network without dropout
    assert claims_of(observations(true=apart), alike=0.2)["alike"].verdict == HOLDS
    table = observations()
    assert claims_of(table[table.dropout < 0.2])["alike"].verdict == UNTESTABLE


def test_without_the_baseline_nothing_is_compared_with_it():
    table = observations()
    found = claims_of(table[table.dropout > 0])
    assert {found[name].verdict for name in ("true beside none", "random beside none")} == {UNTESTABLE}
    assert found["random"].verdict == HOLDS


def test_no_more_units_can_be_ablated_than_there_are():
    with pytest.raises(ValueError, match=r"0\.9 \+ 0\.2 of the units cannot be ablated"):
        fig5.sweeps(replace(QUICK, dropouts=(0.0, 0.9)))


def test_preset_paper_is_the_published_protocol():
    options = fig5.FIG5A.presets["paper"]
    assert (options.networks.data, options.networks.shape) == ("mnist", {"hidden": [2048, 2048]})
    assert options.networks.training == TrainingOptions(epochs=5000)
    assert options.networks.examples is None
    assert options.dropouts == (0.0, 0.1, 0.2, 0.3)
    assert (options.ablation.layers, options.ablation.orders) == (("hidden1", "hidden2"), 10)
    assert options.ablation.measured is None
