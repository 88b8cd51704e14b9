"""Small networks of every kind that people ablate, with the layers to ablate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sdkernels.lab.models import BasicBlock, Bottleneck, ResNet, convnet, mlp
from tests.engine.networks import with_lively_batch_norm
from tests.engine.zoo import branched, plain, sequences

CLASSES = 7
IMAGES = (2, 8, 8)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class Network:
    """A network that takes ``[N, *shape]``, and sets of layers to ablate together.

    Attributes:
        make: classes -> the network.
        shape: of an example.
        sites: each a set of layers.
        vocabulary: inputs are token ids below it, int64; None for floating inputs.
        unit_dim: where the rule for a layer's unit dimension needs to be told otherwise.
    """

    make: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    sites: Sequence[Sequence[str]]
    vocabulary: int | None = None
    unit_dim: dict[str, int] = field(default_factory=dict)


def _resnet(block: type, blocks: tuple[int, ...], stride: str) -> Callable[[int], nn.Module]:
    return lambda classes: ResNet(block, blocks, classes=classes, stride=stride, width=1 / 16, in_channels=2, seed=0)


def _convnet(**options) -> Callable[[int], nn.Module]:
    return lambda classes: convnet(classes=classes, width=1 / 16, in_channels=2, seed=0, **options)


_LAST_OF_CONVNET = (
    ("relu9", "relu10", "relu11"),
    ("conv10",),
    ("relu2", "relu8"),
)

ZOO: dict[str, Network] = {
    "mlp": Network(lambda classes: mlp(6, (9, 8), classes, seed=0), (6,), [("relu1", "relu2"), ("fc1",), ("relu2",)]),
    "convnet-bn": Network(_convnet(), IMAGES, [*_LAST_OF_CONVNET, ("bn9", "relu11")]),
    "convnet-plain": Network(_convnet(batch_norm=False), IMAGES, _LAST_OF_CONVNET),
    "convnet-flatten": Network(
        _convnet(head="flatten", image_size=9), (2, 9, 9), [("relu9", "relu10", "relu11"), ("bn11",)]
    ),
    "vgg": Network(
        plain.vgg, IMAGES, [("relu2", "relu3"), ("pool1", "relu4"), ("conv3",), ("pool2", "fc1"), ("relu5",)]
    ),
    "resnet-basic": Network(
        _resnet(BasicBlock, (1, 2), "first"),
        (2, 20, 20),
        [
            ("layer1.0", "layer2.1"),
            ("layer2.0.relu@0", "layer2.0.relu@1"),
            ("layer2.0.conv1", "layer2.1.conv2"),
            ("layer2.0.downsample.0", "layer2.0.bn2"),
            ("layer2.0.downsample",),
            ("relu", "layer2"),
            ("layer2", "layer2.1"),  # one tensor under two names
            ("avgpool",),
        ],
    ),
    "resnet-basic-last": Network(
        _resnet(BasicBlock, (2, 1), "last"), (2, 20, 20), [("layer1.0", "layer1.1"), ("layer1.1.downsample",)]
    ),
    "resnet-bottleneck": Network(
        _resnet(Bottleneck, (1, 2), "first"),
        (2, 20, 20),
        [
            ("layer2.0", "layer2.1"),
            ("layer2.0.relu@0", "layer2.0.relu@1", "layer2.0.relu@2"),
            ("layer2.0.conv2", "layer2.0.bn3"),
            ("layer2.0.downsample.1", "layer2.1.relu@1"),
        ],
    ),
    "resnet-bottleneck-last": Network(
        _resnet(Bottleneck, (2, 1), "last"),
        (2, 20, 20),
        [("layer1.0", "layer1.1", "layer2.0"), ("layer1.1.downsample", "layer1.1.conv3")],
    ),
    "resnet-functional": Network(
        branched.FunctionalResNet,
        IMAGES,
        [("layer1.0", "layer2.0", "layer2.1"), ("layer2.0.bn1", "layer2.0.shortcut"), ("bn1",), ("layer2.1.conv2",)],
    ),
    "preactivation": Network(branched.PreActivation, IMAGES, [("conv1", "conv2"), ("bn1", "bn3"), ("stem",)]),
    "densenet": Network(
        branched.DenseNet,
        IMAGES,
        [("dense1", "dense2"), ("stem", "dense3"), ("transition",), ("dense2.relu1", "dense3.relu2"), ("norm",)],
    ),
    "inception": Network(
        branched.Inception,
        (2, 7, 7),
        [("branch3.0", "branch3.1"), ("branch1", "branch_pool", "branch_double.1"), ("pool",), ("stem",), ("left",)],
    ),
    "squeeze-excite": Network(
        branched.SqueezeExcite, IMAGES, [("conv",), ("bn", "relu@1"), ("gate",), ("squeeze",), ("relu@0", "excite")]
    ),
    "mobilenet": Network(
        branched.MobileNet,
        IMAGES,
        [
            ("separable.2", "separable.5"),
            ("stem", "separable.0"),
            ("inverted1", "inverted2"),
            ("inverted1.conv.2", "inverted1.conv.5", "inverted2.conv.3"),
        ],
    ),
    "read-twice": Network(branched.ReadTwice, IMAGES, [("relu",), ("relu", "conv2")]),
    "resnext": Network(
        branched.ResNeXt,
        IMAGES,
        [("relu@0", "relu@1"), ("grouped", "relu@2"), ("stem", "widen"), ("relu@3", "narrow"), ("shuffle",)],
    ),
    "unet": Network(branched.UNet, IMAGES, [("down1", "down2"), ("upsample",), ("up2", "join.0")]),
    "groupnorm": Network(
        plain.GroupNormed, IMAGES, [("relu@0", "relu@1"), ("conv1", "conv3"), ("norm1",), ("norm2", "norm3")]
    ),
    "convnext": Network(
        plain.ConvNeXt,
        IMAGES,
        [("block1.act", "block2.act"), ("stem", "block1"), ("block1.dwconv", "block2.norm"), ("block2.pwconv2",)],
        unit_dim={"block1.act": 3, "block2.act": 3, "block2.norm": 3, "block2.pwconv2": 3},
    ),
    "conv1d": Network(
        plain.conv1d, (3, 12), [("relu1", "act2"), ("bn1", "conv2"), ("pool1",)], unit_dim={"relu1": 1, "act2": 1}
    ),
    "conv3d": Network(plain.conv3d, (1, 5, 5, 5), [("relu1", "relu2"), ("pool1", "bn2")]),
    "odd-convolutions": Network(
        plain.odd_convolutions,
        IMAGES,
        [("relu1", "relu2"), ("relu3", "relu4"), ("relu2", "relu5", "tanh"), ("relu5", "relu6"), ("circular",)],
    ),
    "padded": Network(plain.Padded, IMAGES, [("conv1", "conv2"), ("pad",), ("conv3",)]),
    "vit": Network(
        sequences.ViT,
        (2, 6, 6),
        [
            ("block1.mlp.act", "block2.mlp.act"),
            ("patches",),
            ("block1", "norm"),
            ("block2.attn.proj", "block1.mlp.fc1"),
        ],
    ),
    "torch-attention": Network(sequences.TorchAttention, (4, 3), [("mlp.act",), ("norm1", "embed"), ("norm2",)]),
    "gpt": Network(
        sequences.Gpt,
        (5,),
        [("block1.mlp.act", "block2.mlp.act"), ("embed",), ("block1.mlp", "block2.attn"), ("block2",)],
        vocabulary=CLASSES,
    ),
    "mixer": Network(sequences.Mixer, (5, 3), [("over_features.act",), ("over_positions.act", "embed"), ("norm2",)]),
    "lstm": Network(sequences.Lstm, (4, 3), [("norm",), ("fc", "act"), ("embed", "act")]),
}

# A layer that gives a tuple, whose first part holds the units: what select=0 is for.
TUPLES: dict[str, Network] = {"lstm": Network(sequences.Lstm, (4, 3), [("lstm",)])}

# What no tracer can follow.
UNTRACEABLE: dict[str, Network] = {"branching-on-data": Network(plain.BranchingOnData, (2, 5, 5), [("relu",)])}


def build(network: Network, examples: int = 14) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The network in float64 and evaluation mode with random weights, and data whose labels it half knows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = lively(network.make(CLASSES))
        if network.vocabulary is None:
            inputs = torch.randn(examples, *network.shape, dtype=torch.float64)
        else:
            inputs = torch.randint(0, network.vocabulary, (examples, *network.shape))
        labels = torch.randint(0, CLASSES, (examples,))
    labels[::2] = standardised(model, inputs).argmax(1)[::2]
    return model, (inputs, labels)


def lively(model: nn.Module) -> nn.Module:
    """Random weights that keep signals large at any depth, and norms that shift and scale; evaluation mode, float64."""
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return with_lively_batch_norm(model)


@torch.no_grad()
def standardised(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits [N, L] on ``inputs``, once the model's last layer is changed so that they vary over the examples.

    Random networks say one class of everything, ablated or not; with a standard deviation of 1 and almost the same mean
    for every class they do not. Quite the same mean would make classes tie where everything is clamped to its mean.
    A model whose last layer has no bias is left as it is.
    """
    logits = model(inputs)
    last = [m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))][-1]
    if last.bias is None or len(last.bias) != logits.shape[1]:
        return logits
    mean, scale = logits.mean(0), 1 / logits.std(0).clamp_min(1e-3)
    last.weight.mul_(scale.view(-1, *[1] * (last.weight.ndim - 1)))
    last.bias.sub_(mean).mul_(scale).add_(torch.linspace(-0.2, 0.2, len(mean)))
    return model(inputs)
