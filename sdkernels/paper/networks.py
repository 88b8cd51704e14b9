"""The networks of the figures, by preset; figures that name the same ones share them."""

from dataclasses import replace
from typing import Any

from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.recipe import Family


def _mlp(data: str, hidden: int, training: TrainingOptions, **more: Any) -> Family:
    return Family(data, "mlp", {"hidden": [hidden, hidden]}, training, **more)


def _convnet(data: str, width: float, training: TrainingOptions, **more: Any) -> Family:
    return Family(data, "convnet", {"width": width}, training, standardise=True, **more)


def _resnet(width: float, size: int, training: TrainingOptions, **more: Any) -> Family:
    shape = {"stride": "last", "width": width}
    more |= {"standardise": True, "image_size": size, "checkpoint_seconds": 600.0}  # a state takes 300 MB
    return Family("imagenet", "resnet50", shape, training, **more)


def _lstm(data: str, units: int, training: TrainingOptions, **more: Any) -> Family:
    return Family(data, "lstm", {"embedding": units, "hidden": units, "layers": 3}, training, **more)


def _reading(epochs: int, **changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"epochs": epochs, "batch_size": 20, "unroll": 20, "clip_norm": 1.0, **changes})


def _memorising(epochs: int, batch_size: int = 128) -> TrainingOptions:
    return TrainingOptions(epochs=epochs, batch_size=batch_size, stop_when_memorised=True)


_PUBLISHED = TrainingOptions(epochs=100, batch_size=32)  # of the ConvNet; Adam at 1e-3

# Of the ResNet: 200,000 steps of 32 workers with 32 images each; all else is unpublished.
_PUBLISHED_RESNET = TrainingOptions(
    steps=200_000,
    batch_size=1024,
    optimiser="sgd",
    momentum=0.9,
    learning_rate=0.4,
    schedule="cosine",
    precision="bfloat16",
)

# Figures 1 and 2: networks that memorise labels, some of which are corrupted.
CORRUPTED_MLPS = {
    "quick": _mlp("digits", 256, _memorising(1000), split="all", repeats=3, together=18),
    "small": _mlp("mnist", 512, _memorising(400), examples=2000, repeats=2, together=12),
    "paper": _mlp("mnist", 512, TrainingOptions(epochs=640)),
}
CORRUPTED_CONVNETS = {
    "quick": _convnet("digits", 0.125, _memorising(300, 32), examples=600, repeats=2),
    "small": _convnet("cifar10", 0.125, _memorising(80, 32), examples=3000, repeats=2),
    "paper": _convnet("cifar10", 1.0, _PUBLISHED),
}
CORRUPTED_RESNETS = {
    "quick": _resnet(1 / 32, 32, TrainingOptions(epochs=2, batch_size=32)),
    "small": _resnet(0.25, 64, TrainingOptions(epochs=10, batch_size=128)),
    "paper": _resnet(1.0, 224, _PUBLISHED_RESNET),
}

# Figures 3a and 3b: networks that see the same data and generalise more or less.
GENERALISING_CONVNETS = {
    "quick": _convnet("digits", 0.125, TrainingOptions(epochs=16, batch_size=32), examples=400, repeats=4),
    "small": _convnet("cifar10", 0.125, TrainingOptions(epochs=20, batch_size=32), examples=2000, repeats=4),
    "paper": _convnet("cifar10", 1.0, _PUBLISHED, repeats=40),
}

# Figures 4a and 4b: networks while they are trained, beyond where test loss is least.
OVERFITTING_MLPS = {
    "quick": _mlp("digits", 256, TrainingOptions(epochs=80, batch_size=32), examples=500, repeats=5),
    "small": _mlp("mnist", 512, TrainingOptions(epochs=60), examples=2000, repeats=4),
    "paper": _mlp("mnist", 2048, TrainingOptions(epochs=640), repeats=3),
}
OVERFITTING_CONVNETS = {
    "quick": _convnet("digits", 0.125, TrainingOptions(epochs=30, batch_size=32), examples=800, repeats=3),
    "small": _convnet("cifar10", 0.125, TrainingOptions(epochs=15, batch_size=32), examples=2000, repeats=4),
    "paper": _convnet("cifar10", 1.0, _PUBLISHED, repeats=3),
}

# Figure 4c: a grid of learning rates and batch sizes.
GRID_CONVNETS = {
    "quick": _convnet("digits", 0.125, TrainingOptions(epochs=10), examples=400, repeats=2),
    "small": _convnet("cifar10", 0.125, TrainingOptions(epochs=20), examples=1000, repeats=2),
    "paper": _convnet("cifar10", 1.0, TrainingOptions(epochs=100), repeats=2),
}

# Figure 5a: dropout, on true and on random labels.
DROPOUT_MLPS = {
    "quick": _mlp("digits", 256, _memorising(400), examples=400, repeats=3),
    "small": _mlp("mnist", 256, _memorising(300), examples=2000, repeats=3),
    "paper": _mlp("mnist", 2048, TrainingOptions(epochs=5000), repeats=2),
}

# Figures 5b, 6, 7 and A1 to A4: with and without batch norm.
CONVNETS = {
    "quick": _convnet("digits", 0.125, TrainingOptions(epochs=15, batch_size=32), repeats=4),
    "small": _convnet("cifar10", 0.25, TrainingOptions(epochs=30, batch_size=32), examples=2000, repeats=4),
    "paper": _convnet("cifar10", 1.0, _PUBLISHED, repeats=4),
}

# Figures 7, A2, A3 and A4: networks whose units are looked at one by one.
MLPS = {
    "quick": _mlp("digits", 128, TrainingOptions(epochs=30, batch_size=64), repeats=4, together=4),
    "small": _mlp("mnist", 128, TrainingOptions(epochs=20), examples=10_000, repeats=4, together=4),
    "paper": _mlp("mnist", 128, TrainingOptions(epochs=640), repeats=4),
}
RESNETS = {
    "quick": _resnet(1 / 32, 32, TrainingOptions(epochs=2, batch_size=32)),
    "small": _resnet(0.25, 64, TrainingOptions(epochs=10, batch_size=128)),
    "paper": _resnet(1.0, 224, _PUBLISHED_RESNET),
}

# The second paper, on representational similarity.

# Figure 3: networks of true labels, and as many that memorise one random labelling.
MEMORISING_CONVNETS = {
    "quick": replace(CORRUPTED_CONVNETS["quick"], repeats=5),
    "small": _convnet("cifar10", 0.125, _memorising(150, 32), examples=2000, repeats=5),
    "paper": replace(CORRUPTED_CONVNETS["paper"], repeats=5),
}

# Figure 4: networks of several widths, which the figure gives.
WIDE_CONVNETS = {
    "quick": _convnet("digits", 0.125, TrainingOptions(epochs=16, batch_size=32), examples=400, repeats=5),
    "small": _convnet("cifar10", 0.125, _memorising(60, 32), examples=1000, repeats=5),
    "paper": _convnet("cifar10", 1.0, _PUBLISHED, repeats=5),
}

# Figures 6 and A3: language models while they are trained, and what they make of a text.
LANGUAGE_MODELS = {
    "quick": _lstm("digits_tokens", 32, _reading(10, learning_rate=3e-3), examples=30_000, repeats=5),
    "small": _lstm(
        "wikitext2",
        64,
        _reading(4, batch_size=5, learning_rate=3e-3),
        examples=100_000,
        split="validation",
        repeats=4,
    ),
    "paper": _lstm("wikitext2", 200, _reading(13), repeats=5),
}
