"""Networks to attribute, and the definition written out with plain hooks; nothing of the package but its networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdkernels.lab.models import mlp, resnet18
from tests.engine.networks import Branching, ConvNet, Tokens, with_lively_batch_norm

EXACT = {"rtol": 0, "atol": 1e-10}  # float64: sums in another order

Case = tuple[nn.Module, str, tuple[int, ...], int]  # model, layer, an example's shape, the units' dimension


class Sequence1d(nn.Module):
    """1-d convolutions: units are dimension 1 of three."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.conv2, self.out = nn.Conv1d(6, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv2(self.bn(self.conv1(x)).relu()).relu().mean(2))


class Recurrent(nn.Module):
    """A layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0].mean(1))


def _resnet() -> nn.Module:
    return with_lively_batch_norm(resnet18(classes=5, width=1 / 16, seed=0))


MODELS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...], int]] = {
    "mlp": (lambda: mlp(12, (9, 7), 5, seed=0).double().eval(), "relu1", (12,), 1),
    "mlp-last": (lambda: mlp(12, (9, 7), 5, seed=0).double().eval(), "relu2", (12,), 1),
    "convnet": (lambda: with_lively_batch_norm(ConvNet()), "relu1", (2, 6, 6), 1),
    "convnet-bn": (lambda: with_lively_batch_norm(ConvNet()), "bn2", (2, 6, 6), 1),
    "resnet": (_resnet, "layer3.0", (3, 16, 16), 1),
    "resnet-inner": (_resnet, "layer2.0.conv1", (3, 16, 16), 1),
    "tokens": (lambda: with_lively_batch_norm(Tokens()), "act", (2, 6, 6), 2),
    "conv1d": (lambda: with_lively_batch_norm(Sequence1d()), "conv1", (3, 7), 1),
    "untraceable": (lambda: Branching().double().eval(), "relu", (2, 6, 6), 1),
}


def case(name: str) -> Case:
    """A network of random weights; the global random state stays as it was."""
    build, layer, shape, unit_dim = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(), layer, shape, unit_dim


def examples(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """float64 normals."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_output(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What the layer gives."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    with torch.no_grad():
        model(x.clone())
    handle.remove()
    return seen[0]


def by_hooks(
    model: nn.Module,
    layer: str,
    x: Tensor,
    target: int | list[int] | Tensor,
    baseline: float | Tensor = 0.0,  # broadcasts to the output
    groups: Tensor | None = None,  # [U]
    unit_dim: int = 1,
    select: int | None = None,
) -> Tensor:
    """A[n, u], one hooked pass a unit."""
    name, _, call = layer.partition("@")
    module = model.get_submodule(name)
    targets = torch.as_tensor(target).expand(len(x))

    def logits_with(change: Callable[[Tensor], Tensor]) -> Tensor:
        fired = []

        def hook(_module, _args, output):
            fired.append(1)
            if len(fired) - 1 != int(call or 0):
                return None
            if select is None:
                return change(output)
            return tuple(change(part) if i == select else part for i, part in enumerate(output))

        handle = module.register_forward_hook(hook)
        try:
            with torch.no_grad():
                return model(x.clone()).gather(1, targets[:, None])[:, 0]
        finally:
            handle.remove()

    widths: list[int] = []
    intact = logits_with(lambda out: widths.append(out.shape[unit_dim]) or out.clone())
    numbers = torch.arange(widths[0]) if groups is None else groups
    columns = []
    for number in numbers.tolist():

        def clamp(out: Tensor, number: int = number) -> Tensor:
            where = (numbers == number).view([-1 if d == unit_dim else 1 for d in range(out.ndim)])
            return torch.where(where, torch.as_tensor(baseline, dtype=out.dtype).expand_as(out), out)

        columns.append(intact - logits_with(clamp))
    return torch.stack(columns, 1)


def mask_of(kind, units):
    """Groups of one and of two units, mixed, their numbers with gaps; None for every unit alone."""
    mixed = examples(units, ()).argsort()
    return None if kind == "alone" else (torch.arange(units) % max(units - 2, 2))[mixed] * 5 + 2
