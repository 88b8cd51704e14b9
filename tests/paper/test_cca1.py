"""Figure 1 of the second paper: distances by their definition, when layers settle, claims on data that decide them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdkernels.lab.sweep import compare_networks, run_sweep
from sdkernels.lab.sweep.data import measured_data
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import PRESETS, Done
from sdkernels.paper.representations import cca1
from tests.paper import canonical

QUICK = cca1.CCA1.presets["quick"]
SMALL = {
    "networks.examples": 150,
    "shape": {"width": 1 / 32},
    "epochs": 3,
    "moments": [1, 2, 3, 9],
    "repeats": 2,
    "methods": ["pwcca", "cca"],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(QUICK, SMALL)
    (sweep,) = cca1.sweeps(options).values()
    found = run_sweep(sweep, tmp_path_factory.mktemp("cca1") / "networks.sdk")
    asked = cca1.comparisons(options)[cca1.PART]
    return Done(options, {cca1.PART: found}, compared={one.name: compare_networks(found, one).result for one in asked})


def test_distances_are_those_of_the_definition(done):
    table, found = cca1.table(done), done.networks[cca1.PART]
    inputs = measured_data(found.sweep.networks[0], "train", None, None).inputs
    for seed, place, last in ((0, 0, 2), (1, 4, 5)):
        for layer, module, depth in (("conv2", "relu2", 2), ("conv11", "relu11", 11), ("out", "out", 12)):
            early, late = (canonical.activations(found.model(at), module, inputs) for at in (place, last))
            for method in ("pwcca", "cca"):
                (row,) = table[
                    (table.method == method)
                    & (table.seed == seed)
                    & (table.layer == layer)
                    & (table.epoch == place % 3 + 1)
                ].itertuples()
                assert row.depth == depth
                assert row.distance == pytest.approx(canonical.distance(method, early, late), abs=1e-6)
    assert len(table) == 2 * 2 * 12 * 3  # methods, trainings, layers, moments
    assert (table[table.epoch == 3].distance == 0).all()
    assert (table[table.epoch < 3].distance > 1e-3).mean() > 0.8


def test_the_figure_shows_means_and_when_layers_settle(done):
    table = cca1.table(done)
    figure = cca1.draw(done, table)
    curves, other, below, _ = figure.axes
    assert (curves.get_title(), other.get_title()) == ("PWCCA", "mean CCA")
    own = table[(table.method == "pwcca") & (table.layer == "conv9")]
    assert curves.lines[8].get_ydata().tolist() == pytest.approx(own.groupby("epoch").distance.mean().tolist())
    assert curves.lines[8].get_xdata().tolist() == [1, 2, 3]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [f"conv{i}" for i in range(1, 12)] + ["logits"]
    settled = cca1.settling(table, 0.5)
    own = settled[(settled.method == "pwcca") & (settled.depth == 4)].settled
    assert below.lines[1].get_ydata()[3] == pytest.approx(np.sqrt(own.prod()))


def curves(*, settles, first, seeds=3, layers=6, wobble=0.0, epochs=(1, 2, 4, 8, 16)):
    """Distances that stay at their first value and fall to a tenth of it at a place among the epochs."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "method": "pwcca",
            "seed": seed,
            "layer": "out" if depth == layers else f"conv{depth}",
            "depth": depth,
            "epoch": epoch,
            "distance": 0.0
            if epoch == epochs[-1]
            else first(depth) * (1.0 if place < settles(depth) else 0.1) + wobble * rng.random(),
        }
        for seed in range(seeds)
        for depth in range(1, layers + 1)
        for place, epoch in enumerate(epochs)
    ]
    return pd.DataFrame(rows)


def claims_of(table):
    options = replace(QUICK, methods=("pwcca",))
    return cca1.claims(Done(options, {}), table)


