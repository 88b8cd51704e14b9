"""Statistics of units on data and models that are unusual; what is refused; files, tables, pictures."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import sdkernels as sd
from tests.analysis.watched import CLASSES, Tokens, activations, drawn, network

pytestmark = pytest.mark.usefixtures("seeds_torch")


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
    inputs = torch.tensor([[1.0, -5, 0], [1, -1, 0], [2, 1, 0], [3, 5, 0], [3, -1, 0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    stats = sd.unit_statistics(model, "0", (inputs, labels))
    says = r"unit 1 of layer '0' has a mean activation of -3 in class 0 \(1 of 3 units .* negative='shift'"
    with pytest.raises(ValueError, match=says):
        stats.selectivity()
    left_out = stats.selectivity(negative="nan")
    assert left_out.values[0].item() == pytest.approx((3 - 1.75) / (3 + 1.75))
    assert left_out.values.isnan().tolist() == [False, True, True]
    assert left_out.dead.tolist() == [False, False, True]
    shifted = stats.selectivity("micro", negative="shift").values  # unit 1 is 0, 4, 6, 10, 4 above its least element
    assert shifted[1].item() == pytest.approx((8 - 8 / 3) / (8 + 8 / 3))
    assert shifted[0].item() == pytest.approx((3 - 7 / 4) / (3 + 7 / 4))
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
        sd.unit_statistics(
            model,
            ["1", "0"] if value == -math.inf else ["0", "1"],
            (inputs, torch.zeros(80).long()),
            batch_size=32,
        )
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
        (labels, {"cells": 10**9}, ValueError, r"histograms of 14 units in 1000000000 cells by 4 classes .* GiB"),
        (labels[:0], {}, ValueError, "inputs"),
    ]:
        with pytest.raises(error, match=says):
            sd.unit_statistics(model, layers, (inputs, labelled), **options)
    with pytest.raises(ValueError, match="did you mean"):
        sd.unit_statistics(nn.Sequential(nn.Sequential(nn.Linear(1, 1))).eval(), "0.1", data)
    with pytest.raises(TypeError, match="model is a function"):
        sd.unit_statistics(lambda x: x, layers, data)
    stats = sd.unit_statistics(model, layers, data, cells=3)
    with pytest.raises(ValueError, match="name='median': there is no such score; choose one of mean,"):
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


def test_mean_maps_are_means_over_examples():
    model, layers, _, inputs, labels = drawn("maps")
    stats = sd.unit_statistics(model, layers, (inputs, labels), mean_maps=True, batch_size=32)
    for layer, output in zip(layers, activations(model, [model[2], model[5]], inputs), strict=True):
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
