"""A number a unit: by layer, as a table, as a picture, and as what orders are sorted by."""

import numpy as np
import pytest
import torch
from torch import nn

import sdkernels as sd


def scored(values, counts=(3, 2), dead=None, name="score") -> sd.UnitScore:
    layers = tuple(f"{1 + 2 * i}" for i in range(len(counts)))
    return sd.UnitScore(name=name, values=torch.tensor(values), layers=layers, unit_counts=counts, dead=dead)


@pytest.fixture
def network(seeds_torch):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3)).eval()
    return model, (torch.randn(30, 4), torch.randint(0, 3, (30,)))


def orders_by(network, orders, layers=("1", "3")) -> list[list[int]]:
    model, data = network
    return sd.cumulative_ablation(model, list(layers), data, orders=orders, points="all").orders.tolist()


def test_units_are_split_and_picked_by_layer():
    score = scored([0.5, 0.1, 0.9, 3.0, 2.0], dead=torch.tensor([0, 1, 0, 0, 1]))
    assert len(score) == 5
    assert score.unit_layer.tolist() == [0, 0, 0, 1, 1]
    assert score.unit_index.tolist() == [0, 1, 2, 0, 1]
    assert {name: part.tolist() for name, part in score.of(["3", "1"]).split().items()} == {
        "3": [3.0, 2.0],
        "1": pytest.approx([0.5, 0.1, 0.9]),
    }
    swapped = score.of(["3", "1"])
    assert swapped.unit_counts == (2, 3)
    assert swapped.dead.tolist() == [False, True, False, True, False]
    assert score.of("3").values.tolist() == [3.0, 2.0]
    with pytest.raises(ValueError, match=r"the score is of layers \['1', '3'\], not of \['relu'\]"):
        score.of("relu")


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"values \[4\] must be \[5\]"):
        scored([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"dead \[1\] must be \[5\]"):
        scored([0.0, 1.0, 2.0, 3.0, 4.0], dead=torch.tensor([True]))
    with pytest.raises(ValueError, match="2 layers"):
        sd.UnitScore(name="x", values=torch.zeros(3), layers=("a", "b"), unit_counts=(3,))


def test_values_are_float64_and_detached():
    score = sd.UnitScore(name="x", values=torch.zeros(2, requires_grad=True), layers=("a",), unit_counts=(2,))
    assert score.values.dtype == torch.float64
    assert not score.values.requires_grad


def test_table_has_a_row_a_unit():
    table = scored([0.5, 0.25, 1.0, 3.0, 2.0], dead=torch.tensor([0, 1, 0, 0, 0])).to_pandas()
    assert table.columns.tolist() == ["layer", "unit", "score", "dead"]
    assert table["layer"].tolist() == ["1", "1", "1", "3", "3"]
    assert table["unit"].tolist() == [0, 1, 2, 0, 1]
    assert table["score"].tolist() == [0.5, 0.25, 1.0, 3.0, 2.0]
    assert "dead" not in scored([0.0] * 5).to_pandas()


@pytest.mark.parametrize("dead", [None, torch.tensor([True, False, False, False, True])], ids=["unknown", "dead"])
def test_a_file_holds_all(tmp_path, dead):
    score = scored([0.5, 0.25, float("nan"), 3.0, 2.0], dead=dead)
    score.save(tmp_path / "score.npz")
    loaded = sd.UnitScore.load(tmp_path / "score.npz")
    assert (loaded.name, loaded.layers, loaded.unit_counts) == (score.name, score.layers, score.unit_counts)
    assert torch.equal(loaded.values.nan_to_num(7), score.values.nan_to_num(7))
    assert loaded.dead is None if dead is None else torch.equal(loaded.dead, dead)
    with pytest.raises(ValueError, match="its format is"):
        sd.UnitStatistics.load(tmp_path / "score.npz")


def test_picture_has_a_distribution_a_layer():
    score = scored([0.5, 0.25, float("nan"), 3.0, 2.0])
    ax = score.plot(bins=4)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "3"]
    assert [text.get_text() for text in ax.texts] == [" 2 units", " 2 units"]  # one has no score
    assert ax.get_xlabel() == "score"
    assert [line.get_xdata()[0] for line in ax.lines] == [0.375, 2.5]
    heights = [np.ediff1d(patch.get_path().vertices[:, 1]).max() for patch in ax.patches]
    assert heights == pytest.approx([0.85, 0.85, 0.425, 0.425])  # both in one bin; one in each of two
    for row, patch in enumerate(ax.patches[::2]):
        values, edges, baseline = patch.get_data()
        assert (baseline, edges[0], edges[-1]) == (-row, 0.25, 3.0)
        assert (values >= baseline).all()


def test_picture_of_a_layer_without_any_score():
    nan = float("nan")
    ax = scored([0.5, 0.25, 1.0, nan, nan]).plot()
    assert [text.get_text() for text in ax.texts] == [" 3 units", " 0 units"]
    assert len(ax.lines) == 1


