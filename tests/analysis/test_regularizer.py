"""SelectivityRegularizer: the formula written out, its gradient by differences, and what it does to training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdkernels.analysis.regularizer import SelectivityRegularizer
from tests.analysis.regularized import EPSILON, Maps, Recurrent, Shared, activations, batch, index, net
from tests.ops.tensors import numbers
from tests.ops.tolerances import same_bits

# torch's own, while it compiles
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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
        with pytest.raises(ValueError, match="weight=inf must be a finite number"):
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
