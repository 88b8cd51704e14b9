"""The networks in steps, by hand: each step takes the one before's output and gives a new tensor."""

from collections.abc import Callable

from torch import Tensor, nn

from python_bench.opponents.task import Stages


def mlp_stages(model: nn.Module) -> Stages:
    """``relu1, relu2, ..., out``."""
    layers = dict(model.named_children())

    def hidden(i: int) -> Callable[[Tensor], Tensor]:
        linear = layers[f"fc{i}"]
        return lambda x: linear(x).relu_()

    return [*((f"relu{i}", hidden(i)) for i in range(1, len(layers) // 2 + 1)), ("out", layers["out"])]


def convnet_stages(model: nn.Module) -> Stages:
    """``relu1, ..., relu11, out``: convolution, batch norm and ReLU are a step, and so is all that follows the last."""
    layers = dict(model.named_children())

    def block(i: int) -> Callable[[Tensor], Tensor]:
        conv, norm = layers[f"conv{i}"], layers[f"bn{i}"]
        return lambda x: norm(conv(x)).relu_()

    out = layers["out"]
    return [*((f"relu{i}", block(i)) for i in range(1, 12)), ("out", lambda x: out(x.mean((2, 3))))]


def resnet_stages(model: nn.Module) -> Stages:
    """``stem, layer1.0, layer1.1, ..., fc``: blocks are steps."""
    conv, norm, pool, fc = (model.get_submodule(name) for name in ("conv1", "bn1", "maxpool", "fc"))
    blocks: Stages = [
        (f"layer{stage}.{i}", block)
        for stage in range(1, 5)
        for i, block in enumerate(model.get_submodule(f"layer{stage}").children())
    ]
    return [("stem", lambda x: pool(norm(conv(x)).relu_())), *blocks, ("fc", lambda x: fc(x.mean((2, 3))))]
