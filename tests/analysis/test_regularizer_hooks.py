"""SelectivityRegularizer: what it watches, what it lets go of, what it refuses."""

import copy
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdkernels as sd
from sdkernels.analysis.regularizer import SelectivityRegularizer
from tests.analysis.regularized import Maps, Recurrent, Shared, activations, batch, index, net
from tests.ops.backends import on_cuda
from tests.ops.tensors import integers, numbers
from tests.ops.tolerances import same_bits

# torch's own, while it compiles
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def all_hooks(model):
    return {
        name: {key: list(value.values()) for key, value in vars(module).items() if key.endswith("hooks")}
        for name, module in model.named_modules()
    }


def test_only_its_own_hooks_go():
    model, (x, y) = net(), batch(6)
    model.relu1.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    before = all_hooks(model)
    regularizer = SelectivityRegularizer(model, ["relu1", "relu2"], 1.0)
    assert all_hooks(model) != before
    model.relu2.register_forward_hook(lambda *_: None)
    during = all_hooks(model)["relu2"]["_forward_hooks"]
    regularizer.close()
    regularizer.close()
    before["relu2"]["_forward_hooks"] = during[1:]
    assert all_hooks(model) == before
    model(x)
    with pytest.raises(RuntimeError, match="the regularizer is closed: its hooks are gone; make another"):
        regularizer(y)
    with pytest.raises(ArithmeticError), SelectivityRegularizer(model, "relu1", 1.0):
        raise ArithmeticError
    assert all_hooks(model) == before
    with pytest.raises(ValueError, match="no layer 'relu9'"):
        SelectivityRegularizer(model, ["relu1", "relu9"], 1.0)
    assert all_hooks(model) == before


def test_activations_are_let_go():
    model, (x, y) = net(), batch(6)
    seen = []
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        model.relu1.register_forward_hook(lambda _m, _a, output: seen.append(weakref.ref(output)))
        model(x)
        assert seen[0]() is not None
        model.fc1.register_forward_hook(lambda *_: seen.append(seen[0]()))
        model(x)
        assert seen[1] is None, "before the next forward pass has begun to fill memory"
        term = regularizer(y)
        assert seen[2]() is None, "when they are used"
        with torch.no_grad():
            model.eval()(x)
        with pytest.raises(ValueError, match="3 labels"):
            regularizer(y[:3])
        assert seen[-1]() is None, "also by an error"
        model(x)
    assert seen[-1]() is None, "when it is closed"
    term.backward()


def test_the_last_forward_pass_counts():
    model, (x, y) = net(), batch(6)
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        model(x)
        expected = regularizer(y)
        with torch.no_grad():
            model.eval()(x[:5])
        model.train()(x + 1)
        model(x)
        assert same_bits(regularizer(y), expected)
        with torch.inference_mode():
            model(x)
            assert same_bits(regularizer(y), expected)
            model(x)
        with torch.no_grad():
            assert same_bits(regularizer(y), expected)


def test_copies_of_the_model_are_other_models():
    """As those of weight averaging."""
    model, (x, y) = net(), batch(6)
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        model(x)
        expected = regularizer(y)
        model(x)
        other = copy.deepcopy(model)
        other(x + 1)
        assert same_bits(regularizer(y), expected)


def test_an_ablation_in_between_sees_no_hooks(seeds_torch):
    """As a monitor's; neither by torch.fx, nor by torch.export, nor by the loop."""
    for model, layer, shape in ((Maps().eval(), "relu2", (2, 5, 5)), (Shared().eval(), "relu@1", (6,))):
        x, y = batch(*shape)
        for method in ("auto", "loop"):
            expected = sd.unit_importance(model, layer, (x, y % 3), method=method, metrics="loss")
            with SelectivityRegularizer(model, layer, 1.0) as regularizer:
                found = sd.unit_importance(model, layer, (x, y % 3), method=method, metrics="loss")
                assert torch.equal(found.loss, expected.loss)
                assert found.plan == expected.plan
                model(x)
                regularizer(y).backward()


def test_two_at_once():
    model, (x, y) = net(), batch(6)
    terms = []
    with (
        SelectivityRegularizer(model, "relu1", 1.0) as first,
        SelectivityRegularizer(model, ["relu1", "relu2"], -1.0) as second,
    ):
        model(x)
        terms = first(y).item(), second(y).item()
    one, two = activations(model, x, ["relu1", "relu2"])
    assert terms == pytest.approx((-index(one, y), (index(one, y) + index(two, y)) / 2), rel=1e-6)


