"""Layers compared over data: against raw hooks and definitions on all activations at once."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sdkernels.analysis import passes
from sdkernels.analysis.similarity.activations import places_of
from sdkernels.analysis.similarity.over_layers import compare_layers
from sdkernels.engine.checks import SdkernelsWarning
from tests.analysis.similarity.collected import (
    EXAMPLES,
    SIMILARITIES,
    Batches,
    Other,
    StoppedError,
    activations,
    convolutions,
    counted,
    drawn,
    each,
    hooks_of,
    images,
    means,
    passes_in,
)

SAME = 1e-9


def rows(model: nn.Module, layers: list[str], inputs: torch.Tensor) -> list:
    return [means(activations(model, layer, inputs)) for layer in layers]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_pair_is_what_definitions_give(name):
    options, similarity = SIMILARITIES[name]
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images()
    layers_a, layers_b = ["0", "1", "4", "6"], ["3", "1", "6"]
    result = compare_layers(a, b, layers_a, inputs, layers_b=layers_b, batch_size=16, **options)
    assert result.distance.shape == (4, 3)
    assert (result.layers_a, result.layers_b, result.examples) == (tuple(layers_a), tuple(layers_b), EXAMPLES)
    for i, x in enumerate(rows(a, layers_a, inputs)):
        for j, y in enumerate(rows(b, layers_b, inputs)):
            assert float(result.similarity[i, j]) == pytest.approx(similarity(x, y), abs=SAME)
    if options["method"] != "cka" and options["method"] != "svcca":
        assert (result.rank_a.tolist(), result.rank_b.tolist()) == ([5, 5, 7, 4], [5, 3, 4])
    assert result.settings["method"] == options["method"]


@pytest.mark.parametrize("name", ["cca", "pwcca", "cka"])
def test_the_same_place_alone(name):
    options, similarity = SIMILARITIES[name]
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images()
    result = compare_layers(a, b, ["0", "4"], inputs, layers_b=["1", "6"], matching="same", **options)
    assert result.distance.isnan().tolist() == [[False, True], [True, False]]
    for i, (x, y) in enumerate(zip(rows(a, ["0", "4"], inputs), rows(b, ["1", "6"], inputs), strict=True)):
        assert float(result.similarity[i, i]) == pytest.approx(similarity(x, y), abs=SAME)


@pytest.mark.parametrize("name", ["cca", "svcca", "pwcca", "debiased"])
def test_each_position(name):
    options, similarity = SIMILARITIES[name]
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images(30)
    result = compare_layers(a, b, ["0", "1"], inputs, positions="each", batch_size=7, **options)
    for i, layer in enumerate(["0", "1"]):
        for j, other in enumerate(["0", "1"]):
            expected = similarity(each(activations(a, layer, inputs)), each(activations(b, other, inputs)))
            assert float(result.similarity[i, j]) == pytest.approx(expected, abs=SAME)
    assert result.examples == 30 * 36


@pytest.mark.parametrize("subsample", [None, 5])
def test_maps_of_other_sizes_are_resampled_to_the_smaller(subsample):
    a, b, inputs = convolutions(5, 1), drawn(Other, 2), images(40)
    options = {"positions": "resample", "subsample": subsample, "seed": 3}
    result = compare_layers(a, b, ["0", "4"], inputs, layers_b=["first", "act@1"], batch_size=9, **options)
    big, small = activations(a, "0", inputs), activations(a, "4", inputs)
    others = [activations(b, "first", inputs), activations(b, "act", inputs, call=1)]
    for j, other in enumerate(others):
        resized = F.interpolate(big, (4, 4), mode="bilinear", align_corners=False)
        for i, (x, y) in enumerate([(resized, other), (small, F.interpolate(other, (3, 3), mode="bilinear"))]):
            x, y = each(x), each(y)
            if subsample is not None:
                count = len(x) // 40
                at = places_of(0, 40, count, subsample, 3) + torch.arange(40)[:, None] * count
                x, y = x[at.flatten()], y[at.flatten()]
            expected = SIMILARITIES["cca"][1](x, y)
            assert float(result.similarity[i, j]) == pytest.approx(expected, abs=SAME)
    assert result.examples == (40 * subsample if subsample else None)
    assert result.rank_a.tolist() == [5, 7]


def test_two_architectures_with_tuples_and_calls():
    a, b, inputs = convolutions(5, 1), drawn(Other, 2), images()
    layers_b = ["act@0", "act@1", "rows", "head"]
    result = compare_layers(nn.DataParallel(a), b, ["4", "6"], inputs, layers_b=layers_b, select={"rows": 0})
    found = [activations(b, "act", inputs), activations(b, "act", inputs, call=1)]
    found += [activations(b, "rows", inputs).movedim(2, 1), activations(b, "head", inputs)]
    for i, layer in enumerate(["4", "6"]):
        for j, other in enumerate(found):
            expected = SIMILARITIES["cca"][1](means(activations(a, layer, inputs)), means(other))
            assert float(result.similarity[i, j]) == pytest.approx(expected, abs=SAME)
    assert result.layers_b == tuple(layers_b)


def test_however_data_comes():
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images()
    expected = compare_layers(a, b, ["1", "4"], inputs, method="pwcca").distance
    labels = torch.zeros(EXAMPLES, dtype=torch.int64)
    sources = {
        "a pair": (inputs, labels),
        "a pair with targets of any shape": (inputs, torch.zeros(EXAMPLES, 4, dtype=torch.int64)),
        "a data set": TensorDataset(inputs, labels),
        "a data set of inputs": TensorDataset(inputs),
        "a loader": DataLoader(TensorDataset(inputs, labels), batch_size=13),
        "a loader of inputs": DataLoader(inputs, batch_size=50),
        "a shuffled loader": DataLoader(TensorDataset(inputs, labels), batch_size=13, shuffle=True),
        "batches": Batches(inputs, 30),
        "a list of batches": list(inputs.split(40)),
    }
    for name, data in sources.items():
        for batch_size in (1, 1000) if name.startswith("a pair") else (7,):
            found = compare_layers(a, b, ["1", "4"], data, method="pwcca", batch_size=batch_size).distance
            assert torch.allclose(found, expected, rtol=0, atol=1e-10), name


def test_draws_do_not_go_by_batches():
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images(30)
    options = {"positions": "each", "subsample": 4, "method": "cka"}
    one, other = (compare_layers(a, b, "0", inputs, batch_size=size, **options).distance for size in (7, 30))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert not torch.allclose(one, compare_layers(a, b, "0", inputs, seed=1, **options).distance, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["cca", "pwcca second", "debiased"])
def test_a_model_with_itself_runs_once(name):
    options, similarity = SIMILARITIES[name]
    model, inputs = convolutions(5, 1), images()
    layers = ["0", "4", "6"]
    with counted() as seen:
        result = compare_layers(model, nn.DataParallel(model), layers, inputs, layers_b=layers[::-1], **options)
    assert passes_in(seen) == EXAMPLES
    for i, x in enumerate(rows(model, ["0", "4", "6"], inputs)):
        for j, y in enumerate(rows(model, ["6", "4", "0"], inputs)):
            assert float(result.similarity[i, j]) == pytest.approx(similarity(x, y), abs=SAME)
    assert result.distance.flip(1).diagonal().tolist() == [0.0, 0.0, 0.0]


def test_models_may_share_modules():
    a, inputs = convolutions(5, 1), images()
    b = nn.Sequential(*list(a.children())[:5]).eval()  # the same convolutions
    result = compare_layers(a, b, ["0", "4"], inputs)
    assert result.distance.diagonal().abs().max() < SAME
    expected = SIMILARITIES["cca"][1](*rows(a, ["0", "4"], inputs))
    assert float(result.similarity[0, 1]) == pytest.approx(expected, abs=SAME)


def test_precision_is_each_models_own():
    a, b, inputs = convolutions(5, 1), convolutions(3, 2).float(), images()
    expected = compare_layers(a, b.double(), ["1"], inputs).distance
    found = compare_layers(a, convolutions(3, 2).float(), ["1"], inputs.float(), precision="float64")
    assert found.settings["precision"] == "float64"
    assert torch.allclose(found.distance, expected, rtol=0, atol=1e-5)
    assert next(a.parameters()).dtype == torch.float64


def test_no_graph_is_built():
    seen: list[bool] = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(torch.is_grad_enabled())
            return x

    model = nn.Sequential(convolutions(5, 1)[0], Looks()).eval()
    compare_layers(model, convolutions(3, 2), "0", images())
    assert not any(seen)


@pytest.mark.parametrize("broken", ["first", "second", "data"])
def test_nothing_stays_behind_an_error(broken):
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images()
    calls = []

    class Breaks(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            if len(calls) > 3:
                raise StoppedError
            return x

    if broken != "data":
        (a if broken == "first" else b)[5] = nn.Sequential(Breaks(), nn.Flatten()).eval()
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in (a, b)]
    with pytest.raises(StoppedError):
        compare_layers(a, b, ["0", "1"], Batches(inputs, stop=3 if broken == "data" else None))
    assert hooks_of(a) == hooks_of(b) == 0
    for model, state in zip((a, b), states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["cca", "debiased"])
def test_a_stopped_call_goes_on(name, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(passes, "SHARE", math.inf)
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images()
    layers = {"layers": ["1", "4"], "layers_b": ["1", "3"], **SIMILARITIES[name][0]}
    layers |= {"positions": "resample", "subsample": 3}
    unbroken = compare_layers(a, b, data=Batches(inputs), **layers)
    store = tmp_path / "work.sdk"
    with pytest.raises(StoppedError):
        compare_layers(a, b, data=Batches(inputs, stop=3), store=store, **layers)
    with counted() as seen:
        found = compare_layers(a, b, data=Batches(inputs), store=store, **layers)
    assert passes_in(seen) == 2 * (EXAMPLES - 3 * 16)
    assert torch.equal(found.distance, unbroken.distance)
    with counted() as seen:
        again = compare_layers(a, b, data=Batches(inputs, size=10), store=store, **layers)
    assert passes_in(seen) == 0
    assert torch.equal(again.distance, unbroken.distance)
    assert again.settings == unbroken.settings
    with counted() as seen:
        others = compare_layers(a, b, data=Batches(inputs.flip(0)[1:]), store=store, **layers)
    assert passes_in(seen) == 2 * (EXAMPLES - 1)
    assert not torch.equal(others.distance, unbroken.distance)


def test_too_few_examples_are_said_once():
    a, b, inputs = convolutions(5, 1), convolutions(3, 2), images(20)
    with pytest.warns(SdkernelsWarning, match=r"20 examples are few for .* of the other pairs") as said:
        compare_layers(a, b, ["0", "1", "4"], inputs)
    assert len(said) == 1
    with pytest.raises(ValueError, match=r"layer '0' of model_a varies in 5 directions .* of only 6 that 7 examples"):
        compare_layers(a, b, ["0", "1"], images(7))


def test_progress_is_of_both_networks(capsys):
    compare_layers(convolutions(5, 1), convolutions(3, 2), "0", images(), batch_size=10, show_progress=True)
    assert f"{2 * EXAMPLES}/{2 * EXAMPLES}" in capsys.readouterr().err


A, B = convolutions(5, 1), convolutions(3, 2)
INFINITE = images()
INFINITE[50] = math.inf


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_b": B[0]}, ValueError, "model_b: .* has no layer '1'"),
        ({"model_b": "b"}, TypeError, "model_b is a str; give a torch.nn.Module"),
        ({"model_a": convolutions(5, 1).train()}, ValueError, "model_a: the model is in train mode"),
        ({"model_b": convolutions(3, 1).train()}, ValueError, "model_b: the model is in train mode"),
        ({"layers": "7"}, ValueError, "model_a: the model has no layer '7'"),
        ({"layers_b": ["1", "8"]}, ValueError, "model_b: the model has no layer '8'"),
        ({"layers": 3}, TypeError, "model_a: layers is a int"),
        ({"matching": "some"}, ValueError, "matching='some': choose 'all' or 'same'"),
        ({"matching": "same", "layers_b": ["1", "4"]}, ValueError, "there are 1 layers and 2 of layers_b"),
        ({"method": "rv"}, ValueError, "method='rv'"),
        ({"solver": "svd"}, ValueError, "compare_layers holds none: give 'auto'"),
        ({"positions": "all"}, ValueError, "positions='all'"),
        ({"subsample": 3}, ValueError, "subsample=3 .* positions='each'"),
        (
            {"positions": "each", "layers_b": "4"},
            ValueError,
            "layer '1' of model_a .* and layer '4' of model_b .*'mean'",
        ),
        ({"positions": "each", "layers_b": "6"}, ValueError, r"model_b \[N, 4\] have 6 x 6 and none"),
        ({"unit_dim": {"5": 1}}, ValueError, r"unit_dim names \['5'\], which are none of the layers \['1'\]"),
        ({"memory_fraction": 0.0}, ValueError, "memory_fraction=0.0 must be"),
        ({"memory_fraction": 1e-12}, ValueError, "moments of 1 pairs of layers take .* layer '1' of model_a, with 5"),
        ({"data": INFINITE}, ValueError, r"layer '1' of model_a \[107, 5\]: row 50, column 0 is (inf|nan)"),
        ({"data": images(0)}, ValueError, "data is empty"),
        ({"data": {"x": images()}}, TypeError, "data gave a batch of type str"),
        ({"data": (images(50), images(50))}, ValueError, "two batches of inputs"),
        ({"data": (images(50), images(51))}, ValueError, "as many labels"),
        ({"data": torch.tensor(1.0)}, ValueError, "a tensor of one number"),
        ({"data": [torch.tensor(1.0)]}, ValueError, "a number for a batch"),
        ({"data": iter([images()])}, TypeError, "iterator, which can be read only once"),
        ({"precision": "half"}, ValueError, "precision='half'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_slips_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        compare_layers(**{"model_a": A, "model_b": B, "layers": ["1"], "data": images(), **change})
    assert hooks_of(A) == hooks_of(B) == 0


def test_maps_that_change_their_size_are_told():
    a, b = (drawn(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), seed) for seed in (1, 2))
    data = [images(30), images(30)[:, :, :5], images(40)]
    with pytest.raises(ValueError, match=r"layer '0' of model_a gives \[30, 3, 3, 4\] at example 30"):
        compare_layers(a, b, "0", data, positions="each")
    assert compare_layers(a, b, "0", data).examples == 100
