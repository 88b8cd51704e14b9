"""The networks: shapes, names, strides, initialisation; the global random state is never touched (see conftest)."""

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.lab.models import BasicBlock, Bottleneck, ResNet, convnet, mlp, resnet18, resnet50, sites
from sdkernels.lab.models.convnet import CHANNELS

SMALL = {
    "mlp": lambda seed: mlp(6, (4, 3), 5, seed),
    "convnet": lambda seed: convnet(width=1 / 16, seed=seed),
    "convnet-plain": lambda seed: convnet(width=1 / 16, batch_norm=False, seed=seed),
    "resnet18": lambda seed: resnet18(width=1 / 16, seed=seed),
    "resnet50": lambda seed: resnet50(width=1 / 16, seed=seed),
}


def outputs(model: nn.Module, inputs: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of the last output of every module."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model.eval()(inputs)
    for handle in handles:
        handle.remove()
    return shapes


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_the_seed_decides(make):
    one, same, other = make(0).state_dict(), make(0).state_dict(), make(1).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_mlp_draws_what_torch_draws(seeds_torch):
    torch.manual_seed(3)
    plain = nn.Linear(6, 4)
    assert torch.equal(mlp(6, (4,), 5, seed=3).fc1.weight, plain.weight)


def test_mlp_with_dropout():
    plain, dropping = mlp(6, (4, 3), 5, seed=0), mlp(6, (4, 3), 5, seed=0, dropout=0.25)
    names = [name for name, _ in dropping.named_children()]
    assert names == ["fc1", "relu1", "drop1", "fc2", "relu2", "drop2", "out"]
    assert [module.p for module in dropping.children() if isinstance(module, nn.Dropout)] == [0.25, 0.25]
    assert [name for name, _ in mlp(6, (4,), 5, seed=0, dropout=0.0).named_children()] == ["fc1", "relu1", "out"]
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in dropping.state_dict().items())
    assert sites(dropping) == {"hidden1": "relu1", "hidden2": "relu2"}
    inputs = torch.linspace(-2, 2, 30).view(5, 6)
    assert torch.equal(dropping.eval()(inputs), plain(inputs))


@pytest.mark.parametrize("dropout", [1.0, -0.1, float("nan"), True, "0.1"], ids=str)
def test_a_dropout_that_there_is_not(dropout):
    with pytest.raises(ValueError, match=r"dropout=.* must be a number, at least 0 and below 1"):
        mlp(6, (4,), 5, seed=0, dropout=dropout)


@pytest.mark.parametrize("head", ["average", "flatten"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["bn", "plain"])
def test_convnet(head, batch_norm):
    model = convnet(width=1 / 8, head=head, batch_norm=batch_norm, seed=0)
    shapes = outputs(model, torch.zeros(2, 3, 32, 32))
    sides = [32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4]
    for i, (channels, side) in enumerate(zip(CHANNELS, sides, strict=True), 1):
        assert shapes[f"conv{i}"] == shapes[f"relu{i}"] == (2, channels // 8, side, side)
        assert (f"bn{i}" in shapes) == batch_norm
        assert (model.get_submodule(f"conv{i}").bias is None) == batch_norm
    assert model.out.in_features == (64 if head == "average" else 64 * 16)
    assert shapes["out"] == (2, 10)


def test_convnet_of_other_images():
    model = convnet(width=1 / 16, head="flatten", in_channels=1, image_size=9, classes=4, seed=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 9, 9)).shape == (2, 4)
    with pytest.raises(ValueError, match="choose 'average' or 'flatten'"):
        convnet(head="max", seed=0)


@pytest.mark.parametrize("batch_norm", [True, False], ids=["bn", "plain"])
def test_convnet_keeps_its_signal(batch_norm):
    model = convnet(width=1 / 4, batch_norm=batch_norm, seed=0).eval()
    inputs = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in list(model.children())[:-3]:
            inputs = layer(inputs)
    assert 0.1 < float(inputs.square().mean().sqrt()) < 10


@pytest.mark.parametrize("stride", ["first", "last"])
@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_resnet_halves_where_it_says(make, stride):
    model = make(stride=stride, width=1 / 16, classes=7, seed=0)
    shapes = outputs(model, torch.zeros(1, 3, 64, 64))
    assert shapes["conv1"] == (1, 4, 32, 32)
    assert shapes["maxpool"] == (1, 4, 16, 16)
    assert shapes["fc"] == (1, 7)
    counts = (2, 2, 2, 2) if make is resnet18 else (3, 4, 6, 3)
    side, halving = 16, "conv1" if make is resnet18 else "conv2"
    for stage, count in enumerate(counts, 1):
        for i in range(count):
            halves = (i == 0 and stage > 1) if stride == "first" else (i == count - 1 and stage < 4)
            block = model.get_submodule(f"layer{stage}.{i}")
            side //= 2 if halves else 1
            assert shapes[f"layer{stage}.{i}"][2:] == (side, side)
            strides = {name: conv.stride[0] for name, conv in block.named_children() if name.startswith("conv")}
            assert strides == {name: 2 if halves and name == halving else 1 for name in strides}
    assert shapes["avgpool"][1] == 32 * (1 if make is resnet18 else 4)


def test_resnet_has_the_names_of_torchvision():
    names = set(resnet50(width=1 / 64, seed=0).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"} <= names
    assert {"layer4.2.bn3.num_batches_tracked", "fc.bias"} <= names
    assert len(names) == 320  # as torchvision.models.resnet50 has it
    assert len(resnet18(width=1 / 64, seed=0).state_dict()) == 122


def test_the_relu_of_a_block_fires_several_times():
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = inputs, torch.zeros(3, dtype=torch.long)
    for block, calls in ((BasicBlock, 2), (Bottleneck, 3)):
        model = ResNet(block, (1,), width=1 / 32, classes=3, seed=0).eval()
        with pytest.raises(ValueError, match=f"called {calls} times"):
            sd.cumulative_ablation(model, "layer1.0.relu", data)
        curve = sd.cumulative_ablation(model, f"layer1.0.relu@{calls - 1}", data, orders=1, points=3)
        block = sd.cumulative_ablation(model, "layer1.0", data, orders=1, points=3)
        torch.testing.assert_close(curve.loss, block.loss, rtol=1e-6, atol=0)


def test_resnet_refuses_other_strides():
    with pytest.raises(ValueError, match="choose 'first' or 'last'"):
        resnet18(stride="middle", seed=0)
