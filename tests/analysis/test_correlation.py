"""Rank correlation against scipy and ranks written out: ties, layers, dead units, intervals, tables, plots."""

import warnings
from math import asin, inf, isnan, nan, pi

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import sdkernels as sd
import sdkernels.analysis.spearman as spearman_module
from sdkernels.analysis.correlation import rank_correlation
from sdkernels.analysis.spearman import Spearman, spearman
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.lab.models import mlp

LAYERS, COUNTS = ("fc1", "fc2"), (5, 4)
DEAD = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 1]).bool()


def score(values, layers=LAYERS, counts=COUNTS, dead=None, name="importance"):
    return UnitScore(name=name, values=torch.as_tensor(values), layers=layers, unit_counts=counts, dead=dead)


@pytest.fixture
def pair():
    """Importance, and selectivity that is nan for two dead units."""
    importance = [0.3, 0.1, 0.0, 0.1, -0.2, 0.8, 0.8, 0.5, 0.0]
    selectivity = [0.9, 0.2, nan, 0.4, 0.4, 0.1, 0.6, 0.7, nan]
    return score(importance), score(selectivity, dead=DEAD, name="selectivity")


def by_scipy(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return float(scipy.stats.spearmanr(x, y).statistic)


def same(found, expected):
    return (isnan(found) and isnan(expected)) or found == pytest.approx(expected, abs=1e-12)


def fields(found):
    return [found.rho, found.low, found.high, found.units]


numbers = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([inf, -inf, 0.5]))


@given(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=30), st.data())
def test_pooled_and_by_layer_as_scipy_has_it(pairs, data):
    x, y = np.array(pairs).T
    cut = data.draw(st.integers(0, len(x)))
    counts = (cut, len(x) - cut)
    found = rank_correlation(score(x, counts=counts), score(y, counts=counts), resamples=0)
    assert same(found.pooled.rho, by_scipy(x, y))
    for layer, part in zip(LAYERS, (slice(cut), slice(cut, None)), strict=True):
        expected = by_scipy(x[part], y[part]) if len(x[part]) > 2 else None
        if expected is not None:
            assert same(found.by_layer[layer].rho, expected)
        assert found.by_layer[layer].units == len(x[part])
    assert (found.dead, found.with_dead, found.undefined) == (None, None, 0)


def test_equal_scores_share_the_mean_of_their_ranks():
    x, y = [2.0, 1.0, 2.0, 5.0, 2.0], [7.0, 7.0, 1.0, 9.0, 8.0]
    ranks_x, ranks_y = np.array([3, 1, 3, 5, 3.0]), np.array([2.5, 2.5, 1, 5, 4])
    expected = np.corrcoef(ranks_x, ranks_y)[0, 1]
    assert rank_correlation(torch.tensor(x), np.array(y), resamples=0).pooled.rho == pytest.approx(expected, abs=1e-14)


def test_one_order_is_exactly_one_and_its_reverse_minus_one():
    x = torch.linspace(-3, 3, 1001)
    assert rank_correlation(x, x.exp(), resamples=0).pooled.rho == 1
    assert rank_correlation(x, -(x**3), resamples=0).pooled.rho == -1


@pytest.mark.parametrize("where", ["y", "x", "both", "argument"])
def test_dead_units_are_left_out_and_counted_beside(pair, where):
    x, y = pair
    dead = None
    if where == "x":
        x, y = score(x.values, dead=DEAD), score(y.values)
    elif where == "both":
        first = torch.arange(9) == 2
        x, y = score(x.values, dead=DEAD & first), score(y.values, dead=DEAD & ~first)
    elif where == "argument":
        x, y, dead = score(x.values), score(y.values, dead=~DEAD), DEAD.numpy()
    found = rank_correlation(x, y, dead=dead, resamples=20)
    alive = ~DEAD.numpy()
    assert torch.equal(found.dead, DEAD)
    assert found.undefined == 0
    a, b = x.values.numpy(), y.values.numpy()
    zeroed = np.where(alive, b, 0)
    for scopes, right, counted in ((found, b, alive), (found.with_dead, zeroed, np.ones(9, bool))):
        assert same(scopes.pooled.rho, by_scipy(a[counted], right[counted]))
        assert scopes.pooled.units == counted.sum()
        for place, layer in enumerate(LAYERS):
            of_layer = counted & (x.unit_layer.numpy() == place)
            assert same(scopes.by_layer[layer].rho, by_scipy(a[of_layer], right[of_layer]))
            assert scopes.by_layer[layer].units == of_layer.sum()


