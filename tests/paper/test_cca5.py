"""Figure 5 of the second paper: its table against figure 3b's networks, its claims where they are true and false."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sdkernels.lab.sweep import compare_networks, run_sweep
from sdkernels.lab.sweep import data as sweep_data
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE, nearness
from sdkernels.paper.directions import fig3
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from sdkernels.paper.representations import cca5
from tests.analysis.similarity.oracle import pwcca
from tests.paper.small_runs import FIG3

RECIPE = cca5.CCA5


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(RECIPE.presets["quick"], FIG3)
    (sweep,) = RECIPE.sweeps(options).values()
    found = run_sweep(sweep, tmp_path_factory.mktemp("cca5") / "networks.sdk")
    (comparison,) = RECIPE.comparisons(options)[fig3.PART]
    return Done(options, {fig3.PART: found}, compared={comparison.name: compare_networks(found, comparison).result})


@pytest.mark.parametrize("preset", RECIPE.presets)
@pytest.mark.parametrize("changes", [{}, {"epochs": 3, "learning_rates": [1e-3, 1e-2], "points": 5}])
def test_networks_are_those_of_figure_3b(preset, changes):
    mine, its = (change_options(recipe.presets[preset], changes) for recipe in (RECIPE, fig3.FIG3B))
    assert RECIPE.sweeps(mine) == fig3.FIG3B.sweeps(its)


def test_table_is_of_pairs_at_the_eighth_layer(done):
    table, found = RECIPE.table(done), done.networks[fig3.PART]
    assert len(table) == 8 * 7 / 2
    robust = fig3.table_of_networks(Done(done.options.robustness, done.networks)).set_index("network")
    inputs = sweep_data.true_data(found.sweep.networks[0], None).inputs
    rows = []
    for place in range(8):
        model = found.model(place)
        with torch.no_grad():
            maps = model[: list(dict(model.named_children())).index("relu8") + 1](inputs)
        rows.append(maps.double().mean((2, 3)).numpy())
    for row in table.itertuples():
        a, b = rows[row.first], rows[row.second]
        live = [int((x.std(0) > 0).sum()) for x in (a, b)]
        both = [1 - pwcca(*pair, int(own[1] < own[0]))[0] for pair, own in (((a, b), live), ((b, a), live[::-1]))]
        assert row.distance == pytest.approx(np.mean(both), abs=1e-6)
        for side, network in (("first", row.first), ("second", row.second)):
            assert getattr(row, f"{side}_auc") == robust.auc[network]
            assert getattr(row, f"{side}_error") == robust.error[network]
            assert getattr(row, f"{side}_regime") == robust.cluster[network]
            assert getattr(row, f"{side}_learning_rate") == robust.learning_rate[network]
            assert getattr(row, f"{side}_cluster") == done.compared[cca5.COMPARED].clusters(4)[network]


def test_a_network_that_diverged_is_missing(done):
    whole = done.compared[cca5.COMPARED]
    rest = whole.of([name for name in whole.names if name != "3"])
    table = RECIPE.table(replace(done, compared={cca5.COMPARED: rest}))
    assert len(table) == 7 * 6 / 2
    assert 3 not in {*table["first"], *table["second"]}
    kept = RECIPE.table(done)
    kept = kept[(kept["first"] != 3) & (kept["second"] != 3)]
    assert table.distance.tolist() == kept.distance.tolist()
    assert table.second_auc.tolist() == kept.second_auc.tolist()


def test_figure_shows_what_the_table_says(done):
    table = RECIPE.table(done)
    figure = RECIPE.draw(done, table)
    left, right = figure.axes[:2]
    shown = left.images[0].get_array()
    networks = cca5.networks_of(table)
    distance = cca5.matrix_of(table, networks.network.tolist())
    order = [int(np.flatnonzero(np.isclose(np.sort(distance, 1), np.sort(row), atol=1e-12).all(1))[0]) for row in shown]
    assert sorted(order) == list(range(8))
    assert np.allclose(shown, distance[np.ix_(order, order)])
    strips = [strip.images[0].get_array()[0] for strip in left.child_axes]
    own = networks.iloc[order]
    assert len({tuple(colour) for colour in strips[0]}) == own.learning_rate.nunique()
    for rate in own.learning_rate.unique():
        assert len({tuple(colour) for colour in strips[0][(own.learning_rate == rate).to_numpy()]}) == 1
    assert [bool(colour[0] == 1) for colour in strips[1]] == (own.regime == 0).tolist()
    points = np.concatenate([scatter.get_offsets().data for scatter in right.collections])
    assert len(points) == 8


def test_layout_keeps_distances_of_a_plane():
    places = np.random.default_rng(0).normal(size=(9, 2))
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    found, share = cca5.laid_out(distance)
    assert np.linalg.norm(found[:, None] - found, axis=2) == pytest.approx(distance)
    assert share == pytest.approx(1)
    _, share = cca5.laid_out(1 - np.eye(9))
    assert share == pytest.approx(2 / 8)


def _table(by_rate=0.2, by_regime=0.0, matches=True, each=5, seed=0):
    """Networks at four rates that are nearer within a rate, or within a cluster by area, than beside."""
    rng = np.random.default_rng(seed)
    rates = np.repeat([1e-4, 3e-4, 1e-3, 3e-3], each)
    regimes = (rates > 5e-4).astype(int) if matches else rng.permutation((rates > 5e-4).astype(int))
    count = len(rates)
    same = by_rate * (rates[:, None] == rates) + by_regime * (regimes[:, None] == regimes)
    distance = 0.8 - same + 0.01 * rng.normal(size=(count, count))
    rows = [
        {
            "first": i,
            "first_learning_rate": rates[i],
            "first_regime": regimes[i],
            "second": j,
            "second_learning_rate": rates[j],
            "second_regime": regimes[j],
            "distance": distance[i, j],
        }
        for i in range(count)
        for j in range(i + 1, count)
    ]
    table = pd.DataFrame(rows)
    cluster = cca5.clustered(cca5.networks_of(table), table).set_index("network").cluster
    return table.assign(first_cluster=table["first"].map(cluster), second_cluster=table["second"].map(cluster))


def _verdicts(table):
    names = ("nearer by rate", "rates", "nearer by area", "match", "same two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearness, "RESAMPLES", 499)
        return dict(zip(names, RECIPE.claims(None, table), strict=True))


def test_claims_where_they_are_true():
    found = _verdicts(_table(by_regime=0.1))
    assert {claim.verdict for claim in found.values()} == {HOLDS}
    assert [found[name].ours for name in ("rates", "match", "same two")] == ["1.00"] * 3
    assert float(found["nearer by rate"].ours) == pytest.approx(0.2 + 0.1 * 10 / 15, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"by_rate": 0.0}, {"nearer by rate", "rates", "nearer by area", "match", "same two"}),
        ({"matches": False}, {"nearer by area", "match", "same two"}),
        ({"matches": False, "by_rate": 0.0, "by_regime": 0.2}, {"nearer by rate", "rates"}),
    ],
    ids=["no clusters", "another division", "by area alone"],
)
def test_claims_where_they_are_false(changes, failing):
    found = _verdicts(_table(**changes))
    assert {name for name, claim in found.items() if claim.verdict == FAILS} == failing


def test_without_clusters_by_area_nothing_can_match():
    table = _table().assign(first_regime=0, second_regime=0)
    found = _verdicts(table)
    assert {name for name, claim in found.items() if claim.verdict == UNTESTABLE} == {
        *("nearer by area", "match", "same two")
    }


def test_preset_paper_is_as_published():
    options = RECIPE.presets["paper"]
    assert options.robustness == fig3.FIG3B.presets["paper"]
    (comparison,) = RECIPE.comparisons(options)[fig3.PART]
    assert (len(comparison.networks), comparison.layers, comparison.examples) == (200, ("conv8",), None)
    assert comparison.arguments["method"] == "pwcca"
