"""Figure 6 of the second paper: distances from the last epoch by their definitions, and the claims."""

from dataclasses import replace

import pandas as pd
import pytest

from sdkernels.lab.datasets import load_text
from sdkernels.lab.sweep import comparison, network
from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.recipe import Done
from sdkernels.paper.representations import cca6, language_models
from sdkernels.paper.representations.cca6 import CCA6
from sdkernels.paper.representations.ccaA3 import CCAA3
from sdkernels.paper.reproduce import reproduce
from tests.paper import small_language_models
from tests.paper.canonical_oracle import distances

QUICK = CCA6.presets["quick"]
SMALL = {"looks": [1, 2, 7], "windows.count": 10, "windows.steps": 30}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("cca6") / "networks.sdk"


@pytest.fixture(scope="module")
def done(store):
    return small_language_models.run(CCA6, SMALL, store)


def test_distances_are_those_of_every_token_from_the_last_epoch(done):
    table, found = CCA6.table(done), done.networks["digits_tokens"]
    tokens = small_language_models.windows(load_text("digits_tokens").test, 30, 10)
    assert len(table) == 2 * 2 * 2 * 3  # repeats, methods, layers, epochs
    assert sorted(table.epoch.unique()) == [1, 2, 3]
    for repeat in (0, 1):
        given = [small_language_models.layers(found.model(3 * repeat + place), tokens) for place in range(3)]
        for place, epoch in enumerate((1, 2)):
            for depth, layer in enumerate(("lstm1", "lstm2"), start=1):
                expected = distances(*(one[layer].flatten(0, 1) for one in (given[place], given[2])))
                own = table[(table.repeat == repeat) & (table.epoch == epoch) & (table.depth == depth)]
                for method in cca6.METHODS:
                    (one,) = own[own.method == method].itertuples()
                    assert one.distance == pytest.approx(expected[method], abs=1e-6)
                    assert (one.layer, one.text) == (layer, "digits_tokens")
    assert (table[table.epoch == 3].distance == 0).all()


def test_the_figure_shows_a_line_a_layer_by_both_methods(done):
    table = CCA6.table(done)
    figure = CCA6.draw(done, table)
    for ax, method in zip(figure.axes, ("pwcca", "cca"), strict=True):
        assert [line.get_label() for line in ax.lines] == ["lstm1", "lstm2"]
        for depth, line in enumerate(ax.lines, start=1):
            own = table[(table.depth == depth) & (table.method == method)]
            assert line.get_ydata().tolist() == pytest.approx(own.groupby("epoch").distance.mean().tolist())
    assert figure.axes[0].get_title() == "digits_tokens, PWCCA"


