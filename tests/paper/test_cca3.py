"""Figure 3 of the second paper: distances by their definition, shared labels, claims on data that decide them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sdkernels.lab.sweep import compare_networks, run_sweep
from sdkernels.lab.sweep.data import measured_data
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import PRESETS, Done
from sdkernels.paper.representations import cca3
from tests.paper import canonical

QUICK = cca3.CCA3.presets["quick"]
SMALL = {
    "networks.examples": 150,
    "shape": {"width": 1 / 32},
    "epochs": 2,
    "repeats": 3,
    "layers": ["conv1", "conv2", "conv9", "conv10", "conv11"],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = change_options(QUICK, SMALL)
    (sweep,) = cca3.sweeps(options).values()
    found = run_sweep(sweep, tmp_path_factory.mktemp("cca3") / "networks.sdk")
    (asked,) = cca3.comparisons(options)[cca3.PART]
    return Done(options, {cca3.PART: found}, compared={asked.name: compare_networks(found, asked).result})


@pytest.fixture(scope="module")
def table(done):
    return cca3.table(done)


def test_memorising_networks_share_labels_and_nothing_else(done):
    found = done.networks[cca3.PART]
    labels = [found.labels(place) for place in range(6)]
    for place in range(3):
        assert torch.equal(labels[place], labels[0])
        assert torch.equal(labels[3 + place], labels[3])
    assert (labels[0] == labels[3]).double().mean() < 0.25
    assert torch.equal(labels[0].bincount(), labels[3].bincount())
    weights = [found.model(place).conv5.weight for place in range(6)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert len({network.seed for network in found.sweep.networks}) == 6


def test_distances_are_those_of_the_definition(done, table):
    found = done.networks[cca3.PART]
    inputs = measured_data(found.sweep.networks[0], "train", None, None).inputs
    for first, second, kind in ((0, 2, "generalising"), (1, 3, "inter"), (4, 5, "memorising")):
        for layer in ("conv2", "conv11", "softmax"):
            module = "out" if layer == "softmax" else layer.replace("conv", "relu")
            one, other = (canonical.activations(found.model(place), module, inputs) for place in (first, second))
            if layer == "softmax":
                one, other = (np.exp(x - x.max(1, keepdims=True)) for x in (one, other))
                one, other = (x / x.sum(1, keepdims=True) for x in (one, other))
            expected = (canonical.distance("pwcca", one, other) + canonical.distance("pwcca", other, one)) / 2
            (row,) = table[(table.layer == layer) & (table["first"] == first) & (table.second == second)].itertuples()
            assert row.kind == kind
            assert row.distance == pytest.approx(expected, abs=2e-5)
    counts = table.groupby(["depth", "layer"]).kind.value_counts().unstack()
    assert counts.index.get_level_values("layer").tolist() == [*done.options.layers, "softmax"]
    assert (counts[["generalising", "inter", "memorising"]] == [3, 9, 3]).all(axis=None)


def test_probabilities_have_nine_directions(done):
    top = cca3.of_softmax(done)
    assert top.names == tuple("012345")
    assert top.ranks.unique().tolist() == [9]


def test_the_figure_shows_means_by_kind_of_pair(done, table):
    figure = cca3.draw(done, table)
    (ax,) = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["both generalise", "one of each", "both memorise"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    for kind, label in (("generalising", 0), ("inter", 1), ("memorising", 2)):
        means = table[table.kind == kind].groupby("depth").distance.mean()
        assert lines[legend.texts[label].get_text()] == pytest.approx(means.tolist())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [*done.options.layers, "softmax"]


def test_the_premises_are_of_the_networks(done, table):
    true, random, better = cca3.claims(done, table)[:3]
    found = done.networks[cca3.PART]
    accuracies = [found.record(place)["train_accuracy"] for place in range(6)]
    assert float(true.low + true.high) / 2 == pytest.approx(np.mean(accuracies[:3]))
    assert float(random.low + random.high) / 2 == pytest.approx(np.mean(accuracies[3:]))
    assert random.verdict == FAILS
    assert "(true " in better.reason


def distances(*, deep=(0.43, 0.60, 0.61), early=(0.3, 0.3, 0.3), top=(0.0, 0.0, 0.36), spread=0.004, count=5):
    """Of each pair as its kind has it (generalising, memorising, inter); networks differ a little from each other."""
    rng = np.random.default_rng(0)
    own = rng.normal(0, spread, 2 * count)
    rows = []
    for depth, (layer, kinds) in enumerate(
        [*((name, early) for name in ("conv1", "conv2")), *((f"conv{i}", deep) for i in (9, 10, 11)), ("softmax", top)]
    ):
        for second in range(2 * count):
            for first in range(second):
                kind = {0: 0, 1: 2, 2: 1}[(first >= count) + (second >= count)]
                rows.append(
                    {
                        "layer": layer,
                        "depth": depth,
                        "first": first,
                        "second": second,
                        "kind": ("generalising", "memorising", "inter")[kind],
                        "distance": kinds[kind] + own[first] + own[second] + rng.normal(0, spread / 4),
                    }
                )
    return pd.DataFrame(rows)


def verdicts(table, **changes):
    options = replace(QUICK, **changes)
    return [claim.verdict for claim in cca3.distance_claims(table, options)]


def test_claims_hold_on_what_was_published():
    assert verdicts(distances(), numbers=True) == [HOLDS] * 12


def test_numbers_are_tested_on_the_papers_networks_alone():
    found = cca3.distance_claims(distances(), QUICK)
    assert [claim.verdict for claim in found[6:]] == [UNTESTABLE] * 6
    assert "here it is 0.43" in found[6].reason
    assert [claim.published for claim in found[6:]] == [
        *("0.42 to 0.45", "0.00", "0.60 to 0.61", "0.00", "0.59 to 0.63", "0.36")
    ]


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"early": (0.3, 0.4, 0.4)}, [0]),
        ({"deep": (0.60, 0.43, 0.45)}, [1, 6, 8, 10]),
        ({"deep": (0.43, 0.60, 0.75)}, [2, 10]),
        ({"deep": (0.43, 0.60, 0.45)}, [2, 10]),
        ({"top": (0.2, 0.0, 0.36)}, [3, 7]),
        ({"top": (0.0, 0.2, 0.36)}, [4, 9]),
        ({"top": (0.0, 0.0, 0.0)}, [5, 11]),
        ({"top": (0.0, 0.0, 0.9)}, [11]),
        ({"deep": (0.30, 0.50, 0.50)}, [6, 8, 10]),
    ],
)
def test_each_claim_fails_where_it_is_false(changes, failing):
    found = verdicts(distances(**changes), numbers=True)
    assert [place for place, verdict in enumerate(found) if verdict == FAILS] == failing


def test_networks_that_differ_much_decide_nothing():
    early, deep, inter, *_ = cca3.distance_claims(distances(spread=0.3), QUICK)
    assert {early.verdict, deep.verdict, inter.verdict} == {FAILS}
    assert "undecided" in deep.reason
    assert inter.reason.count("conv") == 3


def test_the_claims_are_of_the_layers_that_they_name():
    table = distances()
    table.loc[table.layer == "conv9", "distance"] = 0.5
    alone = cca3.distance_claims(table, replace(QUICK, deep=("conv9",)))[1]
    assert (alone.verdict, float(alone.ours)) == (FAILS, 0)
    assert "conv9" in alone.claim
    assert float(cca3.distance_claims(table, QUICK)[1].ours) == pytest.approx(0.17 * 2 / 3, abs=0.01)
    with pytest.raises(ValueError, match=r"\['conv5'\] are not among them"):
        cca3.distance_claims(table, replace(QUICK, early=("conv5",)))


def test_two_networks_of_a_kind_test_nothing_within_it():
    options = replace(QUICK, networks=replace(QUICK.networks, repeats=2))
    found = cca3.distance_claims(distances(count=2), options)
    assert {claim.verdict for claim in found} == {UNTESTABLE}


def test_networks_that_diverged_are_left_out():
    table = distances()
    there = table[(table["first"] != 3) & (table.second != 3)]
    found = cca3.distance_claims(there, QUICK)
    assert "jackknife over 5 and 4 networks" in found[1].reason


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_networks_of_true_labels_are_those_of_the_other_papers_figure(preset):
    (own,) = cca3.CCA3.sweeps(cca3.CCA3.presets[preset]).values()
    (other,) = RECIPES["fig1b"].sweeps(RECIPES["fig1b"].presets[preset]).values()
    theirs = {str(network.identity()) for network in other.networks if network.corruption == 0}
    assert theirs < {str(network.identity()) for network in own.networks}


def test_preset_paper_is_the_published_protocol():
    paper = cca3.CCA3.presets["paper"]
    assert (paper.networks.data, paper.networks.examples, paper.networks.shape) == ("cifar10", None, {"width": 1.0})
    assert paper.networks.training == TrainingOptions(epochs=100, batch_size=32)
    assert paper.layers == tuple(f"conv{i}" for i in range(1, 12))
    assert (paper.method, paper.examples, paper.numbers) == ("pwcca", None, True)
    (sweep,) = cca3.CCA3.sweeps(paper).values()
    assert [network.corruption for network in sweep.networks] == [0.0] * 5 + [1.0] * 5
    assert {network.corruption_seed for network in sweep.networks[5:]} == {0}
    (one,) = cca3.comparisons(paper)[cca3.PART]
    assert (one.function, one.on, one.examples, len(one.networks)) == ("pairwise_similarity", "train", None, 10)
    assert [cca3.CCA3.presets[preset].numbers for preset in PRESETS] == [False, False, True]
