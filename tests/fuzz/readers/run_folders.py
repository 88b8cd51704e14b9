"""What is read back from run folders: the marker, and reports for the page of all figures."""

import json
from pathlib import Path

from sdkernels.lab.fetching.fetch_record import FetchRecord
from sdkernels.lab.fetching.partial import Partial
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.page import largest, read_reports, write_page
from sdkernels.paper.run_folder import RunFolder
from tests.fuzz.readers.mutations import changed_json
from tests.fuzz.readers.reader import Reader

_SETTINGS = {"figure": "fig1a", "preset": "quick", "device": "cpu", "epochs": 2, "levels": [0.0, 1.0]}


def _read_marker(path: Path) -> None:
    before = path.read_bytes()
    folder = RunFolder(path.parent, _SETTINGS, ("data.csv",))
    assert json.loads(before)["settings"] == _SETTINGS
    folder.write_json("report.json", {})
    assert json.loads(path.read_text())["settings"] == _SETTINGS


def _marker_seeds() -> list[bytes]:
    changed = {**_SETTINGS, "epochs": 3}
    return [json.dumps({"format": "sdkernels.run/1", "settings": each}).encode() for each in (_SETTINGS, changed)]


def _report() -> dict[str, object]:
    claim = {"claim": "It falls.", "published": "-0.7", "ours": "-0.6", "low": -0.8, "high": -0.2}
    claim |= {"verdict": "holds", "reason": "12 networks"}
    return {
        "figure": "fig1a",
        "title": "Figure 1a",
        "preset": "quick",
        "changes": {"orders": 2, "shape": {"hidden": [16, 16]}},
        "options": {},
        "choices": {"optimiser": "Adam"},
        "not_reproduced": {"ImageNet": "not reproduced: needs ImageNet"},
        "machine": {"processor": "a CPU", "device": "cpu", "threads": 1, "versions": {"torch": "2"}, "workers": 1},
        "seconds": {"training_and_measuring": 1.5, "comparing": 0.0, "this_call": 2.0},
        "networks": [{"part": "MNIST", "network": 0, "train_accuracy": 1.0, "test_accuracy": 0.9}],
        "claims": [claim],
    }


def _read_report(path: Path) -> None:
    run = path.parent / "runs" / "fig1a-quick"
    run.mkdir(parents=True)
    (run / "report.json").write_bytes(path.read_bytes())
    (run / "figure.png").write_bytes(b"picture")
    page = path.parent / "docs" / "page.md"
    page.parent.mkdir()
    write_page(largest(read_reports([run.parent])), page)
    text = page.read_text()
    assert text.count("\n## ") == len(RECIPES), "a name has made a section"
    assert "<script" not in text
    pictures = {f"{name}.png" for name in RECIPES}
    assert {each.name for each in page.parent.rglob("*")} <= {"page.md", "page", *pictures}


def _read_fetched(path: Path) -> None:
    """A record that cannot be read counts as none."""
    record = FetchRecord(path.parent)
    for name in ("a.txt", "b.txt", ".."):
        assert all(isinstance(checksum, str) for checksum in record.checksums(name))
        assert name in record or not record.checksums(name)


def _read_partial(path: Path) -> None:
    partial = Partial(path.parent / "file")
    assert all(isinstance(value, str) for value in partial.record.values())
    assert partial.validator("http://a") is None or isinstance(partial.validator("http://a"), str)


def _fetched_seeds() -> list[bytes]:
    entry = {"sha256": "ab" * 32, "from": "http://a", "checked_by": ["md5:00"]}
    return [json.dumps({"format": "sdkernels.fetched/1", "files": {"a.txt": entry, "b.txt": entry}}).encode()]


def _partial_seeds() -> list[bytes]:
    return [json.dumps({"address": "http://a", "etag": '"1"', "last_modified": "Sun"}).encode()]


MARKER = Reader("markers", RunFolder.MARKER, _marker_seeds, _read_marker, changed_json)
REPORT = Reader("reports", "report.json", lambda: [json.dumps(_report()).encode()], _read_report, changed_json)
FETCHED = Reader("fetched", ".fetched.json", _fetched_seeds, _read_fetched, changed_json, silent=True)
PARTIAL = Reader("partials", "file.partial.json", _partial_seeds, _read_partial, changed_json, silent=True)
