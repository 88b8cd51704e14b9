"""Statistics of units against raw hooks and NumPy, however the data comes."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from tests.analysis.watched import CLASSES, NETWORKS, drawn, network, pooled, selectivity
from tests.ops.backends import on_cuda

pytestmark = pytest.mark.usefixtures("seeds_torch")


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_by_their_definitions(name):
    model, layers, units, inputs, labels = drawn(name)
    stats = sd.unit_statistics(model, layers, (inputs, labels), batch_size=32, mean_maps=True)
    classes = labels.numpy()
    assert stats.layers == tuple(layers)
    assert stats.unit_counts == tuple(len(one) for one in units)
    assert stats.examples == 101
    assert stats.class_examples.tolist() == np.bincount(classes, minlength=CLASSES).tolist()
    expected = {
        "mean": lambda unit: unit.mean(),
        "variance": lambda unit: unit.mean(1).var(),
        "std": lambda unit: unit.mean(1).std(),
        "element_variance": lambda unit: unit.var(),
        "element_std": lambda unit: unit.std(),
        "minimum": lambda unit: unit.min(),
        "maximum": lambda unit: unit.max(),
        "firing_rate": lambda unit: (unit > 0).any(1).mean(),
        "element_firing_rate": lambda unit: (unit > 0).mean(),
    }
    for field, of in expected.items():
        np.testing.assert_allclose(getattr(stats, field), pooled(units, of), rtol=1e-10, atol=1e-12, err_msg=field)
        assert torch.equal(stats.score(field).values, getattr(stats, field).double())
    np.testing.assert_array_equal(stats.fired, pooled(units, lambda unit: (unit > 0).any(1).sum()))
    np.testing.assert_array_equal(stats.fired_elements, pooled(units, lambda unit: (unit > 0).sum()))
    np.testing.assert_array_equal(stats.elements, pooled(units, lambda unit: unit.size))
    np.testing.assert_array_equal(stats.dead, pooled(units, lambda unit: (unit == 0).all()))
    for label in range(CLASSES):
        own = classes == label
        of_class = pooled(units, lambda unit, own=own: unit[own].mean())
        np.testing.assert_allclose(stats.class_mean[label], of_class, rtol=1e-10, atol=1e-12)
        spread = pooled(units, lambda unit, own=own: unit[own].mean(1).var())
        np.testing.assert_allclose(stats.class_variance[label], spread, rtol=1e-10, atol=1e-12)
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = pooled(units, lambda unit, own=own: np.corrcoef(unit.mean(1), own)[0, 1])
        np.testing.assert_allclose(stats.class_correlation()[label], correlation, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_by_their_definitions(name):
    model, layers, units, inputs, labels = drawn(name)
    stats = sd.unit_statistics(model, layers, (inputs, labels), batch_size=32)
    classes = labels.numpy()
    for kind in ("macro", "micro"):
        expected = pooled(units, lambda unit, kind=kind: selectivity(unit, classes, kind))
        score = stats.selectivity(kind)
        np.testing.assert_allclose(score.values, expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(score.values.isnan(), score.dead)
    means = pooled(units, lambda unit: [unit[classes == label].mean() for label in range(CLASSES)])
    np.testing.assert_array_equal(stats.preferred_class, np.where(stats.dead, -1, means.argmax(1)))

    def sparsity(unit: np.ndarray) -> float:
        x = unit.mean(1)
        return (1 - x.mean() ** 2 / (x**2).mean()) / (1 - 1 / len(x)) if x.any() else math.nan

    np.testing.assert_allclose(stats.sparsity().values, pooled(units, sparsity), rtol=1e-8)
    for bins in (1, 2, 20, 7):
        edges, counts = stats.binned(bins)
        rows = iter(edges)
        information = pooled(
            units, lambda unit, rows=rows: mutual_info_score(classes, binned(unit, next(rows).numpy()))
        )
        found = stats.mutual_information(bins)
        np.testing.assert_allclose(found.values, information / math.log(2), atol=1e-12)
        rows = iter(edges)
        of_bins = pooled(
            units, lambda unit, rows=rows, n=bins: np.bincount(binned(unit, next(rows).numpy()), minlength=n + 1)
        )
        np.testing.assert_array_equal(counts.sum(0), of_bins)
    assert found.name == "mutual information (bits)"


def binned(unit: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[N], 0 where the mean over positions is 0, else 1 + how many edges are not above it."""
    means = unit.mean(1)
    return np.where(means == 0, 0, 1 + np.digitize(means, edges))


