"""Attributions equal the definition by plain hooks, and captum's; what is kept between calls never shows."""

import warnings
import zlib

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis import attribution
from sdkernels.analysis.attribution import LayerUnitAblation
from sdkernels.engine import execute, memory, singles, tiles
from sdkernels.engine.dense import DenseRun
from sdkernels.engine.sites import find_sites
from tests.analysis.attributed import MODELS, Recurrent, by_hooks, case, examples, layer_output
from tests.engine.zoo import ZOO, build

EXACT = {"rtol": 0, "atol": 1e-10}  # float64: sums in another order
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


def mask_of(kind, units):
    """Groups of one and of two units, mixed, their numbers with gaps; None for every unit alone."""
    mixed = examples(units, ()).argsort()
    return None if kind == "alone" else (torch.arange(units) % max(units - 2, 2))[mixed] * 5 + 2


@pytest.fixture
def counts_preparations(monkeypatch):
    """How often runs were prepared."""
    counted = []
    prepared = attribution.prepared
    monkeypatch.setattr(attribution, "prepared", lambda *args: counted.append(1) or prepared(*args))
    return counted


@pytest.mark.parametrize("mask", ["alone", "groups"])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", TRACED)
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


@pytest.mark.parametrize("per_eval", [1, 3, 1000, "auto"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TRACED)
def test_targets_and_passes(name, target, per_eval):
    model, layer, shape, dim = case(name)
    x = examples(7, shape)
    found = LayerUnitAblation(model, layer).attribute(x, target=TARGETS[target], perturbations_per_eval=per_eval)
    torch.testing.assert_close(found, by_hooks(model, layer, x, TARGETS[target], unit_dim=dim), **EXACT)


@pytest.mark.parametrize("mask", ["alone", "groups"])
@pytest.mark.parametrize("baseline", ["zero", "number", "element", "example"])
@pytest.mark.parametrize(("target", "per_eval"), [("one", 3), ("each", 1)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Branching runs as a hook loop")
def test_equals_captum(name, target, per_eval, baseline, mask):
    """Per-example targets only one perturbation at a time: captum does not repeat them for several."""
    captum = pytest.importorskip("captum.attr")
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
    [
        (name, layer)
        for name, network in ZOO.items()
        for layer in sorted({x for layers in network.sites for x in layers})
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


class TestWhatIsKept:
    @pytest.mark.parametrize("name", ["mlp", "convnet", "resnet"])
    def test_serves_other_batches(self, name, counts_preparations):
        model, layer, shape, _ = case(name)
        ours = LayerUnitAblation(model, layer)
        for count, seed in [(9, 0), (30, 1), (1, 2), (9, 3)]:
            x = examples(count, shape, seed)
            baselines = examples(count, layer_output(model, layer, x).shape[1:], seed + 9)
            torch.testing.assert_close(ours.attribute(x, target=2), by_hooks(model, layer, x, 2), **EXACT)
            torch.testing.assert_close(
                ours.attribute(x, target=2, layer_baselines=baselines), by_hooks(model, layer, x, 2, baselines), **EXACT
            )
        assert len(counts_preparations) == 2, "of each kind of baseline"

    def test_is_prepared_again_on_more_examples(self, counts_preparations):
        model, layer, shape, _ = case("mlp")
        ours = LayerUnitAblation(model, layer)
        for count, times in [(1, 1), (1, 1), (3, 2), (2, 2), (20, 3), (9, 3)]:
            ours.attribute(examples(count, shape), target=0)
            assert len(counts_preparations) == times

    def test_is_for_one_shape(self, counts_preparations):
        model, layer, _, _ = case("resnet")
        ours = LayerUnitAblation(model, layer)
        for side in (16, 24, 16, 24):
            x = examples(8, (3, side, side))
            torch.testing.assert_close(ours.attribute(x, target=2), by_hooks(model, layer, x, 2), **EXACT)
        assert len(counts_preparations) == 2

    def test_is_let_go(self, counts_preparations):
        model, layer, shape, _ = case("mlp")
        ours = LayerUnitAblation(model, layer)
        for value in [*range(attribution.KEPT + 1), 1, attribution.KEPT, 0]:
            x = examples(8, shape)
            found = ours.attribute(x, target=1, layer_baselines=value)
            torch.testing.assert_close(found, by_hooks(model, layer, x, 1, float(value)), **EXACT)
        assert len(ours._ready) == attribution.KEPT
        assert len(counts_preparations) == attribution.KEPT + 2, "only the oldest was made again"

    @pytest.mark.parametrize(
        "change",
        {
            "a step": lambda m: m.fc1.weight.mul_(1.5),
            "a write through data": lambda m: m.conv2.weight.data[0, 0].add_(0.3),
            "a buffer": lambda m: m.bn2.running_mean.add_(0.2),
            "other weights": lambda m: m.load_state_dict({k: v * 1.1 for k, v in m.state_dict().items()}),
            "another parameter": lambda m: setattr(m.fc2, "weight", nn.Parameter(m.fc2.weight * 2)),
            "another module": lambda m: setattr(m, "relu2", nn.Tanh().eval()),
            "an attribute": lambda m: setattr(m.bn2, "eps", 0.5),
            "a hook": lambda m: m.bn2.register_forward_hook(lambda _m, _a, out: out * 0.9),
        }.items(),
        ids=lambda change: change[0],
    )
    def test_is_not_for_another_model(self, change, counts_preparations):
        model, layer, shape, _ = case("convnet")
        x = examples(8, shape)
        ours = LayerUnitAblation(model, layer)
        before = ours.attribute(x, target=2)
        assert torch.equal(ours.attribute(x, target=2), before)
        with torch.no_grad():
            change[1](model)
        after = ours.attribute(x, target=2)
        torch.testing.assert_close(after, by_hooks(model, layer, x, 2), **EXACT)
        assert (after - before).abs().max() > 1e-3
        assert len(counts_preparations) == 2

    def test_is_not_for_another_mode(self):
        model, layer, shape, _ = case("convnet")
        ours = LayerUnitAblation(model, layer)
        ours.attribute(examples(8, shape), target=2)
        model.bn2.train()
        with pytest.raises(ValueError, match="train mode"):
            ours.attribute(examples(8, shape), target=2)

    def test_is_for_either_dtype(self):
        model, layer, shape, _ = case("mlp")
        x = examples(8, shape)
        ours = LayerUnitAblation(model, layer)
        expected = ours.attribute(x, target=2)
        model.float()
        found = ours.attribute(x.float(), target=2)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["convnet", "untraceable"])
@pytest.mark.filterwarnings("ignore:Branching runs as a hook loop")
def test_the_model_and_the_inputs_are_left_alone(name):
    model, layer, shape, _ = case(name)
    x = examples(8, shape).abs().requires_grad_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    versions = [t._version for t in (x, *model.parameters(), *model.buffers())]
    attributes = [dict(vars(module)) for module in model.modules()]
    found = LayerUnitAblation(model, layer).attribute(x, target=1)
    assert not found.requires_grad
    assert versions == [t._version for t in (x, *model.parameters(), *model.buffers())]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert attributes == [dict(vars(module)) for module in model.modules()]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("around", [torch.inference_mode, lambda: torch.autocast("cpu"), torch.enable_grad])
def test_what_is_around_changes_nothing(around):
    model, layer, shape, _ = case("convnet")
    model.float()
    x = examples(8, shape).float()
    ours = LayerUnitAblation(model, layer)
    with around():
        inside = ours.attribute(x * 1, target=1)
    expected = LayerUnitAblation(model, layer).attribute(x, target=1)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.equal(ours.attribute(x, target=1), expected)
    inside.add_(1)  # an ordinary tensor


def test_wrappers_are_looked_through():
    model, layer, shape, _ = case("mlp")
    x = examples(8, shape)
    found = LayerUnitAblation(nn.DataParallel(model), layer).attribute(x, target=1)
    torch.testing.assert_close(found, by_hooks(model, layer, x, 1), **EXACT)


@pytest.mark.parametrize("mask", ["alone", "groups"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet-inner"])
def test_tiles_do_not_show(name, mask, monkeypatch):
    model, layer, shape, dim = case(name)
    x = examples(23, shape)
    output = layer_output(model, layer, x)
    baselines, groups = examples(23, output.shape[1:], 3), mask_of(mask, output.shape[dim])
    target = examples(23, ()).argsort() % 5
    for module in (memory, tiles):
        monkeypatch.setattr(module, "WORKING_SET", {"cpu": 1})
    monkeypatch.setattr(memory, "FEWEST", 5)
    ours = LayerUnitAblation(model, layer)
    found = ours.attribute(x, target=target, layer_baselines=baselines, layer_mask=groups)
    assert next(iter(ours._ready.values())).size == 5
    torch.testing.assert_close(found, by_hooks(model, layer, x, target, baselines, groups), **EXACT)


class TestOutOfMemory:
    @pytest.fixture
    def memory_for(self, monkeypatch):
        """Memory for so many examples."""

        def limit(most):
            plenty = singles.SinglesRun.logits

            def logits(run, group, intact, clamped, count, per_pass):
                for number, found in enumerate(plenty(run, group, intact, clamped, count, per_pass)):
                    if number and count > most:
                        raise torch.OutOfMemoryError("no more")
                    yield found

            monkeypatch.setattr(singles.SinglesRun, "logits", logits)

        return limit

    def test_halves_the_tile(self, memory_for):
        model, layer, shape, _ = case("convnet")
        x = examples(23, shape)
        ours = LayerUnitAblation(model, layer)
        options = {"target": 2, "perturbations_per_eval": 2}
        ours.attribute(x, **options)
        memory_for(4)
        torch.testing.assert_close(ours.attribute(x, **options), by_hooks(model, layer, x, 2), **EXACT)
        assert next(iter(ours._ready.values())).size == 3

    def test_halves_the_tile_of_groups(self, monkeypatch):
        model, layer, shape, _ = case("convnet")
        x, groups = examples(23, shape), torch.tensor([0, 1, 0, 1, 2])
        ours = LayerUnitAblation(model, layer)
        ours.attribute(x, target=2, layer_mask=groups)
        plenty = DenseRun.logits

        def scarce(run, given, count, at_site):
            if count > 4:
                raise torch.OutOfMemoryError("no more")
            return plenty(run, given, count, at_site)

        monkeypatch.setattr(DenseRun, "logits", scarce)
        found = ours.attribute(x, target=2, layer_mask=groups)
        torch.testing.assert_close(found, by_hooks(model, layer, x, 2, groups=groups), **EXACT)
        assert next(iter(ours._ready.values())).size == 3

    def test_of_one_example_is_an_error(self, memory_for):
        model, layer, shape, _ = case("convnet")
        ours = LayerUnitAblation(model, layer)
        ours.attribute(examples(8, shape), target=2, perturbations_per_eval=2)
        memory_for(0)
        with pytest.raises(MemoryError, match="one example"):
            ours.attribute(examples(8, shape), target=2, perturbations_per_eval=2)


def test_progress_is_shown(capsys):
    model, layer, shape, _ = case("mlp")
    LayerUnitAblation(model, layer).attribute(examples(8, shape), target=2, show_progress=True)
    assert "72.0/72.0" in capsys.readouterr().err


@pytest.mark.parametrize("mask", ["alone", "groups"])
def test_a_graph_that_does_something_else_is_not_used(mask, monkeypatch):
    model, layer, shape, _ = case("convnet")
    x, groups = examples(7, shape), mask_of(mask, 5)
    before = [True]  # to what is asked first, whether the model repeats itself
    monkeypatch.setattr(execute, "is_close", lambda *_: bool(before) and before.pop())
    with pytest.warns(sd.SdkernelsWarning, match="hook loop, .* gives other logits than the model with hooks"):
        found = LayerUnitAblation(model, layer).attribute(x, target=1, layer_mask=groups)
    torch.testing.assert_close(found, by_hooks(model, layer, x, 1, groups=groups), **EXACT)


@pytest.mark.parametrize("mask", [None, torch.tensor([0, 0, 1, 1])], ids=["alone", "groups"])
def test_a_layer_that_nobody_reads(seeds_torch, mask):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.unread = nn.Linear(3, 2), nn.Linear(3, 4)

        def forward(self, x):
            self.unread(x)
            return self.read(x)

    with pytest.warns(sd.SdkernelsWarning, match=r"do not depend on layers \['unread'\]"):
        found = LayerUnitAblation(Idle().eval(), "unread").attribute(torch.randn(3, 3), target=1, layer_mask=mask)
    assert torch.equal(found, torch.zeros(3, 4))


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
            ({"target": 0, "perturbations_per_eval": 0}, ValueError, "must be 'auto' or a positive int"),
            ({"target": 0, "perturbations_per_eval": "all"}, ValueError, "must be 'auto' or a positive int"),
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


def test_a_second_call_is_cheap(monkeypatch):
    """Nothing is traced, measured or checked again: no pass of the model by its own code."""
    model, layer, shape, _ = case("convnet")
    x = examples(8, shape)
    ours = LayerUnitAblation(model, layer)
    passes = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, x: passes.append(1) or forward(self, x))
    expected = ours.attribute(x, target=1)
    assert passes
    passes.clear()
    assert torch.equal(ours.attribute(x, target=1), expected)
    assert not passes
