"""Attributions equal the definition by plain hooks, and captum's; what is kept between calls never shows."""

import warnings
import zlib

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis.attribution import LayerUnitAblation
from sdkernels.engine.sites import find_sites
from tests.analysis.attributed import EXACT, MODELS, Recurrent, by_hooks, case, examples, layer_output, mask_of
from tests.engine.zoo import ZOO, build
from tests.pairwise import pairwise

TRACED = [name for name in MODELS if name != "untraceable"]
TARGETS = {"one": 3, "each": [0, 1, 4, 3, 3, 2, 1]}
BASELINES = ("zero", "number", "unit", "element", "example")


def baseline_of(kind, output, unit_dim):
    """What is given, and the same so that it broadcasts to the output."""
    shape = {"unit": (output.shape[unit_dim],), "element": output.shape[1:], "example": output.shape}.get(kind)
    if shape is None:
        return (0.0, 0.0) if kind == "zero" else (0.7, 0.7)
    given = examples(shape[0], shape[1:], seed=5)
    by_unit = [-1 if d == unit_dim else 1 for d in range(output.ndim)]
    return given, given.view(by_unit) if kind == "unit" else given


@pytest.mark.parametrize(*pairwise(name=TRACED, baseline=BASELINES, mask=["alone", "groups"]), ids=str)
def test_equals_hooks(name, baseline, mask):
    model, layer, shape, dim = case(name)
    x = examples(7, shape)
    output = layer_output(model, layer, x)
    given, broadcast = baseline_of(baseline, output, dim)
    groups = mask_of(mask, output.shape[dim])
    target = torch.tensor(TARGETS["each"])
    found = LayerUnitAblation(model, layer).attribute(x, target=target, layer_baselines=given, layer_mask=groups)
    torch.testing.assert_close(found, by_hooks(model, layer, x, target, broadcast, groups, dim), **EXACT)
    assert found.abs().max() > 1e-3
    assert found.is_contiguous()


@pytest.mark.parametrize(*pairwise(name=TRACED, per_eval=[1, 3, 1000, "auto"], target=TARGETS), ids=str)
def test_targets_and_passes(name, target, per_eval):
    model, layer, shape, dim = case(name)
    x = examples(7, shape)
    found = LayerUnitAblation(model, layer).attribute(x, target=TARGETS[target], perturbations_per_eval=per_eval)
    torch.testing.assert_close(found, by_hooks(model, layer, x, TARGETS[target], unit_dim=dim), **EXACT)


