"""People's names against what raw hooks see: each is the output that people mean."""

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.lab.models import NextToken, convnet, layer_names, lstm_language_model, mlp, resnet18, resnet50, sites


def calls(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """A copy of every module's output, by ``name`` and, call after call, by ``name@0``, ``name@1``, ..."""
    seen: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, output: torch.Tensor) -> None:
        k = counts[name] = counts.get(name, -1) + 1
        seen[name] = seen[f"{name}@{k}"] = (output[0] if isinstance(output, tuple) else output).clone()

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: see(name, output))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        model.eval()(inputs)
    for handle in handles:
        handle.remove()
    return seen


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "count", "calls_of_relu"),
    [(resnet18, 8, 2), (resnet50, 16, 3)],
    ids=["resnet18", "resnet50"],
)
@pytest.mark.parametrize("stride", ["first", "last"])
def test_a_block_is_what_its_module_returns(make, count, calls_of_relu, stride):
    model = make(width=1 / 16, classes=5, stride=stride, seed=0)
    seen = calls(model, images(2, 3, 64, 64))
    found = sites(model)
    assert len(found) == count
    assert next(iter(found)) == "block1.1"
    for name, layer in found.items():
        stage, block = (int(part) for part in name.removeprefix("block").split("."))
        assert torch.equal(seen[layer], seen[f"layer{stage}.{block - 1}"])
        relu, _, call = layer.partition("@")
        assert int(call) == calls_of_relu - 1
        assert f"{relu}@{int(call) + 1}" not in seen
    assert torch.equal(seen[found["block4.2"]], seen["layer4.1"])


def test_the_paper_names_of_resnet50():
    assert list(sites(resnet50(width=1 / 64, seed=0))) == [
        f"block{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(1, blocks + 1)
    ]


@pytest.mark.parametrize("batch_norm", [True, False], ids=["bn", "plain"])
def test_a_convolution_is_taken_after_its_nonlinearity(batch_norm):
    model = convnet(width=1 / 16, batch_norm=batch_norm, seed=0).eval()
    seen = calls(model, images(2, 3, 32, 32))
    found = sites(model)
    assert list(found) == [f"conv{i}" for i in range(1, 12)]
    for i, layer in enumerate(found.values(), 1):
        before = seen[f"bn{i}"] if batch_norm else seen[f"conv{i}"]
        assert torch.equal(seen[layer], before.clamp(min=0))


def test_hidden_layers_are_taken_after_their_nonlinearity():
    model = mlp(6, (5, 4, 3), 2, seed=0)
    seen = calls(model, images(7, 6))
    found = sites(model)
    assert list(found) == ["hidden1", "hidden2", "hidden3"]
    for i, layer in enumerate(found.values(), 1):
        assert torch.equal(seen[layer], seen[f"fc{i}"].clamp(min=0))


def test_layers_of_a_language_model():
    model = lstm_language_model(9, embedding=3, hidden=4, dropout=0.0, seed=0)
    assert sites(model) == {f"lstm{i}": f"lstm{i}" for i in (1, 2, 3)}
    wrapped = NextToken(model)
    seen = calls(wrapped, torch.zeros(2, 5, dtype=torch.int64))
    for layer in sites(wrapped).values():
        assert seen[layer].shape == (2, 5, 4)


def test_names_are_what_analyses_take():
    model = resnet18(width=1 / 16, classes=4, seed=0).eval()
    layers = layer_names(model, ["block4.1", "block4.2"])
    inputs, labels = images(6, 3, 32, 32), torch.arange(6) % 4
    curve = sd.cumulative_ablation(model, layers, (inputs, labels), orders=1, points=3, seed=0)
    assert curve.layers == ("layer4.0.relu@1", "layer4.1.relu@1")
    assert curve.unit_counts == (32, 32)


def test_layer_names():
    model = convnet(width=1 / 16, seed=0)
    assert layer_names(model, "conv9") == ["relu9"]
    assert layer_names(model, ["conv10", "bn3", "relu2"]) == ["relu10", "bn3", "relu2"]
    assert layer_names(nn.DataParallel(model), ["conv1"]) == ["relu1"]
    assert layer_names(resnet18(width=1 / 64, seed=0), ["block1.2", "layer1.0.relu@0"]) == [
        "layer1.1.relu@1",
        "layer1.0.relu@0",
    ]


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no layer 'conv12'; close names: .*conv11"):
        layer_names(convnet(width=1 / 16, seed=0), ["conv1", "conv12"])
    with pytest.raises(ValueError, match=r"no layer 'block3\.7'; close names: .*block3\.6"):
        layer_names(resnet50(width=1 / 64, seed=0), "block3.7")
    with pytest.raises(ValueError, match="no layer 'zzz'; it has hidden1, hidden2"):
        layer_names(mlp(3, (2, 2), 2, seed=0), "zzz")


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)], ids=["sequential", "linear"])
def test_other_networks_have_no_such_names(model):
    with pytest.raises(ValueError, match=f"layers of a {type(model).__name__} have no names besides"):
        sites(model)
