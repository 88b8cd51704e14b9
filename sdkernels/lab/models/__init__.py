"""The networks of the experiments."""

from sdkernels.lab.models.convnet import convnet
from sdkernels.lab.models.mlp import mlp
from sdkernels.lab.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet50

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "convnet", "mlp", "resnet18", "resnet50"]
