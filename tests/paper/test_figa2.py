"""Figure A2: its table, and that selectivity rises with depth, where it does, falls, and does neither."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import fig7, figA2
from sdkernels.paper.recipe import Done
from tests.paper.small_units import CONVNETS, run, units

STAND_IN = Done(figA2.FIGA2.presets["quick"], {})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run(figA2.FIGA2, CONVNETS, tmp_path_factory.mktemp("figA2"))


def test_a_run(done):
    table = figA2.table(done)
    assert list(table.columns) == ["part", "network", "layer", "depth", "unit", "dead", "selectivity"]
    for part, layers in (("CIFAR-10", 11), ("ImageNet", 2)):
        networks = done.networks[part]
        own = table[table.part == part]
        assert own.depth.max() == layers
        selectivity = [networks.result(index, "statistics").selectivity().values for index in range(len(networks))]
        assert own.selectivity.tolist() == pytest.approx(np.concatenate(selectivity).tolist(), nan_ok=True)
    on_cifar10, on_imagenet = figA2.claims(done, table)
    live = table[(table.part == "CIFAR-10") & ~table.dead]
    z = np.arctanh([stats.spearmanr(own.depth, own.selectivity).statistic for _, own in live.groupby("network")])
    assert np.tanh((np.arctanh(on_cifar10.low) + np.arctanh(on_cifar10.high)) / 2) == pytest.approx(np.tanh(z.mean()))
    assert "of a single network" in on_imagenet.reason
    assert [ax.get_title() for ax in figA2.draw(done, table).axes] == ["digits, ConvNet", "ImageNet, ResNet-50"]


@pytest.mark.parametrize(
    ("slope", "verdict", "words"), [(1, HOLDS, "above 0"), (-1, FAILS, "the opposite"), (0, FAILS, "undecided")]
)
def test_the_claim_holds_only_where_selectivity_rises(slope, verdict, words):
    table = units("CIFAR-10", selectivity=lambda depth, noise, network: slope * depth + noise)
    on_cifar10, on_imagenet = figA2.claims(STAND_IN, table)
    assert on_cifar10.verdict == verdict
    assert words in on_cifar10.reason
    assert (on_imagenet.verdict, on_imagenet.reason) == (UNTESTABLE, "needs ImageNet")
    both = pd.concat([table, units("ImageNet", networks=1, selectivity=lambda d, noise, n: slope * d + noise)])
    assert figA2.claims(STAND_IN, both)[1].verdict == verdict


def test_the_figure_shows_quartiles_of_live_units_and_means_of_networks():
    table = units("CIFAR-10", selectivity=lambda depth, noise, network: depth / 10 + 0.02 * noise + 0.01 * network)
    table.loc[table.unit == 0, ["dead", "selectivity"]] = [True, np.nan]
    (ax,) = figA2.draw(STAND_IN, table).axes
    black = [line for line in ax.lines if line.get_color() == "black"]
    medians = [line.get_ydata()[0] for line in black if line.get_marker() != "."]
    live = table[~table.dead]
    assert medians == pytest.approx(live.groupby("depth").selectivity.median().tolist())
    means = [line.get_ydata() for line in black if line.get_marker() == "."]
    expected = live.groupby(["network", "depth"]).selectivity.mean()
    assert np.concatenate(means).tolist() == pytest.approx(expected.tolist())
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "3", "4", "5", "6"]
    assert ax.get_xlabel() == "convolution"


@pytest.mark.parametrize("preset", ["quick", "small", "paper"])
def test_networks_and_statistics_are_those_of_figure_7(preset):
    found, of_7 = figA2.sweeps(figA2.FIGA2.presets[preset]), fig7.sweeps(fig7.FIG7.presets[preset])
    for part in ("CIFAR-10", "ImageNet"):
        assert found[part].networks == of_7[part].networks
        assert found[part].conditions == of_7[part].conditions[:-1]
