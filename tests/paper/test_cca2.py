"""Figure 2 of the second paper: the sets that are drawn, their distances by the definitions, and the claims."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdkernels.paper.claims import FAILS, HOLDS
from sdkernels.paper.options import change_options
from sdkernels.paper.recipe import Done
from sdkernels.paper.representations.cca2 import CCA2, METHODS, Options, two_sets
from sdkernels.paper.reproduce import FILES, reproduce
from tests.paper.canonical_oracle import distances

SMALL = Options((1, 6), 3, neurons=8, points=200)


@pytest.fixture(scope="module")
def done():
    return Done(SMALL, {})


def test_the_sets_share_so_many_directions_and_no_more():
    options = replace(SMALL, points=20_000, signal=3.0)
    a, b = (one.numpy() for one in two_sets(options, 3, 0))
    x, y = (np.linalg.qr(one - one.mean(0))[0] for one in (a, b))
    correlations = np.linalg.svd(x.T @ y, compute_uv=False)
    assert correlations[:3].tolist() == pytest.approx([1.0] * 3)
    assert correlations[3:].max() < 0.05
    for one in (a, b):
        deviations = np.linalg.svd(one - one.mean(0), compute_uv=False) / np.sqrt(20_000)
        assert deviations.tolist() == pytest.approx([3.0] * 3 + [0.1] * 5, rel=0.03)
        assert np.abs(np.corrcoef(one.T)[0, 1:]).max() > 0.05  # every neuron has a part in the signal


def test_neurons_that_are_not_rotated_are_directions():
    a, b = two_sets(replace(SMALL, rotated=False), 3, 0)
    assert (a[:, :3] == b[:, :3]).all()
    assert (a[:, 3:] != b[:, 3:]).all()
    assert float(a[:, 3:].std()) == pytest.approx(0.1, rel=0.1)


def test_repeats_and_seeds_draw_others_and_the_same_again():
    first, again = two_sets(SMALL, 2, 0), two_sets(SMALL, 2, 0)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != two_sets(SMALL, 2, 1)[0]).any()
    assert (first[0] != two_sets(replace(SMALL, seed=1), 2, 0)[0]).any()


def test_the_table_has_the_distances_of_the_definitions(done):
    table = CCA2.table(done)
    assert len(table) == 2 * 3 * 3
    for (signal, repeat), own in table.groupby(["signal", "repeat"]):
        expected = distances(*two_sets(SMALL, signal, repeat))
        found = own.set_index("method").distance
        for method in METHODS:
            # Of several correlations of 1, any directions do for the definition of PWCCA, and weights depend on them.
            tied = 0.01 if (method, signal) == ("pwcca", 6) else 1e-9
            assert found[method] == pytest.approx(expected[method], abs=tied), method


def test_the_figure_shows_the_means(done):
    table = CCA2.table(done)
    figure = CCA2.draw(done, table)
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.lines] == list(METHODS.values())
    for method, line in zip(METHODS, ax.lines, strict=True):
        means = table[table.method == method].groupby("signal").distance.mean()
        assert line.get_xdata().tolist() == [1, 6]
        assert line.get_ydata().tolist() == pytest.approx(means.tolist())


def test_a_figure_without_networks_is_reproduced(tmp_path):
    changes = {"signals": [1, 6], "repeats": 3, "neurons": 8, "points": 200}
    report = reproduce("cca2", out=tmp_path, show_progress=False, **changes)
    assert (tmp_path / "cca2-quick" / "figure.png").exists()
    assert {*FILES} <= {path.name for path in (tmp_path / "cca2-quick").iterdir()}
    table = pd.read_csv(tmp_path / "cca2-quick" / "data.csv")
    assert table.distance.tolist() == pytest.approx(CCA2.table(Done(SMALL, {})).distance.tolist(), rel=1e-9, abs=1e-12)
    assert (report["networks"], len(report["claims"])) == ([], 5)


def claims_of(cca, pwcca, svcca, **changes):
    """Of distances at k = 20 and 180, a little other in every repeat."""
    rows = [
        {"signal": signal, "repeat": repeat, "method": method, "distance": value + 0.001 * repeat * (place + 1)}
        for repeat in range(4)
        for place, (method, values) in enumerate({"cca": cca, "pwcca": pwcca, "svcca": svcca}.items())
        for signal, value in zip((20, 180), values, strict=True)
    ]
    return CCA2.claims(Done(replace(SMALL, signals=(20, 180), **changes), {}), pd.DataFrame(rows))


def test_claims_hold_where_weights_see_the_signal():
    found = claims_of(cca=(0.8, 0.2), pwcca=(0.1, 0.0), svcca=(0.5, 0.1))
    assert [claim.verdict for claim in found] == [HOLDS] * 5
    assert [float(claim.ours) for claim in found] == pytest.approx([0.45, 0.2, 0.25, 0.5, 1 / 6], abs=0.01)
    assert all("4 pairs of drawn sets" in claim.reason for claim in found)
    assert "nearest" not in found[2].reason


def test_claims_fail_where_they_do_not():
    found = claims_of(cca=(0.1, 0.0), pwcca=(0.8, 0.2), svcca=(0.5, 0.1))
    assert [claim.verdict for claim in found] == [FAILS] * 5


def test_where_svcca_is_better_is_said():
    *_, weighted, _, robust = claims_of(cca=(0.8, 0.2), pwcca=(0.5, 0.1), svcca=(0.7, 0.01))
    assert weighted.verdict == HOLDS
    assert weighted.reason.endswith("SVCCA is the nearest to 0 of the three at k = 180")
    assert robust.verdict == FAILS  # 0.4 of 0.6
    assert claims_of(cca=(0.8, 0.2), pwcca=(0.5, 0.1), svcca=(0.7, 0.01), robust=0.8)[-1].verdict == HOLDS


def test_more_directions_than_neurons_are_refused():
    with pytest.raises(ValueError, match=r"signals=\(1, 6\) holds 9: 8 neurons share 1 to 8"):
        two_sets(SMALL, 9, 0)


def test_preset_paper_is_the_published_protocol():
    paper = CCA2.presets["paper"]
    assert (paper.neurons, paper.points, paper.noise) == (200, 2000, 0.1)
    assert (min(paper.signals), max(paper.signals)) == (20, 199)
    assert CCA2.sweeps(paper) == {}
    for preset in CCA2.presets.values():
        same = change_options(preset, {"signals": paper.signals, "repeats": paper.repeats})
        assert same == paper
