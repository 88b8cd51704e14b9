"""UnitImportance: signs, ranking, scores, tables, plots, files."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import sdkernels as sd
from tests.engine.compare import assert_same


def correct_margin(logits, labels):
    """A user's score: the right logit above the mean of all."""
    return logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)


@pytest.fixture(scope="module")
def result():
    """Two layers that pass their inputs on: of each, unit 0 helps, unit 1 harms, unit 2 does nothing."""
    with torch.random.fork_rng(devices=[]):
        first, second, out = (nn.Linear(3, n, bias=False).double() for n in (3, 3, 2))
    for layer in (first, second):
        layer.weight.data = torch.eye(3).double()
    out.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.0]]).double()
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), out).eval()
    inputs = torch.tensor([[2.0, 1.0, 5.0], [1.0, 2.0, 5.0], [3.0, 1.0, 5.0], [1.0, 4.0, 5.0]]).double()
    metrics = ("accuracy", "loss", "class_accuracy", correct_margin)
    return sd.unit_importance(model, ["1", "3"], (inputs, torch.tensor([0, 0, 0, 0])), metrics=metrics)


def test_positive_means_that_the_unit_helps(result):
    assert result.baseline["accuracy"] == 0.5
    assert result.correct.tolist() == [0, 4, 2] * 2
    assert result.importance().tolist() == [0.5, -0.5, 0] * 2
    for metric in ("loss", "correct_margin"):
        assert result.importance(metric).sign().tolist() == [1, -1, 0] * 2


def test_importance_is_the_difference_to_the_intact_model(result):
    for metric in ("accuracy", "correct_margin", "class_accuracy"):
        expected = result.baseline[metric] - result.metric(metric)
        torch.testing.assert_close(result.importance(metric), expected, equal_nan=True)
    torch.testing.assert_close(result.importance("loss"), result.loss - result.baseline["loss"])
    assert result.importance().dtype == torch.float64


def test_by_class(result):
    assert result.class_accuracy.shape == result.importance("class_accuracy").shape == (6, 2)
    assert torch.equal(result.class_accuracy[:, 0], result.accuracy)
    assert result.class_accuracy[:, 1].isnan().all()  # a class without examples


def test_top_keeps_equals_in_the_order_of_their_numbers(result):
    assert result.top(6).tolist() == [0, 3, 2, 5, 1, 4]
    assert result.top(2, metric="loss").tolist() == [0, 3]
    assert result.top(0).tolist() == []
    assert result.top(1).dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 7}, r"k=7 must be within 0\.\.6"),
        ({"k": -1}, r"k=-1 must be within 0\.\.6"),
        ({"k": 1, "metric": "class_accuracy"}, r"'class_accuracy' is a score a class, \[6, 2\]"),
    ],
    ids=str,
)
def test_top_refuses(result, options, says):
    with pytest.raises(ValueError, match=says):
        result.top(**options)


def test_top_refuses_what_has_no_order(seeds_torch):
    def undefined(logits, labels):
        return logits[:, 0] * float("nan")

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).eval()
    data = torch.ones(3, 2), torch.zeros(3, dtype=torch.long)
    result = sd.unit_importance(model, "0", data, metrics=("loss", undefined))
    with pytest.raises(ValueError, match="3 of 3 importances are nan: no order"):
        result.top(1, metric="undefined")


def test_a_metric_that_was_not_measured_is_refused(result):
    for ask in (result.metric, result.importance, result.score, lambda metric: result.top(1, metric=metric)):
        with pytest.raises(KeyError, match=r"'agreement' was not measured; this result has accuracy, loss"):
            ask("agreement")


