"""Ledgers, changed as SQLite's files are and row by row, with the rows' checksums made anew or not."""

import json
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sdkernels as sd
from sdkernels.engine.ledger import Ledger, Run, _digest
from sdkernels.lab.contents import as_text, contents, describe, find, kept_table, scores
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, run_sweep
from sdkernels.lab.training import TrainingOptions
from tests.engine.stored import examples, network
from tests.fuzz.readers.mutations import VALUES, changed_bytes, changed_json
from tests.fuzz.readers.npz import changed_npz
from tests.fuzz.readers.reader import Reader

_ABLATION = {"orders": 2, "points": 3, "seed": 0}
_HOSTILE = (
    "DROP TABLE items",
    "DROP TABLE runs",
    "DELETE FROM runs",
    "ALTER TABLE tiles RENAME COLUMN start TO begin",
    "ALTER TABLE items ADD COLUMN more TEXT",
    "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM runs; END",
    "CREATE TRIGGER t BEFORE INSERT ON tiles BEGIN SELECT RAISE(FAIL, 'no'); END",
    "DROP TABLE items; CREATE VIEW items AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT 'a' AS kind, i AS key, '{}' AS description, x'' AS content, x'' AS digest, 0 AS written FROM n",
    "DROP TABLE items; CREATE VIEW items AS SELECT 'a' AS kind, 'b' AS key, '{}' AS description, zeroblob(900000000) "
    "AS content, x'' AS digest, 0 AS written",
    "DROP TABLE items; CREATE VIEW items AS SELECT load_extension('x') AS kind",
    "PRAGMA user_version = 2",
    "PRAGMA user_version = -1",
    "PRAGMA application_id = 0",
    "PRAGMA page_size = 512; VACUUM",
    "PRAGMA encoding = 'UTF-16'; VACUUM",
)
_CHECKED = {
    "runs": ("key", "kind", "description"),
    "items": ("kind", "key", "description", "content"),
    "tiles": ("run_key", "part", "start", "data", "examples", "content"),
}


@cache
def _seeds() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.sdk"
        _call(path)
        plain = path.read_bytes()
        settings = NetworkSettings("digits", "mlp", {"hidden": [4]}, TrainingOptions(epochs=1), examples=40)
        measure = Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 1, "points": 2})
        run_sweep(Sweep((settings,), (measure,)), path)
        return plain, path.read_bytes()


def _call(path: Path) -> tuple[Any, Any]:
    model, data = network(), examples(21)
    curve = sd.cumulative_ablation(model, ["1"], data, store=path, **_ABLATION)
    return curve, sd.unit_statistics(model, ["1"], data, cells=4, store=path)


@cache
def _expected() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _call(Path(folder) / "work.sdk")


def _read(path: Path) -> None:
    """Everything that ``sdkernels runs`` shows."""
    with Ledger(path, must_exist=True, patience=1) as ledger:
        table = contents(ledger)
        assert len(as_text(table).splitlines()) >= len(table)
        for wanted in table["id"]:
            with _refusing(ledger):
                found = find(ledger, wanted)
                describe(ledger, found)
                scores(ledger, found) if isinstance(found, Run) else kept_table(ledger, *found)
        ledger.check()


@contextmanager
def _refusing(ledger: Ledger) -> Iterator[None]:
    """One row that is refused does not keep the next from being tried; it has to name the file too."""
    try:
        yield
    except (ValueError, OSError) as error:
        if str(ledger.path) not in str(error):
            raise AssertionError(f"{error!r} names no file") from error


def _read_call(path: Path) -> None:
    """Calls that go on from it: what was kept under a right checksum is trusted, in shape at least it must be right."""
    for found, expected in zip(_call(path), _expected(), strict=True):
        for name in ("class_examples", "correct", "mean"):
            if hasattr(found, name):
                assert getattr(found, name).shape == getattr(expected, name).shape
        assert len(found.to_pandas()) == len(expected.to_pandas())


def _change(content: bytes, draw: random.Random) -> bytes:
    """A value, or a statement that nobody but an enemy would make."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changed.sdk"
        path.write_bytes(content)
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as sqlite:
                sqlite.set_progress_handler(lambda: 1, 1_000_000)  # views and triggers of an earlier change may not end
                sqlite.execute("PRAGMA journal_mode = DELETE")
                if draw.random() < 0.15:
                    sqlite.executescript(draw.choice(_HOSTILE))
                else:
                    _change_value(sqlite, draw)
        except (sqlite3.Error, UnicodeError, OverflowError, TypeError, IndexError):  # no table, or an empty one
            return changed_bytes(content, draw)
        return path.read_bytes()


def _change_value(sqlite: sqlite3.Connection, draw: random.Random) -> None:
    tables = [name for name in _CHECKED if sqlite.execute(f"SELECT count(*) FROM {name}").fetchone()[0]]
    table = draw.choice(tables)
    names = [column[1] for column in sqlite.execute(f"PRAGMA table_info({table})")]
    rows = sqlite.execute(f"SELECT rowid, * FROM {table}").fetchall()
    number, *values = draw.choice(rows)
    row = dict(zip(names, values, strict=True))
    if draw.random() < 0.1:
        sqlite.execute(f"DELETE FROM {table} WHERE rowid = ?", (number,))
        return
    at = draw.choice((*names, *(name for name in names if name in ("description", "content")) * 4))
    row[at] = _changed(row[at], at, draw)
    if draw.random() < 0.8:
        if table == "tiles":
            found = sqlite.execute("SELECT key FROM runs WHERE id = ?", (row["run"],)).fetchone()
            row["run_key"] = found[0] if found else ""
        row["digest"] = _digest(*(row[name] for name in _CHECKED[table]))
    setting = ", ".join(f"{name} = :{name}" for name in names)
    sqlite.execute(f"UPDATE {table} SET {setting} WHERE rowid = :number", {**row, "number": number})


def _changed(value: Any, name: str, draw: random.Random) -> Any:
    if draw.random() < 0.1:
        return draw.choice([each for each in VALUES if not isinstance(each, list | dict)])
    if name == "description":
        return changed_json(value.encode(), draw).decode(errors="replace")
    if name == "content":
        return changed_npz(value, draw) if value[:2] == b"PK" else changed_bytes(value, draw)
    if isinstance(value, bytes):
        return changed_bytes(value, draw)
    if isinstance(value, str):
        return changed_bytes(value.encode(), draw).decode(errors="replace")
    return draw.choice((0, -1, 1, 2**40, 2**63 - 1, 0.5, 1e300, "a", b"\x00", json.dumps(value)))


LEDGER = Reader("ledgers", "work.sdk", lambda: [*_seeds()], _read, _change)
STORE = Reader("stores", "work.sdk", lambda: [_seeds()[0]], _read_call, _change)