def test_a_dead_units_nan_is_the_dead_value_and_its_number_is_kept():
    dead = torch.tensor([False, False, False, True, True])
    x, y = score([1.0, 2, 3, nan, 9], counts=(2, 3), dead=dead), score([1.0, 3, 2, 8, nan], counts=(2, 3))
    for value in (0.0, 2.5, -inf):
        found = rank_correlation(x, y, dead_value=value, resamples=0)
        expected = by_scipy([1, 2, 3, value, 9], [1, 3, 2, 8, value])
        assert same(found.with_dead.pooled.rho, expected)
        assert found.dead_value == value


def test_a_nan_that_is_not_dead_is_left_out_of_both_and_counted(pair):
    x, y = pair
    values = x.values.clone()
    values[[0, 8]] = nan  # unit 8 is dead, unit 0 is not
    found = rank_correlation(score(values), y, resamples=0)
    assert found.undefined == 1
    assert (found.pooled.units, found.with_dead.pooled.units) == (6, 8)
    a = np.array([0.1, 0.0, 0.1, -0.2, 0.8, 0.8, 0.5, 0.0])
    assert same(found.pooled.rho, by_scipy(a[[0, 2, 3, 4, 5, 6]], y.values[[1, 3, 4, 5, 6, 7]]))
    assert same(found.with_dead.pooled.rho, by_scipy(a, [0.2, 0, 0.4, 0.4, 0.1, 0.6, 0.7, 0]))
    unknown = rank_correlation(score(values), score(y.values), resamples=0)
    assert (unknown.undefined, unknown.pooled.units, unknown.with_dead) == (3, 6, None)


def test_looked_for_and_none_dead_is_not_the_same_as_nobody_looked(pair):
    x, _ = pair
    looked = rank_correlation(x, x, dead=torch.zeros(9, dtype=torch.bool), resamples=0)
    assert looked.with_dead is None
    assert looked.dead.tolist() == [False] * 9
    assert looked.to_pandas()["dead units"].unique().tolist() == ["excluded"]
    assert "no unit is dead" in str(looked)
    unknown = rank_correlation(x, x, resamples=0)
    assert unknown.to_pandas()["dead units"].unique().tolist() == ["unknown"]
    assert "nobody looked for dead units" in str(unknown)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, 1, 1], [1.0, 2, 3]), ([3.0, 1], [0.0, 0])])
def test_too_few_units_and_constants_have_no_correlation(x, y):
    found = rank_correlation(torch.tensor(x), torch.tensor(y), resamples=50).pooled
    assert [str(number) for number in fields(found)] == ["nan", "nan", "nan", str(len(x))]


def test_an_empty_layer_has_none_and_the_others_have():
    x = score([1.0, 2, 3], counts=(3, 0))
    found = rank_correlation(x, x, resamples=10)
    assert (found.by_layer["fc1"].rho, found.by_layer["fc2"].units) == (1, 0)
    assert isnan(found.by_layer["fc2"].rho)


@pytest.mark.parametrize("drawn_at_once", [1, 50, 2**20])
def test_the_interval_is_of_resamples_ranked_anew(monkeypatch, drawn_at_once):
    monkeypatch.setattr(spearman_module, "DRAWN_AT_ONCE", drawn_at_once)
    values = np.random.default_rng(3)
    x = values.integers(0, 4, 13).astype(float)
    y = x + values.integers(-2, 3, 13)
    draws = np.random.default_rng(5).integers(0, 13, size=(40, 13))
    rhos = [by_scipy(x[drawn], y[drawn]) for drawn in draws]
    found = spearman(x, y, resamples=40, confidence=0.8, seed=5)
    np.testing.assert_allclose([found.low, found.high], np.nanpercentile(rhos, [10, 90]), rtol=1e-12)


def test_resamples_without_a_correlation_are_left_out():
    found = rank_correlation(torch.tensor([1.0, 2]), torch.tensor([5.0, 6]), resamples=50).pooled
    assert fields(found) == [1, 1, 1, 2]  # half of the draws are one unit twice
    x = np.array([0.0, 0, 0, 1])
    assert np.random.default_rng(6).integers(0, 4, size=(1, 4)).max() < 3
    found = spearman(x, x, resamples=1, confidence=0.9, seed=6)
    assert found.rho == 1
    assert isnan(found.low)
    assert isnan(found.high)


