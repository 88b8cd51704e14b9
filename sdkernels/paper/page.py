"""Writes the page of all figures: ``python -m sdkernels.paper.page --runs runs --page docs/reproduction.md``."""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdkernels.paper.catalogue import DIRECTIONS, PAPERS, RECIPES, REPRESENTATIONS
from sdkernels.paper.claims.claim import VERDICTS, Claim, claims_table, markdown
from sdkernels.paper.recipe import PRESETS

_HEAD = """# Every figure of both papers, by one command each

Each figure at the largest preset that has been run so far; all of this page was written by
`python -m sdkernels.paper.page`, from the reports of these runs.

```sh
sdkernels reproduce fig1a --preset quick                        # embedded digits, at most three minutes on two cores
sdkernels reproduce fig1a --preset small --data-dir DIR         # real data sets: fewer examples, widths and epochs
sdkernels reproduce fig1a --preset paper --data-dir DIR         # as published, for a GPU
sdkernels reproduce all --preset small --data-dir DIR           # every network is trained once, and shared by figures
sdkernels reproduce fig3b --options                             # what can be changed, by --set NAME=VALUE
```

Claims are tested over networks, or over orders where there is one network of a kind, by 95 % intervals. *Does not
hold* says no more than that these networks, at this preset, do not show it; the last column says whether they show the
opposite, or too little to decide. Times are the sum of those of all networks, measurements and comparisons of a figure,
also where another figure had them done already; where workers shared them, they were so much sooner done.
"""

# What the page is made of.
_FIELDS = (
    "figure",
    "preset",
    "title",
    "changes",
    "choices",
    "not_reproduced",
    "machine",
    "seconds",
    "networks",
    "claims",
)

_PAPERS = {
    DIRECTIONS: "Morcos, Barrett, Rabinowitz, Botvinick 2018, [*{title}*](https://arxiv.org/abs/1803.06959)",
    REPRESENTATIONS: "Morcos, Raghu, Bengio 2018, [*{title}*](https://arxiv.org/abs/1806.05759)",
}


def main() -> None:
    """Write the page, and the pictures beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs")], help="folders of run folders")
    parser.add_argument("--page", type=Path, default=Path("docs/reproduction.md"))
    parser.add_argument("--note", default="", help="what there is to say of these runs")
    given = parser.parse_args()
    try:
        write_page(largest(read_reports(given.runs)), given.page, given.note)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {str(error)[:1000]}\n")


def read_reports(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """All reports below these folders, each with the ``folder`` it lies in.

    Raises:
        ValueError: a folder that there is not, or a report that is none; names it.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is no folder; give by --runs those that `sdkernels reproduce` was given by --out"
            )
        found += [_read(path) for path in sorted(folder.glob("*/report.json"))]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        missing = sorted({*_FIELDS} - {*report}) if isinstance(report, dict) else _FIELDS
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no report of a run ({error}); run `sdkernels reproduce` again") from error
    if missing or report["preset"] not in PRESETS:
        lacks = f"lacks {', '.join(missing)}" if missing else f"is of a preset {report['preset']!r}"
        raise ValueError(f"{path} is no report of a run: it {lacks}; run `sdkernels reproduce` again")
    try:  # all that the page shows of it, as a file can hold it
        if report["figure"] in RECIPES:
            (_row(report["figure"], report) + _section(report["figure"], report, "")).encode()
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{path} is no report of a run ({why}); run `sdkernels reproduce` again") from error
    return {**report, "folder": path.parent}


