"""Figure 6: distributions against the scores they are of, and its claims on data in which they are true or false."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from sdkernels.lab.sweep import run_sweep
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions.fig6 import BARS, FIG6A, FIG6B, PART
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import PRESETS, Done
from tests.paper import small_runs

LAYERS = tuple(f"conv{number}" for number in range(1, 12))
BOTH = pytest.mark.parametrize("recipe", [FIG6A, FIG6B], ids=["selectivity", "information"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fig6")


def _done(recipe, folder, **changes):
    options = change_options(recipe.presets["quick"], {**small_runs.CONVNETS, **changes})
    (sweep,) = recipe.sweeps(options).values()
    return Done(options, {PART: run_sweep(sweep, folder / "networks.sdk")})


@pytest.mark.parametrize(
    ("recipe", "changes", "expected"),
    [
        (FIG6A, {}, lambda found: found.selectivity("macro")),
        (FIG6A, {"kind": "micro"}, lambda found: found.selectivity("micro")),
        (FIG6B, {"bins": 4}, lambda found: found.mutual_information(4, correction="miller-madow")),
        (FIG6B, {"bins": 12, "correction": "none"}, lambda found: found.mutual_information(12)),
        (FIG6A, {"measured": 50, "layers": ["conv2"]}, lambda found: found.selectivity()),
    ],
    ids=["macro", "micro", "corrected", "plain", "less"],
)
def test_the_data_are_the_scores_as_the_options_say(folder, recipe, changes, expected):
    done = _done(recipe, folder, **changes)
    table, networks = recipe.table(done), done.networks[PART]
    for index in range(4):
        statistics = networks.result(index, "statistics")
        assert statistics.examples == (changes.get("measured") or 360)
        own = table[table.network == index]
        column = done.options.score.column
        assert own[column].tolist() == pytest.approx(expected(statistics).values.tolist(), nan_ok=True)
        assert set(own.layer) == {*changes.get("layers", LAYERS)}


@BOTH
def test_the_figure_shows_shares_of_live_maps(folder, recipe):
    done = _done(recipe, folder)
    table = recipe.table(done)
    figure = recipe.draw(done, table)
    (ax,) = figure.axes
    (legend,) = figure.legends
    live = table[~table.dead]
    steps = [patch for patch in ax.patches if patch.get_label().startswith("with")]
    assert len(steps) == 2
    for norm, step in zip((True, False), steps, strict=True):
        shares, edges, _ = step.get_data()
        own = [live[live.network == index][done.options.score.column] for index in ((0, 1) if norm else (2, 3))]
        bars = list(pairwise(edges))
        expected = [[((low <= values) & (values < high)).mean() for low, high in bars] for values in own]
        assert shares[:-1].tolist() == pytest.approx(100 * np.mean(expected, 0)[:-1])  # the last bar has both its edges
        assert shares.sum() == pytest.approx(100), "no live map lies beyond the axis"
        assert len(shares) == BARS
        mean = np.mean([values.mean() for values in own])
        assert any(line.get_xdata()[0] == pytest.approx(mean) for line in ax.lines)
        dead = int(table[table.batch_norm == norm].dead.sum())
        assert legend.get_texts()[0 if norm else 1].get_text().endswith(f"({dead} of 176 maps dead)")


def _table(column, with_it, without, dead_without=0):
    """Live units around each network's mean, and dead ones in those without batch norm."""
    rows = []
    for place, (norm, mean) in enumerate([(True, m) for m in with_it] + [(False, m) for m in without]):
        rows += [(place, norm, mean + shift, False) for shift in (-0.1, 0.0, 0.1)]
        rows += [(place, norm, np.nan if column == "selectivity" else 0.0, True)] * (0 if norm else dead_without)
    return pd.DataFrame(rows, columns=["network", "batch_norm", column, "dead"])


def _verdicts(recipe, *means, **more):
    done = Done(recipe.presets["quick"], {PART: None})
    table = _table(done.options.score.column, *means, **more)
    return [claim.verdict for claim in recipe.claims(done, table)]


LOW, HIGH = [0.3, 0.31, 0.29], [0.5, 0.52, 0.51]


def test_batch_norm_lowers_selectivity_and_raises_information():
    assert _verdicts(FIG6A, LOW, HIGH) == [HOLDS]
    assert _verdicts(FIG6A, HIGH, LOW) == [FAILS]
    assert _verdicts(FIG6B, HIGH, LOW) == [HOLDS]
    assert _verdicts(FIG6B, LOW, HIGH) == [FAILS]
    for recipe in (FIG6A, FIG6B):
        assert _verdicts(recipe, LOW, [0.2, 0.4, 0.33]) == [FAILS]
        assert _verdicts(recipe, LOW[:1], HIGH[:1]) == [UNTESTABLE]


def test_dead_maps_are_left_out_and_then_counted_as_0():
    # as many dead as live: the mean without batch norm goes from about .5 to about .25
    assert _verdicts(FIG6A, LOW, HIGH, dead_without=3) == [HOLDS, FAILS]
    assert _verdicts(FIG6B, LOW, HIGH, dead_without=3) == [FAILS, HOLDS]
    done = Done(FIG6A.presets["quick"], {PART: None})
    live, all_ = FIG6A.claims(done, _table("selectivity", LOW, HIGH, dead_without=3))
    assert "(without 0.51, with 0.3)" in live.reason
    assert "(without 0.255, with 0.3)" in all_.reason
    assert float(live.ours) == pytest.approx(0.21)
    assert all_.published == ""


@BOTH
def test_preset_paper_is_the_published_protocol(recipe):
    paper = recipe.presets["paper"]
    assert (paper.layers, paper.measured) == (LAYERS, None)
    assert (paper.networks.data, paper.networks.examples, paper.networks.shape) == ("cifar10", None, {"width": 1.0})
    assert paper.networks.training.epochs == 100
    (sweep,) = recipe.sweeps(replace(paper, seed=1)).values()
    assert [network.options["batch_norm"] for network in sweep.networks] == [True] * 4 + [False] * 4
    assert sweep.conditions[0].on == "test"


def test_bins_divide_the_cells_that_are_kept():
    assert {60 % FIG6B.presets[preset].score.bins for preset in PRESETS} == {0}
