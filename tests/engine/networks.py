"""Small networks of many kinds, and the raw hook loop that everything is held against."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def raw_hook_counts(
    model: nn.Module, layers: Sequence[str], inputs: Tensor, labels: Tensor, ablated: Sequence[Tensor], value: float
) -> tuple[int, float]:
    """Correct predictions and the loss sum with units clamped, as a user would; imports nothing of the package."""
    handles = []
    modules = dict(model.named_modules())
    for name, mask in zip(layers, ablated, strict=True):

        def hook(_module, _args, output, mask=mask):
            output = output.clone()
            output[:, mask] = value
            return output

        handles.append(modules[name].register_forward_hook(hook))
    try:
        with torch.no_grad():
            logits = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return int((logits.argmax(1) == labels).sum()), float(F.cross_entropy(logits.double(), labels, reduction="sum"))


def with_lively_batch_norm(model: nn.Module) -> nn.Module:
    """Non-trivial statistics and scales for every batch norm, in evaluation mode, float64."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model.double().eval()


class ConvNet(nn.Module):
    """Two convolutions with batch norm, pooling, flatten, two linear layers; in-place ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(5, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.pool, self.fc1, self.fc2 = nn.MaxPool2d(2), nn.Linear(6, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.pool(self.relu2(self.bn2(self.conv2(x))))
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class Residual(nn.Module):
    """A residual block whose one in-place ReLU fires three times, with a skip around the sites."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 4, 3, padding=1) for c in (2, 4, 4))
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.relu(self.conv1(x))
        y = self.relu(self.bn(self.conv2(skip)))
        y = self.conv3(y)
        y += skip
        return self.out(self.relu(y).mean((2, 3)))


class Concatenating(nn.Module):
    """Parallel branches joined by concatenation, and a site that is a composite module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh())
        self.right = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Sigmoid())
        self.out = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(torch.cat([self.left(x), self.right(x)], 1).flatten(2).amax(2))


class Tokens(nn.Module):
    """Units in the last of three dimensions: a token mixer with layer norm, a class token and a log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.norm, self.up, self.act, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2)[:, :, :1].expand(-1, -1, 3))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.down(self.act(self.up(self.norm(x))))
        return self.out(x.mean(1)).log_softmax(1)


class Encoder(nn.Module):
    """A layer of torch's own around the chosen one, which fx takes for a single node unless told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x.flatten(2)[:, :, :12].reshape(-1, 6, 4)).mean(1))


class Branching(nn.Module):
    """Control flow that depends on the data: no tracer can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.fc1(x.flatten(1)[:, :4]))
        return self.fc2(x if x.sum() > 0 else -x)


def image_networks() -> dict[str, tuple[nn.Module, list[str]]]:
    """By name: a network on [N, 2, 6, 6] with 5 classes, and layers to ablate."""
    torch.manual_seed(0)
    return {
        "convnet-relu": (with_lively_batch_norm(ConvNet()), ["relu1", "relu2"]),
        "convnet-conv": (with_lively_batch_norm(ConvNet()), ["conv2", "bn1"]),
        "convnet-linear": (with_lively_batch_norm(ConvNet()), ["relu2", "fc1"]),
        "residual": (with_lively_batch_norm(Residual()), ["relu@0", "relu@1", "relu@2"]),
        "residual-inner": (with_lively_batch_norm(Residual()), ["conv2"]),
        "concatenating": (with_lively_batch_norm(Concatenating()), ["left", "right.1", "stem"]),
        "tokens": (with_lively_batch_norm(Tokens()), ["act", "embed"]),
        "logits": (with_lively_batch_norm(ConvNet()), ["fc2"]),
    }
