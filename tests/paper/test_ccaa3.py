"""Figure A3 of the second paper: distances from the last step by their definitions, and the claims."""

from dataclasses import replace

import pandas as pd
import pytest

from sdkernels.lab.datasets import load_text
from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from sdkernels.paper.representations.ccaA3 import CCAA3
from tests.paper import small_language_models
from tests.paper.canonical_oracle import distances

QUICK = CCAA3.presets["quick"]
SMALL = {"windows.count": 60, "windows.steps": 9, "before": 4, "late": 2}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return small_language_models.run(CCAA3, SMALL, tmp_path_factory.mktemp("ccaA3") / "networks.sdk")


def test_distances_are_those_of_each_step_from_the_last(done):
    table, found = CCAA3.table(done), done.networks["digits_tokens"]
    tokens = small_language_models.windows(load_text("digits_tokens").test, 9, 60)
    assert len(table) == 2 * 2 * 5  # repeats, layers, steps
    for repeat in (0, 1):
        given = small_language_models.layers(found.model(repeat), tokens)
        for depth, layer in enumerate(("lstm1", "lstm2"), start=1):
            own = table[(table.repeat == repeat) & (table.depth == depth)]
            expected = [distances(given[layer][:, step], given[layer][:, 8])["pwcca"] for step in range(4, 9)]
            assert own.step.tolist() == [1, 2, 3, 4, 5]
            assert own.distance.tolist() == pytest.approx(expected, abs=1e-6)
            assert set(own.layer) == {layer}


def test_the_figure_shows_a_line_a_layer(done):
    table = CCAA3.table(done)
    (ax,) = CCAA3.draw(done, table).axes
    assert [line.get_label() for line in ax.lines] == ["lstm1", "lstm2"]
    for depth, line in enumerate(ax.lines, start=1):
        means = table[table.depth == depth].groupby("step").distance.mean()
        assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
        assert line.get_ydata().tolist() == pytest.approx(means.tolist())
    assert (ax.get_title(), ax.get_ylabel()) == ("digits_tokens", "PWCCA distance\nfrom the last step")


def observations(*curves, repeats=4):
    """A table of one text, with the curve of each layer, a little other in every network."""
    rows = [
        {"text": "ptb", "repeat": repeat, "layer": f"lstm{depth}", "depth": depth, "step": step}
        | {"distance": value * (1 + 0.01 * repeat * (step % 3))}
        for repeat in range(repeats)
        for depth, curve in enumerate(curves, start=1)
        for step, value in enumerate(curve, start=1)
    ]
    return pd.DataFrame(rows)


LATE = [0.8] * 14 + [0.7, 0.6, 0.5, 0.4, 0.2, 0.0]
EARLY = [0.8, 0.6, 0.4, 0.3, *[0.2] * 15, 0.0]


def claims_of(table, **changes):
    return CCAA3.claims(Done(replace(QUICK, **changes), {}), table)


def test_claims_hold_where_the_distance_falls_late():
    high, late, *_ = claims_of(observations(LATE, LATE))
    assert [claim.verdict for claim in claims_of(observations(LATE, LATE))] == [HOLDS] * 4
    assert float(high.ours) == pytest.approx(1.0, abs=0.01)
    assert float(late.ours) == pytest.approx(0.7 - 0.1, abs=0.02)
    assert "(ptb, lstm1)" in high.claim
    assert "at step 10" in high.claim
    assert "over 4 networks" in high.reason


def test_claims_fail_where_it_falls_early():
    high, late, *others = claims_of(observations(EARLY, LATE))
    assert [claim.verdict for claim in (high, late)] == [FAILS] * 2
    assert float(high.ours) == pytest.approx(0.25, abs=0.01)
    assert float(late.ours) == pytest.approx(0.2 - 0.6, abs=0.02)
    assert [claim.verdict for claim in others] == [HOLDS] * 2
    assert [claim.verdict for claim in claims_of(observations(EARLY), high=0.2)] == [HOLDS, FAILS]


def test_what_is_late_is_an_option():
    assert claims_of(observations(LATE), late=2)[1].verdict == FAILS  # 0.4 against 0.4, a little other in each
    assert claims_of(observations(LATE), late=3)[1].verdict == HOLDS


def test_a_single_network_tests_nothing():
    assert {claim.verdict for claim in claims_of(observations(LATE, repeats=1))} == {UNTESTABLE}


@pytest.mark.parametrize("changes", [{"before": 34}, {"before": -1}, {"late": 0}, {"late": 19}])
def test_windows_without_steps_are_refused(changes):
    with pytest.raises(ValueError, match="late="):
        CCAA3.comparisons(replace(QUICK, **changes))


def test_a_method_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="method='cosine' must be"):
        change_options(QUICK, {"method": "cosine"})
    assert change_options(QUICK, {"method": "cka"}).method == "cka"


def test_twenty_steps_are_compared():
    for options in CCAA3.presets.values():
        assert options.windows.steps - options.before == 20
