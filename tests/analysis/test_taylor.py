"""Taylor importance: against finite differences, autograd of one unit at a time, and true ablation of small units."""

import math
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from sdkernels.analysis.taylor import taylor_importance
from sdkernels.analysis.unit_score import UnitScore
from tests.engine.networks import with_lively_batch_norm
from tests.engine.zoo import TUPLES, UNTRACEABLE, ZOO, build

KINDS = ("signed", "absolute", "squared")


def scaled_losses(model, layer, data, dim, part, unit, scale):
    """The cross-entropy of each example [N] where one unit of a layer's call is multiplied."""
    name, _, call = layer.partition("@")
    fired = [0]

    def hook(_module, _args, output):
        fired[0] += 1
        if fired[0] - 1 != int(call or 0):
            return None
        x = output if part is None else output[part]
        factor = torch.ones(x.shape[dim], dtype=x.dtype)
        factor = torch.cat([factor[:unit], torch.as_tensor(scale, dtype=x.dtype).view(1), factor[unit + 1 :]])
        x = x * factor.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
        return x if part is None else (*output[:part], x, *output[part + 1 :])

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        return F.cross_entropy(model(data[0].clone()), data[1], reduction="none")
    finally:
        handle.remove()


def by_differences(model, layer, data, dim, units, part=None, step=1e-5):
    """d [N, units]: what a little less of a unit adds to the loss, taken for all of it."""
    with torch.no_grad():
        columns = []
        for unit in range(units):
            more, less = (scaled_losses(model, layer, data, dim, part, unit, 1 + s) for s in (step, -step))
            columns.append((less - more) / (2 * step))
    return torch.stack(columns, 1)


def by_autograd(model, layer, data, dim, units, part=None):
    """The same by the derivative with respect to one scale, example by example."""
    columns = []
    for unit in range(units):
        scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
        losses = scaled_losses(model, layer, data, dim, part, unit, scale)
        columns.append(torch.stack([-torch.autograd.grad(loss, scale, retain_graph=True)[0][0] for loss in losses]))
    return torch.stack(columns, 1)


def reduced(d, kind):
    return {"signed": d, "absolute": d.abs(), "squared": d.square()}[kind].mean(0)


CASES = {
    "mlp": ("mlp", ["relu1", "fc1", "relu2"], 1, None),
    "inplace-relus": ("vgg", ["conv2", "relu2", "conv3", "pool2", "fc1"], 1, None),
    "batch-norm": ("preactivation", ["stem", "bn1", "conv2"], 1, None),
    "calls": ("resnext", ["relu@0", "relu@3", "shuffle"], 1, None),
    "nested": ("resnet-basic-last", ["layer1.0", "layer1.1", "layer1"], 1, None),
    "branches": ("read-twice", ["relu", "conv2"], 1, None),
    "gate": ("squeeze-excite", ["gate", "relu@0", "bn"], 1, None),
    "tokens": ("vit", ["block1.mlp.act", "norm"], -1, None),
    "token-ids": ("gpt", ["embed", "block1.mlp.act", "block2.attn"], -1, None),
    "tuple": ("lstm", ["lstm"], -1, 0),
    "data-dependent": ("branching-on-data", ["relu"], 1, None),
}
CASES_OF = ZOO | UNTRACEABLE


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request):
    name, layers, dim, part = CASES[request.param]
    model, data = build((TUPLES if part is not None else CASES_OF)[name])
    ways = []
    for way in (by_differences, by_autograd):
        counts = taylor_importance(model, layers, data, select=part, unit_dim=dim).unit_counts
        ways.append([way(model, layer, data, dim, c, part) for layer, c in zip(layers, counts, strict=True)])
    return SimpleNamespace(model=model, data=data, layers=layers, dim=dim, part=part, ways=ways)


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_derivative_by_each_unit_alone(case, kind):
    """All layers at once, at any batch size: as one unit of one layer at a time, by differences and by autograd."""
    options = {"kind": kind, "select": case.part, "unit_dim": case.dim}
    found = taylor_importance(case.model, case.layers, case.data, **options)
    assert isinstance(found, UnitScore)
    assert found.layers == tuple(case.layers)
    differences, autograd = (torch.cat([reduced(d, kind) for d in way]) for way in case.ways)
    scale = float(autograd.abs().max())
    assert scale > 1e-4
    torch.testing.assert_close(found.values, autograd, rtol=1e-9, atol=1e-12 * scale)
    torch.testing.assert_close(found.values, differences, rtol=1e-4, atol=1e-6 * scale)
    for batch_size in (1, 5):
        again = taylor_importance(case.model, case.layers, case.data, batch_size=batch_size, **options)
        torch.testing.assert_close(again.values, found.values, rtol=1e-10, atol=1e-13 * scale)
    alone = taylor_importance(case.model, case.layers[-1], case.data, **options)
    torch.testing.assert_close(alone.values, found.values[-len(alone) :], rtol=1e-10, atol=1e-13 * scale)


