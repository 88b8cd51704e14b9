"""How many examples an area needs within a tolerance, as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from python_bench.race import described, duration, machine, markdown, write_result


@dataclass(frozen=True)
class Whole:
    """A run on all examples, or on the first of them.

    Attributes:
        seconds: run by run, on ``examples``.
        population: N; times are scaled to it.
    """

    seconds: list[float]
    examples: int
    population: int

    def __str__(self) -> str:
        if self.examples == self.population:
            return duration(median(self.seconds))
        scaled = f"{self.scaled:,.0f} s" if self.scaled >= 10 else duration(self.scaled)
        return f"about {scaled}, from {self.examples:,}"

    @property
    def scaled(self) -> float:
        """Median seconds on all examples."""
        return median(self.seconds) * self.population / self.examples


@dataclass(frozen=True)
class Sampled:
    """Runs with one tolerance.

    Attributes:
        workload: its name.
        used: how many examples each order took.
        normal: how many a normal approximation asks for, for each order.
        seconds: run by run.
        error: the largest difference of an area from that of all examples; None where that was not run.
    """

    workload: str
    tolerance: float
    used: list[int]
    normal: list[int]
    seconds: list[float]
    whole: Whole
    error: float | None

    def cells(self) -> tuple[str, ...]:
        """Of the row."""
        return (
            f"`{self.workload}`",
            f"{self.whole.population:,}",
            f"{self.tolerance:g}",
            most_and_mean(self.used),
            most_and_mean(self.normal),
            duration(median(self.seconds)),
            str(self.whole),
            "" if self.error is None else f"{self.error:.4f}",
        )


HEADER = (
    "workload",
    "N",
    "tolerance",
    "examples used: most, mean",
    "if fixed before: most, mean",
    "time",
    "all N",
    "largest error",
)


@dataclass(frozen=True)
class SamplingTable:
    """All rows, and what they have in common."""

    title: str
    rows: Sequence[Sampled]
    notes: Mapping[str, Any]

    def lines(self) -> list[str]:
        """Markdown, without title and notes."""
        return markdown(HEADER, [row.cells() for row in self.rows])

    def table(self) -> str:
        """Markdown."""
        return "\n".join([f"### {self.title}", "", *self.lines(), "", described({**self.notes, **machine()})])

    def write(self, folder: Path, name: str) -> None:
        """Keep the table and the raw numbers."""
        rows = [asdict(row) for row in self.rows]
        raw = {"title": self.title, "sampled": rows, "notes": dict(self.notes), "machine": machine()}
        write_result(folder, name, self.table(), raw)


def as_sampling_table(raw: Mapping[str, Any]) -> SamplingTable:
    """What :meth:`SamplingTable.write` kept."""
    rows = [Sampled(**{**row, "whole": Whole(**row["whole"])}) for row in raw["sampled"]]
    return SamplingTable(raw["title"], rows, raw["notes"])


def most_and_mean(numbers: Sequence[int]) -> str:
    """In whole numbers."""
    return f"{max(numbers):,}, {sum(numbers) / len(numbers):,.0f}"


def normal_sample_size(variance: float, population: int, tolerance: float, confidence: float) -> int:
    r"""Examples for an interval of this half width by the central limit theorem, if their number is fixed before.

    .. math:: n = \frac{n_0}{1 + n_0 / N}, \quad n_0 = \frac{z^2 S^2}{\epsilon^2}

    rounded up, drawn without replacement from N numbers of variance :math:`S^2` (divided by N - 1): Cochran 1977,
    *Sampling techniques*, chapter 4.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    endless = (z / tolerance) ** 2 * variance
    return math.ceil(endless / (1 + endless / population))