def test_the_seed_gives_the_interval_and_a_layer_has_its_own(pair):
    x, y = pair
    first, again, other = (rank_correlation(x, y, resamples=100, seed=seed) for seed in (4, 4, 5))
    assert first.pooled == again.pooled
    assert first.by_layer == again.by_layer
    assert first.pooled.low != other.pooled.low
    assert rank_correlation(x.of("fc1"), y.of("fc1"), resamples=100, seed=4).pooled == first.by_layer["fc1"]
    assert -1 <= first.pooled.low <= first.pooled.high <= 1


def test_a_higher_confidence_is_a_wider_interval(pair):
    narrow, wide = (rank_correlation(*pair, confidence=confidence).pooled for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_no_resamples_no_interval(pair):
    found = rank_correlation(*pair, resamples=0)
    assert isnan(found.pooled.low)
    assert isnan(found.pooled.high)
    assert found.pooled.rho == rank_correlation(*pair, resamples=3).pooled.rho


def test_intervals_cover_about_as_often_as_they_say():
    normals = np.random.default_rng(0)
    rho = 6 / pi * asin(0.6 / 2)  # of a bivariate Gaussian whose correlation is 0.6
    covered = 0
    for seed in range(300):
        x = normals.standard_normal(80)
        y = 0.6 * x + 0.8 * normals.standard_normal(80)
        found = spearman(x, y, resamples=200, confidence=0.9, seed=seed)
        covered += found.low <= rho <= found.high
    assert 0.84 < covered / 300 < 0.95


def test_numpys_global_random_state_is_left_alone(pair):
    before = np.random.get_state()[1].copy()
    rank_correlation(*pair)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_plain_numbers_take_the_others_layers(pair):
    x, y = pair
    found = rank_correlation(x.values.numpy(), y, resamples=0)
    assert repr(found.pooled) == repr(rank_correlation(x, y, resamples=0).pooled)  # bounds of nan, which equal nothing
    assert list(found.by_layer) == list(LAYERS)
    assert (found.x.name, found.x.layers) == ("x", LAYERS)
    plain = rank_correlation([1, 2, 3], torch.tensor([1.0, 3, 2], dtype=torch.bfloat16), resamples=0)
    assert (plain.pooled.rho, plain.by_layer) == (0.5, {})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            score([1.0] * 9, layers=("fc2", "fc1"), counts=(4, 5)),
            r"fc1 \[5\], fc2 \[4\].*Take score\.of\(\['fc1', 'fc2'\]\)",
        ),
        (score([1.0] * 5, layers=("fc1",), counts=(5,)), r"x, importance, is of.*Take score\.of\(\['fc1'\]\) of both"),
        (score([1.0] * 9, counts=(4, 5)), r"of fc1 \[4\], fc2 \[5\]: they must be .* with as many units"),
        (score([1.0] * 9, layers=("a", "b")), r"but y, importance, of a \[5\], b \[4\].*none in common"),
        (torch.ones(8), r"x has 9 units and y 8 of layers fc1 \[5\], fc2 \[4\]"),
        (torch.ones(3, 3), r"y \[3, 3\] must be \[U\]"),
    ],
    ids=["order", "fewer", "counts", "others", "plain", "matrix"],
)
def test_scores_of_other_units_are_refused(pair, other, says):
    with pytest.raises(ValueError, match=says):
        rank_correlation(pair[0], other)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dead": torch.zeros(8, dtype=torch.bool)}, ValueError, r"dead \[8\] must be \[9\], one a unit of fc1 \[5\]"),
        ({"dead": [2, 8]}, TypeError, r"dead is torch.int64; give a bool \[9\]"),
        ({"dead_value": nan}, ValueError, "dead_value=nan has no rank"),
        ({"confidence": 95}, ValueError, "confidence=95 must be above 0 and below 1"),
        ({"confidence": 0}, ValueError, "confidence=0 must be"),
        ({"resamples": -1}, ValueError, "resamples=-1 must be at least 0"),
        ({"resamples": 1e3}, TypeError, "resamples is a float; give an int"),
        ({"seed": None}, TypeError, "seed is a NoneType; give an int"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(pair, options, error, says):
    with pytest.raises(error, match=says):
        rank_correlation(*pair, **options)


def test_a_result_is_asked_for_its_score(pair):
    model, data = mlp(2, (5, 4), 2, seed=0).eval(), (torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    importance = sd.unit_importance(model, ["relu1", "relu2"], data)
    with pytest.raises(TypeError, match=r'x is a UnitImportance; give \.score\("loss"\) of it'):
        rank_correlation(importance, pair[0])
    with pytest.raises(TypeError, match=r"y is a AblationScores; it has no number a unit"):
        rank_correlation(pair[0], sd.ablate(model, "relu1", data, units=[[0]]))
    with pytest.raises(TypeError, match="y is complex"):
        rank_correlation(torch.ones(2), torch.ones(2, dtype=torch.complex64))


def test_to_pandas_has_a_row_a_scope_and_policy(pair):
    found = rank_correlation(*pair, resamples=30)
    table = found.to_pandas()
    assert table.columns.tolist() == ["scope", "dead units", "rho", "low", "high", "units"]
    assert table.scope.tolist() == ["pooled", "fc1", "fc2"] * 2
    assert table["dead units"].tolist() == ["excluded"] * 3 + ["counted"] * 3
    expected = [found.pooled, *found.by_layer.values(), found.with_dead.pooled, *found.with_dead.by_layer.values()]
    assert [Spearman(*row) for row in table[["rho", "low", "high", "units"]].itertuples(index=False)] == expected


def test_it_prints_as_a_table(pair):
    x, y = pair
    values = x.values.clone()
    values[0] = nan
    lines = str(rank_correlation(score(values), y, resamples=30, confidence=0.9, dead_value=0.25)).splitlines()
    assert lines[0] == "Spearman's rank correlation of importance and selectivity"
    assert "without dead units" in lines[1]
    assert "with dead units (2)" in lines[1]
    assert lines[2].count("90% interval") == 2
    assert [line.split()[0] for line in lines[3:6]] == ["pooled", "fc1", "fc2"]
    assert lines[6:] == [
        "where a dead unit has no score, it is counted as 0.25",
        "left out: 1 that is nan and not dead",
    ]


@pytest.mark.parametrize("layers", [2, 11, 13])
def test_plot_draws_a_colour_a_marker_and_a_line_a_layer(layers):
    names, counts = tuple(f"l{i}" for i in range(layers)), (2,) * (layers - 1) + (3,)
    across = torch.cat([torch.arange(2.0 * layers - 2), torch.tensor([0.5, -1.0, 0.7])]).double()
    up = across.square() + 1
    found = rank_correlation(score(up, names, counts), score(across, names, counts, name="selectivity"), resamples=0)
    ax = found.plot(Figure().subplots())
    assert (len(ax.collections), len(ax.lines)) == (layers, layers)
    colours = [line.get_color() for line in ax.lines]
    assert len({tuple(to_rgba(colour)) for colour in colours}) == layers
    for points, line, start in zip(ax.collections, ax.lines, range(0, 2 * layers, 2), strict=True):
        end = start + (3 if start == 2 * layers - 2 else 2)
        np.testing.assert_array_equal(points.get_offsets(), torch.stack([across, up], 1)[start:end])
        np.testing.assert_allclose(points.get_facecolor()[0, :3], to_rgba(line.get_color())[:3])
        expected = scipy.stats.linregress(across[start:end], up[start:end])
        ends = np.array([across[start:end].min(), across[start:end].max()])
        np.testing.assert_array_equal(line.get_xdata(), ends)
        np.testing.assert_allclose(line.get_ydata(), expected.intercept + expected.slope * ends, atol=1e-6)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"{layer}: {found.by_layer[layer].rho:.2f}" for layer in names]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("selectivity", "importance")
    assert ax.get_title() == rf"pooled $\rho$ = {found.pooled.rho:.2f}"


def test_plot_leaves_out_dead_units_nan_and_inf(pair):
    x, y = pair
    values, selectivity = x.values.clone(), y.values.clone()
    values[0], values[1], selectivity[2] = inf, nan, 0.3
    ax = rank_correlation(score(values), score(selectivity, dead=DEAD), resamples=0).plot(Figure().subplots())
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), torch.tensor([[0.4, 0.1], [0.4, -0.2]]))
    assert len(ax.lines[0].get_xdata()) == 0  # no line through one place
    assert len(ax.collections[1].get_offsets()) == 3


def test_plot_of_plain_numbers_has_no_legend():
    ax = rank_correlation([1.0, 2, 3], [1.0, 3, 2], resamples=0).plot(Figure().subplots())
    assert ax.get_legend() is None
    assert len(ax.collections) == 1
