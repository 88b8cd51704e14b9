"""Pairs of units: against hooks written out, planted synergies, what is refused, matrices, tables, plots, files."""

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.analysis.pairs import pair_importance
from sdkernels.analysis.synergy import PairImportance
from tests.engine.compare import assert_same
from tests.engine.networks import image_networks, raw_hook_counts
from tests.engine.zoo import standardised


def linear(*rows: tuple[list[float], float]) -> nn.Linear:
    """A layer of units with these weights and biases."""
    weight = torch.tensor([weights for weights, _ in rows]).double()
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    layer.weight.data, layer.bias.data = weight, torch.tensor([bias for _, bias in rows]).double()
    return layer


def planted(*units: tuple[list[float], float], out: list[tuple[list[float], float]]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(linear(*units), nn.ReLU(), linear(*out)).eval()


@pytest.fixture(scope="module")
def network():
    """A network with layers of 5 and 6 units, and data on which it is right about half of the time."""
    return made("convnet-relu")


def made(name: str) -> tuple[nn.Module, list[str], tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, layers = image_networks()[name]
        inputs, labels = torch.randn(24, 2, 6, 6).double(), torch.randint(0, 5, (24,))
    labels[::2] = standardised(model, inputs).argmax(1)[::2]
    return model, layers, (inputs, labels)


@pytest.fixture(scope="module")
def result(network):
    """Pairs within the first layer whose sum is no multiple of 3, one across layers, one within the second."""
    within = [[i, j] for i in range(5) for j in range(i) if (i + j) % 3]
    metrics = ("accuracy", "loss", "class_accuracy", margin)
    return pair_importance(*network, pairs=[*within, [10, 0], [7, 9]], metrics=metrics, outcomes=True)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """A user's score: the right logit above the mean of all."""
    return logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("name", ["convnet-relu", "concatenating", "residual-inner"])
def test_equal_to_a_raw_hook_loop(name, method):
    model, layers, images = made(name)
    units = sd.unit_importance(model, layers, images).unit_counts
    every = torch.triu_indices(sum(units), sum(units), 1).t()  # across layers too
    found = pair_importance(model, layers, images, pairs=every, value=0.3, method=method)

    def scored(*clamped: int) -> tuple[int, float]:
        mask = torch.zeros(sum(units), dtype=torch.bool)
        mask[list(clamped)] = True
        return raw_hook_counts(model, layers, *images, mask.split(units), 0.3)

    intact, alone = scored(), [scored(unit) for unit in range(sum(units))]
    for p, (i, j) in enumerate(every.tolist()):
        both = scored(i, j)
        assert found.correct[p] == both[0]
        assert float(found.sums["loss"][p]) == pytest.approx(both[1], rel=1e-12)
        beyond = [(intact[m] - both[m]) - (intact[m] - alone[i][m]) - (intact[m] - alone[j][m]) for m in (0, 1)]
        assert float(found.synergy()[p]) == beyond[0] / 24
        assert float(found.synergy("loss")[p]) == pytest.approx(-beyond[1] / 24, rel=1e-9, abs=1e-12)
        assert found.importance()[p] == (intact[0] - both[0]) / 24
        expected = [[(intact[m] - alone[unit][m]) / 24 for unit in (i, j)] for m in (0, 1)]
        assert found.singles()[p].tolist() == expected[0]
        assert found.singles("loss")[p].tolist() == pytest.approx([-x for x in expected[1]], rel=1e-9, abs=1e-12)


def test_units_that_stand_in_for_each_other():
    """Either of two units is enough; a third has its own part of the examples."""
    wanted = [([2.0, 2.0, 0.0], -1.0), ([0.0, 0.0, 0.0], 0.0), ([0.0, 0.0, 2.0], -1.0)]
    model = planted(([1, 0], 0.0), ([1, 0], 0.0), ([0, 1], 0.0), out=wanted)
    inputs = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2 + [[0.0, 0.0]]).double()
    data = inputs, torch.tensor([0, 0, 0, 2, 2, 1])
    found = pair_importance(model, "1", data, metrics=("accuracy", "class_accuracy"))
    assert found.baseline["accuracy"] == 1
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found.importance().tolist() == [3 / 6, 2 / 6, 2 / 6]
    assert found.singles().tolist() == [[0, 0], [0, 2 / 6], [0, 2 / 6]]
    assert found.synergy().tolist() == [3 / 6, 0, 0]
    assert found.synergy("class_accuracy").tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert found.top(1).tolist() == [0]


def test_units_that_are_of_use_together_alone():
    """Exclusive or: x + y above 0 and no more than 1. Without either unit all is lost, without both no more."""
    model = planted(([1, 1], 0.0), ([1, 1], -1.0), out=[([2.0, -4.0], -1.0), ([0.0, 0.0], 0.0)])
    data = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]).double(), torch.tensor([0, 0, 1, 1])
    found = pair_importance(model, "1", data)
    assert found.singles().tolist() == [[2 / 4, 2 / 4]]
    assert found.importance().tolist() == [2 / 4]
    assert found.synergy().tolist() == [-2 / 4]


