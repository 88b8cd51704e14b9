"""Statistics of units against raw hooks and NumPy, and what happens to data that is unusual."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from tests.analysis import watched
from tests.ops.backends import on_cuda

CLASSES = 4

pytestmark = pytest.mark.usefixtures("seeds_torch")


class Tokens(nn.Module):
    """Tokens [N, T] -> features [N, T, F] -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.rnn = nn.GRU(6, 5, batch_first=True)
        self.relu = nn.ReLU()
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.rnn(self.embed(x))[0]).mean(1))


class Shared(nn.Module):
    """One ReLU that fires twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, CLASSES)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.second(self.relu(self.first(x)))))


def maps() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES)),
    )


def network(name: str) -> tuple[nn.Module, list[str], list[nn.Module], list[int], torch.Tensor]:
    """Model, layers by name, their modules in the order of their calls, the units' dimensions, inputs."""
    if name == "features":
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, CLASSES))
        return model, ["1", "3"], [model[1], model[3]], [1, 1], torch.randn(101, 6)
    if name == "rectified":  # no product, whose last digits go by the batch
        model = nn.Sequential(nn.ReLU(), nn.Linear(6, CLASSES))
        return model, ["0"], [model[0]], [1], torch.randn(101, 6)
    if name == "maps":
        model = maps()
        for tensor in (model[1].running_mean, model[1].bias.data):
            tensor.normal_()
        return model, ["2", "5"], [model[2], model[5]], [1, 1], torch.randn(101, 3, 8, 8)
    if name == "channels last":
        model = maps().to(memory_format=torch.channels_last)
        inputs = torch.randn(101, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        return model, ["2", "5"], [model[2], model[5]], [1, 1], inputs
    if name == "tokens":
        tokens = Tokens()
        return tokens, ["relu"], [tokens.relu], [2], torch.randint(0, 50, (101, 4))
    shared = Shared()
    return shared, ["relu@0", "relu@1"], [shared.relu], [1, 1], torch.randn(101, 6)


NETWORKS = ["features", "rectified", "maps", "channels last", "tokens", "shared"]


def drawn(name: str) -> tuple[nn.Module, list[str], list[np.ndarray], torch.Tensor, torch.Tensor]:
    """Model in float64, layers, each layer's elements [C, N, S], inputs, labels."""
    model, layers, modules, unit_dims, inputs = network(name)
    model = model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    outputs = watched.activations(model, modules, inputs)
    units = [watched.by_unit(output, dim) for output, dim in zip(outputs, unit_dims, strict=True)]
    return model, layers, units, inputs, torch.randint(0, CLASSES, (len(inputs),))


def pooled(units: list[np.ndarray], of) -> np.ndarray:
    return np.concatenate([watched.of_units(one, of) for one in units])


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
        expected = pooled(units, lambda unit, kind=kind: watched.selectivity(unit, classes, kind))
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
    stats = sd.unit_statistics(model, "0", (inputs, torch.zeros(240).long()))
    for bins in (2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 40, 48, 60, 80, 120, 240):
        counts = stats.binned(bins)[1][0]
        assert counts[0].tolist() == [0] + [240 // bins] * bins
        assert counts[1, 0] == 40
        assert counts[1, 1:].max() - counts[1, 1:].min() <= 1
    assert (stats.binned(7)[1][0, 0, 1:] - 240 / 7).abs().max() <= 1


@pytest.mark.parametrize("name", ["rectified", "maps"])
@pytest.mark.parametrize("blocks", [2, 1000], ids=["two passes", "one pass"])
def test_nothing_depends_on_how_data_comes(name, blocks, monkeypatch):
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._BLOCK", 16)
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
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._BLOCK", 16)
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
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._BLOCK", 4)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: 2)

    class Shrinking:
        reads = 0

        def __iter__(self):
            self.reads += 1
            yield torch.randn(30 - self.reads, 6), torch.zeros(30 - self.reads).long()

    model, *_ = network("features")
    with pytest.raises(ValueError, match=r"data gave other examples when it was read again.* 28 and then 27"):
        sd.unit_statistics(model.eval(), "1", Shrinking())
    assert not model[1]._forward_hooks


def test_dead_units_are_nan_and_flagged():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[0].weight.data = torch.tensor([[1.0, 0], [0, 0], [0, 0], [-1, 0]])
    model[0].bias.data = torch.tensor([0.0, -1, 2, 0])  # alive, dead, constant, dead on this data
    data = torch.tensor([[1.0, 0], [2, 0], [3, 0]]), torch.tensor([0, 1, 1])
    stats = sd.unit_statistics(model, "1", data)
    assert stats.dead.tolist() == [False, True, False, True]
    assert stats.preferred_class.tolist() == [1, -1, 0, -1]
    assert stats.selectivity().values.isnan().tolist() == [False, True, False, True]
    assert stats.selectivity().values[2] == 0  # it does not tell classes apart
    assert stats.sparsity().values.isnan().tolist() == [False, True, False, True]
    assert stats.mutual_information().values.tolist() == pytest.approx([math.log2(3) - 2 / 3, 0, 0, 0])
    assert stats.mutual_information(correction="miller-madow").values[1:].tolist() == pytest.approx([0, 0, 0])
    assert stats.class_correlation().isnan().any(0).tolist() == [False, True, True, True]
    assert stats.firing_rate.tolist() == [1, 0, 1, 0]


def test_always_negative_units_are_not_dead():
    model = nn.Sequential(nn.Tanh(), nn.Linear(2, 2)).eval()
    stats = sd.unit_statistics(model, "0", (torch.tensor([[-1.0, 1], [-2, 1]]), torch.tensor([0, 1])))
    assert stats.dead.tolist() == [False, False]
    assert stats.firing_rate.tolist() == [0, 1]


def test_negative_means_go_by_the_stated_policy():
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 3)).eval()
    inputs = torch.tensor([[1.0, -3, 0], [2, 1, 0], [3, 5, 0], [3, -1, 0]])
    labels = torch.tensor([0, 1, 1, 2])
    stats = sd.unit_statistics(model, "0", (inputs, labels))
    with pytest.raises(
        ValueError,
        match=r"unit 1 of layer '0' has a mean activation of -3 in class 0 \(1 of 3 units .* negative='shift'",
    ):
        stats.selectivity()
    left_out = stats.selectivity(negative="nan")
    assert left_out.values[0].item() == pytest.approx((3 - 1.75) / (3 + 1.75))
    assert left_out.values.isnan().tolist() == [False, True, True]
    assert left_out.dead.tolist() == [False, False, True]
    shifted = stats.selectivity("micro", negative="shift").values  # unit 1 is 0, 4, 8, 2 above its least element
    assert shifted[1].item() == pytest.approx((6 - 1) / (6 + 1))
    assert shifted[0].item() == pytest.approx((3 - 2) / (3 + 2))
    with pytest.raises(ValueError, match="negative='zero': choose 'raise', 'nan' or 'shift'"):
        stats.selectivity(negative="zero")