@pytest.mark.parametrize(
    *pairwise(
        name=MODELS,
        baseline=["zero", "number", "element", "example"],
        target_and_passes=[("one", 3), ("each", 1)],
        mask=["alone", "groups"],
    ),
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Branching runs as a hook loop")
def test_equals_captum(name, baseline, target_and_passes, mask):
    """Per-example targets only one perturbation at a time: captum does not repeat them for several."""
    captum = pytest.importorskip("captum.attr")
    target, per_eval = target_and_passes
    model, layer, shape, dim = case(name)
    x = examples(7, shape)
    if name == "untraceable":
        x = x.abs()  # one branch: captum's batches are other ones
    output = layer_output(model, layer, x)
    given, _ = baseline_of(baseline, output, dim)
    groups = mask_of(mask, output.shape[dim])
    by_unit = [-1 if d == dim else 1 for d in range(output.ndim)]
    numbers = torch.arange(output.shape[dim]) if groups is None else groups
    options = {"target": torch.tensor(TARGETS[target]), "layer_baselines": given, "perturbations_per_eval": per_eval}
    theirs = captum.LayerFeatureAblation(model, model.get_submodule(layer)).attribute(
        x, layer_mask=numbers.view(by_unit), **options
    )
    expected = theirs.movedim(dim, 1).flatten(2)[:, :, 0] if theirs.ndim > 2 else theirs
    found = LayerUnitAblation(model, layer).attribute(x, layer_mask=groups, **options)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("name", ["mlp", "convnet", "tokens", "conv1d"])
def test_forms_of_a_mask(name):
    model, layer, shape, dim = case(name)
    x = examples(7, shape)
    output = layer_output(model, layer, x)
    numbers = mask_of("groups", output.shape[dim])
    one = numbers.view([-1 if d == dim else 1 for d in range(output.ndim)])
    ours = LayerUnitAblation(model, layer)
    expected = ours.attribute(x, target=1, layer_mask=numbers)
    for form in (one, one[0], one.int(), one.expand_as(output[:1]), one.expand_as(output[:1])[0], numbers - 9):
        assert torch.equal(ours.attribute(x, target=1, layer_mask=form), expected)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("mask", ["alone", "groups"])
def test_a_model_that_no_tracer_follows(baseline, mask):
    model, layer, shape, dim = case("untraceable")
    x = examples(7, shape).abs()
    output = layer_output(model, layer, x)
    given, broadcast = baseline_of(baseline, output, dim)
    groups = mask_of(mask, output.shape[dim])
    ours = LayerUnitAblation(model, layer)
    options = {"target": TARGETS["each"], "layer_baselines": given, "layer_mask": groups}
    with pytest.warns(sd.SdkernelsWarning, match="Branching runs as a hook loop, the slow way, because") as record:
        found = ours.attribute(x, **options)
    assert [warning.filename for warning in record] == [__file__]
    expected = by_hooks(model, layer, x, TARGETS["each"], broadcast, groups)
    torch.testing.assert_close(found, expected, **EXACT)
    assert torch.equal(ours.attribute(x, **options), found), "and says so once"


@pytest.mark.parametrize(
    ("name", "layer"),
    [  # every other layer is slow
        pytest.param(name, layer, marks=[pytest.mark.slow] * (i % 2))
        for name, network in ZOO.items()
        for i, layer in enumerate(sorted({x for layers in network.sites for x in layers}))
    ],
)
def test_networks_of_every_kind(name, layer):
    network = ZOO[name]
    model, (x, labels) = build(network, examples=7)
    unit_dim = network.unit_dim.get(layer)
    ((site,), _) = find_sites(model, [layer], x, unit_dim)
    groups = mask_of("alone" if zlib.crc32(f"{name}-{layer}".encode()) % 2 else "groups", site.units)
    baselines = examples(7, site.example_shape, seed=2)
    ours = LayerUnitAblation(model, layer, unit_dim=unit_dim)
    found = ours.attribute(x, target=labels, layer_baselines=baselines, layer_mask=groups)
    expected = by_hooks(model, layer, x, labels, baselines, groups, site.unit_dim)
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_part_of_a_tuple(seeds_torch):
    model = Recurrent().double().eval()
    x = examples(6, (4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.SdkernelsWarning)  # whether it has a graph is no matter here
        found = LayerUnitAblation(model, "lstm", select=0).attribute(x, target=2, layer_baselines=0.1)
    expected = by_hooks(model, "lstm", x, 2, 0.1, unit_dim=2, select=0)
    torch.testing.assert_close(found, expected, **EXACT)


def test_units_of_another_dimension():
    model, _, shape, _ = case("tokens")
    x = examples(5, shape)
    found = LayerUnitAblation(model, model.act, unit_dim=1).attribute(x, target=1)
    torch.testing.assert_close(found, by_hooks(model, "act", x, 1, unit_dim=1), **EXACT)


def test_a_call_of_a_layer_that_fires_often(seeds_torch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 6), nn.Linear(6, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(self.b(self.relu(self.a(x))))

    model = Twice().eval()
    x = torch.randn(5, 4)
    found = LayerUnitAblation(model, "relu@1").attribute(x, target=1)
    lost = torch.zeros(5, 3)
    lost[:, 1] = model(x)[:, 1].detach()
    torch.testing.assert_close(found, lost)


def test_one_logit_needs_no_target(seeds_torch):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    x = examples(5, (3,))
    found = LayerUnitAblation(model, "1").attribute(x)
    torch.testing.assert_close(found, by_hooks(model, "1", x, 0), **EXACT)


@pytest.mark.parametrize("target", [3, torch.tensor(3), torch.tensor([3], dtype=torch.int32), [3], [3] * 6])
def test_ways_to_say_a_target(target):
    model, layer, shape, _ = case("mlp")
    x = examples(6, shape)
    ours = LayerUnitAblation(model, layer)
    assert torch.equal(ours.attribute(x, target=target), ours.attribute(x, target=3))


class TestRefusals:
    X = examples(7, (2, 6, 6))

    @pytest.fixture
    def ours(self):
        return LayerUnitAblation(case("convnet")[0], "relu1")

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({}, ValueError, r"5 logits; say by target= .* 0\.\.4"),
            ({"target": 5}, ValueError, r"target 5 is out of range: the model gives 5 logits, 0\.\.4"),
            ({"target": -1}, ValueError, "target -1 is out of range"),
            ({"target": [0, 1, 2, 9, 0, 0, 0]}, ValueError, "target 9 of example 3 is out of range"),
            ({"target": [0, 1]}, ValueError, r"target is \[2\]; .* one for each of the 7 examples"),
            ({"target": torch.zeros(7, 1, dtype=torch.int64)}, ValueError, r"target is \[7, 1\]"),
            ({"target": torch.zeros(7)}, TypeError, "target is torch.float32; give integers"),
            ({"target": True}, TypeError, "target is torch.bool"),
            ({"target": "cat"}, TypeError, "target is a str"),
            ({"target": 0, "layer_baselines": "mean"}, TypeError, "layer_baselines is a str; give a number or"),
            ({"target": 0, "layer_baselines": True}, TypeError, "layer_baselines is a bool"),
            (
                {"target": 0, "layer_baselines": torch.zeros(4)},
                ValueError,
                r"\[4\] for layer 'relu1' fits neither its units \[5\], nor one example \[5, 6, 6\], nor all",
            ),
            ({"target": 0, "layer_baselines": torch.zeros(3, 5, 6, 6)}, ValueError, r"nor all \[7, 5, 6, 6\]"),
            ({"target": 0, "layer_mask": [0, 0, 1, 1, 2]}, TypeError, "layer_mask is a list; give an integer tensor"),
            ({"target": 0, "layer_mask": torch.zeros(5)}, TypeError, "layer_mask is torch.float32"),
            ({"target": 0, "layer_mask": torch.zeros(4, dtype=torch.int64)}, ValueError, r"layer_mask \[4\] .* \[5\]"),
            (
                {"target": 0, "layer_mask": torch.zeros(7, 5, 1, 1, dtype=torch.int64)},
                ValueError,
                "one example .* masked as all others are",
            ),
            (
                {"target": 0, "layer_mask": torch.arange(36).view(6, 6)},
                ValueError,
                "within unit 0 of layer 'relu1' .* captum.attr.LayerFeatureAblation",
            ),
            (
                {"target": 0, "perturbations_per_eval": 0},
                ValueError,
                "perturbations_per_eval=0 must be .*'auto' or a positive int",
            ),
            ({"target": 0, "perturbations_per_eval": "all"}, TypeError, "is a str; give 'auto' or a positive int"),
        ],
    )
    def test_of_arguments(self, ours, options, error, match):
        with pytest.raises(error, match=match):
            ours.attribute(self.X, **options)

    @pytest.mark.parametrize(
        ("inputs", "error", "match"),
        [
            ([[1.0]], TypeError, "inputs is a list; give one tensor"),
            ((X,), TypeError, "inputs is a tuple"),
            (torch.tensor(1.0), ValueError, r"inputs \[\] must be \[N, ...\]"),
            (X[:0], ValueError, r"inputs \[0, 2, 6, 6\] must be .* at least one example"),
            (X.float(), TypeError, "torch.float32 inputs but the model is torch.float64"),
        ],
    )
    def test_of_inputs(self, ours, inputs, error, match):
        with pytest.raises(error, match=match):
            ours.attribute(inputs, target=0)

    @pytest.mark.parametrize(
        ("layer", "error", "match"),
        [("relu3", ValueError, "no layer 'relu3'; did you mean"), (["relu1"], TypeError, "layer is a list; .* one")],
    )
    def test_of_layers(self, layer, error, match):
        with pytest.raises(error, match=match):
            LayerUnitAblation(case("convnet")[0], layer).attribute(self.X, target=0)

    def test_of_a_function(self):
        with pytest.raises(TypeError, match=r"model is a function; give a torch.nn.Module"):
            LayerUnitAblation(lambda x: x, "relu1")

    def test_of_activations_that_are_not_finite(self, ours):
        ours.attribute(self.X, target=0)
        x = self.X.clone()
        x[5] = torch.nan
        with pytest.raises(ValueError, match=r"layer 'relu1': .* the first in example 5"):
            ours.attribute(x, target=0)

    def test_of_a_model_that_mixes_examples(self, seeds_torch):
        class Mixing(nn.Sequential):
            def forward(self, x):
                x = super().forward(x)
                return x - x.mean(0)

        model = Mixing(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        with pytest.raises(ValueError, match="mixes the examples of a batch"):
            LayerUnitAblation(model, "1").attribute(torch.randn(6, 3), target=0)
