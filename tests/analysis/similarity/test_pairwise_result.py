"""PairwiseSimilarity: groups and clusters recomputed by hand, tables, plots in the order of the tree, files."""

import dataclasses
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdkernels.analysis.similarity.pairwise_result import PairwiseSimilarity
from tests.analysis.similarity.test_layer_similarity import BAD_FORMULA, assert_same_fields

NAN = float("nan")
NAMES = ("a", "b", "c", "d", "e")
GROUPS = ("x", "y", "x", "y", "x")


def distances(layers=2, networks=5, seed=0, is_symmetric=True):
    drawn = torch.rand(layers, networks, networks, generator=torch.Generator().manual_seed(seed)).double()
    drawn = drawn + drawn.mT if is_symmetric else 2 * drawn
    return drawn * (1 - torch.eye(networks)) / 2


def result(distance=None, names=NAMES, layers=("low", "high"), **more):
    return PairwiseSimilarity(
        distance=distances() if distance is None else distance, names=names, layers=layers, **more
    )


def alone(distance, **more):
    """Of one layer; names are n0, n1, ..."""
    distance = torch.as_tensor(distance, dtype=torch.float64)
    return result(distance[None], [f"n{place}" for place in range(len(distance))], "low", **more)


def axes(figsize=(4.2, 3.4)):
    return Figure(figsize=figsize, dpi=100, layout="constrained").subplots()


def joined(distance, count):
    """Average linkage as it is defined: the two clusters of the least mean distance become one."""
    found = [[network] for network in range(len(distance))]
    while len(found) > count:
        pairs = [(one, other) for place, one in enumerate(found) for other in found[place + 1 :]]
        one, other = min(pairs, key=lambda pair: np.mean([distance[i][j] for i in pair[0] for j in pair[1]]))
        found = [members for members in found if members not in (one, other)] + [one + other]
    number = {network: place for place, members in enumerate(sorted(found, key=min)) for network in members}
    return [number[network] for network in range(len(distance))]


def drawn_order(held, ax):
    """Which network each drawn row is, by its distances from the others, which are all different."""
    (image,) = ax.images
    drawn, rows = np.ma.filled(image.get_array(), np.nan), held.distance[0].numpy()
    found = [
        int(np.argmin([np.abs(np.sort(drawn[row]) - np.sort(other)).sum() for other in rows]))
        for row in range(len(rows))
    ]
    assert sorted(found) == list(range(len(rows)))
    np.testing.assert_array_equal(drawn, rows[np.ix_(found, found)])
    return found


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_to_pandas_has_each_pair_once_or_in_both_orders(is_symmetric):
    distance = distances(is_symmetric=is_symmetric)
    table = result(distance, groups=GROUPS, ranks=torch.arange(10).view(2, 5)).to_pandas()
    pairs = [(i, j) for i in range(5) for j in range(5) if (i < j if is_symmetric else i != j)]
    expected = [(layer, i, j) for layer in range(2) for i, j in pairs]
    assert table.layer.tolist() == [("low", "high")[layer] for layer, _, _ in expected]
    assert table["first"].tolist() == [NAMES[i] for _, i, _ in expected]
    assert table["second"].tolist() == [NAMES[j] for _, _, j in expected]
    assert table.first_group.tolist() == [GROUPS[i] for _, i, _ in expected]
    assert table.second_group.tolist() == [GROUPS[j] for _, _, j in expected]
    assert table.first_rank.tolist() == [5 * layer + i for layer, i, _ in expected]
    assert table.second_rank.tolist() == [5 * layer + j for layer, _, j in expected]
    assert table.distance.tolist() == [float(distance[place]) for place in expected]
    assert table.similarity.tolist() == [1 - float(distance[place]) for place in expected]
    assert not {"first_group", "first_rank"} & set(result(distance).to_pandas())


