"""The multi-layer perceptron of the MNIST experiments."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from sdkernels.lab.seeds import drawing_from


def mlp(inputs: int, hidden: Sequence[int], classes: int, seed: int, dropout: float = 0.0) -> nn.Sequential:
    """A ReLU multi-layer perceptron: ``fc1, relu1, fc2, relu2, ..., out``; no batch norm.

    With dropout: ``fc1, relu1, drop1, ..., out``.

    Args:
        inputs: D; the model takes ``[N, D]`` and gives logits ``[N, classes]``.
        hidden: units of each hidden layer.
        classes: L.
        seed: of torch's default initialisation; the global random state is left as it was.
        dropout: the part of each hidden layer's units that is zero in a step of training, 0 or more and below 1. With
            0 there is no such layer.

    Raises:
        ValueError: another dropout.

    Example:
        >>> [name for name, _ in mlp(64, (128, 128), 10, seed=0).named_children()]
        ['fc1', 'relu1', 'fc2', 'relu2', 'out']
    """
    if isinstance(dropout, bool) or not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
        raise ValueError(f"dropout={dropout!r} must be a number, at least 0 and below 1")
    widths = [inputs, *hidden]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with drawing_from(seed):
        for i in range(1, len(widths)):
            layers[f"fc{i}"] = nn.Linear(widths[i - 1], widths[i])
            layers[f"relu{i}"] = nn.ReLU()
            if dropout:
                layers[f"drop{i}"] = nn.Dropout(dropout)
        layers["out"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)
