"""The heat map: cells, colours, lines and names, few units and many."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdkernels.analysis.heat_map import _apart, draw_heat_map


def drawn(values, layers, counts, *, diverging=True, figsize=(3.3, 3.0)):
    figure = Figure(figsize=figsize, dpi=100, layout="constrained")
    ax = figure.subplots()
    image = draw_heat_map(ax, values, layers, counts, label="difference", diverging=diverging)
    return ax, image


def test_few_units_are_drawn_as_they_are():
    values = torch.arange(-4.0, 20).view(8, 3)
    ax, image = drawn(values, ("a", "b", "c"), (5, 2, 1))
    np.testing.assert_array_equal(image.get_array(), values)
    assert tuple(image.get_extent()) == (-0.5, 2.5, 7.5, -0.5)  # the first unit at the top
    boundaries = [line.get_ydata()[0] for line in ax.lines if tuple(line.get_xdata()) == (0, 1)]
    assert boundaries == [4.5, 6.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.get_yticks(), [2, 5.5, 7], atol=0.3)
    assert ax.get_ylim() == (7.5, -0.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("class", "units")
    assert ax.figure.axes[1].get_ylabel() == "difference"
    FigureCanvasAgg(ax.figure).draw()


def test_differences_are_white_at_nought_and_as_strong_on_either_side():
    _, image = drawn(torch.tensor([[-0.25, 0.0], [torch.nan, 0.125]]), ("a",), (2,))
    assert image.get_clim() == (-0.25, 0.25)
    nought, least, nan = image.to_rgba(np.ma.masked_invalid([0.0, -0.25, np.nan]))[:, :3]
    assert nought.min() > 0.95
    assert least.argmax() == 2  # blue
    np.testing.assert_array_equal(nan, [0.6] * 3)


def test_other_numbers_go_from_dark_to_light():
    _, image = drawn(torch.tensor([[1.0, 2.0], [torch.nan, 5.0]]), ("a",), (2,), diverging=False)
    assert image.get_clim() == (1, 5)
    grey = image.to_rgba(np.linspace(1, 5, 9))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()
    np.testing.assert_array_equal(image.to_rgba(image.get_array())[1, 0, :3], [0.6] * 3)


@pytest.mark.parametrize("value", [0.0, torch.nan])
@pytest.mark.parametrize("diverging", [True, False])
def test_nothing_to_show_is_drawn(value, diverging):
    ax, _ = drawn(torch.full((4, 2), value), ("a", "b"), (3, 1), diverging=diverging)
    FigureCanvasAgg(ax.figure).draw()


def test_of_many_units_the_strongest_of_each_cell_are_seen():
    values = torch.zeros(3000, 10)
    values[1234, 7], values[2999, 0], values[0, 3], values[64, 1] = -0.5, 0.25, torch.nan, 1.0
    ax, image = drawn(values, ("a", "b"), (64, 2936))
    shown = image.get_array()
    assert shown.shape == (3000, 10)
    for unit, label, other in ((1234, 7, 8), (2999, 0, 1), (64, 1, 2)):
        assert shown[unit, label] == values[unit, label]
        of_cell = (shown[:, label] == values[unit, label]).nonzero()[0]
        assert 3000 / 300 <= len(of_cell) <= 3000 / 200
        assert (shown[:, other] != values[unit, label]).all()
    assert (shown[:64, 1] == 0).all()  # cells do not reach over layers
    assert not shown.mask.any()  # a cell is grey only if nothing in it is known
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    left, bottom, right, top = (int(edge) for edge in ax.get_window_extent().extents)
    inside = pixels[pixels.shape[0] - top : pixels.shape[0] - bottom, left + 2 : right - 2]
    assert ((inside[..., 2] - inside[..., 0]) > 50).any()  # -0.5 in blue
    assert ((inside[..., 0] - inside[..., 2]) > 60).any()  # 1 in dark red


def test_many_classes_share_cells_too():
    values = torch.zeros(2, 2000)
    values[1, 1501] = -3
    _, image = drawn(values, ("a",), (2,))
    found = (image.get_array()[1] == -3).nonzero()[0]
    assert found.min() <= 1501 <= found.max()
    assert 2000 / 330 <= len(found) <= 12
    assert (image.get_array()[0] == 0).all()


def test_a_cell_of_nothing_but_nan_is_grey():
    values = torch.ones(3000, 2)
    values[:1500] = torch.nan
    _, image = drawn(values, ("a", "b"), (1500, 1500))
    np.testing.assert_array_equal(image.get_array().mask[:, 0], np.arange(3000) < 1500)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12).map(sorted), st.floats(0.01, 1))
def test_names_stand_apart_in_order_and_within(middles, share):
    gap = 101 * share / len(middles)
    places = _apart(np.array(middles), gap, 101)
    assert (np.diff(places) >= gap - 1e-9).all()
    assert places[0] >= -0.5 + gap / 2 - 1e-9
    assert places[-1] <= 100.5 - gap / 2 + 1e-9
    if all(later - earlier >= gap for earlier, later in pairwise(middles)) and (
        gap / 2 - 0.5 <= middles[0] and middles[-1] <= 100.5 - gap / 2
    ):
        np.testing.assert_allclose(places, middles, atol=1e-9)


def test_names_that_would_touch_move_as_little_as_may_be():
    np.testing.assert_allclose(_apart(np.array([20.0, 50, 50, 80]), 10, 101), [20, 45, 55, 80])
    np.testing.assert_allclose(_apart(np.array([50.0, 51, 52, 80]), 10, 101), [41, 51, 61, 80])


@pytest.mark.parametrize("shape", [(7, 3), (8,), (3, 8)])
def test_other_numbers_of_units_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[8, L\], a row for each unit of \['a', 'b'\]"):
        drawn(torch.zeros(shape), ("a", "b"), (5, 3))
