"""What people call the layers of the experiments' networks, and what analyses call them."""

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from sdkernels.engine.sites import unwrap
from sdkernels.lab.models.lstm import LSTMLanguageModel, NextToken
from sdkernels.lab.models.resnet import Bottleneck, ResNet


def sites(model: nn.Module) -> dict[str, str]:
    """People's names of a network's layers, each with the name to give as ``layers=``; the first layer first.

    A layer's units are taken after the nonlinearity: ``conv9`` of a ConvNet is the output of ``relu9``, and
    ``block3.2`` of a ResNet (stage 3, its second block) is what the block returns, the last call of its ``relu``.

    ============  ==========================  =======================
    network       people's names              layers
    ============  ==========================  =======================
    ``mlp``       ``hidden1``, ...            ``relu1``, ...
    ``convnet``   ``conv1`` .. ``conv11``     ``relu1`` .. ``relu11``
    ``resnet18``  ``block1.1`` .. ``block4.2``  ``layer1.0.relu@1``, ...
    ``resnet50``  ``block1.1`` .. ``block4.3``  ``layer1.0.relu@2``, ...
    LSTM          ``lstm1``, ...              ``lstm1``, ..., in :class:`NextToken` ``model.lstm1``, ...
    ============  ==========================  =======================

    Args:
        model: one of ``sdkernels.lab.models``.

    Raises:
        ValueError: another network, whose layers have no such names.

    Example:
        >>> from sdkernels.lab.models import convnet, resnet50
        >>> list(sites(convnet(seed=0)).items())[-3:]
        [('conv9', 'relu9'), ('conv10', 'relu10'), ('conv11', 'relu11')]
        >>> sites(resnet50(width=1 / 64, seed=0))["block3.2"]
        'layer3.1.relu@2'
    """
    model = unwrap(model)
    if isinstance(model, NextToken):
        return {name: f"model.{layer}" for name, layer in sites(model.model).items()}
    if isinstance(model, LSTMLanguageModel):
        return {name: name for name in model.layers}
    if isinstance(model, ResNet):
        return _blocks(model)
    found = _sequential(model)
    if not found:
        raise ValueError(
            f"the layers of a {type(model).__name__} have no names besides its modules': "
            f"{[name for name, _ in model.named_children()]}; give those as layers="
        )
    return found


def layer_names(model: nn.Module, names: str | Sequence[str]) -> list[str]:
    """The names to give as ``layers=``, of layers as people call them.

    A module's own name stays as it is, unless people mean another place by it: ``conv9`` is the output of ``relu9``.

    Args:
        model: one of ``sdkernels.lab.models``.
        names: one or several.

    Raises:
        ValueError: a name that the model does not have; lists close ones.

    Example:
        >>> from sdkernels.lab.models import convnet
        >>> layer_names(convnet(seed=0), ["conv9", "conv10", "pool"])
        ['relu9', 'relu10', 'pool']
    """
    known, model = sites(model), unwrap(model)
    modules = {name for name, _ in model.named_modules() if name}
    found = []
    for name in [names] if isinstance(names, str) else names:
        if name not in known and name.partition("@")[0] not in modules:
            close = get_close_matches(name, [*known, *modules - set(known)], n=5)
            hint = f"close names: {', '.join(close)}" if close else f"it has {', '.join(known)}"
            raise ValueError(f"the model has no layer {name!r}; {hint}")
        found.append(known.get(name, name))
    return found


def _blocks(model: ResNet) -> dict[str, str]:
    found = {}
    for stage, name in enumerate(model.stages, 1):
        for index, block in enumerate(model.get_submodule(name).children()):
            last = 2 if isinstance(block, Bottleneck) else 1  # one relu fires after every convolution but the last
            found[f"block{stage}.{index + 1}"] = f"{name}.{index}.relu@{last}"
    return found


def _sequential(model: nn.Module) -> dict[str, str]:
    """Of ``convnet`` and ``mlp``, known by their children's names."""
    children = dict(model.named_children())
    found = {}
    for prefix, called in (("conv", "conv"), ("fc", "hidden")):
        i = 1
        while f"{prefix}{i}" in children and f"relu{i}" in children:
            found[f"{called}{i}"] = f"relu{i}"
            i += 1
    return found if isinstance(model, nn.Sequential) else {}