def test_symmetrised_is_the_mean_of_both_orders():
    distance = distances(is_symmetric=False)
    held = result(distance)
    assert not held.is_symmetric
    assert result().is_symmetric
    for layer, i, j in [(0, 0, 1), (1, 4, 2), (1, 2, 4), (0, 3, 3)]:
        expected = (float(distance[layer, i, j]) + float(distance[layer, j, i])) / 2
        assert float(held.symmetrised[layer, i, j]) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_between_groups_by_hand(is_symmetric):
    distance = distances(is_symmetric=is_symmetric)
    distance[1, 1, 3] = NAN  # of the one pair within y at the second layer one order is not known
    groups = ("x", "y", "x", "y", 3)
    table = result(distance, groups=groups).between()
    assert list(table) == ["layer", "kind", "first", "second", "distance", "std", "pairs"]
    places = {"x": (0, 2), "y": (1, 3), 3: (4,)}
    kinds = [("x", "x"), ("y", "y"), (3, 3), ("x", "y"), ("x", 3), ("y", 3)]
    assert table.layer.tolist() == ["low"] * 6 + ["high"] * 6
    assert table.kind.tolist() == (["within"] * 3 + ["between"] * 3) * 2
    assert list(zip(table["first"], table["second"], strict=True)) == kinds * 2
    for layer in range(2):
        for row, (first, second) in zip(table[6 * layer :].itertuples(), kinds, strict=False):
            pairs = [(i, j) for i in places[first] for j in places[second] if first != second or i < j]
            found = [float(distance[layer, i, j] + distance[layer, j, i]) / 2 for i, j in pairs]
            found = [number for number in found if number == number]
            assert row.pairs == len(found)
            assert row.distance == pytest.approx(np.mean(found) if found else NAN, nan_ok=True, rel=1e-14)
            assert row.std == pytest.approx(np.std(found, ddof=1) if len(found) > 1 else NAN, nan_ok=True, rel=1e-12)
    assert table.pairs.tolist() == [1, 1, 0, 4, 2, 2, 1, 0, 0, 4, 2, 2]


def test_between_takes_other_groups_or_none():
    held = result(groups=GROUPS)
    by_hand = [float(held.distance[0, i, j]) for i in (0, 1) for j in (2, 3, 4)]
    table = held.between(groups=[1, 1, 2, 2, 2])
    (row,) = table[(table.kind == "between") & (table.layer == "low")].itertuples()
    assert (row.first, row.second, row.pairs) == (1, 2, 6)
    assert row.distance == pytest.approx(np.mean(by_hand), rel=1e-14)
    table = result().between()
    assert table.kind.tolist() == ["all", "all"]
    assert table.pairs.tolist() == [10, 10]
    assert table["first"].isna().all()
    expected = [np.mean([float(distance[i, j]) for i in range(5) for j in range(i)]) for distance in distances()]
    np.testing.assert_allclose(table.distance, expected, rtol=1e-14)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_clusters_are_those_of_average_linkage(networks, seed, is_symmetric):
    distance = distances(1, networks, seed, is_symmetric)
    mean = ((distance + distance.mT) / 2)[0].tolist()
    for count in range(1, networks + 1):
        found = alone(distance[0]).clusters(count)
        assert found.dtype == torch.int64
        assert found.tolist() == joined(mean, count)


def test_linkage_is_neither_single_nor_complete():
    held = alone(torch.tensor([0.0, 1, 2.1, 4.05])[:, None].sub(torch.tensor([0.0, 1, 2.1, 4.05])).abs())
    assert held.clusters(2).tolist() == [0, 0, 0, 1]  # complete linkage: 0, 0, 1, 1
    places = torch.tensor([0.0, 1.0, 2.05, 3.1, 4.2])
    held = alone(places[:, None].sub(places).abs())
    assert held.clusters(2).tolist() == [0, 0, 1, 1, 1]  # single linkage: 0, 0, 0, 0, 1


def test_so_many_clusters_as_were_asked_for_also_of_equal_distances():
    held = alone(1 - torch.eye(5))
    assert [len(set(held.clusters(count).tolist())) for count in range(1, 6)] == [1, 2, 3, 4, 5]


def test_clusters_are_of_the_layer_that_was_said():
    low, high = distances(2, 6, seed=3)
    held = result(torch.stack([low, high]), tuple("abcdef"))
    assert joined(low.tolist(), 3) != joined(high.tolist(), 3)
    assert held.clusters(3, "low").tolist() == joined(low.tolist(), 3)
    assert held.clusters(3, "high").tolist() == joined(high.tolist(), 3)


def planted(groups, seed=0, gap=0.3):
    """Distances of about .4 within groups and more between, all different."""
    number = torch.tensor([sorted(set(groups)).index(group) for group in groups])
    noise = distances(1, len(groups), seed)[0] / 20
    return ((number[:, None] != number) * gap + 0.4 + noise) * (1 - torch.eye(len(groups)))


