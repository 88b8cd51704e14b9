"""Figure 4 of the second paper: its table against the networks, its claims where they are true and false."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from sdkernels.analysis.similarity.units import drawn_units
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import compare_networks, run_sweep
from sdkernels.lab.sweep import data as sweep_data
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from sdkernels.paper.representations import cca4
from tests.analysis.similarity.oracle import pwcca

RECIPE = cca4.CCA4
TINY = {"examples": 60, "epochs": 1, "repeats": 3, "widths": [1 / 64, 1 / 32], "filters": 5}


def _done(options, folder):
    (sweep,) = RECIPE.sweeps(options).values()
    found = run_sweep(sweep, folder / "networks.sdk")
    compared = {one.name: compare_networks(found, one).result for one in RECIPE.comparisons(options)[cca4.PART]}
    return Done(options, {cca4.PART: found}, compared=compared)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return _done(change_options(RECIPE.presets["quick"], TINY), tmp_path_factory.mktemp("cca4"))


def test_networks_differ_in_width_and_seed(done):
    found = done.networks[cca4.PART].sweep.networks
    assert [n.options["width"] for n in found] == [1 / 64] * 3 + [1 / 32] * 3
    assert len({n.seed for n in found}) == 6
    other = cca4.networks_by_width(replace(done.options, seed=1))
    assert not {n.seed for n in other} & {n.seed for n in found}
    with pytest.raises(ValueError, match="give each once"):
        RECIPE.sweeps(replace(done.options, widths=(0.5, 0.5)))


def test_distances_are_those_of_filters_that_were_drawn(done):
    table, found = RECIPE.table(done), done.networks[cca4.PART]
    assert table.groupby("width").size().to_dict() == {1 / 64: 3, 1 / 32: 3}
    inputs = sweep_data.true_data(found.sweep.networks[0], None).inputs
    rows = []
    for place in range(6):
        model = found.model(place)
        with torch.no_grad():
            maps = model[: list(dict(model.named_children())).index("relu11") + 1](inputs)
        chosen = drawn_units(maps.shape[1], 5, seed_for("filters", 0))
        rows.append(maps[:, chosen].double().mean((2, 3)).numpy())
    for row in table.itertuples():
        a, b = rows[row.first], rows[row.second]
        live = [int((x.std(0) > 0).sum()) for x in (a, b)]
        both = [1 - pwcca(*pair, int(own[1] < own[0]))[0] for pair, own in (((a, b), live), ((b, a), live[::-1]))]
        assert row.distance == pytest.approx(np.mean(both), abs=1e-6)
        assert row.first_test_accuracy == found.record(row.first)["test_accuracy"]
        assert row.second_train_accuracy == found.record(row.second)["train_accuracy"]


def test_figure_shows_what_the_table_says(done):
    table = RECIPE.table(done)
    left, right = RECIPE.draw(done, table).axes
    for width, pairs, place in zip((1 / 64, 1 / 32), left.collections, range(2), strict=True):
        own = table[table.width == width]
        assert pairs.get_offsets().data.tolist() == [[width, distance] for distance in own.distance]
        group = cca4.groups_of(table)[place]
        points, mean = right.collections[2 * place : 2 * place + 2]
        expected = group.networks[["distance", "test_accuracy"]].to_numpy()
        assert points.get_offsets().data.tolist() == expected.tolist()
        assert mean.get_offsets().data[0] == pytest.approx(expected.mean(0))
    (line,) = left.lines
    assert line.get_ydata() == pytest.approx(table.groupby("width").distance.mean().tolist())
    assert right.get_legend_handles_labels()[1] == ["0.0156", "0.0312"]


def _table(fall=-0.05, better=0.03, repeats=5, noise=0.01, seed=0, widths=(0.25, 0.5, 1, 2, 4)):
    """Pairs whose distance changes by ``fall`` with each width, and networks' accuracy by ``better``."""
    rng = np.random.default_rng(seed)
    rows = []
    for place, width in enumerate(widths):
        own, accuracy = noise * rng.normal(size=repeats), 0.4 + better * place + 0.005 * rng.normal(size=repeats)
        for i in range(repeats):
            for j in range(i + 1, repeats):
                distance = 0.8 + fall * place + own[i] + own[j] + noise * rng.normal()
                pair = {"width": width, "first": repeats * place + i, "second": repeats * place + j}
                pair |= {"first_test_accuracy": accuracy[i], "second_test_accuracy": accuracy[j]}
                rows.append({**pair, "distance": distance})
    return pd.DataFrame(rows)