@pytest.mark.parametrize(
    ("direction", "expected"), [("ascending", [1, 0, 2, 4, 3]), ("descending", [3, 4, 2, 0, 1])], ids=str
)
def test_orders_across_layers(network, direction, expected):
    assert orders_by(network, (scored([0.5, 0.1, 0.9, 3.0, 2.0]), direction)) == [expected]
    assert orders_by(network, (torch.tensor([0.5, 0.1, 0.9, 3.0, 2.0]), direction)) == [expected]


def test_orders_within_layers_take_an_equal_part_of_each(network):
    # Layer 1 gives up its units at 1/6, 3/6, 5/6 of the way, layer 3 at 1/4, 3/4.
    score = scored([0.5, 0.1, 0.9, 3.0, 2.0])
    assert orders_by(network, (score, "ascending", "within")) == [[1, 4, 0, 3, 2]]
    assert orders_by(network, (score, "descending", "within")) == [[2, 3, 0, 4, 1]]
    assert orders_by(network, (score.of("1"), "ascending", "within"), ["1"]) == [[1, 0, 2]]


def test_a_list_of_scores_is_an_order_each(network):
    score = scored([0.5, 0.1, 0.9, 3.0, 2.0])
    listed = [(score, "ascending"), (score, "descending", "within"), (torch.arange(5), "descending")]
    assert orders_by(network, listed) == [[1, 0, 2, 4, 3], [2, 3, 0, 4, 1], [4, 3, 2, 1, 0]]


def test_dead_units_without_a_score_come_last_in_both_directions(network):
    nan, inf = float("nan"), float("inf")
    score = scored([nan, 0.1, -inf, 3.0, 2.0], dead=torch.tensor([1, 0, 0, 0, 0]))
    assert orders_by(network, (score, "ascending")) == [[2, 1, 4, 3, 0]]
    assert orders_by(network, (score, "descending"))[0][:3] == [3, 4, 1]
    with_value = scored([0.2, 0.1, 0.9, 3.0, 2.0], dead=torch.tensor([1, 0, 0, 0, 0]))
    assert orders_by(network, (with_value, "ascending")) == [[1, 0, 2, 4, 3]]
    alone = scored([nan, 0.1, 0.3, 3.0, 2.0], dead=torch.tensor([1, 0, 0, 0, 0]))
    assert orders_by(network, (alone, "descending", "within")) == [[2, 3, 1, 4, 0]]


def test_scores_that_cannot_order(network):
    nan = float("nan")
    with pytest.raises(ValueError, match=r"nan for 1 of 5 units, the first being unit 1 of layer '3'"):
        orders_by(network, (scored([0.5, nan, 0.9, 3.0, nan], dead=torch.tensor([0, 1, 0, 0, 0])), "ascending"))
    with pytest.raises(ValueError, match=r"of layers \['1', '3'\] with \[3, 2\] units, and the call of \['3', '1'\]"):
        orders_by(network, (scored([0.5, 0.1, 0.9, 3.0, 2.0]), "ascending"), ["3", "1"])
    with pytest.raises(ValueError, match="'within' each layer's own"):
        orders_by(network, (scored([0.5, 0.1, 0.9, 3.0, 2.0]), "ascending", "inside"))
    with pytest.raises(ValueError, match="the direction is 'ascending' or 'descending'"):
        orders_by(network, (scored([0.5, 0.1, 0.9, 3.0, 2.0]), "up"))
    with pytest.raises(ValueError, match="orders has a tuple of 1"):
        orders_by(network, (scored([0.5, 0.1, 0.9, 3.0, 2.0]),))
    model, data = network
    importance = sd.unit_importance(model, ["1", "3"], data)
    with pytest.raises(TypeError, match=r"importance.score\('loss'\)"):
        orders_by(network, (importance, "ascending"))
    with pytest.raises(TypeError, match="or a list of such tuples"):
        orders_by(network, [(torch.arange(5), "ascending"), torch.arange(5)])


def test_directions_take_orders_by_their_own_scores(network):
    model, data = network
    alone = sd.ablate_directions(model, "1", data, directions="principal")
    score = sd.UnitScore(name="loss", values=alone.importance("loss"), layers=("1",), unit_counts=(3,))
    curve = sd.ablate_directions(model, "1", data, directions="principal", orders=(score, "descending"))
    assert curve.orders[0].tolist() == alone.importance("loss").argsort(descending=True).tolist()


def test_ranked_on_one_data_set_and_scored_on_another(network):
    model, (inputs, labels) = network
    first, second = (inputs[:15], labels[:15]), (inputs[15:], labels[15:])
    importance = sd.unit_importance(model, ["1", "3"], first).importance("loss")
    score = sd.UnitScore(name="loss", values=importance, layers=("1", "3"), unit_counts=(3, 2))
    curve = sd.cumulative_ablation(model, ["1", "3"], second, orders=(score, "descending"), points=[0, 1])
    assert curve.orders[0].tolist() == importance.argsort(descending=True).tolist()
    with torch.no_grad():
        assert int(curve.correct[0, 0]) == int((model(second[0]).argmax(1) == second[1]).sum())