def test_parts_of_a_model_may_be_called_alone(seeds_torch):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 3))
    x, y = batch(6)
    with SelectivityRegularizer(model, "0.1", 1.0) as regularizer:
        for _ in range(2):
            features = model[0](x)
            assert regularizer(y).item() == pytest.approx(-index(features, y), rel=1e-6)


@pytest.mark.parametrize(("backend", "inplace"), [("eager", True), ("aot_eager", False), ("aot_eager", True)])
@pytest.mark.parametrize("layer", ["relu@1", "fc1"])
def test_compiled_models(seeds_torch, layer, backend, inplace):
    model, (x, y) = Shared(inplace), batch(6)
    plain = Shared()
    plain.load_state_dict(model.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    gradients = []
    for runs, watched, own in ((plain, plain, plain), (compiled, compiled, model), (compiled, model, model)):
        with SelectivityRegularizer(watched, layer, 1.0, negative="ignore") as regularizer:
            for _ in range(2):
                runs(x)
                term = regularizer(y)
            gradients.append((term, *torch.autograd.grad(term, list(own.fc1.parameters()))))
    for found in gradients[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(gradients[0], found, strict=True))


def test_a_model_compiled_before_is_refused(seeds_torch):
    model, (x, y) = Shared(), batch(6)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    with SelectivityRegularizer(compiled, "relu@1", 1.0) as regularizer:
        compiled(x)
        with pytest.raises(RuntimeError, match="make it before the first forward pass"):
            regularizer(y)


@on_cuda
def test_on_a_gpu(seeds_torch):
    model, (x, y) = Maps(), batch(2, 5, 5)
    results = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(model).to(device)
        with SelectivityRegularizer(own, ["relu1", "relu3"], 1.0) as regularizer:
            own(x.to(device))
            term = regularizer(y.to(device))
        assert term.device.type == device
        results.append((term.cpu(), torch.autograd.grad(term, own.conv1.weight)[0].cpu()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results, strict=True))


def test_data_parallel():
    model, (x, y) = net(), batch(6)
    wrapped = nn.DataParallel(model)
    with SelectivityRegularizer(wrapped, "relu1", 1.0) as regularizer:
        (one,) = activations(model, x, ["relu1"])
        wrapped(x)
        assert regularizer(y).item() == pytest.approx(-index(one, y), rel=1e-6)
    wrapped.device_ids = [0, 1]
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        SelectivityRegularizer(wrapped, "relu1", 1.0)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "net"}, TypeError, r"model is a str; give a torch\.nn\.Module"),
        ({"layers": []}, ValueError, "layers is empty"),
        ({"layers": "relu"}, ValueError, "no layer 'relu'; did you mean 'relu2' or 'relu1'"),
        ({"layers": ["relu1", "relu1@0"]}, ValueError, "layer 'relu1@0' is named twice"),
        ({"weight": "1"}, TypeError, "weight is a str; give a number"),
        ({"weight": True}, TypeError, "weight is a bool; give a number"),
        ({"weight": math.nan}, ValueError, "weight=nan must be a finite number"),
        ({"epsilon": 0}, ValueError, "epsilon=0 must be positive"),
        ({"kind": "both"}, ValueError, "kind='both': choose 'macro' or 'micro'"),
        ({"negative": "shift"}, ValueError, "negative='shift': choose 'raise' or 'ignore'"),
        ({"num_classes": 0}, ValueError, "num_classes=0 must be within 1"),
        ({"num_classes": 3.0}, TypeError, "num_classes is a float; give an int, or None"),
        ({"unit_dim": {"relu3": 1}}, ValueError, r"unit_dim names \['relu3'\], which are none of \['relu1'\]"),
        ({"select": {"fc1": 1}}, ValueError, r"select names \['fc1'\], which are none of \['relu1'\]"),
    ],
)
def test_refusals(changes, kind, message):
    arguments = {"model": net(), "layers": "relu1", "weight": 1.0, **changes}
    with pytest.raises(kind, match=message):
        SelectivityRegularizer(arguments.pop("model"), arguments.pop("layers"), arguments.pop("weight"), **arguments)


