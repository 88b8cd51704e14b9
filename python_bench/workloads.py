"""The engine's workloads, in three sizes: a CPU's, a GPU's, and toys that test the benchmark itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from python_bench.opponents.stages import convnet_stages, mlp_stages, resnet_stages
from python_bench.opponents.task import Stages, Task
from sdkernels.lab.models import convnet, mlp, resnet18, resnet50

CLASSES = 10
IMAGE_CLASSES = 200  # of data sets with 64 x 64 images
LABELLED = 500  # examples a batch where labels are made


@dataclass(frozen=True)
class Workload:
    """What is ablated and how often.

    Attributes:
        title: for tables; ``{examples}`` is filled in.
        build: the model in evaluation mode.
        stages: the same network in steps, for the prefix cache written by hand.
        layers: where units live.
        shape: of one example.
        examples: N.
        curve: numbers of orders and of points (0: all); None: every unit alone, or ``pairs``.
        pairs: all pairs of units of each layer.
        floors: how many times longer an opponent must take at least, on a CPU.
        batches, folds: what opponents may choose from: examples a batch, configurations a forward pass.
        turns: of each contestant.
    """

    title: str
    build: Callable[[], nn.Module]
    stages: Callable[[nn.Module], Stages]
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    examples: int
    curve: tuple[int, int] | None
    pairs: bool = False
    floors: Mapping[str, float] = field(default_factory=dict)
    batches: tuple[int, ...] = (32, 128, 256)
    folds: tuple[int, ...] = (1, 4)
    turns: int = 3

    def heading(self) -> str:
        """The title, in numbers."""
        return self.title.format(examples=f"{self.examples:,}")


@dataclass(frozen=True)
class Family:
    """The arguments of ``cumulative_ablation``, made here so that opponents need nothing of the package."""

    orders: Tensor  # int64 [R, U]
    points: Tensor  # int64 [T]

    def ablated(self) -> Tensor:
        """bool [R * T, U]."""
        rank = self.orders.argsort(1)  # when each unit dies
        return (rank[:, None] < self.points[:, None]).flatten(0, 1)


@dataclass(frozen=True)
class Couples:
    """The argument of ``pair_importance``."""

    pairs: Tensor  # int64 [P, 2]
    units: int  # U

    @classmethod
    def within(cls, widths: Sequence[int]) -> "Couples":
        """All pairs of each layer."""
        starts = torch.tensor(widths).cumsum(0) - torch.tensor(widths)
        pairs = [torch.combinations(start + torch.arange(n)) for start, n in zip(starts, widths, strict=True)]
        return cls(torch.cat(pairs), sum(widths))

    def ablated(self) -> Tensor:
        """bool [P, U]."""
        return torch.zeros(len(self.pairs), self.units, dtype=torch.bool).scatter_(1, self.pairs, True)


def prepare(workload: Workload, device: torch.device) -> tuple[Task, Family | Couples | None]:
    """The model, examples and configurations; labels are the intact model's predictions or, as often, random."""
    generator = torch.Generator().manual_seed(0)
    model = workload.build().to(device)
    inputs = torch.rand(workload.examples, *workload.shape, generator=generator)
    labels = torch.randint(0, CLASSES, (workload.examples,), generator=generator)
    predicted = torch.rand(workload.examples, generator=generator) < 0.5
    inputs, labels, predicted = inputs.to(device), labels.to(device), predicted.to(device)
    widths: dict[str, int] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, out, layer=layer: widths.__setitem__(layer, out.shape[1])
        )
        for layer in workload.layers
    ]
    with torch.no_grad():
        predictions = torch.cat([model(x).argmax(1) for x in inputs.split(LABELLED)])
    for handle in handles:
        handle.remove()
    labels = torch.where(predicted, predictions, labels)
    units = sum(widths.values())
    family: Family | Couples | None = None
    if workload.pairs:
        family = Couples.within([widths[layer] for layer in workload.layers])
    elif workload.curve:
        orders, points = workload.curve
        family = Family(
            torch.stack([torch.randperm(units, generator=generator) for _ in range(orders)]),
            torch.linspace(0, units, points).round().long() if points else torch.arange(units + 1),
        )
    ablated = family.ablated() if family else torch.eye(units, dtype=torch.bool)
    all_widths = tuple(widths[layer] for layer in workload.layers)
    return Task(model, workload.stages, workload.layers, all_widths, inputs, labels, ablated), family