def test_when_a_layer_settles():
    table = pd.DataFrame(
        {
            "method": "cca",
            "seed": 0,
            "layer": "conv1",
            "depth": 1,
            "epoch": [1, 2, 4, 8, 16],
            "distance": [0.8, 0.3, 0.6, 0.2, 0.0],
        }
    )
    (row,) = cca1.settling(table, 0.5).itertuples()
    assert row.settled == pytest.approx(4 * 2**0.5)  # 0.4 is half-way from 0.6 to 0.2; earlier it did not stay there
    assert row.mean_distance == pytest.approx((0.55 + 0.45 + 0.4 + 0.1) / 4)
    assert row.first_distance == 0.8
    (row,) = cca1.settling(table, 0.75).itertuples()
    assert row.settled == pytest.approx(2 * (0.4) ** 0 * 2 ** ((0.8 - 0.6) / 0.5 - 1))
    (row,) = cca1.settling(table.sample(frac=1, random_state=1), 0.25).itertuples()
    assert row.settled == pytest.approx(8)
    never = table.assign(distance=[0.8, 0.8, 0.8, 0.8, 0.8])
    assert cca1.settling(never, 0.5).settled.tolist() == pytest.approx([16])
    nothing = table.assign(distance=[0.0, 0.0, 0.0, 0.0, 0.0])
    assert cca1.settling(nothing, 0.5).settled.tolist() == [1]


def test_claims_hold_where_lower_layers_settle_first():
    settle, near = claims_of(curves(settles=lambda depth: 1 + depth // 3, first=lambda depth: 0.1 * depth))
    assert (settle.verdict, near.verdict) == (HOLDS, HOLDS)
    assert float(settle.low) > 0.5
    assert "over 3 trainings" in settle.reason


def test_claims_fail_where_upper_layers_do_and_the_reason_says_what_is_seen():
    settle, near = claims_of(curves(settles=lambda depth: 3 - depth // 3, first=lambda depth: 0.7 - 0.1 * depth))
    assert (settle.verdict, near.verdict) == (FAILS, FAILS)
    assert "the opposite" in settle.reason
    assert "without logits it is -0.9" in near.reason
    assert "mean distances are 0.600 at the lowest layer and up to 0.600 above" in near.reason


def test_relative_and_absolute_claims_are_apart():
    settle, near = claims_of(curves(settles=lambda depth: 3 - depth // 3, first=lambda depth: 0.1 * 3**depth))
    assert (settle.verdict, near.verdict) == (FAILS, HOLDS)


def test_no_order_decides_nothing():
    settle, _ = claims_of(curves(settles=lambda depth: 2, first=lambda depth: 0.3, wobble=0.05))
    assert settle.verdict == FAILS
    assert "undecided" in settle.reason


def test_a_single_training_tests_nothing():
    found = claims_of(curves(settles=lambda depth: 1 + depth // 3, first=lambda depth: 0.1 * depth, seeds=1))
    assert {claim.verdict for claim in found} == {UNTESTABLE}


def test_moments_end_with_the_last_epoch():
    options = change_options(QUICK, {"epochs": 5, "moments": [7, 2, 1, 5]})
    assert cca1.moments(options) == [1, 2, 5]
    with pytest.raises(ValueError, match=r"moments=\[9\]: give epochs before the last, 5"):
        cca1.moments(replace(options, moments=(9,)))
    by_steps = replace(options, networks=replace(options.networks, training=TrainingOptions(steps=5)))
    with pytest.raises(ValueError, match="steps=5: give epochs"):
        cca1.moments(by_steps)


@pytest.mark.parametrize("preset", PRESETS)
def test_networks_are_those_of_the_other_papers_figure(preset):
    (own,) = cca1.CCA1.sweeps(cca1.CCA1.presets[preset]).values()
    (other,) = RECIPES["fig4b"].sweeps(RECIPES["fig4b"].presets[preset]).values()
    theirs = {str(network.identity()) for network in other.networks}
    assert {str(network.identity()) for network in own.networks} <= theirs


def test_preset_paper_is_the_published_protocol():
    paper = cca1.CCA1.presets["paper"]
    assert (paper.networks.data, paper.networks.examples, paper.networks.shape) == ("cifar10", None, {"width": 1.0})
    assert paper.networks.training == TrainingOptions(epochs=100, batch_size=32)
    assert paper.layers == (*(f"conv{i}" for i in range(1, 12)), "out")
    assert (paper.methods[0], paper.examples) == ("pwcca", None)
    assert cca1.moments(paper) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 100]
    for one in cca1.comparisons(paper)[cca1.PART]:
        assert (one.function, one.on, one.examples) == ("similarity_over_training", "train", None)
        assert set(one.arguments) == {"method"}