def test_networks_and_distances_are_there_for_whoever_asks_again(done, store, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "_train_alone", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(comparison, "_compare", lambda *_: pytest.fail("compared again"))
    changes = {**small_language_models.NETWORKS, **SMALL}
    report = reproduce("cca6", out=tmp_path, store=store, show_progress=False, **changes)
    table = pd.read_csv(tmp_path / "cca6-quick" / "data.csv")
    assert table.distance.tolist() == pytest.approx(CCA6.table(done).distance.tolist(), abs=1e-9)
    assert [one["settings"]["until"] for one in report["networks"]] == [1, 2, 3] * 2
    assert len(report["claims"]) == 3


def test_networks_are_those_of_the_figure_over_steps(done, store, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "_train_alone", lambda *_: pytest.fail("trained again"))
    changes = {**small_language_models.NETWORKS, "windows.count": 60}
    report = reproduce("ccaA3", out=tmp_path, store=store, show_progress=False, **changes)
    own = [done.networks["digits_tokens"].keys[place] for place in (2, 5)]
    assert [one["key"] for one in report["networks"]] == own
    assert len(pd.read_csv(tmp_path / "ccaA3-quick" / "data.csv")) == 2 * 2 * 20


def observations(weighted, plain, *, repeats=4, text="ptb"):
    """A table in which layers have these mean distances by either method, a little other in every training."""
    rows = [
        {"text": text, "repeat": repeat, "method": method, "layer": f"lstm{depth}", "depth": depth, "epoch": epoch}
        | {"distance": 0.0 if epoch == 9 else (mean + shift) * (1 + 0.01 * repeat * depth)}
        for repeat in range(repeats)
        for method, means in (("pwcca", weighted), ("cca", plain))
        for depth, mean in enumerate(means, start=1)
        for epoch, shift in ((1, 0.1), (4, -0.1), (9, 0.0))
    ]
    return pd.DataFrame(rows)


def claims_of(table):
    return CCA6.claims(Done(QUICK, {}), table)


def test_claims_hold_where_the_bottom_settles_first_and_the_mean_hides_it():
    rising, apart, hidden = claims_of(observations((0.2, 0.3, 0.4), (0.6, 0.5, 0.55)))
    assert [claim.verdict for claim in (rising, apart, hidden)] == [HOLDS] * 3
    assert float(rising.ours) == 1
    assert rising.high <= 1
    assert float(apart.ours) == pytest.approx(0.2, abs=0.02)
    assert float(hidden.ours) == pytest.approx(0.2 / 0.3 + 0.05 / 0.55, abs=0.05)
    assert "by mean CCA: -0.5, -0.5, -0.5, -0.5" in hidden.reason
    assert all("4 networks" in claim.reason for claim in (rising, apart, hidden))


def test_claims_fail_where_the_top_settles_first():
    rising, apart, hidden = claims_of(observations((0.4, 0.3, 0.2), (0.5, 0.55, 0.6)))
    assert [claim.verdict for claim in (rising, apart, hidden)] == [FAILS] * 3
    assert float(rising.ours) == -1


def test_a_mean_that_shows_it_as_well_hides_nothing():
    rising, apart, hidden = claims_of(observations((0.2, 0.3, 0.4), (0.4, 0.6, 0.8)))
    assert [claim.verdict for claim in (rising, apart)] == [HOLDS] * 2
    assert hidden.verdict == FAILS  # all distances are larger, and its order is the same
    assert float(hidden.ours) == pytest.approx(0, abs=0.02)


def test_networks_that_differ_decide_nothing():
    table = observations((0.2, 0.3, 0.4), (0.6, 0.5, 0.55))
    flipped = table.depth.where(table.repeat % 2 == 0, 4 - table.depth)
    assert [claim.verdict for claim in claims_of(table.assign(depth=flipped))][:2] == [FAILS] * 2
    assert {claim.verdict for claim in claims_of(table[table.repeat == 0])} == {UNTESTABLE}


def test_texts_are_tested_apart():
    plain = (0.5, 0.6, 0.55)
    both = [observations((0.2, 0.3, 0.4), plain), observations((0.4, 0.3, 0.2), plain, text="wikitext2")]
    found = claims_of(pd.concat(both))
    assert [claim.verdict for claim in found] == [HOLDS] * 3 + [FAILS] * 3
    assert ["(wikitext2)" in claim.claim for claim in found] == [False] * 3 + [True] * 3


def test_the_last_epoch_is_looked_at_and_none_beyond():
    def of(looks, **training):
        family = replace(QUICK.networks, training=TrainingOptions(**training))
        return cca6.looks(replace(QUICK, looks=looks), family)

    assert of((0, 5, 1, 10, 12), epochs=10) == [1, 5, 10]
    with pytest.raises(ValueError, match="none before the last of 10"):
        of((10, 11), epochs=10)
    with pytest.raises(ValueError, match="steps=5: give epochs"):
        of((1,), steps=5)


def test_two_families_read_two_texts():
    other = language_models.on_other_text(QUICK.networks, "ptb")
    assert {*CCA6.sweeps(replace(QUICK, also=other))} == {"digits_tokens", "ptb"}
    with pytest.raises(ValueError, match="both read digits_tokens"):
        CCA6.sweeps(replace(QUICK, also=QUICK.networks))


def test_windows_are_read_a_thousand_tokens_at_once():
    one, _ = CCA6.comparisons(QUICK)["digits_tokens"][:2]
    assert (one.steps, one.examples, one.on) == (100, 100, "test")
    assert one.arguments == {"batch_size": 10, "method": "pwcca", "positions": "each"}
    with pytest.raises(TypeError, match="has no moments"):
        language_models.curve_frame(None)


@pytest.mark.parametrize("recipe", [CCA6, CCAA3], ids=["cca6", "ccaA3"])
@pytest.mark.parametrize("preset", ["quick", "small", "paper"])
def test_data_points_are_many_times_the_units(recipe, preset):
    options = recipe.presets[preset]
    tokens = {"quick": 23_400, "small": 245_569, "paper": 82_430}[preset]  # of the test text, of Penn Treebank's
    steps = options.windows.steps
    points = (options.windows.count or tokens // steps) * (steps if recipe is CCA6 else 1)
    assert points <= tokens
    assert points >= 5 * options.networks.shape["hidden"]


@pytest.mark.parametrize("recipe", [CCA6, CCAA3], ids=["cca6", "ccaA3"])
def test_preset_paper_is_the_published_protocol(recipe):
    paper = recipe.presets["paper"]
    assert {*recipe.sweeps(paper)} == {"ptb", "wikitext2"}
    for family in (paper.networks, paper.also):
        assert family.shape["layers"] == 3
        assert family.training.unroll == 20
        assert (family.split, family.examples) == ("train", None)
    assert paper.windows.count is None
