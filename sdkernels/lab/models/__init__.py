"""The networks of the experiments."""

from sdkernels.lab.models.convnet import convnet
from sdkernels.lab.models.lstm import LSTMLanguageModel, NextToken, lstm_language_model
from sdkernels.lab.models.mlp import mlp
from sdkernels.lab.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet50
from sdkernels.lab.models.sites import layer_names, sites

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "LSTMLanguageModel",
    "NextToken",
    "ResNet",
    "convnet",
    "layer_names",
    "lstm_language_model",
    "mlp",
    "resnet18",
    "resnet50",
    "sites",
]
