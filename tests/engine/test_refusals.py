"""Bad input is refused by name: the layer, the shape, the fix."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from sdkernels.engine import memory
from sdkernels.engine.arguments import is_one_of
from sdkernels.lab.models import mlp
from tests.engine.networks import Residual


@pytest.fixture
def model():
    return mlp(4, (6, 5), 3, seed=0).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 4, generator=generator), torch.randint(0, 3, (50,), generator=generator)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 examples, so that later batches are reached."""
    monkeypatch.setattr(memory, "WORKING_SET", {"cpu": 1})


METHODS = pytest.mark.parametrize("method", ["auto", "loop"])


class TestLayers:
    def test_unknown_names_close_matches(self, model, data):
        with pytest.raises(ValueError, match=r"no layer 'rleu1'; did you mean 'relu1' or 'relu2'"):
            sd.cumulative_ablation(model, "rleu1", data)

    def test_unknown_without_close_matches_lists_layers(self, model, data):
        with pytest.raises(ValueError, match=r"no layer 'qqq'; its layers are \['fc1', 'relu1'"):
            sd.cumulative_ablation(model, "qqq", data)

    def test_module_of_another_model(self, model, data):
        with pytest.raises(ValueError, match="ReLU is not a module of this model"):
            sd.cumulative_ablation(model, nn.ReLU(), data)

    def test_named_twice(self, model, data):
        with pytest.raises(ValueError, match="'relu1' is named twice"):
            sd.cumulative_ablation(model, ["relu1", model.relu1], data)

    def test_none(self, model, data):
        with pytest.raises(ValueError, match="layers is empty"):
            sd.cumulative_ablation(model, [], data)

    def test_several_calls_are_listed(self, seeds_torch):
        data = torch.zeros(4, 2, 6, 6), torch.zeros(4, dtype=torch.long)
        with pytest.raises(
            ValueError, match=r"'relu' is called 3 times.*'relu@0' torch.float32 \[4, 4, 6, 6\]; 'relu@1'"
        ):
            sd.cumulative_ablation(Residual().eval(), "relu", data)

    def test_call_out_of_range(self, model, data):
        with pytest.raises(ValueError, match=r"'relu1' is called 1 times, so calls are 0\.\.0"):
            sd.cumulative_ablation(model, "relu1@1", data)

    def test_call_that_is_no_number(self, model, data):
        with pytest.raises(ValueError, match="as in 'relu1@0'"):
            sd.cumulative_ablation(model, "relu1@x", data)

    def test_never_called(self, model, data):
        model.spare = nn.ReLU().eval()
        model.forward = lambda x: model.out(model.relu2(model.fc2(model.relu1(model.fc1(x)))))
        with pytest.raises(ValueError, match="'spare' was never called"):
            sd.cumulative_ablation(model, "spare", data)

    def test_tuple_output(self, data, seeds_torch):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.out = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 3)

            def forward(self, x):
                return self.out(self.lstm(x[..., None])[0][:, -1])

        with pytest.raises(
            ValueError, match=r"'lstm' gives a tuple, not one tensor; say which part holds units by select="
        ):
            sd.cumulative_ablation(Recurrent().eval(), "lstm", data)

    def test_unit_dim(self, model, data):
        with pytest.raises(ValueError, match=r"unit_dim=2 does not fit layer 'relu1', whose output is \[8, 6\]"):
            sd.cumulative_ablation(model, "relu1", data, unit_dim=2)
        with pytest.raises(ValueError, match=r"unit_dim names \['fc9'\]"):
            sd.cumulative_ablation(model, "relu1", data, unit_dim={"fc9": 1})


class TestModel:
    def test_train_mode_with_dropout(self, data, seeds_torch):
        model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
        with pytest.raises(ValueError, match=r"train mode.*1 \(Dropout\) would not repeat itself.*model.eval\(\)"):
            sd.cumulative_ablation(model, "0", data)
        assert model.training

    def test_partly_in_train_mode(self, model, data):
        model.relu1.train()
        with pytest.raises(ValueError, match="train mode in 1 of its modules"):
            sd.cumulative_ablation(model, "relu1", data)

    def test_not_a_module(self, data):
        with pytest.raises(TypeError, match="model is a function"):
            sd.cumulative_ablation(lambda x: x, "relu1", data)

    def test_logits_of_another_shape(self, data):
        with pytest.raises(ValueError, match=r"logits \[N, L\].*it gave torch.float32 \[8, 2, 2\]"):
            sd.cumulative_ablation(nn.Sequential(nn.Unflatten(1, (2, 2))).eval(), "0", data)


