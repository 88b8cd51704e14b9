"""AblationCurve: areas against numpy, tables, plots, files."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

import sdkernels as sd
from sdkernels.lab.models import mlp


@pytest.fixture
def curve():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 4, generator=generator), torch.randint(0, 6, (40,), generator=generator)
    metrics = ("accuracy", "loss", "class_accuracy", "agreement")
    return sd.cumulative_ablation(
        mlp(4, (6, 5), 6, seed=0).eval(),
        ["relu1", "relu2"],
        data,
        orders=3,
        points=[0, 2, 3, 11],
        metrics=metrics,
        seed=7,
    )


def test_auc_is_the_trapezoid_over_the_fraction_ablated(curve):
    for metric in ("accuracy", "loss", "agreement"):
        expected = np.trapezoid(curve.metric(metric).numpy(), np.array([0, 2, 3, 11]) / 11, axis=1)
        np.testing.assert_allclose(curve.auc(metric).numpy(), expected, rtol=1e-14)
    assert curve.auc("class_accuracy").shape == (3, 6)


def test_auc_of_part_of_a_curve_is_refused(curve):
    part = dataclasses.replace(curve, points=torch.tensor([0, 2, 3, 10]))
    with pytest.raises(ValueError, match=r"from 0 to all 11 units; this one's points are 0\.\.10"):
        part.auc()


def test_a_metric_that_was_not_measured_is_refused(curve):
    with pytest.raises(KeyError, match=r"'top5' was not measured.*accuracy, loss"):
        curve.metric("top5")


def test_means_and_counts(curve):
    assert curve.correct.dtype == torch.int64
    assert torch.equal(curve.accuracy, curve.correct.double() / 40)
    assert torch.equal(curve.fraction, torch.tensor([0, 2, 3, 11]).double() / 11)
    assert torch.equal(curve.metric("class_accuracy") * curve.class_examples, curve.sums["class_accuracy"].double())
    assert torch.equal(curve.sums["class_accuracy"].sum(-1), curve.correct)
    assert curve.baseline["agreement"] == 1
    assert curve.baseline["accuracy"] == curve.accuracy[0, 0]
    assert curve.unit_layer.tolist() == [0] * 6 + [1] * 5
    assert curve.unit_index.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


def test_to_pandas_is_long(curve):
    table = curve.to_pandas()
    assert len(table) == 3 * 4
    row = table[(table.order == 2) & (table.ablated == 3)].iloc[0]
    assert row.correct == curve.correct[2, 2]
    assert row.loss == curve.loss[2, 2]
    assert row.class_accuracy_4 == curve.metric("class_accuracy")[2, 2, 4]


def test_plot_draws_mean_and_spread(curve):
    from matplotlib.figure import Figure

    ax = curve.plot(Figure().subplots(), label="run")
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), curve.accuracy.mean(0))
    assert len(ax.collections) == 1
    assert ax.get_xlabel() == "fraction of units ablated"


def test_save_and_load_keep_everything(curve, tmp_path):
    path = tmp_path / "curve.npz"
    curve.save(path)
    loaded = sd.AblationCurve.load(path)
    for field in dataclasses.fields(curve):
        before, after = getattr(curve, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after), field.name
            assert before.dtype == after.dtype, field.name
        elif field.name in ("sums", "baseline_sums"):
            assert list(before) == list(after)
            assert all(torch.equal(before[name], after[name]) for name in before), field.name
        else:
            assert before == after, field.name
    assert [p.name for p in tmp_path.iterdir()] == ["curve.npz"]


def test_load_refuses_other_files(tmp_path):
    text, arrays = tmp_path / "a.npz", tmp_path / "b.npz"
    text.write_text("not a curve")
    np.savez(arrays, header=np.array('{"format": "else"}'))
    for path, says in ((text, "not a saved AblationCurve"), (arrays, "its format is 'else'")):
        with pytest.raises(ValueError, match=says):
            sd.AblationCurve.load(path)
    with pytest.raises(FileNotFoundError):
        sd.AblationCurve.load(tmp_path / "missing.npz")


def test_a_missing_extra_is_named(curve, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas\(\) needs pandas.*sdkernels\[paper\]"):
        curve.to_pandas()