def test_plot_orders_networks_along_the_tree():
    groups = [0, 1, 2, 0, 1, 2, 0, 1]
    held = alone(planted(groups), settings={"method": "pwcca"})
    ax = held.plot(ax=axes())
    order = drawn_order(held, ax)
    runs = [groups[network] for network in order]
    assert sum(one != other for one, other in pairwise(runs)) == 2  # each group stands together
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"n{network}" for network in order]
    assert (ax.get_xlabel(), ax.get_title()) == ("8 networks, in the order of the rows", "low")
    assert not ax.lines
    assert ax.images[0].colorbar.ax.get_ylabel() == "PWCCA distance"
    assert {(text.get_position(), text.get_text()) for text in ax.texts} == {
        ((column, row), f"{float(held.distance[0, order[row], order[column]]):.2f}"[1:])
        for row in range(8)
        for column in range(8)
    }


def test_colours_are_of_the_range_off_the_diagonal():
    held = alone([[0, 0.5, 0.6], [0.5, 0, 0.7], [0.6, 0.7, 0]])
    (image,) = held.plot(ax=axes()).images
    assert image.get_clim() == (0.5, 0.7)
    np.testing.assert_array_equal(image.to_rgba(0.0)[:3], [1, 1, 1])
    assert image.colorbar.extend == "min"
    (image,) = alone([[0, 0, 0.6], [0, 0, 0.7], [0.6, 0.7, 0]]).plot(ax=axes()).images
    assert image.get_clim() == (0, 0.7)
    assert image.colorbar.extend == "neither"
    FigureCanvasAgg(alone(1 - torch.eye(3)).plot(ax=axes()).figure).draw()


def test_plot_by_names_is_as_it_is():
    held = alone(planted([0, 1, 2, 0, 1]))
    ax = held.plot(ax=axes(), by="names")
    assert drawn_order(held, ax) == [0, 1, 2, 3, 4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["n0", "n1", "n2", "n3", "n4"]


def boundaries(ax):
    """Where lines stand across, after a check that they stand down there too."""
    across = sorted({line.get_ydata()[0] for line in ax.lines if tuple(line.get_xdata()) == (0, 1)})
    down = sorted({line.get_xdata()[0] for line in ax.lines if tuple(line.get_ydata()) == (0, 1)})
    assert across == down
    return across


def test_lines_between_clusters():
    groups = [0, 1, 2, 0, 1, 2, 0, 1]
    held = alone(planted(groups))
    ax = held.plot(ax=axes(), clusters=3)
    sizes = [groups.count(group) for group in dict.fromkeys(groups[network] for network in drawn_order(held, ax))]
    assert boundaries(ax) == [sizes[0] - 0.5, sizes[0] + sizes[1] - 0.5]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 7.5), (7.5, -0.5))


def test_groups_stand_together_and_are_named():
    groups = ["late", "early", "late", "early", "early", "_late$"]
    held = alone(planted([0, 1, 2, 0, 1, 2]), groups=groups)  # which are no clusters
    ax = held.plot(ax=axes(), by="groups")
    order = drawn_order(held, ax)
    assert [groups[network] for network in order] == ["late"] * 2 + ["early"] * 3 + ["_late$"]
    tree = drawn_order(held, held.plot(ax=axes()))
    for members in (order[:2], order[2:5]):  # within a group, along the tree
        assert members == sorted(members, key=tree.index)
    assert boundaries(ax) == [1.5, 4.5]
    named = {label.get_text(): place for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert named == {"late": 0.5, "early": 3, "_late$": 5}
    FigureCanvasAgg(ax.figure).draw()


def test_along_the_tree_each_row_is_marked_by_its_group():
    groups = [int(place) for place in torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))]
    held = alone(planted([place % 4 for place in range(40)]))
    ax = held.plot(ax=axes(), groups=groups)
    labels = [groups[network] for network in drawn_order(held, ax)]
    colours = [None] * 40
    for patch in ax.patches:
        start = patch.get_y() + 0.5
        for row in range(round(start), round(start + patch.get_height())):
            assert colours[row] is None
            colours[row] = patch.get_facecolor()
    of_group = {label: {colours[row] for row in range(40) if labels[row] == label} for label in (0, 1, 2)}
    assert [len(found) for found in of_group.values()] == [1, 1, 1]
    assert len(set.union(*of_group.values())) == 3
    first = [next(iter(of_group[label])) for label in dict.fromkeys(groups)]  # dark to light as groups come
    assert (np.diff([np.dot(colour[:3], [0.299, 0.587, 0.114]) for colour in first]) > 0).all()
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    assert {label.get_text() for label in ax.get_yticklabels()} == {"0", "1", "2"}
    for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True):
        assert label.get_text() == str(labels[int(place)])
    boxes = sorted((box.y0, box.y1) for box in (label.get_window_extent() for label in ax.get_yticklabels()))
    assert all(one[1] < other[0] + 1 for one, other in pairwise(boxes))