def test_networks_of_a_width_and_their_distances():
    table = _table(repeats=4)
    group = cca4.groups_of(table)[2]
    assert (group.width, group.networks.network.tolist()) == (1, [8, 9, 10, 11])
    for i, network in enumerate(group.networks.network):
        own = table[(table["first"] == network) | (table["second"] == network)]
        assert len(own) == 3
        assert group.networks.distance[i] == pytest.approx(own.distance.mean())
        sides = [own.first_test_accuracy[own["first"] == network], own.second_test_accuracy[own["second"] == network]]
        assert {*pd.concat(sides)} == {group.networks.test_accuracy[i]}
    assert group.mean == pytest.approx(table.distance[table.width == 1].mean())


def test_claims_where_they_are_true():
    table = _table()
    found = RECIPE.claims(None, table)
    assert {claim.verdict for claim in found} == {HOLDS}
    slope, by_width, _, over_widths = found
    means = table.groupby("width").distance.mean()
    assert (slope.low + slope.high) / 2 == pytest.approx(stats.linregress(np.arange(5), means).slope)
    assert (by_width.ours, over_widths.ours) == ("-1.00", "-1.00")
    assert [claim.published for claim in found[2:]] == ["-0.96", "-0.96"]


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"fall": 0.05}, {0, 1, 2, 3}),
        ({"better": -0.03}, {2, 3}),
        ({"fall": 0.0}, {0, 1}),
        ({"better": 0.0}, {2, 3}),
    ],
    ids=["distance rises", "accuracy falls", "no distance", "no accuracy"],
)
def test_claims_where_they_are_false(changes, failing):
    found = RECIPE.claims(None, _table(**changes, seed=1))
    assert {i for i, claim in enumerate(found) if claim.verdict == FAILS} >= failing


def test_few_networks_leave_claims_untested():
    found = RECIPE.claims(None, _table(repeats=2))
    assert [claim.verdict for claim in found[:3:2]] == [UNTESTABLE] * 2
    found = RECIPE.claims(None, _table(widths=(0.25, 0.5, 1)))
    assert [claim.verdict for claim in found] == [HOLDS, UNTESTABLE, HOLDS, UNTESTABLE]


def test_preset_paper_is_as_published():
    options = RECIPE.presets["paper"]
    family = networks.WIDE_CONVNETS["paper"]
    assert (family.data, family.model, family.examples, family.repeats) == ("cifar10", "convnet", None, 5)
    assert (family.training.epochs, family.training.batch_size, family.training.optimiser) == (100, 32, "adam")
    assert (min(options.widths), max(options.widths)) == (0.25, 7)
    assert (options.filters, options.layer, options.method, options.measured) == (128, "conv11", "pwcca", None)
    for preset in RECIPE.presets.values():
        narrowest = preset.networks.network(0, width=min(preset.widths))
        assert narrowest.options["width"] * 512 == preset.filters, "as many as the narrowest network has"
    comparisons = RECIPE.comparisons(options)[cca4.PART]
    assert len({comparison.arguments["seed"] for comparison in comparisons}) == 1
    assert [list(comparison.networks) for comparison in comparisons] == [
        list(range(5 * place, 5 * place + 5)) for place in range(len(options.widths))
    ]
