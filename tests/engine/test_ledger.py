"""The ledger: rows of one file, bound to what they are found by, and safe from other processes."""

import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sdkernels.engine.ledger import FORMAT, Ledger, LedgerError

KEY = "a" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.sdk"


def test_runs_and_tiles_are_as_they_were_written(path):
    with Ledger(path) as ledger:
        assert ledger.run(KEY) is None
        assert ledger.runs() == []
        run = ledger.add_run(KEY, "ablate", {"layers": ["1"], "snowman": "\u2603"})
        assert (run.key, run.kind, run.description, run.finished) == (
            KEY,
            "ablate",
            {"layers": ["1"], "snowman": "☃"},
            None,
        )
        assert ledger.add_run(KEY, "other", {}) == run  # the first one stays
        other = ledger.add_run("b", "ablate", {})
        assert ledger.tile(run, 0, 0, b"data") is None
        for part, start, content in ((1, 8, b"\0x"), (0, 8, b""), (0, 0, b"first" * 10000)):
            ledger.keep_tile(run, part, start, b"data", 8, content)
        ledger.keep_tile(run, 0, 0, b"data", 8, b"second")  # as another process would
        assert ledger.tile(run, 0, 0, b"data") == b"first" * 10000
        assert ledger.tile(run, 1, 8, b"data") == b"\0x"
        for where in ((run, 0, 0, b"other"), (run, 1, 0, b"data"), (run, 0, 4, b"data"), (other, 0, 0, b"data")):
            assert ledger.tile(*where) is None
        tiles = [(tile.start, tile.part, tile.examples, tile.content[:5]) for tile in ledger.tiles(run)]
        assert tiles == [(0, 0, 8, b"first"), (8, 0, 8, b""), (8, 1, 8, b"\0x")]
        assert ledger.progress(run)[:2] == (3, 24)
        assert ledger.progress(other) == (0, 0, None)
        ledger.finish_run(run)
        finished = ledger.run(KEY).finished
        ledger.finish_run(run)
        assert finished is not None
        assert ledger.run(KEY).finished == finished
    with Ledger(path, must_exist=True) as ledger:
        assert [run.key for run in ledger.runs()] == [KEY, "b"]
        assert ledger.check() == 5
        ledger.drop_run(run)
        assert ledger.run(KEY) is None
        assert ledger.check() == 1


def test_items_are_replaced_dropped_and_listed_in_order(path):
    with Ledger(path) as ledger:
        ledger.keep_item("network", "b", {"seed": 1}, b"1")
        ledger.keep_item("network", "a", {"seed": 0}, b"0")
        ledger.keep_item("pass", "a", {}, b"2")
        assert [(item.key, item.content) for item in ledger.items("network")] == [("b", b"1"), ("a", b"0")]
        assert [(item.key, item.content) for item in ledger.items_without_content("network")] == [
            ("b", b""),
            ("a", b""),
        ]
        assert ledger.kinds() == {"network": 2, "pass": 1}
        assert ledger.check() == 3
        ledger.keep_item("network", "b", {"seed": 2}, b"3")
        assert (ledger.item("network", "b").description, ledger.item("network", "b").content) == ({"seed": 2}, b"3")
        assert ledger.has_item("pass", "a")
        assert ledger.item("pass", "b") is None
        ledger.drop_item("pass", "a")
        ledger.drop_item("pass", "a")
        assert not ledger.has_item("pass", "a")
        assert ledger.kinds() == {"network": 2}


def filled(path: Path) -> None:
    with Ledger(path) as ledger:
        for key in ("first", "second"):
            run = ledger.add_run(key, "ablate", {"layout": {"first": 8, "size": 8, "parts": 2}})
            ledger.keep_tile(run, 0, 0, b"data", 8, f"{key} 0".encode())
        ledger.keep_item("network", "a", {"seed": 0}, b"weights")