def test_classes_without_examples_and_one_class_only():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 4)).eval()
    inputs = torch.tensor([[1.0, 2], [3, 2], [2, 0]])
    stats = sd.unit_statistics(model, "0", (inputs, torch.tensor([1, 1, 3])))
    assert stats.class_examples.tolist() == [0, 2, 0, 1]
    assert stats.class_mean.isnan().all(1).tolist() == [True, False, True, False]
    assert stats.class_variance.isnan().all(1).tolist() == [True, False, True, False]
    assert stats.selectivity().values.tolist() == [0, 1]
    assert stats.preferred_class.tolist() == [1, 1]
    assert stats.class_correlation().isnan().all(1).tolist() == [True, False, True, False]
    assert stats.to_pandas()["selectivity"].tolist() == [0, 1]
    one = sd.unit_statistics(model, "0", (inputs, torch.tensor([2, 2, 2])))
    with pytest.raises(ValueError, match="the data has examples of 1 of 4: give data with at least two"):
        one.selectivity()
    assert one.mutual_information(2).values.tolist() == pytest.approx([0, 0])
    assert one.class_correlation().isnan().all()
    assert "selectivity" not in one.to_pandas()


def test_one_example():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2)).eval()
    stats = sd.unit_statistics(model, "0", (torch.tensor([[1.0, 0]]), torch.tensor([1])))
    assert stats.variance.tolist() == [0, 0]
    assert stats.sparsity().values.isnan().all()
    assert stats.mutual_information().values.tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("at", [0, 70], ids=["at once", "later"])