def test_bins_have_equal_mass():
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2)).eval()
    inputs = torch.randn(240, 3)
    inputs[:40, 1] = 0
    stats = sd.unit_statistics(model, "0", (inputs, torch.zeros(240).long()), cells=240)
    for bins in (2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 40, 48, 60, 80, 120, 240):
        counts = stats.binned(bins)[1][0]
        assert counts[0].tolist() == [0] + [240 // bins] * bins
        assert counts[1, 0] == 40
        assert counts[1, 1:].max() - counts[1, 1:].min() <= 1
    coarse = sd.unit_statistics(model, "0", (inputs, torch.zeros(240).long()), cells=10)
    assert torch.equal(coarse.binned(3)[0], coarse.edges[:, [2, 6]])  # 10/3 and 20/3, rounded
    assert (stats.binned(7)[1][0, 0, 1:] - 240 / 7).abs().max() <= 1


@pytest.mark.parametrize("name", ["rectified", "maps"])
@pytest.mark.parametrize("blocks", [2, 1000], ids=["two passes", "one pass"])
def test_nothing_depends_on_how_data_comes(name, blocks, monkeypatch):
    monkeypatch.setattr("sdkernels.analysis.gathered.BLOCK", 16)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: blocks)
    model, layers, _, inputs, labels = drawn(name)
    first = sd.unit_statistics(model, layers, (inputs, labels), batch_size=101, num_classes=CLASSES + 1)
    assert (first.rank_error > 0) == (blocks == 2)
    for data in (
        DataLoader(TensorDataset(inputs, labels.int()), batch_size=1),
        DataLoader(TensorDataset(inputs, labels), batch_size=16),
        TensorDataset(inputs, labels),
    ):
        other = sd.unit_statistics(model, layers, data, num_classes=CLASSES + 1)
        assert torch.equal(first.edges, other.edges)
        assert torch.equal(first.histogram, other.histogram)
        assert torch.equal(first.fired, other.fired)
        assert torch.equal(first.minimum, other.minimum)
        torch.testing.assert_close(first.class_mean, other.class_mean, rtol=1e-12, atol=1e-14, equal_nan=True)
        torch.testing.assert_close(first.variance, other.variance, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_pass_counts_what_does_not_fit(name, monkeypatch):
    model, layers, units, inputs, labels = drawn(name)
    exact = sd.unit_statistics(model, layers, (inputs, labels), cells=12)
    monkeypatch.setattr("sdkernels.analysis.gathered.BLOCK", 16)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: 3)
    stats = sd.unit_statistics(model, layers, (inputs, labels), cells=12)
    assert 0 < stats.rank_error < 0.2
    assert torch.equal(stats.class_mean, exact.class_mean)
    rows = iter(stats.edges)
    expected = pooled(units, lambda unit: np.bincount(binned(unit, next(rows).numpy()), minlength=13))
    np.testing.assert_array_equal(stats.histogram.sum(0), expected)
    assert torch.equal(stats.histogram.sum((1, 2)), stats.class_examples * len(stats.dead))
    cumulative = (
        stats.histogram.sum(0)[:, 1:].cumsum(1)[:, :-1]
        - stats.histogram.sum(0)[:, 1:].sum(1)[:, None] * torch.arange(1, 12) / 12
    )
    assert cumulative.abs().max() <= 2 * stats.rank_error * 101 + 8


def test_a_second_pass_over_other_data_is_refused(monkeypatch):
    monkeypatch.setattr("sdkernels.analysis.gathered.BLOCK", 4)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: 2)

    class Shrinking:
        reads = 0

        def __iter__(self):
            self.reads += 1
            yield torch.randn(30 - self.reads, 6), torch.zeros(30 - self.reads).long()

    model, *_ = network("features")
    with pytest.raises(ValueError, match="data gave 28 examples when it was read first, and 27 when it was read again"):
        sd.unit_statistics(model.eval(), "1", Shrinking())
    assert not model[1]._forward_hooks


@on_cuda
@pytest.mark.parametrize("blocks", [2, 1000], ids=["two passes", "one pass"])
def test_on_a_gpu(blocks, monkeypatch):
    monkeypatch.setattr("sdkernels.analysis.gathered.BLOCK", 16)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: blocks)
    model, layers, _, inputs, labels = drawn("rectified")
    here = sd.unit_statistics(model, layers, (inputs, labels))
    there = sd.unit_statistics(copy.deepcopy(model).cuda(), layers, (inputs, labels))
    assert torch.equal(here.edges, there.edges)
    assert torch.equal(here.histogram, there.histogram)
    assert torch.equal(here.fired_elements, there.fired_elements)
    torch.testing.assert_close(here.class_mean, there.class_mean)
    torch.testing.assert_close(here.selectivity().values, there.selectivity().values, equal_nan=True)
