"""How the package's time grows when points, orders, units or examples are doubled, on small forms of two workloads."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from python_bench.contest import run_package
from python_bench.race import Growth, Turns
from python_bench.workloads import CONVNET, MLP, Workload, convnet_of, mlp_of, prepare

RUNS = 3


@dataclass(frozen=True)
class Sizes:
    """Where the doubling starts."""

    orders: int
    points: int
    units: int  # of a layer of the MLP, of the last layer of the ConvNet
    examples: int


NETWORKS: dict[str, tuple[str, Callable[[Sizes], Workload], Sizes, Sizes]] = {
    "mlp": (
        "MLP 784-{units}-{units}-10",
        lambda sizes: replace(MLP, build=mlp_of(sizes.units)),
        Sizes(orders=2, points=32, units=128, examples=2000),
        Sizes(orders=1, points=3, units=4, examples=4),
    ),
    "convnet": (
        "CIFAR-10 ConvNet of width {units}/512",
        lambda sizes: replace(CONVNET, build=convnet_of(sizes.units / 512)),
        Sizes(orders=2, points=8, units=64, examples=64),
        Sizes(orders=1, points=3, units=8, examples=2),
    ),
}
SIZES = ["points", "orders", "units", "examples"]
DOUBLINGS = 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("network", NETWORKS)
def test_growth(network, size, benchmark, report, is_tiny):
    name, make, full, toy = NETWORKS[network]
    start = toy if is_tiny else full
    contestants, values = {}, {}
    for doubling in range(2 if is_tiny else DOUBLINGS + 1):
        sizes = replace(start, **{size: getattr(start, size) * 2**doubling})
        workload = replace(make(sizes), examples=sizes.examples, curve=(sizes.orders, sizes.points))
        task, family = prepare(workload, torch.device("cpu"))
        value = str(getattr(sizes, size))
        values[value] = getattr(sizes, size)
        contestants[value] = lambda task=task, family=family: run_package(task, family)
        contestants[value]()
    turns = Turns(contestants)
    *smaller, largest = contestants

    def run_smaller() -> None:
        for value in smaller:
            turns.take(value)

    benchmark.pedantic(lambda: turns.take(largest), setup=run_smaller, rounds=1 if is_tiny else RUNS)
    fixed = {key: value for key, value in vars(start).items() if key != size}
    units = "n" if size == "units" else start.units
    title = f"{size.capitalize()} doubled, cumulative ablation, {name.format(units=units)}"
    rows = {values[value]: seconds for value, seconds in turns.seconds.items()}
    report(Growth(title, size, rows, fixed), f"growth_{network}_{size}")
