"""What is prepared once and kept, tiles, and what is left as it was: none of it shows in attributions."""

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis import attribution
from sdkernels.analysis.attribution import LayerUnitAblation
from sdkernels.engine import memory, runner, singles, tiles
from sdkernels.engine.dense import DenseRun
from tests.analysis.attributed import EXACT, MODELS, by_hooks, case, examples, layer_output, mask_of

TRACED = [name for name in MODELS if name != "untraceable"]
TARGETS = {"one": 3, "each": [0, 1, 4, 3, 3, 2, 1]}
BASELINES = ("zero", "number", "unit", "element", "example")


@pytest.fixture
def counts_preparations(monkeypatch):
    """How often runs were prepared."""
    counted = []
    prepared = attribution.prepared
    monkeypatch.setattr(attribution, "prepared", lambda *args: counted.append(1) or prepared(*args))
    return counted


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
    monkeypatch.setattr(runner, "is_close", lambda *_: False)
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
