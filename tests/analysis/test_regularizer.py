"""SelectivityRegularizer: the formula written out, its gradient by differences, what it does to training, and hooks."""

import copy
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdkernels as sd
from sdkernels.analysis.regularizer import SelectivityRegularizer
from sdkernels.lab.models import mlp
from tests.ops.backends import on_cuda
from tests.ops.tensors import integers, numbers
from tests.ops.tolerances import same_bits

# torch's own, while it compiles
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EPSILON = 1e-6


class Shared(nn.Module):
    """One ReLU, called twice."""

    def __init__(self, inplace=False):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


class Maps(nn.Module):
    """[N, 2, 5, 5] -> maps [N, 3, 4, 4], batch-normed maps [N, 4, 3, 3], tokens [N, 9, 5]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, 2)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.relu2(self.norm(self.conv2(self.relu1(self.conv1(x)))))
        return self.head(self.relu3(self.fc(x.flatten(2).transpose(1, 2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(6, 4, batch_first=True, nonlinearity="relu"), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def index(activation, labels, kind="macro", unit_dim=1):
    """The mean selectivity of an activation's units: numbers in float64, one unit at a time."""
    rows = np.moveaxis(activation.detach().double().numpy(), unit_dim, 1)
    rows = rows.reshape(len(rows), rows.shape[1], -1).mean(2)
    found = []
    for unit in rows.T:
        by_class = {label: unit[labels.numpy() == label] for label in set(labels.tolist())}
        means = {label: own.mean() for label, own in by_class.items()}
        best = max(means, key=means.get)
        if kind == "macro":
            rest = np.mean([mean for label, mean in means.items() if label != best])
        else:
            rest = np.mean(np.concatenate([own for label, own in by_class.items() if label != best]))
        found.append((means[best] - rest) / (means[best] + rest + EPSILON))
    return np.mean(found)


def activations(model, x, layers):
    """What modules give, by hooks of the test's own, in order of calls."""
    seen = []
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _m, _a, output: seen.append(output)) for layer in layers
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def batch(*shape, examples=12, dtype=torch.float32, seed=0):
    """Inputs and labels of three unequal classes out of six."""
    labels = torch.tensor([0, 2, 5, 0, 0, 5, 0, 2, 0, 0, 5, 0])[:examples]
    return numbers((examples, *shape), dtype, seed), labels


def net(hidden=(8, 7), dtype=torch.float32):
    return mlp(6, hidden, 3, seed=0).to(dtype)


@pytest.mark.parametrize("kind", ["macro", "micro"])
@pytest.mark.parametrize("weight", [1.0, -0.3, 2])
def test_equals_the_formula(weight, kind):
    model, (x, y) = net(), batch(6)
    one, two = activations(model, x, ["relu1", "relu2"])
    with SelectivityRegularizer(model, ["relu1", model.relu2], weight, kind=kind) as regularizer:
        model(x)
        term = regularizer(y)
    expected = index(one, y, kind), index(two, y, kind)
    assert term.shape == ()
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(-weight * np.mean(expected), rel=1e-6)
    assert regularizer.selectivity == pytest.approx(dict(zip(["relu1", "relu2"], expected, strict=True)), rel=1e-6)


def test_the_kinds_differ():
    model, (x, y) = net(), batch(6)
    (one,) = activations(model, x, ["relu1"])
    assert abs(index(one, y, "macro") - index(one, y, "micro")) > 0.01


@pytest.mark.parametrize("kind", ["macro", "micro"])
def test_maps_and_tokens(seeds_torch, kind):
    model, (x, y) = Maps(), batch(2, 5, 5)
    layers = ["relu1", "relu2", "relu3"]
    seen = activations(model, x.contiguous(memory_format=torch.channels_last), layers)
    assert [a.ndim for a in seen] == [4, 4, 3]
    with SelectivityRegularizer(model, layers, 1.0, kind=kind) as regularizer:
        model(x)
        regularizer(y)
    expected = [index(a, y, kind, dim) for a, dim in zip(seen, (1, 1, 2), strict=True)]
    assert list(regularizer.selectivity.values()) == pytest.approx(expected, rel=1e-5)