def test_what_is_ambiguous_is_told_by_pair_and_by_unit():
    """Without both units, or without the third alone, the two logits tie."""
    model = planted(([1, 0], 0.0), ([1, 0], 0.0), ([0, 1], 0.0), out=[([1.0, 1.0, 0.0], 0.0), ([0.0, 0.0, 1.0], 0.0)])
    data = torch.tensor([[1.0, 0.5], [0.5, 1.5], [0.0, 1.0]]).double(), torch.tensor([0, 1, 1])
    found = pair_importance(model, "1", data)
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found.ambiguous.tolist() == [0, 1, 1]
    assert found.single_ambiguous.tolist() == [0, 0, 1]
    tied = pair_importance(model, "1", (data[0] * torch.tensor([1.0, 0.0]).double(), data[1]))
    assert tied.ambiguous.tolist() == [3, 1, 1]
    assert tied.single_ambiguous.tolist() == [1, 1, 1]


def test_units_that_add_up_have_no_synergy(seeds_torch):
    """A score that is linear in the units, whatever they are clamped to."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    data = torch.randn(30, 4).double(), torch.randint(0, 3, (30,))
    found = pair_importance(model, "1", data, value=0.7, metrics=(margin,))
    assert found.importance("margin").abs().max() > 0.05
    torch.testing.assert_close(found.synergy("margin"), torch.zeros(15).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.importance("margin"), found.singles("margin").sum(1), rtol=0, atol=1e-12)


def test_counts_are_those_of_sets_and_single_units(result, network):
    sets = sd.ablate(*network, units=result.pairs.tolist(), metrics=("class_accuracy",), outcomes=True)
    single = sd.unit_importance(*network, metrics=("loss", "class_accuracy"), outcomes=True)
    assert torch.equal(result.sums["class_accuracy"], sets.sums["class_accuracy"])
    assert torch.equal(result.outcomes, sets.outcomes)
    assert torch.equal(result.outcome_matrix().sum(1), result.correct)
    assert result.units.tolist() == [0, 1, 2, 3, 4, 7, 9, 10]
    for name in ("accuracy", "class_accuracy", "loss"):
        assert torch.equal(result.single_sums[name], single.sums[name][result.units])
    assert torch.equal(result.single_outcomes, single.outcomes[result.units])
    assert torch.equal(result.single_ambiguous, single.ambiguous[result.units])
    expected = single.importance("class_accuracy")[result.pairs]
    torch.testing.assert_close(result.singles("class_accuracy"), expected, rtol=0, atol=0, equal_nan=True)


def test_all_pairs_are_those_within_each_layer(network):
    expected = [[i, j] for units in (range(5), range(5, 11)) for i in units for j in units if i < j]
    assert pair_importance(*network).pairs.tolist() == expected


@pytest.mark.parametrize(
    "given", [torch.tensor([[2, 0], [1, 4]]), np.array([[2, 0], [1, 4]], np.int16), ((2, 0), [1, 4])]
)
def test_pairs_stay_as_they_are_given(network, given):
    found = pair_importance(*network, pairs=given)
    assert found.pairs.tolist() == [[2, 0], [1, 4]]
    assert found.pairs.dtype == torch.int64
    turned = pair_importance(*network, pairs=[[4, 1], [0, 2]])
    assert torch.equal(found.correct, turned.correct.flip(0))
    assert torch.equal(found.singles(), turned.singles().flip(0, 1))


@pytest.mark.parametrize(
    ("pairs", "error", "says"),
    [
        ([[0, 1], [2, 2]], ValueError, r"pairs\[1\] is unit 2 with itself"),
        ([[0, 1], [3, 11]], ValueError, r"pairs\[1\] names unit 11; the pooled units of all layers are 0\.\.10"),
        ([[0, 1], [-1, 3]], ValueError, r"pairs\[1\] names unit -1"),
        ([[0, 1], [2, 3], [1, 0]], ValueError, r"pairs\[0\] and pairs\[2\] are the same pair \[0, 1\]; give it once"),
        ([], ValueError, "pairs is empty"),
        ([0, 1], ValueError, r"pairs \[2\] must be \[P, 2\]"),
        ([[0, 1, 2]], ValueError, r"pairs \[1, 3\] must be \[P, 2\]"),
        (torch.zeros(2, 2), ValueError, r"pairs is a torch.float32 tensor \[2, 2\]"),
        (torch.zeros(2, 2).bool(), ValueError, r"pairs is a torch.bool tensor"),
        ([[0, 1], [2]], TypeError, "pairs must be two integers a row"),
        ("some", ValueError, "the only word is 'all'"),
        (3, TypeError, "pairs is a int"),
        (torch.tensor(3), ValueError, r"pairs \[\] must be \[P, 2\]"),
    ],
    ids=str,
)
def test_bad_pairs_are_refused_with_the_row(network, pairs, error, says):
    for method in ("auto", "loop"):
        with pytest.raises(error, match=says):
            pair_importance(*network, pairs=pairs, method=method)


def test_layers_of_one_unit_have_no_pairs():
    model = planted(([1, 0], 0.0), out=[([1.0], 0.0), ([0.0], 0.5)])
    data = torch.ones(2, 2).double(), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"those within a layer, and layers of \(1,\) units have none"):
        pair_importance(model, "1", data)


def test_options_are_those_of_single_units():
    """But for stopping early: bounds of three means say little of their difference."""
    ours, single = (inspect.signature(f).parameters for f in (pair_importance, sd.unit_importance))
    assert set(ours) - set(single) == {"pairs"}
    assert set(single) - set(ours) == {"tolerance", "confidence"}
    for name in set(ours) & set(single):
        assert ours[name].default == single[name].default, name
        assert ours[name].annotation == single[name].annotation, name


def test_matrix_is_symmetric_and_knows_what_was_measured(result):
    first, second = result.layers
    for metric in ("accuracy", "loss", "margin"):
        matrix = result.matrix(metric, first)
        assert matrix.shape == (5, 5)
        assert matrix.dtype == torch.float64
        assert torch.equal(matrix.isnan(), matrix.t().isnan())
        assert torch.equal(matrix.nan_to_num(9), matrix.t().nan_to_num(9))
        for i in range(5):
            for j in range(5):
                if i == j or (i + j) % 3 == 0:
                    assert matrix[i, j].isnan()
                else:
                    row = result.pairs.tolist().index([max(i, j), min(i, j)])
                    assert matrix[i, j] == result.synergy(metric)[row]
    other = result.matrix("loss", second)
    assert other.isfinite().nonzero().tolist() == [[2, 4], [4, 2]]
    assert other[2, 4] == result.synergy("loss")[-1]
    for layer in (None, "relu9"):
        with pytest.raises(
            ValueError, match=rf"layer={layer!r}: a matrix is of one layer; say which of \['relu1', 'rel"
        ):
            result.matrix(layer=layer)
    with pytest.raises(ValueError, match="is a score a class"):
        result.matrix("class_accuracy", first)


def test_top_has_the_largest_synergies_first(result):
    synergy = result.synergy("loss")
    assert torch.equal(synergy[result.top(len(synergy), metric="loss")], synergy.sort(descending=True).values)
    order = result.top(len(synergy))
    ties = result.synergy()[order].diff() == 0
    assert ties.any()
    assert (order.diff()[ties] > 0).all()
    for k in (-1, len(synergy) + 1):
        with pytest.raises(ValueError, match=rf"k={k} must be within 0\.\.{len(synergy)}"):
            result.top(k)
    with pytest.raises(ValueError, match="is a score a class"):
        result.top(1, metric="class_accuracy")


def test_a_synergy_that_is_nan_has_no_order(network):
    def undefined(logits: Tensor, _labels: Tensor) -> Tensor:
        return logits[:, 0] * float("nan")

    found = pair_importance(*network, pairs=[[0, 1]], metrics=undefined)
    with pytest.raises(ValueError, match="1 of 1 synergies are nan: no order"):
        found.top(1, metric="undefined")
    with pytest.raises(ValueError, match="no pair within layer 'relu1' has a finite synergy"):
        found.plot(metric="undefined", layer="relu1")


def test_a_metric_that_was_not_measured_is_refused(result):
    for ask in (result.importance, result.singles, result.synergy, result.matrix):
        with pytest.raises(KeyError, match=r"'agreement' was not measured; this result has accuracy, loss"):
            ask("agreement")


def test_to_pandas_has_a_row_a_pair(result):
    table = result.to_pandas()
    layers = [result.layers[0]] * 5 + [result.layers[1]] * 6
    for column, units in zip(("first", "second"), result.pairs.t().tolist(), strict=True):
        assert table[f"{column}_layer"].tolist() == [layers[unit] for unit in units]
        assert table[f"{column}_unit"].tolist() == [unit % 5 if unit < 10 else 5 for unit in units]
    assert table.correct.tolist() == result.correct.tolist()
    assert table.ambiguous.tolist() == result.ambiguous.tolist()
    for metric in ("accuracy", "loss", "margin"):
        np.testing.assert_array_equal(table[metric], result.metric(metric))
        np.testing.assert_array_equal(table[f"importance_{metric}"], result.importance(metric))
        np.testing.assert_array_equal(table[f"synergy_{metric}"], result.synergy(metric))
        for i, column in enumerate(("first", "second")):
            np.testing.assert_array_equal(table[f"{column}_importance_{metric}"], result.singles(metric)[:, i])
    np.testing.assert_array_equal(table.synergy_class_accuracy_3, result.synergy("class_accuracy")[:, 3])


def test_plot_is_symmetric_about_zero(result):
    from matplotlib.figure import Figure

    ax = result.plot(Figure().subplots(), metric="loss", layer=result.layers[0])
    (image,) = ax.images
    matrix = result.matrix("loss", result.layers[0])
    most = float(matrix[matrix.isfinite()].abs().max())
    assert image.get_clim() == (-most, most)
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), matrix.numpy())
    assert image.colorbar.ax.get_ylabel() == "synergy: cross-entropy gained (nats) beyond both alone"
    other = result.plot(Figure().subplots(), layer=result.layers[0]).images[0]
    assert other.colorbar.ax.get_ylabel() == "synergy: accuracy lost beyond both alone"


def test_save_and_load_keep_everything(result, tmp_path):
    result.save(tmp_path / "pairs.npz")
    loaded = PairImportance.load(tmp_path / "pairs.npz")
    assert_same(loaded, result)
    assert list(loaded.sums) == list(result.sums)
    assert set(loaded.single_sums) == set(result.single_sums)
    for name in ("seed", "value", "precision", "method", "plan", "versions", "directions"):
        assert getattr(loaded, name) == getattr(result, name), name
    with pytest.raises(ValueError, match=r"its format is 'sdkernels.PairImportance/1'; this version reads"):
        sd.UnitImportance.load(tmp_path / "pairs.npz")
