"""Clocks that jump while something runs, and rows that another clock has dated: the same numbers, no negative time."""

import itertools
import sqlite3
import time

import pytest

import sdkernels as sd
from sdkernels.engine import parts
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.contents import as_text, contents
from sdkernels.lab.sweep import run_sweep
from tests.engine.stored import differences, examples, network, tiles_scored
from tests.lab.small_sweeps import ABLATION, items, sweep_of

YEAR = 365 * 24 * 3600.0
JUMPS = {"back": [-3 * YEAR], "on": [40 * YEAR], "to and fro": [5 * YEAR, -9 * YEAR], "before 1970": [-90 * YEAR]}


@pytest.fixture
def jumps(monkeypatch):
    """The wall's clock is set at every third look at it, and stands still between; the others never go back."""

    def set_to(by):
        steps, start = itertools.cycle(by), time.time()
        looks = itertools.count()
        now = [start]

        def look():
            if next(looks) % 3 == 2:
                now[0] += next(steps)
            return now[0]

        monkeypatch.setattr(time, "time", look)

    return set_to


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(parts, "LEAST_EXAMPLES", 8)
    monkeypatch.setattr(parts, "TILE_SECONDS", 1e-12)
    monkeypatch.setattr(parts, "FIRST_EXAMPLES", 16)


@pytest.mark.parametrize("by", JUMPS.values(), ids=JUMPS)
def test_the_walls_clock_jumps_in_a_call(by, jumps, small_tiles, tmp_path):
    store, whole = tmp_path / "work.sdk", sd.unit_importance(network(), "3", examples())
    jumps(by)
    for scored in (7, 0):
        with tiles_scored() as tiles:
            found = sd.unit_importance(network(), "3", examples(), store=store)
        assert len(tiles) == scored
        assert not differences(found, whole, sums_within=1e-12)
    statistics = [sd.unit_statistics(network(), "3", examples(), store=store) for _ in range(2)]
    assert not differences(*statistics)
    with Ledger(store) as ledger:
        assert ledger.check() == 1 + 7 + 1
        assert as_text(contents(ledger)).count("2") > 0


@pytest.mark.parametrize("by", JUMPS.values(), ids=JUMPS)
def test_the_walls_clock_jumps_in_a_sweep(by, jumps, tmp_path):
    """Networks, results, states of training: what a sweep reads is found by keys, and by no date."""
    sweep = sweep_of({"seed": 0}, {"seed": 1}, conditions=(ABLATION,), checkpoint_seconds=0)
    whole = run_sweep(sweep, tmp_path / "whole.sdk")
    jumps(by)
    found = run_sweep(sweep, tmp_path / "work.sdk")
    kept = [{key: content for key, (_, content) in items(done.store, "network").items()} for done in (whole, found)]
    assert kept[0] == kept[1]
    for place in range(2):
        assert found.result(place, "ablation").correct.equal(whole.result(place, "ablation").correct)
        assert all(epoch["seconds"] >= 0 for epoch in found.record(place)["history"])
    assert found.seconds() >= 0


@pytest.mark.parametrize("date", [-1.0, 0.0, 4e9, 1e11, 1e300], ids=str)
def test_rows_of_another_date(date, small_tiles, tmp_path):
    """Also of one that no calendar has."""
    store, whole = tmp_path / "work.sdk", sd.unit_importance(network(), "3", examples())
    sd.unit_importance(network(), "3", examples(), store=store)
    sd.unit_statistics(network(), "3", examples(), store=store)
    file = sqlite3.connect(store)
    for table, column in (("runs", "created"), ("runs", "finished"), ("tiles", "written"), ("items", "written")):
        file.execute(f"UPDATE {table} SET {column} = ?", (date,))
    file.commit()
    file.close()
    with tiles_scored() as tiles:
        found = sd.unit_importance(network(), "3", examples(), store=store)
    assert not tiles
    assert not differences(found, whole, sums_within=1e-12)
    with Ledger(store) as ledger:
        ledger.check()
        assert len(as_text(contents(ledger)).splitlines()) == 3


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1e9], ids=["back", "stands", "on"])
def test_the_first_tiles_time_is_nonsense(seconds, monkeypatch, tmp_path):
    """A machine that slept, or a clock that is no steady one: tiles are longer or shorter, and that is all."""
    whole = sd.unit_importance(network(), "3", examples(400), batch_size=50)
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr(parts.time, "perf_counter", lambda: next(clock))
    found = sd.unit_importance(network(), "3", examples(400), batch_size=50, store=tmp_path / "work.sdk")
    assert not differences(found, whole, sums_within=1e-12)
    with Ledger(tmp_path / "work.sdk") as ledger:
        (run,) = ledger.runs()
        assert sum(tile.examples for tile in ledger.tiles(run)) == 400
