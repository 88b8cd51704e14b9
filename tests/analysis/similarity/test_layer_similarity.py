"""LayerSimilarity: which layers answer to each other, tables, plots, names as they are, files, refusals."""

import dataclasses
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import sdkernels as sd
from sdkernels.analysis.similarity.layer_similarity import LayerSimilarity

DISTANCE = [[0.1, 0.5, 0.62], [0.4, float("nan"), 0.3]]


def result(distance=DISTANCE, layers_a=("conv", "fc"), layers_b=("conv", "mid", "fc"), **more):
    return LayerSimilarity(distance=distance, layers_a=layers_a, layers_b=layers_b, **more)


def axes(figsize=(4.2, 3.2)):
    return Figure(figsize=figsize, dpi=100, layout="constrained").subplots()


def assert_same_fields(loaded, before):
    for field in dataclasses.fields(before):
        given, expected = getattr(loaded, field.name), getattr(before, field.name)
        if isinstance(expected, torch.Tensor):
            assert given.dtype == expected.dtype, field.name
            np.testing.assert_array_equal(given, expected, err_msg=field.name)
        else:
            assert given == expected, field.name
            assert type(given) is type(expected), field.name


def test_distances_are_float64_of_their_own():
    given = np.array([[0.25, 0.5]], dtype=np.float32)
    held = result(given, ("a",), ("b", "c"))
    given[:] = 9
    assert held.distance.dtype == torch.float64
    assert held.distance.tolist() == [[0.25, 0.5]]
    assert held.similarity.tolist() == [[0.75, 0.5]]
    tensor = torch.tensor([[0.5]], dtype=torch.float64)
    held = result(tensor, ("a",), ("b",))
    tensor[:] = 9
    assert held.distance.tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("layers_a", "layers_b", "expected"),
    [
        (["x", "y"], ["x", "y"], [[0, 0], [1, 1]]),
        (["x", "y"], ["y", "x"], [[0, 1], [1, 0]]),
        (["x", "y"], ["u", "v"], [[0, 0], [1, 1]]),
        (["x", "y", "z"], ["x", "y", "v"], [[0, 0], [1, 1], [2, 2]]),
        (["x", "y", "z"], ["y", "z", "v"], [[1, 0], [2, 1]]),
        (["x", "z"], ["x", "y", "z"], [[0, 0], [1, 2]]),
        (["x", "z"], ["u", "x", "y"], [[0, 1]]),
    ],
    ids=str,
)
def test_matched_layers(layers_a, layers_b, expected):
    held = result(torch.zeros(len(layers_a), len(layers_b)), layers_a, layers_b)
    assert held.matched.dtype == torch.int64
    assert held.matched.tolist() == expected


def test_layers_that_do_not_answer_to_each_other_are_refused():
    held = result(torch.zeros(1, 2), ["x"], ["u", "v"])
    for ask in (lambda: held.matched, lambda: held.plot_by_layer(axes())):
        with pytest.raises(ValueError, match=r"no layer of \['x'\] has the name of one of \['u', 'v'\]"):
            ask()


def test_to_pandas_has_a_row_a_known_distance():
    table = result(rank_a=[3, 4], rank_b=torch.tensor([5, 6, 7])).to_pandas()
    assert table.layer_a.tolist() == ["conv"] * 3 + ["fc"] * 2
    assert table.layer_b.tolist() == ["conv", "mid", "fc", "conv", "fc"]
    assert table.distance.tolist() == [0.1, 0.5, 0.62, 0.4, 0.3]
    np.testing.assert_allclose(table.similarity, [0.9, 0.5, 0.38, 0.6, 0.7], rtol=1e-15)
    assert table.rank_a.tolist() == [3, 3, 3, 4, 4]
    assert table.rank_b.tolist() == [5, 6, 7, 5, 7]
    assert "rank_a" not in result().to_pandas()


