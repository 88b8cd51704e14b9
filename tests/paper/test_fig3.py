"""Figures 3a and 3b: tables against the networks they are of, the claims on data in which they are true or false."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdkernels.lab.sweep import data as sweep_data
from sdkernels.lab.sweep import run_sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import fig3
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from tests.paper.small_runs import FIG3

A, B = fig3.FIG3A, fig3.FIG3B


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(B.presets["quick"], FIG3)
    (sweep,) = B.sweeps(options).values()
    return Done(options, {fig3.PART: run_sweep(sweep, tmp_path_factory.mktemp("fig3") / "networks.sdk")})


def test_both_figures_share_networks_and_measurements():
    for preset in A.presets:
        one, other = (recipe.sweeps(recipe.presets[preset]) for recipe in (A, B))
        assert one == other


def test_networks_differ_in_rate_and_seed_alone(done):
    found = done.networks[fig3.PART].sweep.networks
    assert [n.training.learning_rate for n in found] == [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2, 3e-2, 3e-2]
    assert len({n.seed for n in found}) == 8
    alike = [replace(n, seed=0, training=replace(n.training, learning_rate=1.0)) for n in found]
    assert all(one == alike[0] for one in alike)
    other = fig3.networks_by_learning_rate(replace(done.options, seed=1))
    assert not {n.seed for n in other} & {n.seed for n in found}


def test_table_is_of_the_networks(done):
    table, found = B.table(done), done.networks[fig3.PART]
    assert table.network.tolist() == list(range(8))
    for row in table.itertuples():
        record, curve = found.record(row.network), found.result(row.network, "ablation")
        held_out = sweep_data.test_data(found.sweep.networks[row.network], None)
        right = (found.model(row.network)(held_out.inputs).argmax(1) == held_out.labels).double().mean()
        assert row.error == pytest.approx(1 - float(right))
        accuracy = curve.correct.double() / 60
        areas = ((accuracy[:, 1:] + accuracy[:, :-1]) / 2 * curve.fraction.diff()).sum(1)
        assert row.auc == pytest.approx(float(areas.mean()))
        intact = record["train_accuracy"]
        expected = (row.auc - 0.1) / (intact - 0.1) if intact >= 0.2 else np.nan
        assert row.auc_above_chance == pytest.approx(expected, nan_ok=True)
    assert table.auc_above_chance.notna().any()
    gap = B.table(replace(done, options=replace(done.options, error="gap")))
    assert gap.error.tolist() == pytest.approx((table.train_accuracy - table.test_accuracy).tolist())
    low, high = (table.auc[table.cluster == cluster] for cluster in (0, 1))
    assert low.max() < high.min()


def test_extremes_are_the_best_and_the_worst(done):
    table, frame = A.table(done), B.table(done)
    by_error = frame.sort_values("error", kind="stable").network.tolist()
    for group, expected in (("best", by_error[:2]), ("worst", by_error[-2:])):
        own = table[table.group == group]
        assert {*own.network} == {*expected}
        assert len(own) == 2 * 2 * 5
        for network, curve in own.groupby("network"):
            result = done.networks[fig3.PART].result(network, "ablation")
            assert curve.correct.tolist() == result.correct.flatten().tolist()
            assert (curve.error == frame.error[network]).all()
    all_of_them = A.table(replace(done, options=replace(done.options, extremes=99)))
    assert all_of_them.groupby("group").network.nunique().tolist() == [4, 4], "no network is on both sides"
    with pytest.raises(ValueError, match="extremes=0"):
        A.sweeps(replace(done.options, extremes=0))


def test_claims_of_extremes_are_of_their_areas(done):
    table, frame = A.table(done), B.table(done).set_index("network")
    plain, _ = A.claims(done, table)
    best, worst = (frame.auc[table[table.group == group].network.unique()] for group in ("best", "worst"))
    assert (plain.low + plain.high) / 2 == pytest.approx(best.mean() - worst.mean())
    interval = stats.ttest_ind(best, worst, equal_var=False).confidence_interval()
    assert (plain.low, plain.high) == pytest.approx((interval.low, interval.high))


def test_networks_that_have_learned_nothing_have_no_area_above_chance(monkeypatch):
    frame = pd.DataFrame({"network": range(7), "auc": [0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.1]})
    frame["auc_above_chance"] = [0.5, 0.52, np.nan, 0.3, 0.32, 0.34, np.nan]
    groups = ["best"] * 3 + ["worst"] * 4
    monkeypatch.setattr(fig3, "generalisation", lambda done: frame)
    plain, relative = A.claims(None, pd.DataFrame({"network": range(7), "group": groups}))
    assert "over 3 and 4 networks" in plain.reason
    assert "over 2 and 3 networks (2 below twice chance left out)" in relative.reason
    assert float(relative.ours) == pytest.approx(0.51 - 0.32, abs=0.006)
    table = _table()
    table.loc[3:6, "auc_above_chance"] = np.nan
    assert "over 16 networks (4 below twice chance left out)" in _verdicts(table)["beyond"].reason


def test_figures_show_what_the_tables_say(done):
    table = A.table(done)
    (ax,) = A.draw(done, table).axes
    for group, line in zip(("best", "worst"), ax.lines, strict=False):
        expected = table[table.group == group].groupby("ablated").accuracy.mean()
        assert line.get_ydata().tolist() == pytest.approx(expected.tolist())
        assert line.get_label() == f"2 that\ngeneralise {group}"
    table = B.table(done)
    (ax,) = B.draw(done, table).axes
    labels = [scatter.get_label() for scatter in ax.collections]
    assert labels == ["0.0001", "0.001", "0.01", "0.03"]
    for label, scatter in zip(labels, ax.collections, strict=True):
        own = table[table.learning_rate == float(label)]
        assert scatter.get_offsets().data.tolist() == own[["auc", "error"]].to_numpy().tolist()
    (border,) = (line.get_xdata()[0] for line in ax.lines)
    assert table.auc[table.cluster == 0].max() < border < table.auc[table.cluster == 1].min()
    sizes = table.cluster.value_counts()
    assert [text.get_text() for text in ax.texts] == [f"cluster A\n({sizes[0]})", f"cluster B\n({sizes[1]})"]


def _table(slope=-1.0, apart=0.3, by_rate=True, within=-1.0, each=5, seed=0):
    """Networks at four rates, two of which are ``apart`` in area; error falls with the area within clusters."""
    rng = np.random.default_rng(seed)
    rates = np.repeat([1e-4, 3e-4, 1e-3, 3e-3], each)
    cluster = (rates > 5e-4).astype(int)
    own = 0.02 * rng.normal(size=len(rates))
    table = pd.DataFrame({"network": range(len(rates)), "learning_rate": rates})
    table["auc"] = 0.4 + apart * cluster + own
    table["error"] = 0.5 + slope * apart * cluster + within * own + 0.002 * rng.normal(size=len(rates))
    table["auc_above_chance"] = table.auc
    found = fig3.clusters_of(table)
    if not by_rate:
        table["learning_rate"] = np.resize([1e-4, 3e-4, 1e-3, 3e-3], len(rates))
    return table.assign(cluster=found.labels)


def _verdicts(table):
    robust, beyond, explained, discrete, match, inside = B.claims(None, table)
    return {"robust": robust, "beyond": beyond, "explained": explained, "discrete": discrete, "match": match,
            "inside": inside}  # fmt: skip


def test_claims_where_they_are_true():
    found = _verdicts(_table())
    assert {claim.verdict for claim in found.values()} == {HOLDS}
    assert found["discrete"].ours == "2"
    assert found["match"].ours == "1.00"


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"slope": 1.0, "within": 1.0}, {"robust", "beyond", "inside"}),
        ({"within": 1.0}, {"inside"}),
        ({"by_rate": False}, {"explained", "match"}),
        ({"apart": 0.0}, {"explained", "discrete", "match"}),
    ],
    ids=["opposite", "opposite within", "not by rate", "no clusters"],
)
def test_claims_where_they_are_false(changes, failing):
    found = _verdicts(_table(**changes))
    assert {name for name, claim in found.items() if claim.verdict == FAILS} >= failing
    if "apart" not in changes:
        assert {name for name, claim in found.items() if claim.verdict == FAILS} == failing


def test_correlation_within_clusters_is_of_what_the_clusters_leave():
    table = _table(within=-0.1)
    left = table.groupby("cluster")[["auc", "error"]].transform(lambda values: values - values.mean())
    expected = stats.spearmanr(left.auc, left.error).statistic
    assert float(_verdicts(table)["inside"].ours) == pytest.approx(expected, abs=0.006)


def test_few_networks_have_no_clusters():
    table = _table().iloc[::4].assign(cluster=0)
    found = _verdicts(table)
    assert {found[name].verdict for name in ("discrete", "match", "inside")} == {UNTESTABLE}
    assert "here 5" in found["match"].reason
    assert fig3.clusters_of(_table().assign(auc=0.5)) is None


def test_preset_paper_is_as_published():
    options = B.presets["paper"]
    family = networks.GENERALISING_CONVNETS["paper"]
    assert options.networks == family
    assert len(fig3.networks_by_learning_rate(options)) == 200
    assert len(options.learning_rates) == 5
    assert (family.data, family.model, family.shape["width"], family.examples) == ("cifar10", "convnet", 1.0, None)
    training = family.training
    assert (training.epochs, training.batch_size, training.optimiser) == (100, 32, "adam")
    assert options.ablation.layers == ("conv9", "conv10", "conv11")
    assert (options.ablation.measured, options.extremes, options.error) == (None, 5, "test")
