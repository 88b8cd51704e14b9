"""AblationScores: tables, plots, files."""

import numpy as np
import pytest
import torch

import sdkernels as sd
from sdkernels.lab.models import mlp
from tests.engine.compare import assert_same


@pytest.fixture(scope="module")
def scores():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 4, generator=generator), torch.randint(0, 6, (40,), generator=generator)
    units = [[], [0], [3, 7], range(11)]
    metrics = ("loss", "class_accuracy")
    return sd.ablate(mlp(4, (6, 5), 6, seed=0).eval(), ["relu1", "relu2"], data, units=units, metrics=metrics)


def test_a_row_a_set(scores):
    assert scores.units.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in scores.units] == [[], [0], [3, 7], list(range(11))]
    assert scores.correct.shape == scores.accuracy.shape == scores.loss.shape == (4,)
    assert scores.metric("class_accuracy").shape == (4, 6)
    assert scores.accuracy[0] == scores.baseline["accuracy"]
    assert torch.equal(scores.sums["class_accuracy"].sum(1), scores.correct)
    assert scores.unit_layer.tolist() == [0] * 6 + [1] * 5
    assert scores.seed is None


def test_to_pandas_has_a_row_a_set(scores):
    table = scores.to_pandas()
    assert table.set.tolist() == [0, 1, 2, 3]
    assert table.ablated.tolist() == [0, 1, 2, 11]
    assert table.correct.tolist() == scores.correct.tolist()
    np.testing.assert_array_equal(table.loss, scores.loss)
    np.testing.assert_array_equal(table.class_accuracy_4, scores.metric("class_accuracy")[:, 4])
    assert table.ambiguous.tolist() == scores.ambiguous.tolist()


def test_plot_draws_a_bar_a_set_and_the_intact_model(scores):
    from matplotlib.figure import Figure

    ax = scores.plot(Figure().subplots(), metric="loss")
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], scores.loss)
    (intact,) = ax.lines
    np.testing.assert_allclose(intact.get_ydata(), float(scores.baseline["loss"]))
    assert ax.get_ylabel() == "cross-entropy (nats)"
    with pytest.raises(ValueError, match=r"'class_accuracy' is a score a class, \[4, 6\]"):
        scores.plot(Figure().subplots(), metric="class_accuracy")


def test_save_and_load_keep_everything(scores, tmp_path):
    path = tmp_path / "scores.npz"
    scores.save(path)
    loaded = sd.AblationScores.load(path)
    assert_same(loaded, scores)
    for name in ("seed", "value", "precision", "method", "plan", "versions"):
        assert getattr(loaded, name) == getattr(scores, name), name
    assert [p.name for p in tmp_path.iterdir()] == ["scores.npz"]


def test_load_refuses_other_files(scores, tmp_path):
    scores.save(tmp_path / "scores.npz")
    for other in (sd.AblationCurve, sd.UnitImportance):
        with pytest.raises(ValueError, match=r"its format is 'sdkernels.AblationScores/1'; this version reads"):
            other.load(tmp_path / "scores.npz")
    with pytest.raises(FileNotFoundError):
        sd.AblationScores.load(tmp_path / "missing.npz")