def test_plot_is_a_heat_map_with_numbers():
    ax = result(settings={"method": "pwcca"}, name_a="old", name_b="$new").plot(axes())
    (image,) = ax.images
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), DISTANCE)
    assert image.get_clim() == (0.1, 0.62)
    assert tuple(image.get_extent()) == (-0.5, 2.5, 1.5, -0.5)  # the first layer at the top
    written = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert written == {((0, 0), ".10"), ((1, 0), ".50"), ((2, 0), ".62"), ((0, 1), ".40"), ((2, 1), ".30")}
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    assert (colours[".10"], colours[".62"]) == ("white", "black")  # upon dark and light
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv", "fc"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["conv", "mid", "fc"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer of old", "layer of $new")
    assert image.colorbar.ax.get_ylabel() == "PWCCA distance"
    FigureCanvasAgg(ax.figure).draw()
    grey = image.to_rgba(np.linspace(0.1, 0.62, 9))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()  # near is dark, in grey print too
    assert np.ptp(image.to_rgba(np.ma.masked_invalid([np.nan]))[0, :3]) == 0  # and what is unknown is grey


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "distance"),
        ({"method": "cca"}, "mean CCA distance"),
        ({"method": "svcca"}, "SVCCA distance"),
        ({"method": "cka"}, "CKA distance"),
        ({"method": "Procrustes"}, "Procrustes distance"),
    ],
    ids=str,
)
def test_the_method_is_named(settings, expected):
    held = result(settings=settings)
    assert held.plot(axes()).images[0].colorbar.ax.get_ylabel() == expected
    assert held.plot_by_layer(axes()).get_ylabel() == expected


def test_names_of_many_layers_do_not_touch():
    layers = [f"layer{stage}.{block}.conv{place}" for stage in range(1, 5) for block in (0, 1, 2) for place in (1, 2)]
    ax = result(torch.rand(24, 24, generator=torch.Generator().manual_seed(0)), layers, layers).plot(axes((4.2, 3.6)))
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    assert not ax.texts  # cells are too small for numbers
    for labels, low, high in ((ax.get_yticklabels(), "y0", "y1"), (ax.get_xticklabels(), "x0", "x1")):
        assert [label.get_text() for label in labels] == layers
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
        ends = sorted((getattr(box, low), getattr(box, high)) for box in boxes)
        assert all(one[1] < other[0] + 1 for one, other in pairwise(ends))
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)  # within the figure


def test_of_too_many_layers_some_are_named_at_their_places():
    layers = [f"block{place}" for place in range(150)]
    ax = result(torch.zeros(150, 150), layers, layers).plot(axes())
    for ticks, labels in ((ax.get_yticks(), ax.get_yticklabels()), (ax.get_xticks(), ax.get_xticklabels())):
        assert 10 < len(ticks) < 75
        assert [label.get_text() for label in labels] == [layers[int(place)] for place in ticks]


def test_long_names_lose_their_middle_unless_they_would_be_the_same():
    apart = ["a_very_long_name_of_a_layer_that_is_first", "another_long_name_of_a_layer_that_is_second"]
    ax = result(torch.zeros(2, 2), apart, apart).plot(axes())
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "a_very_l…yer_that_is_first",
        "another_…er_that_is_second",
    ]
    alike = ["features.block1.dense_layer_1.conv", "features.block2.dense_layer_1.conv"]
    ax = result(torch.zeros(2, 2), alike, alike).plot(axes())
    assert [label.get_text() for label in ax.get_yticklabels()] == alike


def test_plot_by_layer_draws_matched_layers():
    ax = result(settings={"method": "cka"}).plot_by_layer(axes(), label="seeds", color="black")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1]
    assert line.get_ydata().tolist() == [0.1, 0.3]
    assert (line.get_label(), line.get_color()) == ("seeds", "black")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["conv", "fc"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "CKA distance")
    low, high = ax.get_ylim()
    assert -0.02 < low < 0 < 0.3 < high
    ax = result([[0.1, 0.2], [0.3, 0.4]], ["x", "y"], ["x", "v"]).plot_by_layer(axes())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y / v"]


BAD_FORMULA = r"$\nosuch{_$"


def test_names_are_drawn_as_they_are():
    names = [BAD_FORMULA, "_hidden", "$a$"]
    held = result(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), names, names, name_a=BAD_FORMULA)
    held = dataclasses.replace(held, settings={"method": BAD_FORMULA}, name_b=BAD_FORMULA)
    for ax in (held.plot(axes()), held.plot_by_layer(axes())):
        FigureCanvasAgg(ax.figure).draw()
        assert [label.get_text() for label in ax.get_xticklabels()] == names
        texts = [*ax.get_xticklabels(), ax.yaxis.label, *(ax.get_yticklabels() if ax.images else [])]
        assert not any(text.get_parse_math() for text in texts)