def test_unit_dim_and_select(seeds_torch):
    model, (x, y) = Maps(), batch(2, 5, 5)
    (tokens,) = activations(model, x, ["relu3"])
    with SelectivityRegularizer(model, "relu3", 1.0, unit_dim={"relu3": 1}) as regularizer:
        model(x)
        assert regularizer(y).item() == pytest.approx(-index(tokens, y, unit_dim=1), rel=1e-5)
    model, (x, y) = Recurrent(), batch(4, 6)
    ((states, _),) = activations(model, x, ["rnn"])
    with SelectivityRegularizer(model, "rnn", 1.0, select={"rnn": 0}) as regularizer:
        model(x)
        assert regularizer(y).item() == pytest.approx(-index(states, y, unit_dim=2), rel=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_calls_of_a_layer(seeds_torch, inplace):
    model, (x, y) = Shared(inplace), batch(6)
    one, two = activations(model, x, ["relu"])
    with SelectivityRegularizer(model, ["relu@1", "relu@0"], 1.0) as regularizer:
        model(x)
        regularizer(y)
    assert regularizer.selectivity == pytest.approx({"relu@1": index(two, y), "relu@0": index(one, y)}, rel=1e-6)


def test_classes_that_are_absent_do_not_count():
    model, (x, y) = net(), batch(6)
    terms = []
    for classes, labels in ((None, y), (6, y), (40, y), (None, y.clamp(max=3))):
        with SelectivityRegularizer(model, "relu1", 1.0, num_classes=classes) as regularizer:
            model(x)
            terms.append(regularizer(labels))
    assert all(same_bits(terms[0], term) for term in terms)


def test_silent_units_are_not_selective():
    model, (x, y) = net(), batch(6)
    model.fc1.bias.data[:4] = -1e3
    (one,) = activations(model, x, ["relu1"])
    assert (one == 0).all(0).sum() == 4
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        model(x)
        term = regularizer(y)
    assert term.item() == pytest.approx(-index(one, y), rel=1e-6)
    term.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["macro", "micro"])