def test_what_is_unknown_is_grey_and_far():
    held = alone([[0, 0.4, NAN, 0.9], [0.4, 0, 0.5, 0.9], [NAN, 0.5, 0, 0.9], [0.9, 0.9, 0.9, 0]])
    ax = held.plot(ax=axes())
    assert ax.images[0].get_array().mask.sum() == 2
    names = "".join(label.get_text() for label in ax.get_yticklabels())
    assert "n0n1n2" in names or "n2n1n0" in names
    FigureCanvasAgg(alone(torch.full((3, 3), NAN)).plot(ax=axes()).figure).draw()


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_plot_by_layer_draws_a_line_a_kind(is_symmetric):
    held = result(distances(is_symmetric=is_symmetric), groups=("x", "y", "x", "y", "z"), settings={"method": "cka"})
    table = held.between()
    ax = held.plot_by_layer(ax=axes())
    assert [line.get_label() for line in ax.lines] == ["within x", "within y", "x / y", "x / z", "y / z"]
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "--", "--", "--"]
    assert len({line.get_color() for line in ax.lines}) == 5
    assert len({line.get_marker() for line in ax.lines}) == 5
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [line.get_label() for line in ax.lines]
    kinds = [("x", "x"), ("y", "y"), ("x", "y"), ("x", "z"), ("y", "z")]
    for (first, second), line, band in zip(kinds, ax.lines, ax.collections, strict=True):
        rows = table[(table["first"] == first) & (table["second"] == second)]
        np.testing.assert_array_equal(line.get_ydata(), rows.distance)
        assert line.get_xdata().tolist() == [0, 1]
        if rows.pairs.max() > 1:
            box = band.get_datalim(ax.transData)
            np.testing.assert_allclose(box.y0, (rows.distance - rows["std"]).min(), rtol=1e-12)
            np.testing.assert_allclose(box.y1, (rows.distance + rows["std"]).max(), rtol=1e-12)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["low", "high"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "CKA distance")
    FigureCanvasAgg(ax.figure).draw()


def test_plot_by_layer_without_groups_or_with_others():
    held = result()
    ax = held.plot_by_layer(ax=axes())
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), held.between().distance)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["all pairs"]
    assert [line.get_label() for line in held.plot_by_layer([1, 1, 2, 2, 2], axes()).lines] == [
        "within 1",
        "within 2",
        "1 / 2",
    ]


def test_names_are_drawn_as_they_are():
    names = [BAD_FORMULA, "_hidden", "$a$"]
    held = PairwiseSimilarity(
        distance=distances(1, 3), names=names, layers=BAD_FORMULA, settings={"method": BAD_FORMULA}
    )
    ax = held.plot(ax=axes(), by="names")
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert ax.get_title() == BAD_FORMULA
    for drawn in (ax, held.plot(ax=axes(), groups=names), held.plot_by_layer(ax=axes())):
        FigureCanvasAgg(drawn.figure).draw()
    ax = held.plot_by_layer(["_x", "_x", BAD_FORMULA], axes())
    FigureCanvasAgg(ax.figure).draw()
    texts = ax.get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["within _x", f"_x / {BAD_FORMULA}"]
    assert not any(text.get_parse_math() for text in texts)


def test_some_networks():
    held = result(groups=GROUPS, ranks=torch.arange(10).view(2, 5), settings={"method": "cka"})
    some = held.of(["d", "a"])
    assert (some.names, some.groups, some.layers) == (("d", "a"), ("y", "x"), ("low", "high"))
    assert some.ranks.tolist() == [[3, 0], [8, 5]]
    assert some.distance[1].tolist() == [[0, float(held.distance[1, 3, 0])], [float(held.distance[1, 0, 3]), 0]]
    assert some.method == "cka"
    assert held.of("b").distance.tolist() == [[[0]], [[0]]]
    with pytest.raises(ValueError, match=r"names: \['f'\] are not among the networks, \['a', "):
        held.of(["a", "f"])