def test_nothing_known_is_drawn():
    held = result(torch.full((2, 3), torch.nan))
    for ax in (held.plot(axes()), held.plot_by_layer(axes())):
        FigureCanvasAgg(ax.figure).draw()
    FigureCanvasAgg(result(torch.full((2, 3), 0.4)).plot(axes()).figure).draw()


def test_plots_make_their_own_figures():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    for draw in (result().plot, result().plot_by_layer):
        ax = draw()
        assert ax.figure.number not in before
        pyplot.close(ax.figure)


def test_save_and_load_keep_everything(tmp_path):
    before = result(
        rank_a=[3, 4],
        rank_b=[5, 6, 7],
        name_a="old",
        name_b="new",
        examples=100,
        settings={"method": "svcca", "variance": 0.99, "side": None, "shape": (1, 2)},
        versions={"torch": "2"},
    )
    before.save(tmp_path / "layers.npz")
    loaded = LayerSimilarity.load(tmp_path / "layers.npz")
    assert_same_fields(loaded, before)
    assert loaded.settings["shape"] == [1, 2]
    result().save(tmp_path / "layers.npz")
    assert_same_fields(LayerSimilarity.load(tmp_path / "layers.npz"), result())
    assert [path.name for path in tmp_path.iterdir()] == ["layers.npz"]


def test_load_refuses_other_files(tmp_path):
    result().save(tmp_path / "layers.npz")
    with pytest.raises(ValueError, match=r"its format is 'sdkernels.LayerSimilarity/1'; this version reads"):
        sd.AblationCurve.load(tmp_path / "layers.npz")
    (tmp_path / "text.npz").write_text("not a result")
    with pytest.raises(ValueError, match="not a saved LayerSimilarity"):
        LayerSimilarity.load(tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"distance": [[0.1, 0.2]]}, ValueError, r"distance \[1, 2\] must be \[2, 3\]: a row for each of layers_a"),
        ({"distance": torch.zeros(3, 2)}, ValueError, r"distance \[3, 2\] must be \[2, 3\]"),
        ({"distance": torch.full((2, 3), torch.inf)}, ValueError, r"\[2, 3\] holds infinite numbers; give nan"),
        (
            {"distance": torch.full((2, 3), -0.1)},
            ValueError,
            r"distance \[2, 3\] goes down to -0.1, and none is below 0",
        ),
        ({"distance": "near"}, TypeError, "distance is a str; give a tensor or an array of numbers"),
        (
            {"distance": torch.zeros(2, 3, dtype=torch.cfloat)},
            TypeError,
            "distance is a torch.complex64 tensor .*; give real numbers",
        ),
        ({"rank_a": [1, 2, 3]}, ValueError, r"rank_a \[3\] must be \[2\]: one for each of layers_a"),
        ({"rank_b": [1, 2]}, ValueError, r"rank_b \[2\] must be \[3\]: one for each of layers_b"),
        ({"rank_b": [1, 2, -3]}, ValueError, "rank_b must be counts, 0 or more"),
        ({"rank_b": [1, 2, 0.5]}, ValueError, "rank_b must be counts, 0 or more: whole numbers"),
        ({"layers_a": ("x", "x")}, ValueError, "layers_a holds 'x' twice; give each a name of its own"),
        ({"layers_b": ("x", "y", 3)}, TypeError, "layers_b holds 3, a int; give strings"),
        ({"layers_a": ()}, ValueError, "layers_a is empty"),
        ({"examples": 2.5}, TypeError, "examples is a float; give an int"),
        ({"settings": {"solver": torch.zeros(1)}}, TypeError, "settings must be a mapping of what JSON holds"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(changed, error, says):
    with pytest.raises(error, match=says):
        dataclasses.replace(result(), **changed)


def test_rounding_below_nought_is_no_error():
    assert result(torch.full((2, 3), -1e-9)).distance.max() < 0


@pytest.mark.parametrize("package", ["pandas", "matplotlib.pyplot"])
def test_a_missing_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    call = result().to_pandas if package == "pandas" else result().plot
    with pytest.raises(ImportError, match=rf"\(\) needs {package.partition('.')[0]}.*sdkernels\[paper\]"):
        call()