@pytest.mark.parametrize(
    ("make", "layers", "shape"),
    [
        (lambda: net(), ["relu1", "relu2"], (6,)),
        (Shared, ["relu@1", "relu@0"], (6,)),
        (lambda: Maps().eval(), ["relu1", "relu3"], (2, 5, 5)),
    ],
    ids=["features", "calls", "maps"],
)
def test_gradient_by_differences(seeds_torch, make, layers, shape, kind):
    model, (x, y) = make().double(), batch(*shape, dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    with SelectivityRegularizer(model, layers, 0.7, kind=kind) as regularizer:

        def loss(*given):
            logits = torch.func.functional_call(model, dict(zip(names, given, strict=True)), x)
            return F.cross_entropy(logits, y % 3) + regularizer(y)

        assert torch.autograd.gradcheck(loss, [p.detach().requires_grad_() for p in parameters])


@pytest.mark.parametrize("kind", ["macro", "micro"])
def test_gradient_is_that_of_the_formula(kind):
    """In torch's own operations, in float64."""
    model, (x, y) = net(dtype=torch.float64), batch(6, dtype=torch.float64)
    with SelectivityRegularizer(model, "relu1", 1.5, kind=kind) as regularizer:
        model(x)
        (found,) = torch.autograd.grad(regularizer(y), model.fc1.weight)
    one = torch.relu(F.linear(x, model.fc1.weight, model.fc1.bias))
    total = 0
    for unit in one.unbind(1):
        means = {label: unit[y == label].mean() for label in (0, 2, 5)}
        best = max(means, key=lambda label: means[label].item())
        others = [m for label, m in means.items() if label != best]
        rest = torch.stack(others).mean() if kind == "macro" else unit[y != best].mean()
        total = total + (means[best] - rest) / (means[best] + rest + EPSILON)
    (expected,) = torch.autograd.grad(-1.5 * total / 8, model.fc1.weight)
    assert (found - expected).abs().max() < 1e-13 * expected.abs().max() + 1e-15


def blobs():
    """Three overlapping classes of 40 points."""
    labels = torch.arange(120) % 3
    centres = numbers((3, 6), seed=1)
    return centres[labels] + 0.5 * numbers((120, 6), seed=2), labels


def trained(weight, steps=60):
    x, y = blobs()
    model = net((16, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with SelectivityRegularizer(model, ["relu1", "relu2"], weight, num_classes=3) as regularizer:
        for _ in range(steps):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + regularizer(y)).backward()
            optimizer.step()
    return model, np.mean([index(a, y) for a in activations(model, x, ["relu1", "relu2"])])


def test_training_raises_and_lowers_selectivity():
    lower, plain, higher = (trained(weight)[1] for weight in (-1.0, 0.0, 1.0))  # 0.24, 0.69, 0.86
    assert lower < plain - 0.1
    assert higher > plain + 0.1


def test_with_weight_0_training_goes_as_without(seeds_torch):
    x, y = batch(2, 5, 5)
    models = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = Maps().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        layers = ["relu1", "relu2", "relu3"]
        with SelectivityRegularizer(model, layers if is_watched else "relu1", 0) as regularizer:
            for _ in range(5):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y % 3)
                (loss + regularizer(y) if is_watched else loss).backward()
                optimizer.step()
        models.append(model)
    assert len(regularizer.selectivity) == 3
    plain, watched = (model.state_dict() for model in models)
    assert all(same_bits(plain[name], watched[name]) for name in plain)
    with SelectivityRegularizer(models[1], "relu1", 0) as regularizer:
        models[1](x)
        regularizer(y).backward()  # of nothing


def test_the_weight_may_change():
    model, (x, y) = net(), batch(6)
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer:
        terms = []
        for weight in (1.0, 0.0, -4.0):
            regularizer.weight = weight
            assert regularizer.weight == weight
            model(x)
            terms.append(regularizer(y).item())
        with pytest.raises(ValueError, match="weight=inf must be finite"):
            regularizer.weight = math.inf
    assert terms[0] < 0
    assert terms[1:] == pytest.approx([0, -4 * terms[0]])


@pytest.mark.parametrize("classes", [None, 3])
def test_a_batch_of_one_class_gives_0(classes):
    model, (x, _) = net(), batch(6)
    with SelectivityRegularizer(model, ["relu1", "relu2"], 1.0, num_classes=classes) as regularizer:
        model(x)
        term = regularizer(torch.ones(12, dtype=torch.int64))
        term.backward()
    assert term.item() == 0
    assert not model.fc1.weight.grad.any()
    assert all(math.isnan(value) for value in regularizer.selectivity.values())


def test_autocast():
    model, (x, y) = net(), batch(6)
    with SelectivityRegularizer(model, "relu1", 1.0) as regularizer, torch.autocast("cpu", torch.bfloat16):
        (one,) = activations(model, x, ["relu1"])
        assert one.dtype == torch.bfloat16
        term = regularizer(y)
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(-index(one, y), rel=1e-6)
    term.backward()
    assert model.fc1.weight.grad.any()


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
        ({"weight": math.nan}, ValueError, "weight=nan must be finite"),
        ({"epsilon": 0}, ValueError, "epsilon=0 must be positive"),
        ({"kind": "both"}, ValueError, "kind='both': choose 'macro' or 'micro'"),
        ({"negative": "shift"}, ValueError, "negative='shift': choose 'raise' or 'ignore'"),
        ({"num_classes": 0}, ValueError, "num_classes=0 must be positive"),
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
