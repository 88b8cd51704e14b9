"""The report on one GPU: a JSON file of all numbers, and their tables in Markdown."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

CONTESTANTS = {"triton": "Triton", "native": "CUDA C++", "torch": "plain torch"}
COPY = "copy"
FLOAT32_PRODUCT = "product float32"


class Report:
    """All that is known so far, written anew after every change, so that a kill loses nothing."""

    def __init__(self, folder: Path, device: str, setting: dict[str, str]) -> None:
        slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
        self.json_path, self.markdown_path = folder / f"gpu_{slug}.json", folder / f"gpu_{slug}.md"
        self.device = device
        self.setting = setting
        self.stages: dict[str, Row] = {}

    def set(self, stage: str, **result: Any) -> None:
        """Note what is known of a stage, and write."""
        self.stages.setdefault(stage, {}).update(result)
        self.write()

    def write(self) -> None:
        """Both files, each in one move."""
        raw = {"device": self.device, "setting": self.setting, "problems": self.problems(), "stages": self.stages}
        for path, text in ((self.json_path, json.dumps(raw, indent=1)), (self.markdown_path, self.markdown())):
            new = path.with_suffix(path.suffix + ".new")
            new.write_text(text + "\n")
            new.replace(path)

    def rows(self, stage: str) -> list[Row]:
        """A stage's measurements."""
        return list(self.stages.get(stage, {}).get("rows", []))

    def problems(self) -> list[str]:
        """All that makes the command fail, a line each."""
        found = []
        for stage, result in self.stages.items():
            found += [f"{stage}: {problem}" for problem in result.get("problems", [])]
            found += [f"{stage}: {r['case']}, {_name(r)}: {r['failed']}" for r in self.rows(stage) if "failed" in r]
        found += [
            f"bits: {r['case']}, {r['who']}: {r['differing_bits']} bits differ from {r['against']}"
            for r in self.rows("bits")
            if r.get("differing_bits")
        ]
        tests = self.stages.get("tests", {})
        found += [f"tests: {tests['failed']} failed"] if tests.get("failed") else []
        return found

    def markdown(self) -> str:
        """Tables of every stage that has begun."""
        lines = [f"# sdkernels on {self.device}", "", "; ".join(f"{k}: {v}" for k, v in self.setting.items()), ""]
        header = ("stage", "result", "seconds")
        lines += _table(
            header, ((n, r.get("result", ""), _number(r.get("seconds"), 0)) for n, r in self.stages.items())
        )
        parts = {"bits": self._bits, "ceilings": self._ceilings, "ops": self._ops, "engine": self._engine}
        for stage, part in parts.items():
            if self.rows(stage):
                lines += part()
        if problems := self.problems():
            lines += ["## What failed", "", *(f"- {problem}" for problem in problems), ""]
        if failures := self.stages.get("tests", {}).get("failures"):
            lines += ["## Tests that failed", "", *(f"- `{name}`" for name in failures), ""]
        return "\n".join(lines)

    def _bits(self) -> list[str]:
        rows = (
            (r["case"], f"{r['who']} against {r['against']}", f"{r['values']:,}", f"{r['differing_bits']:,}")
            for r in self.rows("bits")
            if "values" in r
        )
        return ["## Bit-identity", "", *_table(("what", "compared", "values", "differing bits"), rows)]

    def _ceilings(self) -> list[str]:
        rows = (
            (r["case"], _milliseconds(r["milliseconds"]), _rate(r, "bytes") or _rate(r, "flop"), r["checked"])
            for r in self.rows("ceilings")
            if "milliseconds" in r
        )
        return ["## Ceilings of this run", "", *_table(("what", "ms (median, least to most)", "rate", "checked"), rows)]

    def _ops(self) -> list[str]:
        by_case: dict[str, dict[str, Row]] = {}
        for row in self.rows("ops"):
            if "milliseconds" in row:
                by_case.setdefault(row["case"], {})[row["who"]] = row
        header = (
            "op",
            "by",
            "ms (median, least to most)",
            "rate",
            "share of the limit",
            "target",
            "torch's time / this",
        )
        rows = []
        for case, contestants in by_case.items():
            for who, row in contestants.items():
                theirs = contestants.get("torch")
                ratio = f"{_median(theirs) / _median(row):.2f}" if theirs and who != "torch" else ""
                rates = ", ".join(filter(None, (_rate(row, work) for work in ("bytes", "flop", "normals"))))
                target = row["target"] if who != "torch" else ""
                times, share = _milliseconds(row["milliseconds"]), self._share(row)
                rows.append((f"{case}: {row['shape']}", _name(row), times, rates, share, target, ratio))
        calls = [
            (case, _name(row), _milliseconds(row["call_milliseconds"]), row["checked"])
            for case, contestants in by_case.items()
            for row in contestants.values()
            if "call_milliseconds" in row
        ]
        explained = "Times are of the kernels alone, launched without the checks of the public functions."
        public = _table(("op", "by", "public call, ms", "checked before: against the reference"), calls)
        return ["## Ops", "", explained, "", *_table(header, rows), *public]

    def _share(self, row: Row) -> str:
        """Of the copy bandwidth and of the float32 product peak, where they were measured."""
        shares = []
        for work, ceiling in (("bytes", COPY), ("flop", FLOAT32_PRODUCT)):
            limits = [r for r in self.rows("ceilings") if r["case"] == ceiling and "milliseconds" in r]
            if work in row and limits:
                most = limits[0][work] / _median(limits[0])
                shares.append(f"{row[work] / _median(row) / most:.0%} of {ceiling}")
        return ", ".join(shares)

    def _engine(self) -> list[str]:
        lines = ["## Engine", ""]
        for row in (r for r in self.rows("engine") if "seconds" in r):
            lines += [f"{row['case']}: {row['shape']}", ""]
            settings, parts, ratios = row["settings"], row["parts"], row["ratios"]
            table = (
                (who, f"{median(seconds):.3f}", f"{ratios[who]:.1f}", settings[who], parts.get(who, ""))
                for who, seconds in row["seconds"].items()
            )
            lines += _table(("", "seconds (median)", "times sdkernels", "tuned", ""), table)
            said = [f"Counts equal up to {row['ambiguous']} ambiguous ones in a configuration."]
            if "planned_gflop" in row:
                rate = row["planned_gflop"] / 1e3 / median(row["seconds"]["sdkernels"])
                said += [f"The plan needs {row['planned_gflop'] / 1e3:.3g} TFLOP, run at {rate:.3g} TFLOP/s."]
            said += [f"At the size of {row['at_size']}."] if "at_size" in row else []
            lines += [" ".join(said), ""]
        return lines


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(header)
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows), ""]


def _name(row: Row) -> str:
    return CONTESTANTS.get(row["who"], str(row["who"]))


def _median(row: Row) -> float:
    return max(float(median(row["milliseconds"])), 1e-9)


def _milliseconds(times: list[float]) -> str:
    return f"{median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _rate(row: Row, work: str) -> str:
    if work not in row:
        return ""
    amount = row[work] / (_median(row) * 1e-3)
    unit, size = {"bytes": ("TB/s", 1e12), "flop": ("TFLOP/s", 1e12), "normals": ("G normals/s", 1e9)}[work]
    return f"{amount / size:.3g} {unit}"
