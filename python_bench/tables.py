"""Tables of docs/performance.md, from the results that the benchmarks kept: ``python -m python_bench.tables``.

Between ``<!-- NAME -->`` and ``<!-- end -->`` stands the table of ``python_bench/results/NAME.json``; ``ratios`` is the
one of all races of the engine, ``limits`` holds them against what the machine's arithmetic allows.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from python_bench.cluster_costs import Scaling
from python_bench.contest import LOOP, PLANNED
from python_bench.noise_contest import DEVIATIONS
from python_bench.opponents import OPPONENTS
from python_bench.peaks import CONVOLUTION, PRODUCT
from python_bench.race import Part, Race, described, duration, markdown
from python_bench.sampling_table import as_sampling_table
from python_bench.similarity_contest import DIFFERENCE, MEMORY, PRODUCTS
from python_bench.statistics_contest import ADDED
from python_bench.workloads import WORKLOADS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
RESULTS = HERE / "results"
NOT_MEASURED = "Not measured yet."
SETTING = ("device", "threads", "torch", "sdkernels")

Result = Mapping[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m python_bench.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that benchmarks wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    options.page.write_text(filled(options.page.read_text(), options.results))
    return 0


def filled(page: str, folder: Path) -> str:
    """The page with every table as the results have it."""

    def table(found: re.Match[str]) -> str:
        name = found[1]
        overview = {"ratios": ratios, "limits": limits}.get(name)
        text = overview(folder) if overview else of_result(folder / f"{name}.json")
        return f"<!-- {name} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- ([a-z0-9_]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def of_result(path: Path) -> str:
    """The table of one race, growth or sampling."""
    if not path.exists():
        return NOT_MEASURED
    raw = json.loads(path.read_text())
    lines = table_of(raw)
    says_all = any(key in raw for key in ("rows", "sampled", "simulated"))
    kept = {
        key: value
        for key, value in raw["notes"].items()
        if says_all or key.endswith(("best", ADDED, MEMORY)) or key in (DEVIATIONS, DIFFERENCE, PRODUCTS)
    }
    machine = {key: raw["machine"][key] for key in SETTING}
    return "\n".join([*lines, "", f"{described({**kept, **machine})}."])


def table_of(raw: Result) -> list[str]:
    """Its lines, by what was kept."""
    if "simulated" in raw:
        return Scaling.of(raw).lines()
    if "sampled" in raw:
        return as_sampling_table(raw).lines()
    return growth(raw) if "rows" in raw else opponents(raw)


def opponents(raw: Result) -> list[str]:
    """Times of all contestants, and ratios to the package."""
    race = as_race(raw)
    rows = [
        (
            name,
            duration(median(race.scaled(name))),
            f"{median(race.ratios(name)):.1f}",
            f"{min(race.ratios(name)):.1f} to {max(race.ratios(name)):.1f}",
            str(race.parts.get(name, "")),
        )
        for name in race.seconds
    ]
    return markdown(("", "time (median)", "times sdkernels", "least to most", ""), rows)


def growth(raw: Result) -> list[str]:
    """Times by size."""
    times = {int(value): median(seconds) for value, seconds in raw["rows"].items()}
    before: list[float | None] = [None, *times.values()]
    rows = [
        (f"{value:,}", duration(time), f"{time / last:.2f}" if last else "")
        for (value, time), last in zip(times.items(), before, strict=False)
    ]
    return markdown((raw["size"], "time (median)", "times the row before"), rows)


def races(folder: Path) -> dict[str, Result]:
    """The results of the engine's workloads that there are."""
    paths = {name: folder / f"{name}.json" for name in WORKLOADS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def ratios(folder: Path) -> str:
    """Every workload's time, and how many times longer each opponent takes."""
    rows = []
    for name, raw in races(folder).items():
        race = as_race(raw)
        own, *_ = race.seconds.values()
        theirs = (f"{median(race.ratios(o)):.1f}" if o in race.seconds else "" for o in OPPONENTS)
        rows.append((f"`{name}`", duration(median(own)), *theirs))
    return "\n".join(markdown(("workload", "sdkernels", *OPPONENTS), rows)) if rows else NOT_MEASURED


def limits(folder: Path) -> str:
    """Every workload's planned arithmetic, and how near the package is to the rate that torch's own products reach."""
    rows = []
    for name, raw in races(folder).items():
        if PLANNED not in raw["notes"]:
            continue
        notes, time = raw["notes"], median(next(iter(raw["seconds"].values())))
        planned, peak = notes[PLANNED], max(notes[PRODUCT], notes[CONVOLUTION])
        rows.append(
            (
                f"`{name}`",
                duration(time),
                f"{notes[LOOP]:,.0f}",
                f"{planned:,.0f}",
                f"{planned / time:,.0f}",
                f"{notes[PRODUCT]:,.0f}; {notes[CONVOLUTION]:,.0f}",
                f"{planned / time / peak:.0%}",
            )
        )
    header = (
        "workload",
        "time",
        "a hook loop's GFLOP",
        "the plan's GFLOP",
        "GFLOP/s",
        "`torch.mm`; convolution, GFLOP/s",
        "share of the better",
    )
    return "\n".join(markdown(header, rows)) if rows else NOT_MEASURED


def as_race(raw: Result) -> Race:
    """What :meth:`Race.write` kept."""
    parts = {name: Part(**part) for name, part in raw.get("parts", {}).items()}
    return Race(raw["title"], raw["seconds"], raw["notes"], parts)


if __name__ == "__main__":
    raise SystemExit(main())