CHANGES = {
    "another run's tile": ("UPDATE tiles SET run = run + 2; UPDATE tiles SET run = 5 - run", "tile 0 of run 1"),
    "a tile's part": ("UPDATE tiles SET part = 1", None),
    "a tile's start": ("UPDATE tiles SET start = 8", None),
    "a tile's data": ("UPDATE tiles SET data = x'00'", None),
    "a tile's number of examples": ("UPDATE tiles SET examples = 9", "tile 0 of run 1"),
    "a tile's content": ("UPDATE tiles SET content = CAST(x'ff' || substr(content, 2) AS BLOB)", "tile 0 of run 1"),
    "a tile's content, of another type": ("UPDATE tiles SET content = CAST(content AS TEXT)", "tile 0 of run 1"),
    "a tile's digest": ("UPDATE tiles SET digest = x'00'", "tile 0 of run 1"),
    "a run's key": ("UPDATE runs SET key = 'third' WHERE id = 1", "run 1"),
    "a run's kind": ("UPDATE runs SET kind = 'pairs'", "run 1"),
    "a run's layout": ("UPDATE runs SET description = replace(description, '2', '3')", "run 1"),
    "runs in each other's place": (
        "UPDATE runs SET key = key || '!'; UPDATE runs SET key = 'first' WHERE id = 2",
        "run",
    ),
    "an item's content": ("UPDATE items SET content = x'00'", "network a"),
    "an item's description": ("UPDATE items SET description = '{}'", "network a"),
    "an item's key": ("UPDATE items SET key = 'b'", "network b"),
    "an item's kind": ("UPDATE items SET kind = 'pass'", "pass a"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_that_was_changed_is_never_taken_for_right(name, path):
    filled(path)
    change, what = CHANGES[name]
    sqlite = sqlite3.connect(path)
    sqlite.executescript(change)
    sqlite.close()
    with Ledger(path) as ledger:
        with pytest.raises(LedgerError, match=f"{path} is damaged: {what or 'tile'}"):
            ledger.check()
        try:
            run = ledger.run("first")
            content = None if run is None else ledger.tile(run, 0, 0, b"data")
            assert content in (None, b"first 0")
            item = ledger.item("network", "a")
            assert item is None or (item.description, item.content) == ({"seed": 0}, b"weights")
        except LedgerError:
            pass
        else:
            assert what is None or name.startswith(("a run's key", "runs", "an item's"))


def test_a_run_that_is_dropped_while_it_is_made_takes_no_more_tiles_and_gives_none_away(path):
    with Ledger(path) as ours, Ledger(path) as theirs:
        run = ours.add_run("first", "ablate", {})
        ours.keep_tile(run, 0, 0, b"data", 8, b"old model")
        theirs.drop_run(theirs.run("first"))
        again = theirs.add_run("second", "ablate", {})
        assert again.id != run.id
        with pytest.raises(LedgerError, match="dropped by another process while it was being made; run again"):
            ours.keep_tile(run, 0, 8, b"data", 8, b"old model")
        assert list(theirs.tiles(again)) == []
        assert theirs.check() == 1


def test_what_one_process_has_written_the_other_reads(path):
    with Ledger(path) as ours, Ledger(path) as theirs:
        run = ours.add_run(KEY, "ablate", {})
        assert theirs.run(KEY) == run
        theirs.keep_tile(run, 0, 0, b"data", 8, b"theirs")
        ours.keep_tile(run, 0, 0, b"data", 8, b"ours")
        assert ours.tile(run, 0, 0, b"data") == b"theirs"


def test_a_writer_waits_for_another_as_long_as_it_has_patience(path):
    filled(path)
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with Ledger(path, patience=0.05) as ledger:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"held it for 0\.05 seconds; run again when that one is done"):
            ledger.keep_item("network", "b", {}, b"")
        assert ledger.item("network", "a").content == b"weights"  # readers need not wait
        with pytest.raises(LedgerError, match=r"held it for 0\.01 seconds"):
            Ledger(path, patience=0.01)
        with Ledger(path, must_exist=True, patience=0.01) as reader:
            assert reader.check() == 5
    timer = threading.Timer(0.2, lambda: holder.execute("COMMIT"))
    timer.start()
    with Ledger(path, patience=30.0) as ledger:
        ledger.keep_item("network", "b", {}, b"")
    timer.join()
    holder.close()


def test_a_transaction_that_fails_leaves_nothing(path):
    filled(path)
    with Ledger(path) as ledger:

        def stopped() -> None:
            with ledger._transaction():
                ledger._sqlite.execute("DELETE FROM items")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stopped()
        assert ledger.check() == 5


def test_a_name_that_sqlite_reads_otherwise_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:work.sdk?mode=memory", "work 100%.sdk"):
        filled(Path(name))
        assert (tmp_path / name).is_file()
        with Ledger(name, must_exist=True) as ledger:
            monkeypatch.chdir("/")  # it is the same file still
            assert ledger.check() == 5
        monkeypatch.chdir(tmp_path)


def test_it_must_exist_where_that_is_said(path):
    with pytest.raises(LedgerError, match=f"{path} is not there"):
        Ledger(path, must_exist=True)
    assert not path.exists()


def test_the_file_says_what_it_is(path):
    filled(path)
    sqlite = sqlite3.connect(path)
    assert sqlite.execute("PRAGMA application_id").fetchone() == (0x53444B4C,)
    assert sqlite.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    assert sqlite.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    sqlite.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What tests/engine/killed.py saw."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.killed", str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_killed_at_any_moment_it_repeats_one_tile_and_ends_with_the_same_bits(killed):
    found = killed["killed"]
    assert found["kills"] >= 10
    assert found["kills_in_the_middle"] >= 3
    assert found["most_repeated"] <= 1
    assert all(found["same"])
    assert len(found["same"]) >= 1
    assert set(found["rows"]) == {40}  # a run and its tiles, none twice


def test_processes_on_one_file_all_end_with_the_right_bits(killed):
    assert all(killed["together"]["same"]), killed["stderr"]


def test_processes_may_make_a_file_at_the_same_moment(killed):
    assert not any(killed["made"]["codes"]), killed["stderr"]


@pytest.mark.parametrize("name", ["\x00", "\ud800", "x" * 300], ids=["null", "surrogate", "long"])
def test_names_that_no_file_can_have(name, tmp_path):
    with pytest.raises(LedgerError, match=r"^store=.*: no file can have this name"):
        Ledger(tmp_path / name)


@pytest.mark.parametrize("path", [None, True, 3, b"work.sdk", ["work.sdk"]])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match=r"store is a .*; give the path of a file"):
        Ledger(path)
