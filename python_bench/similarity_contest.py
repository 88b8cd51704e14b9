"""Distances of many networks by their activations, and of two by more positions than memory should hold.

``python -m python_bench.similarity_contest POSITIONS`` prints the memory that the second takes, in bytes.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from python_bench.contest import OURS, DifferentResultsError, seconds
from python_bench.opponents.cca_pair import PAIRWISE, RawSums, activations
from python_bench.race import Part, Turns
from sdkernels.analysis.similarity.over_layers import compare_layers
from sdkernels.analysis.similarity.over_networks import pairwise_similarity

TOLERANCE = 1e-8  # of distances
INPUTS = 64
RAW = "numpy, raw sums by batches"
MEMORY = "memory taken (MiB)"
DIFFERENCE = "largest difference of distances"
PRODUCTS = "the pairs' products alone"

# Blocks that are freed go back to the system, so that what is resident is what is used.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}


@dataclass(frozen=True)
class Networks:
    """Networks that are compared by one layer, each with each.

    Attributes:
        timed: on how many pairs opponents are timed.
    """

    method: Literal["cca", "pwcca"]
    networks: int = 10
    units: int = 512
    examples: int = 10_000
    timed: int = 5
    turns: int = 3

    @property
    def title(self) -> str:
        name = {"cca": "Mean CCA", "pwcca": "PWCCA"}[self.method]
        return f"{name} of {self.networks} networks, {self.pairs} pairs, {self.units} units, {self.examples:,} examples"

    @property
    def pairs(self) -> int:
        return self.networks * (self.networks - 1) // 2

    @property
    def products(self) -> float:
        """FLOP of each two networks' product: each pair has one, whatever is shared."""
        return 2.0 * self.pairs * self.units**2 * self.examples


WORKLOADS = {f"similarity_{method}": Networks(method) for method in ("cca", "pwcca")}
TOYS = {f"similarity_{method}": Networks(method, 3, 8, 60, 2, 1) for method in ("cca", "pwcca")}


class AllPairs:
    """A workload, ready to run."""

    def __init__(self, workload: Networks) -> None:
        self.workload = workload
        generator = torch.Generator().manual_seed(0)
        self.networks = [layer(workload.units, generator) for _ in range(workload.networks)]
        self.inputs = torch.randn(workload.examples, INPUTS, generator=generator)
        pairs = [(i, j) for i in range(workload.networks) for j in range(i + 1, workload.networks)]
        chosen = torch.randperm(len(pairs), generator=generator)[: workload.timed]
        self._timed = [pairs[k] for k in chosen]
        opponents = PAIRWISE[workload.method]
        once = min(seconds(lambda: activations(self.networks, self.inputs)) for _ in range(3))
        self.parts = {name: Part(len(self._timed), len(pairs), "pairs", once) for name in opponents}
        contestants = {OURS: self._ours}
        self.turns = Turns(contestants | {name: partial(self._one_by_one, name) for name in opponents})

    def check(self) -> float:
        """The largest difference of the last results.

        Raises:
            DifferentResultsError: it is above :data:`TOLERANCE`.
        """
        ours = self.turns.results[OURS]
        theirs = [self.turns.results[name] for name in PAIRWISE[self.workload.method]]
        worst = max(
            abs(float(ours[at]) - one)
            for found in theirs
            for (i, j), both in zip(self._timed, found, strict=True)
            for at, one in zip(((i, j), (j, i)), both, strict=True)
        )
        if not worst <= TOLERANCE:
            raise DifferentResultsError(f"distances differ by {worst}")
        return worst

    def _ours(self) -> Tensor:
        return pairwise_similarity(self.networks, "1", self.inputs, method=self.workload.method).distance[0]

    def _one_by_one(self, name: str) -> list[tuple[float, float]]:
        rows, distance = activations(self.networks, self.inputs), PAIRWISE[self.workload.method][name]
        return [distance(rows[i], rows[j]) for i, j in self._timed]


def layer(units: int, generator: torch.Generator) -> nn.Module:
    """Some network."""
    linear = nn.utils.skip_init(nn.Linear, INPUTS, units)
    linear.weight.data = torch.randn(units, INPUTS, generator=generator) / INPUTS**0.5
    linear.bias.data = torch.randn(units, generator=generator) / 2
    return nn.Sequential(linear, nn.ReLU()).eval()


@dataclass(frozen=True)
class Maps:
    """Two networks of C feature maps that are compared at every position of their images.

    Attributes:
        side: of the images.
        batch_size: images.
    """

    positions: int
    channels: int
    side: int
    batch_size: int

    @property
    def title(self) -> str:
        return f"Mean CCA of two layers of {self.channels} feature maps at {self.positions:,} positions, streaming"


STREAM = Maps(1_000_000, 256, 25, 16)
TOY_STREAM = Maps(2000, 6, 10, 4)


class Streaming:
    """Two networks and their images, ready to run."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        generator = torch.Generator().manual_seed(0)
        self.models = [convolution(maps.channels, generator) for _ in range(2)]
        self.images = torch.randn(maps.positions // maps.side**2, 3, maps.side, maps.side, generator=generator)
        self.turns = Turns({OURS: self.ours, RAW: self.raw_sums})

    def ours(self) -> float:
        """By the package."""
        options = {"positions": "each", "batch_size": self.maps.batch_size}
        return float(compare_layers(*self.models, ["1"], self.images, **options).distance)

    def raw_sums(self) -> float:
        """By the opponent."""
        sums = RawSums()
        with torch.no_grad():
            for batch in self.images.split(self.maps.batch_size):
                sums.add(*(model(batch).movedim(1, -1).flatten(0, -2).numpy() for model in self.models))
        return sums.distance(self.maps.channels)

    def check(self) -> float:
        """How much the last results differ.

        Raises:
            DifferentResultsError: more than by :data:`TOLERANCE`.
        """
        difference = abs(self.turns.results[OURS] - self.turns.results[RAW])
        if not difference <= TOLERANCE:
            raise DifferentResultsError(f"distances differ by {difference}")
        return difference


def convolution(channels: int, generator: torch.Generator) -> nn.Module:
    """Some network of feature maps as large as the image."""
    convolved = nn.utils.skip_init(nn.Conv2d, 3, channels, 5, padding=2)
    convolved.weight.data = torch.randn(convolved.weight.shape, generator=generator) / 75**0.5
    convolved.bias.data = torch.randn(channels, generator=generator) / 2
    return nn.Sequential(convolved, nn.ReLU()).eval()


def memory_taken(maps: Maps, positions: int) -> int:
    """Bytes that the package's run takes beyond its inputs, at most, in a process of its own."""
    of = (positions, maps.channels, maps.side, maps.batch_size)
    done = subprocess.run(
        [sys.executable, "-m", "python_bench.similarity_contest", *map(str, of)],
        env={**os.environ, **ENVIRONMENT},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def _most_resident() -> int:
    """Bytes, at most so far; ``getrusage`` would count the parent's, from before this program was loaded."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    few = Streaming(Maps(*(int(number) for number in sys.argv[1:])))
    with torch.no_grad():
        few.models[0](few.images[:1])  # what is loaded at first use is not the run's
    before = _most_resident()
    few.ours()
    print(_most_resident() - before)