def test_one_network():
    held = alone([[0.0]], groups=["x"])
    assert held.clusters(1).tolist() == [0]
    assert len(held.to_pandas()) == 0
    assert held.between().pairs.tolist() == [0]
    FigureCanvasAgg(held.plot(ax=axes()).figure).draw()
    with pytest.raises(ValueError, match="'n0' is the only network: there is no pair to draw"):
        held.plot_by_layer(ax=axes())


@pytest.mark.parametrize("more", [{}, {"groups": ("x", 1, 2.5, True, "x"), "ranks": torch.ones(2, 5), "examples": 9}])
def test_save_and_load_keep_everything(more, tmp_path):
    before = result(settings={"method": "pwcca", "side": "first"}, versions={"torch": "2"}, **more)
    before.save(tmp_path / "pairs.npz")
    assert_same_fields(PairwiseSimilarity.load(tmp_path / "pairs.npz"), before)
    (tmp_path / "text.npz").write_text("not a result")
    with pytest.raises(ValueError, match="not a saved PairwiseSimilarity"):
        PairwiseSimilarity.load(tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        (
            {"distance": torch.zeros(5, 5)},
            ValueError,
            r"distance \[5, 5\] must be \[2, 5, 5\]: layers, and twice a place",
        ),
        (
            {"distance": torch.ones(2, 5, 5)},
            ValueError,
            r"\[2, 5, 5\] has up to 1 on the diagonal.*give 1 - similarity",
        ),
        ({"names": ("a", "b")}, ValueError, r"distance \[2, 5, 5\] must be \[2, 2, 2\]"),
        ({"names": ("a", "b", "c", "d", "a")}, ValueError, "names holds 'a' twice"),
        ({"names": (1, 2, 3, 4, 5)}, TypeError, "names holds 1, a int; give strings"),
        ({"layers": ()}, ValueError, "layers is empty"),
        ({"groups": ("x", "y")}, ValueError, "groups are 2 labels for 5 networks; give one for each"),
        ({"groups": "xyxyx"}, TypeError, "groups is a str; give a sequence of labels"),
        (
            {"ranks": torch.ones(5, 2)},
            ValueError,
            r"ranks \[5, 2\] must be \[2, 5\]: layers, and one for each of names",
        ),
    ],
    ids=str,
)
def test_bad_fields_are_refused(changed, error, says):
    with pytest.raises(error, match=says):
        dataclasses.replace(result(), **changed)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda held: held.clusters(2), r"layer=None: this is of one layer; say which of \['low', 'high'\]"),
        (lambda held: held.plot("mid", axes()), r"layer='mid': this is of one layer; say which of"),
        (lambda held: held.clusters(0, "low"), r"count=0 must be within 1\.\.5: .* the number of networks"),
        (lambda held: held.clusters(6, "low"), r"count=6 must be within 1\.\.5"),
        (lambda held: held.clusters(2.0, "low"), r"count is a float; give an int"),
        (
            lambda held: held.clusters(2, "high"),
            r"at layer 'high' some distances of \['b', 'd'\] are nan.*\.of\(names\)",
        ),
        (lambda held: held.between([1, 2]), "groups are 2 labels for 5 networks"),
        (lambda held: held.plot_by_layer([1, 2], axes()), "groups are 2 labels for 5 networks"),
        (lambda held: held.plot("low", axes(), by="size"), "by='size': choose 'clusters', 'groups' or 'names'"),
        (lambda held: held.plot("low", axes(), by="groups"), "by='groups', and there are none; give groups="),
        (lambda held: held.plot("low", axes(), by="names", clusters=2), "clusters=2 of networks that stand by names"),
    ],
)
def test_bad_questions_are_refused(call, says):
    distance = distances()
    distance[1, 1, 3] = NAN
    with pytest.raises((ValueError, TypeError), match=says):
        call(result(distance))


def test_scipy_is_asked_for_when_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    held = result()
    assert len(held.between()) == 2
    for call in (lambda: held.clusters(2, "low"), lambda: held.plot("low", axes())):
        with pytest.raises(ImportError, match=r"needs scipy.*sdkernels\[paper\]"):
            call()