def test_to_pandas_has_a_row_a_unit(result):
    table = result.to_pandas()
    assert table.layer.tolist() == ["1"] * 3 + ["3"] * 3
    assert table.unit.tolist() == [0, 1, 2, 0, 1, 2]
    assert table.correct.tolist() == result.correct.tolist()
    for metric in ("accuracy", "loss", "correct_margin"):
        np.testing.assert_array_equal(table[metric], result.metric(metric))
        np.testing.assert_array_equal(table[f"importance_{metric}"], result.importance(metric))
    np.testing.assert_array_equal(table.class_accuracy_0, result.class_accuracy[:, 0])
    np.testing.assert_array_equal(table.importance_class_accuracy_0, result.importance("class_accuracy")[:, 0])
    assert table.ambiguous.tolist() == result.ambiguous.tolist()


def test_plot_draws_each_layer_sorted(result):
    ax = result.plot(Figure().subplots())
    _zero, *lines = ax.lines
    assert [line.get_label() for line in lines] == ["1", "3"]
    for line in lines:
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(line.get_ydata(), [0.5, 0, -0.5])
    assert ax.get_ylabel() == "accuracy lost without the unit"
    assert result.plot(Figure().subplots(), metric="loss").get_ylabel() == (
        "cross-entropy gained without the unit (nats)"
    )


def test_plot_of_class_accuracy_is_a_heat_map(result):
    figure = Figure()
    ax = result.plot(figure.subplots(), metric="class_accuracy")
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array()[:, 0], [0.5, -0.5, 0, 0.5, -0.5, 0])
    assert image.get_array().mask[:, 1].all()  # a class without examples
    assert image.get_clim() == (-0.5, 0.5)
    np.testing.assert_allclose(image.to_rgba(0.0)[:3], 0.97, atol=0.01)  # white at 0
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "3"]
    assert figure.axes[1].get_ylabel() == "class accuracy lost without the unit"


@pytest.mark.parametrize(
    ("metric", "label", "name"),
    [
        ("accuracy", None, "accuracy lost"),
        ("loss", None, "cross-entropy gained (nats)"),
        ("correct_margin", None, "correct margin lost"),
        ("class_accuracy", 0, "accuracy of class 0 lost"),
        ("class_accuracy", 1, "accuracy of class 1 lost"),
    ],
)
def test_score_is_the_importance(result, metric, label, name):
    score = result.score(metric, label=label)
    assert (score.name, score.layers, score.unit_counts, score.dead) == (name, ("1", "3"), (3, 3), None)
    expected = result.importance(metric) if label is None else result.importance(metric)[:, label]
    torch.testing.assert_close(score.values, expected, rtol=0, atol=0, equal_nan=True)


def test_score_is_of_accuracy_by_default(result):
    assert result.score().name == "accuracy lost"


@pytest.mark.parametrize(
    ("metric", "label", "says"),
    [
        ("class_accuracy", None, r"'class_accuracy' is a score a class: say which by label=0\.\.1"),
        ("class_accuracy", 2, r"label=2 must be within 0\.\.1: the data has 2 classes"),
        ("class_accuracy", -1, r"label=-1 must be within 0\.\.1"),
        ("loss", 0, r"label=0 is for 'class_accuracy' alone; 'loss' is of all examples"),
    ],
)
def test_score_refuses_labels_that_do_not_fit(result, metric, label, says):
    with pytest.raises(ValueError, match=says):
        result.score(metric, label=label)


def test_save_and_load_keep_everything(result, tmp_path):
    path = tmp_path / "importance.npz"
    result.save(path)
    loaded = sd.UnitImportance.load(path)
    assert_same(loaded, result)
    for name in ("seed", "value", "precision", "method", "plan", "versions"):
        assert getattr(loaded, name) == getattr(result, name), name
    assert result.seed is None
    assert [p.name for p in tmp_path.iterdir()] == ["importance.npz"]


def test_load_refuses_other_files(result, tmp_path):
    result.save(tmp_path / "importance.npz")
    for other in (sd.AblationCurve, sd.AblationScores):
        with pytest.raises(ValueError, match=r"its format is 'sdkernels.UnitImportance/1'; this version reads"):
            other.load(tmp_path / "importance.npz")
    (tmp_path / "text.npz").write_text("not a result")
    with pytest.raises(ValueError, match="not a saved UnitImportance"):
        sd.UnitImportance.load(tmp_path / "text.npz")
