"""Files that once did harm, and changed ones, are read right or refused; ``python -m tests.fuzz.readers`` tries more.

What is tried is the same each time: 816 changes; ``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_readers.py`` tries 20
times as many.
"""

import os
import random
import warnings

import pytest

from tests.fuzz.readers.every import READERS
from tests.fuzz.readers.judge import Breach, judge
from tests.fuzz.readers.reader import CASES, Reader

TIMES = max(1, int(os.environ.get("SDKERNELS_FUZZ", "500")) // 500)
SLOW = ("stores", "ledgers", "checkpoints", "archives_zip", "archives_tar", "images", "runs")


@pytest.mark.parametrize("name", READERS)
def test_changed_files(name, tmp_path):
    reader = READERS[name]
    seeds = reader.seeds()
    outcomes = [judge(reader, seed, tmp_path / "place") for seed in seeds]
    assert outcomes[0]
    for number in range(TIMES * (8 if name in SLOW else 40)):
        draw = random.Random(number)
        content = reader.changed(draw.choice(seeds), draw)
        try:
            judge(reader, content, tmp_path / "place")
        except Breach as breach:
            raise AssertionError(f"{name}, change {number} of a seed: {breach}") from breach


@pytest.mark.parametrize(
    ("name", "case"), [(name, case.name) for name, reader in READERS.items() for case in reader.cases()]
)
def test_kept_cases(name, case, tmp_path):
    judge(READERS[name], (CASES / name / case).read_bytes(), tmp_path / "place")


def test_every_kept_case_has_a_reader():
    assert {folder.name for folder in CASES.iterdir()} <= {*READERS}


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda path: {}["x"], "KeyError"),
        (lambda path: int("no number"), "nameless ValueError"),
        (lambda path: path.with_name("x" * 6000).stat(), "long message"),
        (lambda path: (path.parent.parent / "beside").write_text("x"), "reaches out by open"),
        (lambda path: os.system("true"), "reaches out by os.system"),
        (lambda path: _warns(5), "warnings"),
        (lambda path: _assert_false(), "AssertionError"),
    ],
)
def test_what_a_reader_may_not_do_is_seen(does, says, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.readers.judge._TEMPORARY", "/nowhere")
    with pytest.raises(Breach, match=says):
        judge(Reader("bad", "file", list, does), b"", tmp_path / "place")


def test_a_reader_that_never_ends_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.readers.judge.SECONDS", 0.2)

    def never(_path):
        while True:
            pass

    with pytest.raises(Breach, match="hang"):
        judge(Reader("bad", "file", list, never), b"", tmp_path / "place")


def _warns(times):
    for _ in range(times):
        warnings.warn("again", stacklevel=1)


def _assert_false():
    raise AssertionError("wrong data")
