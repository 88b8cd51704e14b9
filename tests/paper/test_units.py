"""The networks and measurements that figures share, and the table of their units' scores."""

import pandas as pd
import pytest

from sdkernels import unit_statistics
from sdkernels.lab.sweep import Sweep, run_sweep
from sdkernels.lab.sweep.data import measured_data
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.directions.units import (
    CONVOLUTIONS,
    Information,
    Selectivity,
    convnets,
    score_frame,
    statistics_condition,
)
from sdkernels.paper.networks import CONVNETS
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import PRESETS
from tests.paper import small_runs


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    family = change_options(CONVNETS["quick"], small_runs.CONVNETS)
    sweep = Sweep(convnets(family, 3), (statistics_condition(CONVOLUTIONS),))
    return run_sweep(sweep, tmp_path_factory.mktemp("units") / "networks.sdk")


def test_networks_are_named_with_their_batch_norm():
    networks = convnets(CONVNETS["paper"], 2)
    assert [network.options["batch_norm"] for network in networks] == [True] * 4 + [False] * 4
    assert [network.seed for network in networks] == [2000, 2001, 2002, 2003] * 2
    assert convnets(CONVNETS["paper"], 2, (True,)) == networks[:4]
    assert {network.options["width"] for network in networks} == {1.0}


@pytest.mark.parametrize("preset", PRESETS)
def test_figures_share_networks_and_measurements(preset):
    sweeps = {name: RECIPES[name].sweeps(RECIPES[name].presets[preset]) for name in ("fig5b", "fig6a", "fig6b")}
    (curves,), (selectivity,), (information,) = (found.values() for found in sweeps.values())
    (clamps,) = RECIPES["figA1"].sweeps(RECIPES["figA1"].presets[preset]).values()
    assert curves.networks == selectivity.networks == information.networks
    assert clamps.networks == curves.networks[:4]
    assert selectivity.conditions[0].key("n") == information.conditions[0].key("n")
    assert clamps.conditions[0].key("n") == curves.conditions[0].key("n")
    assert clamps.conditions[1].key("n") != curves.conditions[0].key("n")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["fig7", "figA2", "figA3", "figA4"])
def test_the_other_figures_of_units_take_the_same(name, preset):
    (mine,) = RECIPES["fig6a"].sweeps(RECIPES["fig6a"].presets[preset]).values()
    parts = RECIPES[name].sweeps(RECIPES[name].presets[preset]).values()
    (theirs,) = [part for part in parts if part.networks[0].model == "convnet"]
    assert theirs.networks == mine.networks[:4]
    assert mine.conditions[0].key("n") in [condition.key("n") for condition in theirs.conditions]


def test_the_scores_of_every_unit_stand_in_the_table(found):
    for score in (Selectivity(), Selectivity("micro"), Information(5), Information(20, "miller-madow")):
        table = score_frame(found, score, "batch_norm", "seed")
        assert list(table.columns) == ["network", "batch_norm", "seed", "layer", "unit", score.column, "dead"]
        assert len(table) == 4 * 88
        for index, settings in enumerate(found.sweep.networks):
            data = measured_data(settings, "test", None, None)
            names = [f"relu{number}" for number in range(1, 12)]
            statistics = unit_statistics(found.model(index), names, (data.inputs, data.labels))
            if isinstance(score, Selectivity):
                expected = statistics.selectivity(score.kind)
            else:
                expected = statistics.mutual_information(score.bins, correction=score.correction)
            own = table[table.network == index]
            values = pytest.approx(expected.values.tolist(), rel=1e-5, abs=1e-6, nan_ok=True)
            assert own[score.column].tolist() == values
            assert own.dead.tolist() == statistics.dead.tolist()
            assert (own.batch_norm.unique().tolist(), own.seed.unique().tolist()) == ([index < 2], [3000 + index % 2])
            assert own[own.layer == "conv11"].unit.tolist() == list(range(16))
            assert tuple(own.layer.unique()) == CONVOLUTIONS


def test_selectivity_of_dead_units_is_not_a_number(found):
    table = score_frame(found, Selectivity(), "batch_norm")
    assert table.dead.any(), "such narrow networks have some"
    pd.testing.assert_series_equal(table.selectivity.isna(), table.dead, check_names=False)
    assert (score_frame(found, Information()).mutual_information[table.dead] == 0).all()