def largest(reports: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Of each figure the report of its largest preset, in the paper's order."""
    found: dict[str, Mapping[str, Any]] = {}
    for report in sorted(reports, key=lambda report: PRESETS.index(report["preset"])):
        if _is_run(report) or report["figure"] not in found:
            found[report["figure"]] = report
    return {name: found[name] for name in RECIPES if name in found}


def _is_run(report: Mapping[str, Any]) -> bool:
    """Whether there was something to draw, and claims to test."""
    return bool(report["claims"])


def write_page(reports: Mapping[str, Mapping[str, Any]], page: Path, note: str = "") -> None:
    """The page, and a picture a figure in the folder that has the page's name.

    A figure without a report, or with one of a smaller preset than the page shows, stays as it is on the page.

    Raises:
        ValueError: ``page`` is no name for a file of text, or a device; nothing is written then.
    """
    if not page.suffix or (page.exists() and not page.is_file()):
        raise ValueError(f"{page} is no file that can be a page; give by --page a name such as reproduction.md")
    pictures = page.with_suffix("")
    drawn: dict[str, Path] = {}
    rows, sections = _shown(page)
    for name in RECIPES:
        report = reports.get(name)
        if name in rows and (report is None or _preset(rows[name]) > PRESETS.index(report["preset"])):
            continue
        rows[name], sections[name] = _row(name, report), _section(name, report, pictures.name)
        if report is not None and _is_run(report):
            drawn[name] = Path(report["folder"]) / "figure.png"
    tables = [_summary(paper, rows) for paper in PAPERS]
    parts = [_HEAD, *([f"{note}\n"] if note else []), *tables, *(sections[name] for name in RECIPES)]
    content = "\n".join(parts).encode()
    pictures.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        shutil.copyfile(picture, pictures / f"{name}.png")
    partial = page.with_name(f"{page.name}.partial")
    partial.write_bytes(content)
    partial.replace(page)


def _shown(page: Path) -> tuple[dict[str, str], dict[str, str]]:
    """By figure the summary's rows and the sections of the page as it is; none of a page that there is not yet."""
    head, *parts = page.read_text().split("\n## ") if page.exists() else [""]
    rows = {line.split("]")[0].removeprefix("| ["): line for line in head.splitlines() if line.startswith("| [")}
    sections = {part.split("\n")[0]: f"## {part}" for part in parts}
    return rows, sections


def _preset(row: str) -> int:
    """Which preset a row of the summary shows; -1 of a figure that was not run."""
    return next((i for i, preset in enumerate(PRESETS) if f" | {preset} | " in row), -1)


def _summary(paper: str, rows: Mapping[str, str]) -> str:
    lines = [f"{_PAPERS[paper].format(title=paper)}:", ""]
    lines += ["| figure | preset | holds | does not hold | not testable | time |", "|---|---|---|---|---|---|"]
    lines += [rows[recipe.name] for recipe in PAPERS[paper]]
    return "\n".join(lines) + "\n"


def _row(name: str, report: Mapping[str, Any] | None) -> str:
    link = f"[{name}](#{name.lower()})"
    if report is None:
        return f"| {link} | not yet run | | | | |"
    if not _is_run(report):
        return f"| {link} | {', '.join(report['not_reproduced'].values())} | | | | |"
    counts = Counter(claim["verdict"] for claim in report["claims"])
    verdicts = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
    return f"| {link} | {report['preset']} | {verdicts} | {_time(report)} |"


def _section(name: str, report: Mapping[str, Any] | None, pictures: str) -> str:
    lines = [f"## {name}", "", f"{RECIPES[name].title}.", ""]
    if report is None:
        return "\n".join([*lines, "Not yet run.", ""])
    for part, why in report["not_reproduced"].items():
        lines += [f"**{markdown(f'{part}: {why}')}.**", ""]
    if _is_run(report):
        lines += [f"![{markdown(report['title'])}]({pictures}/{name}.png)", ""]
        lines += [claims_table(Claim(**claim) for claim in report["claims"]), ""]
        lines += [f"{_networks(report)}{_machine(report)}, {_time(report)} for all of it:", ""]
        lines += ["```sh", _command(report), "```", ""]
    lines += ["Where the paper is silent, and in this preset:", ""]
    lines += [f"- {markdown(f'{what}: {choice}')}" for what, choice in report["choices"].items()]
    return "\n".join([*lines, ""])


def _networks(report: Mapping[str, Any]) -> str:
    """How many networks, how well they were trained, and which were left out."""
    words = []
    for part in dict.fromkeys(network["part"] for network in report["networks"]):
        own = [network for network in report["networks"] if network["part"] == part]
        done = [network for network in own if "failed" not in network]
        what = f"{len(done)} networks" if len(done) != 1 else "1 network"
        for outcome, called in (("train_accuracy", "training"), ("test_accuracy", "test")):
            numbers = [network[outcome] for network in done if network.get(outcome) is not None]
            if numbers:
                low, high = min(numbers), max(numbers)
                what += f", {called} accuracy {low:.3f}" + (f" to {high:.3f}" if high > low else "")
        left_out = len(own) - len(done)
        words.append(f"{part}: {what}" + (f"; {left_out} left out, whose training diverged" if left_out else ""))
    return markdown("; ".join(words)) + (". " if words else "")


def _machine(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else "")
    workers = f"{count} workers of " if (count := machine.get("workers", 1)) > 1 else ""
    return markdown(f"{where}, {workers}{threads}, torch {machine['versions']['torch']}")


def _time(report: Mapping[str, Any]) -> str:
    seconds = sum(took for what, took in report["seconds"].items() if what != "this_call")
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _command(report: Mapping[str, Any]) -> str:
    data = "" if report["preset"] == "quick" else " --data-dir DIR"
    changes = "".join(f" --set {name}={json.dumps(value)!r}" for name, value in report["changes"].items())
    return f"sdkernels reproduce {report['figure']} --preset {report['preset']}{data}{changes}"


if __name__ == "__main__":
    main()
