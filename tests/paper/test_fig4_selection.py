"""Figure 4c: the table against its networks, selection and claims on data in which they are true or false."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdkernels.lab.sweep import run_sweep
from sdkernels.paper import networks
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import fig4_selection as fig4c
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from sdkernels.paper.selection import select
from tests.paper.small_runs import FIG4C

RECIPE = fig4c.FIG4C


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(RECIPE.presets["quick"], FIG4C)
    (sweep,) = RECIPE.sweeps(options).values()
    return Done(options, {fig4c.PART: run_sweep(sweep, tmp_path_factory.mktemp("fig4c") / "networks.sdk")})


def test_grid_has_every_setting_twice(done):
    found = [(n.training.learning_rate, n.training.batch_size) for n in done.networks[fig4c.PART].sweep.networks]
    assert found == [(rate, size) for rate in (1e-3, 1e-2, 3e-2) for size in (20, 60) for _ in range(2)]
    assert len({n.seed for n in done.networks[fig4c.PART].sweep.networks}) == 12


def test_table_is_of_the_networks(done):
    table, found = RECIPE.table(done), done.networks[fig4c.PART]
    for row in table.itertuples():
        record = found.record(row.network)
        assert (row.test_accuracy, row.batch_size) == (
            record["test_accuracy"],
            record["settings"]["training"]["batch_size"],
        )
        assert row.auc == pytest.approx(float(found.result(row.network, "ablation").auc().mean()))
        intact = record["train_accuracy"]
        expected = (row.auc - 0.1) / (intact - 0.1) if intact >= 0.2 else np.nan
        assert row.auc_above_chance == pytest.approx(expected, nan_ok=True)
    settings = fig4c.settings_of(table)
    assert len(settings) == 6
    own = table[(table.learning_rate == 1e-2) & (table.batch_size == 60)]
    (row,) = settings[(settings.learning_rate == 1e-2) & (settings.batch_size == 60)].itertuples()
    assert (row.auc, row.test_accuracy) == pytest.approx((own.auc.mean(), own.test_accuracy.mean()))


def test_figure_and_claims_of_a_run(done):
    table = RECIPE.table(done)
    left, right = RECIPE.draw(done, table).axes
    shown = np.concatenate([scatter.get_offsets().data for scatter in left.collections])
    assert sorted(shown.tolist()) == sorted(table[["auc", "test_accuracy"]].to_numpy().tolist())
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["learning rate", "0.001", "0.01", "0.03", "batch size", "20", "60"]
    settings = fig4c.settings_of(table)
    found = select(settings.auc.to_numpy(), settings.test_accuracy.to_numpy(), size=3, draws=50)
    assert [bar.get_height() for bar in right.patches] == [found.top(k) for k in (1, 5, 10)]
    claims = RECIPE.claims(done, table)
    assert float(claims[0].ours) == pytest.approx(stats.spearmanr(table.auc, table.test_accuracy).statistic, abs=0.006)
    assert [claim.verdict for claim in claims[3:5]] == [UNTESTABLE] * 2, "5 and 10 of 3"
    assert "chance 1.00" in claims[3].reason


def _table(rates=12, sizes=8, noise=0.01, sign=1.0, seed=0):
    """Two networks a setting, with areas that go by test accuracy."""
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(rates * sizes), 2)
    accuracy = rng.normal(0.8, 0.04, rates * sizes)[places] + 0.002 * rng.normal(size=len(places))
    table = pd.DataFrame({"learning_rate": places // sizes, "batch_size": places % sizes, "test_accuracy": accuracy})
    table["auc"] = sign * accuracy + noise * rng.normal(size=len(places))
    return table.assign(auc_above_chance=table.auc)


def _claims(table):
    return fig4c.claims_of_selection(table, draws=200, seed=0)


def test_selection_where_area_goes_by_accuracy():
    top1, top5, top10, gap = _claims(_table())
    assert {claim.verdict for claim in (top1, top5, top10, gap)} == {HOLDS}
    assert top1.published == "13% (chance 2%)"
    assert "against chance, 5/48" in top5.reason
    assert "200 random subsets of 48 of 96 settings" in gap.reason
    settings = fig4c.settings_of(_table())
    found = select(settings.auc.to_numpy(), settings.test_accuracy.to_numpy(), size=48, draws=200)
    assert [float(claim.ours) for claim in (top1, top5, top10)] == pytest.approx(
        [found.top(k) for k in (1, 5, 10)], abs=0.006
    )
    assert float(gap.ours) == pytest.approx(found.gaps.mean(), abs=1e-3)


@pytest.mark.parametrize("changes", [{"noise": 9.0}, {"sign": -1.0}], ids=["nothing", "opposite"])
def test_selection_where_area_says_nothing(changes):
    *tops, gap = _claims(_table(**changes))
    assert {claim.verdict for claim in tops} == {FAILS}
    assert gap.verdict == FAILS
    assert float(gap.ours) > 0.04


def test_a_small_loss_that_chance_has_as_well_is_no_selection():
    table = _table(noise=9.0)
    table["test_accuracy"] = 0.8 + (table.test_accuracy - 0.8) / 10
    gap = _claims(table)[-1]
    assert float(gap.ours) < 0.02
    assert gap.low < 0.01
    random = float(gap.reason.split("picked at random loses ")[1].split(";")[0])
    assert gap.low < random < gap.high
    assert random < 0.021
    assert gap.verdict == FAILS


def test_a_loss_above_the_published_one_is_said():
    gap = _claims(_table(noise=0.06))[-1]
    random = float(gap.reason.split("picked at random loses ")[1].split(";")[0])
    assert 0.021 < gap.high < random, "it is better than chance"
    assert gap.verdict == FAILS
    assert "0.021" in gap.reason


def test_tops_of_half_a_subset_are_not_tested():
    *tops, gap = _claims(_table(rates=5, sizes=4))  # subsets of ten
    assert [claim.verdict for claim in tops] == [HOLDS, UNTESTABLE, UNTESTABLE]
    assert "5 are half of a subset's 10 settings or more: chance 0.50" in tops[1].reason
    assert gap.verdict == HOLDS
    assert [claim.verdict for claim in _claims(_table(rates=11, sizes=2))[:2]] == [HOLDS, HOLDS], "5 of 11 are less"


def test_correlations_where_they_are_true_and_false():
    done = Done(change_options(RECIPE.presets["quick"], {"draws": 20}), {})
    for sign, verdict in ((1.0, HOLDS), (-1.0, FAILS)):
        plain, beyond, *_ = RECIPE.claims(done, _table(rates=4, sizes=3, sign=sign))
        assert (plain.verdict, beyond.verdict) == (verdict, verdict)
    assert plain.published == "0.914"


def test_preset_paper_is_as_published():
    options = RECIPE.presets["paper"]
    family = networks.GRID_CONVNETS["paper"]
    assert options.networks == family
    assert (len(options.learning_rates), len(options.batch_sizes), family.repeats) == (12, 8, 2)
    assert len(fig4c.grid(options)) == 192
    ratios = np.diff(np.log(options.learning_rates))
    assert ratios == pytest.approx(ratios.mean(), abs=0.05)
    assert (family.data, family.shape["width"], family.examples, family.training.epochs) == ("cifar10", 1.0, None, 100)
    assert options.ablation.layers == ("conv9", "conv10", "conv11")
    assert (options.ablation.measured, options.draws) == (None, 1000)
    assert fig4c.TOPS == {1: 0.13, 5: 0.83, 10: 0.98}
