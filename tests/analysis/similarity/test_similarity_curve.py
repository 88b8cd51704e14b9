"""SimilarityCurve: tables, lines over training and over steps, names as they are, files, refusals."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdkernels.analysis.similarity.similarity_curve import SimilarityCurve
from tests.analysis.similarity.test_layer_similarity import BAD_FORMULA, assert_same_fields

DISTANCE = [[0.5, 0.25, 0.125, 0.0], [0.75, 0.625, 0.375, 0.0]]


def curve(distance=DISTANCE, layers=("lower", "upper"), moments=(0, 10, 100, 1000), **more):
    return SimilarityCurve(distance=distance, layers=layers, moments=moments, **more)


def axes(figsize=(4.2, 2.8)):
    return Figure(figsize=figsize, dpi=100, layout="constrained").subplots()


def many(layers, moments=20):
    distance = torch.rand(layers, moments, generator=torch.Generator().manual_seed(0))
    return curve(distance, [f"block{place}.conv" for place in range(layers)], range(moments))


def luminance(lines):
    from matplotlib.colors import to_rgb

    return np.array([to_rgb(line.get_color()) for line in lines]) @ [0.299, 0.587, 0.114]


def test_to_pandas_is_long():
    table = curve(ranks=[[3, 4, 5, 6], [7, 8, 9, 10]]).to_pandas()
    assert table.layer.tolist() == ["lower"] * 4 + ["upper"] * 4
    assert table.moment.tolist() == [0, 10, 100, 1000] * 2
    assert table.distance.tolist() == DISTANCE[0] + DISTANCE[1]
    assert table.similarity.tolist() == [0.5, 0.75, 0.875, 1, 0.25, 0.375, 0.625, 1]
    assert table["rank"].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert "rank" not in curve().to_pandas()


def test_plot_draws_a_line_a_layer():
    ax = curve(settings={"method": "pwcca"}, reference=1000).plot(axes())
    assert [line.get_label() for line in ax.lines] == ["lower", "upper"]
    for line, distance in zip(ax.lines, DISTANCE, strict=True):
        assert line.get_xdata().tolist() == [0, 10, 100, 1000]
        assert line.get_ydata().tolist() == distance
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["lower", "upper"]
    assert ax.get_xlabel() == "checkpoint"
    assert ax.get_ylabel() == "PWCCA distance\nfrom checkpoint 1000"
    assert ax.get_xscale() == "linear"
    assert ax.get_ylim()[0] < 0 < 0.75 < ax.get_ylim()[1]


def test_steps_are_named():
    ax = curve(what="steps", reference=3, moments=range(4)).plot(axes())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step of the sequence", "distance\nfrom step 3")
    assert curve(what="steps").plot(axes()).get_ylabel() == "distance"


def test_numbers_out_of_order_are_drawn_in_order():
    ax = curve(moments=(10, 0, 1000, 100)).plot(axes())
    assert ax.lines[0].get_xdata().tolist() == [0, 10, 100, 1000]
    assert ax.lines[0].get_ydata().tolist() == [0.25, 0.5, 0.0, 0.125]


def test_strings_stand_in_their_order():
    ax = curve(moments=("init", "_b", BAD_FORMULA, 7), reference=BAD_FORMULA).plot(axes())
    FigureCanvasAgg(ax.figure).draw()
    assert ax.lines[1].get_xdata().tolist() == [0, 1, 2, 3]
    assert ax.lines[1].get_ydata().tolist() == DISTANCE[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["init", "_b", BAD_FORMULA, "7"]
    assert not ax.yaxis.label.get_parse_math()


def test_a_logarithmic_axis_has_a_place_for_nought():
    ax = curve().plot(axes(), log=True)
    assert ax.get_xscale() == "symlog"
    places = ax.transData.transform([(moment, 0) for moment in (0, 10, 100, 1000)])[:, 0]
    assert np.isfinite(places).all()
    np.testing.assert_allclose(places[2] - places[1], places[3] - places[2], rtol=1e-6)
    FigureCanvasAgg(ax.figure).draw()
    FigureCanvasAgg(curve(moments=(1, 2, 4, 8)).plot(axes(), log=True).figure).draw()


@pytest.mark.parametrize(
    ("moments", "says"),
    [
        (("a", "b", "c", "d"), r"log=True is for moments that are numbers; these are \['a', 'b', 'c'\]"),
        ((-1, 0, 1, 2), "log=True is for moments of 0 or more, and some above; these go from -1"),
    ],
    ids=str,
)
def test_a_logarithmic_axis_of_other_moments_is_refused(moments, says):
    with pytest.raises(ValueError, match=says):
        curve(moments=moments).plot(axes(), log=True)


@pytest.mark.parametrize("layers", [2, 4, 22])
def test_lines_go_from_dark_to_light_and_stay_visible(layers):
    shade = luminance(many(layers).plot(axes()).lines)
    assert (np.diff(shade) > 0).all()
    assert shade[0] < 0.2
    assert 0.6 < shade[-1] < 0.85


def test_few_lines_have_markers_and_many_have_dashes():
    few, more = many(4).plot(axes()).lines, many(22).plot(axes()).lines
    assert len({line.get_marker() for line in few}) == 4
    assert {line.get_marker() for line in more} == {"None"}
    assert all(one.get_linestyle() != other.get_linestyle() for one, other in pairwise(more))


@pytest.mark.parametrize("layers", [1, 2, 22])
def test_the_legend_is_within_the_figure_and_hides_nothing(layers):
    ax = many(layers).plot(axes((4.2, 3.2)))
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    legend, box = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert legend.x0 >= box.x1
    assert legend.x1 <= ax.figure.bbox.x1 + 1
    assert legend.y0 >= 0
    assert len(ax.get_legend().get_texts()) == layers
    assert box.width > 0.4 * ax.figure.bbox.width


def test_names_are_drawn_as_they_are():
    names = [BAD_FORMULA, "_hidden"]
    ax = curve(layers=names, settings={"method": BAD_FORMULA}).plot(axes())
    FigureCanvasAgg(ax.figure).draw()
    texts = ax.get_legend().get_texts()
    assert [text.get_text() for text in texts] == names
    assert not any(text.get_parse_math() for text in texts)
    handles = ax.get_legend().legend_handles
    for handle, line in zip(handles, ax.lines, strict=True):
        assert np.array_equal(handle.get_color(), line.get_color())


def test_nothing_known_is_drawn():
    FigureCanvasAgg(curve(torch.full((2, 4), torch.nan)).plot(axes()).figure).draw()
    FigureCanvasAgg(curve([[0.0]], ["a"], [5]).plot(axes(), log=True).figure).draw()


def test_save_and_load_keep_everything(tmp_path):
    before = curve(
        moments=("init", 0.5, 7, "end"),
        what="steps",
        reference="end",
        ranks=[[3, 4, 5, 6], [7, 8, 9, 10]],
        examples=12,
        settings={"method": "cca"},
        versions={"torch": "2"},
    )
    before.save(tmp_path / "curve.npz")
    assert_same_fields(SimilarityCurve.load(tmp_path / "curve.npz"), before)
    curve().save(tmp_path / "curve.npz")
    assert_same_fields(SimilarityCurve.load(tmp_path / "curve.npz"), curve())
    (tmp_path / "text.npz").write_text("not a result")
    with pytest.raises(ValueError, match="not a saved SimilarityCurve"):
        SimilarityCurve.load(tmp_path / "text.npz")


def test_labels_of_numpy_and_torch_are_numbers(tmp_path):
    held = curve(moments=np.array([1, 2, 4, 8]), reference=np.float32(8))
    assert held.moments == curve(moments=torch.tensor([1, 2, 4, 8])).moments == (1, 2, 4, 8)
    assert [type(moment) for moment in held.moments] == [int] * 4
    held.save(tmp_path / "curve.npz")
    assert_same_fields(SimilarityCurve.load(tmp_path / "curve.npz"), held)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"layers": ("a",)}, ValueError, r"distance \[2, 4\] must be \[1, 4\]: a row for each of layers"),
        ({"distance": torch.zeros(2)}, ValueError, r"distance \[2\] must be \[2, 2\]"),
        ({"distance": torch.tensor(0.5)}, ValueError, r"distance \[\] must be \[2, 0\]"),
        ({"distance": torch.zeros(2, 0), "moments": ()}, ValueError, r"distance \[2, 0\] is of no moment at all"),
        ({"moments": (1, 2)}, ValueError, "moments are 2 labels for 4 columns of distance; give one for each"),
        ({"moments": (1, 2, 1, 3)}, ValueError, "moments holds 1 twice; give each a label of its own"),
        ({"moments": (1, 2, None, 3)}, TypeError, "moments holds None, a NoneType; give strings or numbers"),
        ({"moments": (1, 2, float("nan"), 3)}, ValueError, "moments holds nan; give finite numbers, or strings"),
        ({"moments": "abcd"}, TypeError, "moments is a str; give a sequence of labels"),
        ({"what": "epochs"}, ValueError, "what='epochs': choose 'training' or 'steps'"),
        ({"reference": [1]}, TypeError, r"reference holds \[1\], a list"),
        (
            {"ranks": [[1, 2, 3, 4]]},
            ValueError,
            r"ranks \[1, 4\] must be \[2, 4\]: layers, and one for each of moments",
        ),
        ({"layers": ("a", "a")}, ValueError, "layers holds 'a' twice"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(changed, error, says):
    with pytest.raises(error, match=says):
        dataclasses.replace(curve(), **changed)