def test_activations_that_are_not_finite_are_named(value, at):
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(6, CLASSES)).eval()
    inputs = torch.randn(80, 6)
    inputs[at, 4] = value
    with pytest.raises(ValueError, match=r"layer '0': activations of unit 4 are not finite .* 1 of 6 units"):
        sd.unit_statistics(model, ["1", "0"] if value == -math.inf else ["0", "1"], (inputs, torch.zeros(80).long()))
    assert not model[0]._forward_hooks


def test_refusals():
    model, layers, *_, inputs = network("features")
    labels = torch.zeros(101, dtype=torch.int64)
    data = inputs, labels
    with pytest.raises(ValueError, match="train mode"):
        sd.unit_statistics(model, layers, data)
    model.eval()
    for labelled, options, error, says in [
        (labels.clone().index_fill_(0, torch.tensor([40]), 4), {"batch_size": 32}, ValueError, "label 4 of example 40"),
        (labels - 1, {}, ValueError, "label -1 of example 0 is out of range"),
        (labels + 2, {"num_classes": 2}, ValueError, "label 2 of example 0"),
        (labels, {"num_classes": 0}, ValueError, "num_classes=0 must be at least 1"),
        (labels, {"num_classes": 2.0}, TypeError, "num_classes is a float"),
        (labels, {"cells": -1}, ValueError, "cells=-1 must be at least 0"),
        (labels, {"cells": True}, TypeError, "cells is a bool"),
        (labels, {"precision": "half"}, ValueError, "precision='half': choose one of"),
        (labels, {"memory_fraction": 0}, ValueError, "memory_fraction=0 must be a number"),
        (labels, {"cells": 10**9}, ValueError, r"histograms of 14 units in 1000000000 cells by 4 classes take .* GiB"),
        (labels[:0], {}, ValueError, "inputs"),
    ]:
        with pytest.raises(error, match=says):
            sd.unit_statistics(model, layers, (inputs, labelled), **options)
    with pytest.raises(ValueError, match="did you mean"):
        sd.unit_statistics(nn.Sequential(nn.Sequential(nn.Linear(1, 1))).eval(), "0.1", data)
    with pytest.raises(TypeError, match="model is a function"):
        sd.unit_statistics(lambda x: x, layers, data)
    stats = sd.unit_statistics(model, layers, data, cells=3)
    with pytest.raises(ValueError, match="there is no score 'median'; choose one of mean,"):
        stats.score("median")
    with pytest.raises(ValueError, match=r"bins=4 must be within 1\.\.3"):
        stats.mutual_information(4)
    with pytest.raises(TypeError, match="bins is a float"):
        stats.mutual_information(4.0)
    with pytest.raises(ValueError, match="no histograms were kept"):
        sd.unit_statistics(model, layers, data, cells=0).mutual_information()


def test_the_model_need_not_give_logits_and_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()  # gives maps
    inputs = torch.randn(9, 3, 6, 6)
    hook = model[1].register_forward_hook(lambda *_: None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stats = sd.unit_statistics(model, model[1], (inputs, torch.arange(9)), num_classes=9)
    assert stats.layers == ("1",)
    assert list(model[1]._forward_hooks) == [hook.id]
    assert not model._forward_pre_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r"must give floating logits \[N, L\]"):
        sd.unit_statistics(model, model[1], (inputs, torch.arange(9)))