def trained(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Batch norms with scales, shifts and statistics as if of a trained network: none is the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.copy_(0.4 * torch.rand(module.num_features, generator=generator) - 0.2)
            module.momentum = 1.0  # the statistics of the one batch that follows
    model.train()
    with torch.no_grad():
        model(torch.rand(16, *shape, generator=generator))
    return model.eval()


def mlp_of(width: int = 512, inputs: int = 784) -> Callable[[], nn.Module]:
    """Two hidden layers."""
    return lambda: mlp(inputs, (width, width), CLASSES, seed=0).eval()


def convnet_of(width: float = 1.0, side: int = 32) -> Callable[[], nn.Module]:
    """For images of this side."""
    return lambda: trained(convnet(classes=CLASSES, width=width, seed=0), (3, side, side))


def resnet_of(make: Callable[..., nn.Module], width: float = 1.0, side: int = 64) -> Callable[[], nn.Module]:
    """For images of this side."""
    return lambda: trained(make(classes=IMAGE_CLASSES, width=width, seed=0), (3, side, side))


MLP = Workload(
    "Cumulative ablation, MLP 784-512-512-10, 10 orders x 33 points, {examples} examples",
    build=mlp_of(),
    stages=mlp_stages,
    layers=("relu1", "relu2"),
    shape=(784,),
    examples=10_000,
    curve=(10, 33),
    batches=(250, 1000, 2000, 10_000),
    folds=(1, 8),
)
CONVNET = Workload(
    "Cumulative ablation, CIFAR-10 ConvNet, last three layers, 10 orders x 33 points, {examples} images 32 x 32",
    build=convnet_of(),
    stages=convnet_stages,
    layers=("relu9", "relu10", "relu11"),
    shape=(3, 32, 32),
    examples=512,
    curve=(10, 33),
    floors={"hook loop": 18, "hand-written prefix cache": 4},
)

WORKLOADS = {
    "cumulative_mlp": MLP,
    "cumulative_mlp_all_points": replace(
        MLP,
        title="Cumulative ablation, MLP 784-512-512-10, 10 orders x all 1,025 points, {examples} examples",
        curve=(10, 0),
        floors={"hook loop": 30, "hand-written prefix cache": 12},
    ),
    "units_mlp": replace(
        MLP,
        title="Every unit alone, MLP 784-512-512-10, 1,024 units, {examples} examples",
        curve=None,
        floors={"hook loop": 40, "hand-written prefix cache": 15},
    ),
    "cumulative_convnet": CONVNET,
    "units_convnet": replace(
        CONVNET,
        title="Every feature map alone, CIFAR-10 ConvNet, all 2,816 maps, {examples} images 32 x 32",
        layers=tuple(f"relu{i}" for i in range(1, 12)),
        examples=64,
        curve=None,
        floors={"hook loop": 3.5, "hand-written prefix cache": 1.1},
        batches=(16, 64),
        turns=1,
    ),
    "pairs_mlp": replace(
        MLP,
        title="All pairs of units of relu1, MLP 784-128-128-10, 8,128 pairs, {examples} examples",
        build=mlp_of(128),
        layers=("relu1",),
        curve=None,
        pairs=True,
    ),
    "units_resnet18": Workload(
        "Every unit alone, ResNet-18, last two blocks, 1,024 units, {examples} images 64 x 64",
        build=resnet_of(resnet18),
        stages=resnet_stages,
        layers=("layer4.0", "layer4.1"),
        shape=(3, 64, 64),
        examples=64,
        curve=None,
        floors={"hook loop": 20, "hand-written prefix cache": 1.3},
        batches=(16, 64),
        folds=(1, 8),
    ),
    "cumulative_resnet50": Workload(
        "Cumulative ablation, ResNet-50, last three blocks, 5 orders x 17 points, {examples} images 64 x 64",
        build=resnet_of(resnet50),
        stages=resnet_stages,
        layers=("layer4.0", "layer4.1", "layer4.2"),
        shape=(3, 64, 64),
        examples=32,
        curve=(5, 17),
        floors={"hook loop": 8, "hand-written prefix cache": 1.2},
        batches=(8, 32),
    ),
}


def on_gpu(name: str) -> Workload:
    """More examples, so that a configuration fills the chip, in batches as large as memory allows."""
    examples = {"mlp": 60_000, "convnet": 10_000, "resnet18": 1000, "resnet50": 1000}
    batches = {"mlp": (4000, 20_000, 60_000), "convnet": (500, 2000), "resnet18": (250, 1000), "resnet50": (250, 1000)}
    network = name.split("_")[1]
    many = 500 if name == "units_convnet" else examples[network]
    return replace(
        WORKLOADS[name], examples=many, batches=tuple(size for size in batches[network] if size <= many), turns=2
    )


def tiny(name: str) -> Workload:
    """A toy of the same kind: narrow, two orders, three points, a handful of examples; floors mean nothing there."""
    workload = WORKLOADS[name]
    networks = {
        "mlp": (mlp_of(8, 12), (12,)),
        "convnet": (convnet_of(1 / 16, 16), (3, 16, 16)),
        "resnet18": (resnet_of(resnet18, 1 / 32, 16), (3, 16, 16)),
        "resnet50": (resnet_of(resnet50, 1 / 32, 16), (3, 16, 16)),
    }
    build, shape = networks[name.split("_")[1]]
    return replace(
        workload,
        title=f"tiny {name}, {{examples}} examples",
        build=build,
        shape=shape,
        examples=10,
        curve=workload.curve and (2, min(workload.curve[1], 3)),
        floors={},
        batches=(4, 10),
        folds=(1, 3),
        turns=1,
    )