class TestData:
    def test_another_dtype_than_the_models(self, model, data):
        with pytest.raises(
            TypeError, match=r"data gives torch.float64 inputs but the model is torch.float32: cast one"
        ):
            sd.cumulative_ablation(model, "relu1", (data[0].double(), data[1]))

    @METHODS
    @pytest.mark.parametrize("loader", [False, True], ids=["tensors", "loader"])
    def test_empty(self, model, method, loader, seeds_torch):
        empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
        with pytest.raises(ValueError, match="data is empty"):
            sd.cumulative_ablation(
                model, "relu1", DataLoader(TensorDataset(*empty)) if loader else empty, method=method
            )

    @METHODS
    @pytest.mark.parametrize(("at", "label"), [(0, 3), (49, -1)])
    def test_labels_out_of_range(self, model, data, method, at, label, small_tiles):
        data[1][at] = label
        with pytest.raises(ValueError, match=rf"label {label} of example {at} is out of range.*0\.\.2"):
            sd.cumulative_ablation(model, "relu1", data, method=method, batch_size=6)

    def test_labels_that_are_no_classes(self, model, data):
        with pytest.raises(ValueError, match="class indices"):
            sd.cumulative_ablation(model, "relu1", (data[0], data[0][:, 0]))

    def test_lengths_that_differ(self, model, data):
        with pytest.raises(ValueError, match=r"shapes \[50, 4\] and \[49\]"):
            sd.cumulative_ablation(model, "relu1", (data[0], data[1][1:]))

    def test_iterator(self, model, data):
        with pytest.raises(TypeError, match="only once"):
            sd.cumulative_ablation(model, "relu1", iter([data]))

    def test_batches_that_are_no_pairs(self, model, data):
        with pytest.raises(TypeError, match=r"pair of tensors \(inputs, labels\)"):
            sd.cumulative_ablation(model, "relu1", [data[0], data[0], data[0]])

    def test_neither_loader_nor_tensors(self, model):
        with pytest.raises(TypeError, match="data is a int"):
            sd.cumulative_ablation(model, "relu1", 3)

    @METHODS
    def test_non_finite_activation_names_layer_and_example(self, model, data, method, small_tiles):
        data[0][43, 2] = float("nan")
        with pytest.raises(ValueError, match=r"layer 'relu1': 6 of \d+ intact .*\(6 nan\), the first in example 43"):
            sd.cumulative_ablation(model, ["relu1", "relu2"], data, method=method, batch_size=5)

    @METHODS
    def test_infinite_activation(self, model, data, method):
        model.fc2.bias.data[0] = float("inf")
        with pytest.raises(ValueError, match=r"layer 'relu2': \d+ of \d+ .*\(0 nan\), the first in example 0"):
            sd.cumulative_ablation(model, ["relu1", "relu2"], data, method=method)


def ambiguous(logits, labels):
    """A metric with a name that is taken."""