LABELS = batch(6)[1]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (LABELS[:7], ValueError, "7 labels, but layer 'relu1' had a batch of 12 in the last forward pass: call the"),
        (LABELS.tolist(), TypeError, r"labels are a list; give the class of every example, int64 \[N\]"),
        (LABELS.float(), TypeError, r"labels are torch\.float32; give the class"),
        (F.one_hot(LABELS), ValueError, r"labels \[12, 6\] must be \[N\]"),
        (LABELS[:0], ValueError, r"labels \[0\] must be \[N\]"),
        (LABELS - 1, ValueError, "label -1 of example 0 is out of range"),
        (LABELS + 1, ValueError, "label 6 of example 2 is out of range: with 6 classes labels are 0 to 5"),
    ],
)
def test_labels_that_do_not_fit(labels, kind, message):
    model, (x, _) = net(), batch(6)
    with SelectivityRegularizer(model, "relu1", 1.0, num_classes=6) as regularizer:
        model(x)
        with pytest.raises(kind, match=message):
            regularizer(labels)


def test_a_call_needs_a_forward_pass_of_its_own():
    model, (x, y) = net(), batch(6)
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"no forward pass since the last call: call model\(x\), then"):
                regularizer(y)
            model(x)
            regularizer(y)


def refused(model, layers, x, y, **options):
    with SelectivityRegularizer(model, layers, 1.0, **options) as regularizer:
        model(x)
        with pytest.raises(ValueError, match="layer") as caught:
            regularizer(y)
    return str(caught.value)


def test_layers_that_do_not_fit(seeds_torch):
    model, (x, y) = Shared(), batch(6)
    assert "was called 2 times since the model was; pick calls by name, 'relu@0' to 'relu@1'" in refused(
        model, "relu", x, y
    )
    assert "layer 'relu@2': it was called 2 times, so calls are 0..1" in refused(model, "relu@2", x, y)
    model.unused = nn.ReLU()
    assert "layer 'unused' was not called in the last forward pass" in refused(model, ["relu@0", "unused"], x, y)
    assert "in place after it; name the module that does it" in refused(Shared(inplace=True), "fc1", x, y)
    assert "'rnn' gives a tuple, not one tensor; say which part" in refused(Recurrent(), "rnn", *batch(4, 6))
    assert "unit_dim=2 does not fit layer 'relu@0'" in refused(model, "relu@0", x, y, unit_dim=2)


def test_activations_without_a_gradient(seeds_torch):
    model, (x, y) = Shared(), batch(6)
    with SelectivityRegularizer(model, "relu@0", 1.0) as regularizer:
        with torch.no_grad():
            model(x)
        with pytest.raises(ValueError, match=r"no gradient flows through layer 'relu@0': .* torch\.no_grad\(\)"):
            regularizer(y)
        regularizer.weight = 0
        with torch.no_grad():
            model(x)
        assert regularizer(y).item() == 0
    model.fc1.requires_grad_(False)
    assert "all before the layer is frozen" in refused(model, ["relu@1", "relu@0"], x, y)


def test_negative_means():
    model, (x, y) = net(), batch(6)
    (z,) = activations(model, x, ["fc1"])
    means = torch.stack([z[y == label].mean(0) for label in (0, 2, 5)])
    label, unit = divmod(int(means.argmin()), 8)
    message = refused(model, ["relu1", "fc1"], x, y)
    assert f"layer 'fc1': the mean of unit {unit} over class {(0, 2, 5)[label]} is {means.min().item():.3g}" in message
    assert "name the ReLU behind the layer, or say negative='ignore'" in message
    with SelectivityRegularizer(model, "fc1", 1.0, negative="ignore") as regularizer:
        model(x)
        assert regularizer(y).item() == pytest.approx(-index(z, y), rel=1e-4)


def test_units_below_zero_in_every_class():
    """The largest mean is still that of a class in the batch, not the 0 of one that is absent."""
    model, (x, y) = net(), batch(6)
    model.fc1.bias.data[:] = -10
    (z,) = activations(model, x, ["fc1"])
    assert z.max() < 0
    with SelectivityRegularizer(model, "fc1", 1.0, negative="ignore") as regularizer:
        model(x)
        assert regularizer(y).item() == pytest.approx(-index(z, y), rel=1e-4)


def test_a_diverged_network_gives_nan():
    model, (x, y) = net(), batch(6)
    x[3, 2] = math.nan
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        model(x)
        assert regularizer(y).isnan()


def test_labels_of_many_classes(seeds_torch):
    model, x, y = net(), numbers((64, 6)), integers(0, 40, [64])
    with SelectivityRegularizer(model, "relu2", 1.0) as regularizer:
        (two,) = activations(model, x, ["relu2"])
        assert regularizer(y).item() == pytest.approx(-index(two, y), rel=1e-6)