@pytest.fixture
def small(seeds_torch):
    """A network whose units are so small that what ablating them does is of first order."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    for layer in (model[2], model[4]):
        layer.weight.data.mul_(1e-3)
    model[2].bias.data.fill_(0.1)  # far from the ReLU's kink
    return model, (torch.randn(40, 4).double(), torch.randint(0, 3, (40,)))


def test_estimates_what_ablation_of_small_units_does(small):
    model, data = small
    true = sd.unit_importance(model, "1", data).importance("loss")
    estimate = taylor_importance(model, "1", data).values
    torch.testing.assert_close(estimate, true, rtol=1e-2, atol=1e-2 * float(true.abs().max()))
    assert torch.equal(estimate.argsort(), true.argsort())
    assert (true > 0).any()
    assert (true < 0).any()
    for layer in (model[2], model[4]):
        layer.weight.data.mul_(3000)
    true = sd.unit_importance(model, "1", data).importance("loss")
    assert not torch.allclose(taylor_importance(model, "1", data).values, true, rtol=0.1)  # of any order


def test_is_exact_where_the_loss_is_linear_in_the_unit(seeds_torch):
    """Of a log-probability that is given by the unit itself: the logits are log-probabilities that sum to one."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.units = nn.Identity()

        def forward(self, x):  # the loss of label 0 is the sum of units
            total = self.units(x).sum(1)
            return torch.stack([-total, (-torch.expm1(-total)).log()], 1)

    model, inputs = Linear().eval(), torch.rand(20, 4).double() + 0.1
    data = (inputs, torch.zeros(20).long())
    expected = -inputs.mean(0)  # without a unit the loss is lower by it
    torch.testing.assert_close(taylor_importance(model, "units", data).values, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(sd.unit_importance(model, "units", data).importance("loss"), expected)
    squared = taylor_importance(model, "units", data, kind="squared").values
    torch.testing.assert_close(squared, inputs.square().mean(0), rtol=1e-12, atol=0)


# What is left alone.


@pytest.fixture
def convnet(seeds_torch):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    return with_lively_batch_norm(model), (torch.randn(9, 2, 6, 6).double(), torch.randint(0, 3, (9,)))


def test_nothing_of_the_model_changes(convnet):
    model, data = convnet
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: torch.full_like(p, 7) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = grads[name].clone()
    model[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    inputs = data[0].clone()
    taylor_importance(model, ["1", "2"], data)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(data[0], inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert data[0].grad is None
    assert not data[0].requires_grad


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_works_whatever_gradients_the_caller_wants(around, frozen, convnet):
    model, data = convnet
    expected = taylor_importance(model, ["0", "1", "2"], data).values
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
        parameter.grad = None
    with around():
        own = (data[0] * 1, data[1] * 1)  # inference tensors, in inference mode
        found = taylor_importance(model, ["0", "1", "2"], own)
        assert torch.is_grad_enabled() == (around is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (around is torch.inference_mode)
    assert torch.equal(found.values, expected)
    assert not found.values.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_what_comes_before_the_first_layer_needs_no_gradients(convnet):
    """Though its parameters ask for them: a layer without one may stand there, and nothing is kept for it."""
    kept = []

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            kept.append(weakref.ref(ctx))
            return x.round()

        @staticmethod
        def backward(ctx, _grad):
            raise AssertionError("differentiated what no layer needs")

    class First(nn.Module):
        def forward(self, x):
            return Rounding.apply(x)

    model, data = convnet
    model.insert(1, First().eval())
    seen = []
    model[4].register_forward_hook(lambda *_: seen.append(kept[-1]() is None))
    assert taylor_importance(model, ["2", "3"], data).values.count_nonzero()
    assert seen[-1]


def test_data_of_any_kind_and_dead_units(convnet):
    model, (inputs, labels) = convnet
    model[1].bias.data[2] = -100
    found = taylor_importance(model, "2", (inputs, labels))
    assert found.dead.tolist() == [False, False, True, False]
    assert found.values[2] == 0
    assert not taylor_importance(model, "1", (inputs, labels)).dead.any()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    for data in (loader, TensorDataset(inputs, labels)):
        torch.testing.assert_close(taylor_importance(model, model[2], data).values, found.values)
    single = model.float()
    found32 = taylor_importance(single, "2", (inputs.float(), labels)).values
    torch.testing.assert_close(found32, found.values, rtol=1e-4, atol=1e-6)
    found64 = taylor_importance(single, single[2], (inputs.float(), labels), precision="float64").values
    torch.testing.assert_close(found64, found.values, rtol=1e-5, atol=1e-7)


def test_large_activations_in_parts(convnet, monkeypatch):
    expected = taylor_importance(convnet[0], ["0", "2"], convnet[1]).values
    monkeypatch.setattr("sdkernels.analysis.taylor.LARGEST_PRODUCT", 130)
    torch.testing.assert_close(taylor_importance(convnet[0], ["0", "2"], convnet[1]).values, expected)


# What is refused.


class Cut(nn.Module):
    """Layers that the logits do not depend on, or not by gradients."""

    def __init__(self, end):
        super().__init__()
        self.fc, self.unread, self.out, self.end = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2), end

    def forward(self, x):
        self.unread(x)
        return self.out(self.end(self.fc(x)))


@pytest.mark.parametrize(
    ("layer", "end"),
    [("unread", torch.relu), ("fc", torch.detach), ("fc", torch.no_grad()(torch.relu)), ("fc", lambda x: x.data)],
)
def test_layers_without_gradients(layer, end, seeds_torch):
    model = Cut(end).double().eval()
    data = (torch.randn(5, 3).double(), torch.zeros(5).long())
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with pytest.raises(ValueError, match=f"layer '{layer}': no gradient reaches it"):
            taylor_importance(model, ["out", layer], data)
        with pytest.raises(ValueError, match=f"layer '{layer}': no gradient reaches it"):
            taylor_importance(model, layer, data)


def test_what_is_not_finite(seeds_torch):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    inputs, labels = torch.randn(6, 3).double(), torch.zeros(6).long()
    broken = inputs.clone()
    broken[4, 0] = math.nan
    message = r"layer '0': 4 of 8 intact activations of a batch are not finite, the first of unit 0 in example 4"
    with pytest.raises(ValueError, match=message):
        taylor_importance(model, ["0", "1"], (broken, labels), batch_size=2)
    model[0].bias.data[2] = math.inf
    with pytest.raises(ValueError, match=r"layer '0': 6 of 24 .* the first of unit 2 in example 0"):
        taylor_importance(model, "0", (inputs, labels))

    class Root(nn.Module):
        def forward(self, x):
            return x[:, :4].sqrt() + x[:, 4:5]

    model = nn.Sequential(nn.Identity(), Root()).eval()
    inputs = torch.rand(6, 5).double() + 0.5
    inputs[3, 1] = 0  # where a square root is steep
    with pytest.raises(ValueError, match=r"layer '0': 1 of 30 gradients .* the first of unit 1 in example 3"):
        taylor_importance(model, "0", (inputs, labels))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model is a int"),
        ({"layers": "9"}, ValueError, "no layer '9'"),
        ({"kind": "magnitude"}, ValueError, "kind='magnitude': choose one of 'signed', 'absolute', 'squared'"),
        ({"precision": "float8"}, ValueError, "precision='float8': choose one of"),
        ({"precision": "tf32"}, ValueError, "precision='tf32' is arithmetic of NVIDIA GPUs"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"unit_dim": 7}, ValueError, "unit_dim=7 does not fit layer '2'"),
    ],
)
def test_arguments_that_are_refused(change, error, message, convnet):
    with pytest.raises(error, match=message):
        taylor_importance(**({"model": convnet[0], "layers": "2", "data": convnet[1]} | change))


def test_labels_and_train_mode_and_mixed_examples(convnet):
    model, (inputs, labels) = convnet
    with pytest.raises(ValueError, match="label 3 of example 7 is out of range: the model gives 3 logits"):
        taylor_importance(model, "2", (inputs, torch.where(torch.arange(9) == 7, 3, labels)), batch_size=4)
    with pytest.raises(ValueError, match="data is empty"):
        taylor_importance(model, "2", (inputs[:0], labels[:0]))
    assert not any(m._forward_hooks for m in model.modules())
    model[1].train()
    with pytest.raises(ValueError, match="train mode"):
        taylor_importance(model, "2", (inputs, labels))
    model.eval()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        taylor_importance(model, "2", (inputs, labels))