class TestFamily:
    @pytest.mark.parametrize(
        ("orders", "error", "says"),
        [
            (torch.zeros(2, 6, dtype=torch.long), ValueError, r"orders\[0\] is no permutation of 0..5 \(2 of 2"),
            (torch.stack([torch.arange(6), torch.arange(1, 7)]), ValueError, r"orders\[1\] is no permutation"),
            (torch.arange(5)[None], ValueError, r"orders \[1, 5\] must be \[R, 6\]"),
            (torch.arange(6), ValueError, r"orders \[6\] must be \[R, 6\]"),
            (torch.rand(6), ValueError, r"orders=\(score, 'ascending'\)"),
            (0, ValueError, "at least 1"),
            ("random", TypeError, "orders is a str"),
            ((torch.rand(6),), ValueError, "a tuple of 1"),
            (("ascending", torch.rand(6)), TypeError, "the score is a str"),
            ((torch.rand(5), "ascending"), ValueError, r"score \[5\] must be \[6\]"),
            ((torch.rand(6), "up"), ValueError, "'ascending' or 'descending'"),
            ((torch.full((6,), float("nan")), "ascending"), ValueError, "6 of 6 scores are nan"),
        ],
    )
    def test_orders(self, model, data, orders, error, says):
        with pytest.raises(error, match=says):
            sd.cumulative_ablation(model, "relu1", data, orders=orders)

    @pytest.mark.parametrize(
        ("points", "error", "says"),
        [
            (1, ValueError, "at least 2"),
            ("some", ValueError, "'all'"),
            ([0, 7], ValueError, r"0\.\.6, the number of units; got 0\.\.7"),
            ([-1, 2], ValueError, r"got -1\.\.2"),
            ([0, 3, 3], ValueError, "increase strictly"),
            ([0.0, 0.5], ValueError, "integers"),
            ([], ValueError, "integers"),
            (2.5, TypeError, "points is a float"),
            (["a"], ValueError, "sequence of counts"),
        ],
    )
    def test_points(self, model, data, points, error, says):
        with pytest.raises(error, match=says):
            sd.cumulative_ablation(model, "relu1", data, points=points)

    @pytest.mark.parametrize(
        ("value", "error", "says"),
        [
            ("median", ValueError, "'median' for layer 'relu1': the words are 'mean', 'element_mean', 'class_mean'"),
            (torch.zeros(5), ValueError, r"value \[5\] for layer 'relu1' fits neither its units \[6\]"),
            ({"relu2": 0.0}, ValueError, r"it must name the layers \['relu1'\]"),
            (None.__class__, TypeError, "is a type"),
        ],
    )
    def test_value(self, model, data, value, error, says):
        with pytest.raises(error, match=says):
            sd.cumulative_ablation(model, "relu1", data, value=value)

    def test_value_and_baselines(self, model, data):
        with pytest.raises(ValueError, match="one thing"):
            sd.cumulative_ablation(model, "relu1", data, value=1.0, baselines="mean")

    @pytest.mark.parametrize(
        ("metrics", "says"),
        [
            ("f1", "unknown 'f1'"),
            (("loss", "loss"), "there once"),
            ("top5", "five classes or more; the model gives 3"),
            (ambiguous, "must have its own"),
        ],
    )
    def test_metrics(self, model, data, metrics, says):
        with pytest.raises(ValueError, match=says):
            sd.cumulative_ablation(model, "relu1", data, metrics=metrics)

    def test_metric_of_a_wrong_shape(self, model, data):
        def total(logits, labels):
            return logits.sum()

        with pytest.raises(ValueError, match=r"'total' gave \[\].*one number an example, \[50\]"):
            sd.cumulative_ablation(model, "relu1", data, metrics=total)

    @pytest.mark.parametrize(
        "options",
        [
            {"method": "fast"},
            {"precision": "float16"},
            {"batch_size": 0},
            {"configs_per_batch": 0},
        ],
        ids=str,
    )
    def test_other_options(self, model, data, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            sd.cumulative_ablation(model, "relu1", data, **options)

    def test_kinds(self, model, data):
        with pytest.raises(TypeError, match="metrics is a NoneType"):
            sd.cumulative_ablation(model, "relu1", data, metrics=None)
        with pytest.raises(TypeError, match="unit_dim for layer 'relu1' is a str"):
            sd.cumulative_ablation(model, "relu1", data, unit_dim="last")
        with pytest.raises(ValueError, match="the model itself is no layer"):
            sd.cumulative_ablation(model, model, data)
        with pytest.raises(TypeError, match="configs_per_batch is a str; give a positive int, or 'auto'"):
            sd.cumulative_ablation(model, "relu1", data, configs_per_batch="many")
        with pytest.raises(ValueError, match="must be within 0"):
            sd.cumulative_ablation(model, "relu1", data, seed=2**70)

    def test_numpy_numbers_are_numbers(self, model, data):
        options = {"value": np.float32(0.5), "orders": np.int64(2), "points": np.array([0, 3, 6])}
        plain = sd.cumulative_ablation(model, "relu1", data, value=0.5, orders=2, points=[0, 3, 6])
        assert torch.equal(sd.cumulative_ablation(model, "relu1", data, **options).correct, plain.correct)

    def test_seed(self, model, data):
        with pytest.raises(TypeError, match="seed is a float"):
            sd.cumulative_ablation(model, "relu1", data, seed=0.5)


@pytest.mark.parametrize("given", [[], {}, np.zeros(2), np.array(["auto", "x"]), torch.zeros(2), 1, b"auto"], ids=repr)
def test_what_is_no_word(given):
    """Also what cannot be hashed, or compares element by element."""
    assert not is_one_of(given, ("auto", None))
    assert is_one_of("auto", {"auto": 1})
    assert is_one_of(None, ("auto", None))