def test_precision_converts_a_copy():
    model, layers, *_, inputs = network("maps")
    model.eval()
    data = inputs, torch.randint(0, CLASSES, (101,))
    wide = sd.unit_statistics(model, layers, data, precision="float64")
    narrow = sd.unit_statistics(model, layers, data)
    assert (wide.precision, narrow.precision) == ("float64", "float32")
    assert next(model.parameters()).dtype == torch.float32
    torch.testing.assert_close(wide.class_mean, narrow.class_mean, rtol=1e-4, atol=1e-5)
    low = sd.unit_statistics(model, layers, data, precision="bfloat16")
    torch.testing.assert_close(wide.class_mean, low.class_mean, rtol=0.1, atol=0.05)


def test_a_part_of_a_tuple():
    model = Tokens().double().eval()
    inputs, labels = torch.randint(0, 50, (30, 4)), torch.randint(0, CLASSES, (30,))
    stats = sd.unit_statistics(model, "rnn", (inputs, labels), select=0)
    with torch.no_grad():
        expected = model.rnn(model.embed(inputs))[0]
    torch.testing.assert_close(stats.mean, expected.mean((0, 1)))
    with pytest.raises(ValueError, match="select="):
        sd.unit_statistics(model, "rnn", (inputs, labels))


@pytest.mark.parametrize("options", [{}, {"cells": 0}, {"mean_maps": True}], ids=str)
def test_a_file_holds_all(tmp_path, options):
    model, layers, _, inputs, labels = drawn("maps")
    stats = sd.unit_statistics(model, layers, (inputs, labels), **options)
    stats.save(tmp_path / "stats.npz")
    loaded = sd.UnitStatistics.load(tmp_path / "stats.npz")
    for name in vars(stats):
        saved, read = getattr(stats, name), getattr(loaded, name)
        if isinstance(saved, torch.Tensor):
            assert torch.equal(saved.nan_to_num(), read.nan_to_num()), name
        elif name == "mean_maps" and saved is not None:
            assert list(saved) == list(read)
            assert all(torch.equal(saved[layer], read[layer]) for layer in saved)
        else:
            assert saved == read, name
    with pytest.raises(ValueError, match=r"its format is 'sdkernels\.UnitStatistics/1'"):
        sd.UnitImportance.load(tmp_path / "stats.npz")


@on_cuda
@pytest.mark.parametrize("blocks", [2, 1000], ids=["two passes", "one pass"])
def test_on_a_gpu(blocks, monkeypatch):
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._BLOCK", 16)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: blocks)
    model, layers, _, inputs, labels = drawn("rectified")
    here = sd.unit_statistics(model, layers, (inputs, labels))
    there = sd.unit_statistics(copy.deepcopy(model).cuda(), layers, (inputs, labels))
    assert torch.equal(here.edges, there.edges)
    assert torch.equal(here.histogram, there.histogram)
    assert torch.equal(here.fired_elements, there.fired_elements)
    torch.testing.assert_close(here.class_mean, there.class_mean)
    torch.testing.assert_close(here.selectivity().values, there.selectivity().values, equal_nan=True)


def test_mean_maps_are_means_over_examples():
    model, layers, _, inputs, labels = drawn("maps")
    stats = sd.unit_statistics(model, layers, (inputs, labels), mean_maps=True, batch_size=32)
    for layer, output in zip(layers, watched.activations(model, [model[2], model[5]], inputs), strict=True):
        torch.testing.assert_close(stats.mean_maps[layer], output.mean(0))
    assert sd.unit_statistics(model, layers, (inputs, labels)).mean_maps is None


def test_table_and_picture():
    model, layers, _, inputs, labels = drawn("features")
    stats = sd.unit_statistics(model, layers, (inputs, labels))
    table = stats.to_pandas()
    assert len(table) == 14
    assert table["layer"].tolist() == ["1"] * 9 + ["3"] * 5
    np.testing.assert_array_equal(table["selectivity"], stats.selectivity().values)
    np.testing.assert_array_equal(table["mutual_information"], stats.mutual_information(20).values)
    assert {"mean", "element_std", "firing_rate", "dead", "preferred_class"} <= set(table.columns)
    ax = stats.plot()
    (image,) = ax.get_images()
    assert image.get_array().shape == (14, CLASSES)
    np.testing.assert_allclose(np.ma.filled(image.get_array(), 1).max(1), 1)
