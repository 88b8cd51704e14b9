"""The ledger: finished work as rows of one SQLite file, so that a call that was stopped goes on where it was.

Three tables. ``runs``: one row a call, its key, a SHA-256 of all that its scores depend on, and a description in JSON.
``tiles``: one row a finished tile of a run, its counts and sums over some examples. ``items``: anything else that is
finished, as the networks of a sweep, by kind and key. Every row carries a SHA-256 of its content and of what it is
found by: what is damaged, or stands in another's place, is never taken for right. A tile, or an item, is one
transaction in SQLite's write-ahead log: a process that is killed leaves all of it or nothing.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
_LEAST_BYTES = 512  # of a SQLite file that is not empty
_APPLICATION = 0x53444B4C  # "SDKL", which SQLite keeps in a file's header
PATIENCE = 60.0  # seconds that a process waits for another one's transaction
_RUN = "id, key, kind, description, digest, created, finished"

_SCHEMA = f"""
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, description TEXT NOT NULL,
    digest BLOB NOT NULL, created REAL NOT NULL, finished REAL
);
CREATE TABLE tiles (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE, part INTEGER NOT NULL, start INTEGER NOT NULL,
    data BLOB NOT NULL, examples INTEGER NOT NULL, content BLOB NOT NULL, digest BLOB NOT NULL, written REAL NOT NULL,
    PRIMARY KEY (run, part, start, data)
);
CREATE TABLE items (
    kind TEXT NOT NULL, key TEXT NOT NULL, description TEXT NOT NULL, content BLOB NOT NULL, digest BLOB NOT NULL,
    written REAL NOT NULL, PRIMARY KEY (kind, key)
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
"""


class LedgerError(OSError):
    """The ledger cannot be read or written; says which file, why, and what to do. What it holds is as it was."""


@contextmanager
def taken_from(ledger: "Ledger", what: str) -> Iterator[None]:
    """Where a row's description or content is taken apart: one that is not as it is written here is refused by name.

    Raises:
        LedgerError: names the file and ``what``.
    """
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:  # numpy, zipfile and pandas raise many kinds
        why = f"{type(error).__name__}: {str(error)[:300]}"
        raise LedgerError(
            f"{ledger.path}: {what} is not as sdkernels writes it ({why}). Give store= another path; or `sdkernels "
            "runs drop` takes it out"
        ) from error


class Run(NamedTuple):
    """A call whose tiles are kept."""

    id: int
    key: str
    kind: str
    description: dict[str, Any]
    created: float  # seconds since 1970, as are all times
    finished: float | None


class KeptTile(NamedTuple):
    """A finished tile."""

    part: int
    start: int
    examples: int
    content: bytes
    written: float


class Item(NamedTuple):
    """Something finished."""

    kind: str
    key: str
    description: dict[str, Any]
    content: bytes
    written: float


class Ledger:
    """An open ledger; close it, or use it as a context. One thread, any number of processes and machines' restarts.

    Args:
        path: the file; made if it is not there, unless ``must_exist``. On a local disk: SQLite's write-ahead log does
            not work over network file systems, where it falls back to a rollback journal, if the system locks files.
            If somebody deletes it, this ledger goes on with the file that has no name any more, and ends with it.
        must_exist: do not make one; nor ask whether it can be written.
        patience: for how many seconds to wait for another process's transaction.

    Raises:
        TypeError: no path.
        LedgerError: no such folder, no permission, a full disk, a file that is no ledger, is damaged, or was written by
            a later version.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "work.sdk") as ledger:
        ...     ledger.keep_item("network", "a", {"seed": 0}, b"weights")
        ...     ledger.item("network", "a").content, ledger.item("network", "b")
        (b'weights', None)
    """

    def __init__(self, path: str | os.PathLike[str], *, must_exist: bool = False, patience: float = PATIENCE) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"store is a {type(path).__name__}; give the path of a file")
        self.path, self._patience = Path(path), patience
        _check_name(self.path)
        try:
            if must_exist and not self.path.exists():
                raise LedgerError(f"{self.path} is not there; a ledger is what store= or --store was given")
            if self.path.is_dir():
                raise LedgerError(f"{self.path} is a folder; a ledger is one file. Give store= its path")
            if self.path.exists() and not self.path.is_file():
                raise LedgerError(f"{self.path} is no plain file; give store= another path")
            if not self.path.parent.is_dir():
                raise LedgerError(f"{self.path}: there is no folder {self.path.parent}; make it first")
            # SQLite takes a file of a few bytes for empty, and writes over it. It must not be looked into here: closing
            # a file lets go of all locks that this process has on it.
            if self.path.exists() and 0 < self.path.stat().st_size < _LEAST_BYTES:
                raise LedgerError(f"{self.path}: {_MEANINGS['not a database']}")
        except PermissionError as error:
            raise LedgerError(f"{self.path}: {_MEANINGS['unable to open']} ({error})") from error
        with self._clear_errors():  # by its absolute path, as SQLite has names that are no files
            self._sqlite = sqlite3.connect(self.path.absolute(), timeout=patience, isolation_level=None)
        try:
            self._open(is_written=not must_exist)
        except BaseException:
            self._sqlite.close()
            raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._sqlite.close()

    # Runs and their tiles

    def run(self, key: str) -> Run | None:
        """The run of this key."""
        rows = self._read(f"SELECT {_RUN} FROM runs WHERE key = ?", key)
        return self._as_run(rows[0]) if rows else None

    def runs(self) -> list[Run]:
        """All runs, the oldest first."""
        rows = self._read(f"SELECT {_RUN} FROM runs ORDER BY id")
        return [self._as_run(row) for row in rows]

    def add_run(self, key: str, kind: str, description: Mapping[str, Any]) -> Run:
        """The run of this key: a new one, or the one that another process has added meanwhile."""
        text = json.dumps(description)
        with self._transaction():
            self._sqlite.execute(
                "INSERT INTO runs (key, kind, description, digest, created) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (key, kind, text, _digest(key, kind, text), time.time()),
            )
        found = self.run(key)
        if found is None:
            raise LedgerError(f"{self.path}: run {key[:12]} was dropped by another process while it was being added")
        return found

    def finish_run(self, run: Run) -> None:
        """Note that all of its tiles are there."""
        with self._transaction():
            self._sqlite.execute("UPDATE runs SET finished = coalesce(finished, ?) WHERE id = ?", (time.time(), run.id))

    def drop_run(self, run: Run) -> None:
        """Take a run and its tiles out."""
        with self._transaction():
            self._sqlite.execute("DELETE FROM tiles WHERE run = ?", (run.id,))
            self._sqlite.execute("DELETE FROM runs WHERE id = ?", (run.id,))

    def tile(self, run: Run, part: int, start: int, data: bytes) -> bytes | None:
        """The content of the tile that starts at this example, if it is there and was made from this data."""
        rows = self._read(
            "SELECT examples, content, digest FROM tiles WHERE run = ? AND part = ? AND start = ? AND data = ?",
            *(run.id, part, start, data),
        )
        if not rows:
            return None
        ((examples, content, digest),) = rows
        self._check(digest, run.key, part, start, data, examples, content, what=f"tile {start} of run {run.id}")
        return bytes(content)

    def tiles(self, run: Run) -> Iterator[KeptTile]:
        """A run's tiles in order."""
        rows = self._read(
            "SELECT part, start, data, examples, content, digest, written FROM tiles WHERE run = ? "
            "ORDER BY start, part",
            run.id,
        )
        for part, start, data, examples, content, digest, written in rows:
            self._check(digest, run.key, part, start, data, examples, content, what=f"tile {start} of run {run.id}")
            yield KeptTile(part, start, examples, content, written)

    def progress(self, run: Run) -> tuple[int, int, float | None]:
        """How many tiles of a run there are, of how many examples, and when the last one was written."""
        ((tiles, examples, written),) = self._read(
            "SELECT count(*), coalesce(sum(examples), 0), max(written) FROM tiles WHERE run = ?", run.id
        )
        return tiles, examples, written

    def keep_tile(self, run: Run, part: int, start: int, data: bytes, examples: int, content: bytes) -> None:
        """Add a finished tile; the same one of another process stays as it is."""
        digest = _digest(run.key, part, start, data, examples, content)
        with self._transaction():
            self._sqlite.execute(
                "INSERT INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (run.id, part, start, data, examples, content, digest, time.time()),
            )

    # Items

    def item(self, kind: str, key: str) -> Item | None:
        """The item of this kind and key."""
        found = list(self.items(kind, key))
        return found[0] if found else None

    def has_item(self, kind: str, key: str) -> bool:
        """Whether there is one; its content is not read."""
        return bool(self._read("SELECT 1 FROM items WHERE kind = ? AND key = ?", kind, key))

    def items_without_content(self, kind: str) -> list[Item]:
        """The items of a kind, in the order in which they were kept, with no content."""
        rows = self._read("SELECT key, description, written FROM items WHERE kind = ? ORDER BY written, key", kind)
        return [Item(kind, key, self._loaded(description), b"", written) for key, description, written in rows]

    def items(self, kind: str, key: str | None = None) -> Iterator[Item]:
        """The items of a kind, in the order in which they were kept."""
        rows = self._read(
            "SELECT key, description, content, digest, written FROM items WHERE kind = ? AND (? IS NULL OR key = ?) "
            "ORDER BY written, key",
            *(kind, key, key),
        )
        for own, description, content, digest, written in rows:
            self._check(digest, kind, own, description, content, what=f"{kind} {own[:12]}")
            yield Item(kind, own, self._loaded(description), content, written)

    def kinds(self) -> dict[str, int]:
        """How many items there are of each kind."""
        return dict(self._read("SELECT kind, count(*) FROM items GROUP BY kind ORDER BY kind"))

    def keep_item(self, kind: str, key: str, description: Mapping[str, Any], content: bytes) -> None:
        """Add an item, or put it in the place of an earlier one."""
        text = json.dumps(description)
        with self._transaction():
            self._sqlite.execute(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
                (kind, key, text, content, _digest(kind, key, text, content), time.time()),
            )

    def drop_item(self, kind: str, key: str) -> None:
        """Take an item out, if it is there."""
        with self._transaction():
            self._sqlite.execute("DELETE FROM items WHERE kind = ? AND key = ?", (kind, key))

    # The file

    def check(self) -> int:
        """Read everything and compare all digests; the number of rows.

        Raises:
            LedgerError: a damaged page or row; says which.
        """
        for (message,) in self._read("PRAGMA integrity_check"):
            if message != "ok":
                raise LedgerError(f"{self.path} is damaged: {message}")
        count = 0
        for run in self.runs():
            count += 1 + sum(1 for _ in self.tiles(run))
        return count + sum(1 for kind in self.kinds() for _ in self.items(kind))

    def _open(self, is_written: bool) -> None:
        with self._clear_errors():
            # In this order, as another process may be making them, both at once.
            (tables,) = self._sqlite.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application,) = self._sqlite.execute("PRAGMA application_id").fetchone()
            if tables == 0 and application in (0, _APPLICATION):
                self._create()
            elif application != _APPLICATION:
                raise LedgerError(f"{self.path} is another program's SQLite file; give store= a path of its own")
            (version,) = self._sqlite.execute("PRAGMA user_version").fetchone()
            if version != FORMAT:
                raise LedgerError(
                    f"{self.path} is a ledger of format {version}; this version of sdkernels reads and writes "
                    f"{FORMAT}. Give store= another path"
                )
            self._check_schema()
            self._sqlite.execute("PRAGMA synchronous = NORMAL")  # with the log, a killed process loses nothing
            self._sqlite.execute("PRAGMA foreign_keys = ON")  # no tile of a run that was dropped meanwhile
        if is_written:  # or who cannot write would learn of it when the first tile is done
            with self._transaction():
                pass

    def _check_schema(self) -> None:
        """The tables as they are made here, and no view or trigger, which would run an enemy's statements."""
        found = self._sqlite.execute("SELECT name, sql FROM sqlite_master WHERE substr(name, 1, 7) != 'sqlite_'")
        made = (statement for statement in _SCHEMA.strip().split(";\n") if statement.startswith("CREATE"))
        expected = {(statement.split()[2], _one_line(statement)) for statement in made}
        if wrong := {(name, _one_line(sql or "")) for name, sql in found} ^ expected:
            names = ", ".join(sorted({str(name)[:40] for name, _ in wrong}))
            raise LedgerError(
                f"{self.path} is no ledger, or somebody has changed its tables: {names}. Give another path"
            )

    def _create(self) -> None:
        self._use_log()
        self._sqlite.execute("BEGIN IMMEDIATE")
        try:  # a process that came first may have made the tables while this one waited
            if self._sqlite.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                for statement in _SCHEMA.strip().split(";\n"):
                    self._sqlite.execute(statement)
            self._sqlite.execute("COMMIT")
        except BaseException:
            if self._sqlite.in_transaction:
                self._sqlite.execute("ROLLBACK")
            raise

    def _use_log(self) -> None:
        """Two processes that turn to the log at once are refused at once, however patient they are."""
        begin = time.monotonic()
        while True:
            try:
                self._sqlite.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() - begin > self._patience:
                    raise
                time.sleep(0.01)

    def _as_run(self, row: tuple[Any, ...]) -> Run:
        number, key, kind, description, digest, created, finished = row
        self._check(digest, key, kind, description, what=f"run {number}")
        return Run(number, key, kind, self._loaded(description), created, finished)

    def _loaded(self, description: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(description)
        except (TypeError, ValueError, RecursionError) as error:
            raise LedgerError(f"{self.path} is damaged: a description is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise LedgerError(f"{self.path} is damaged: a description is a {type(found).__name__}, not a table")
        return found

    def _check(self, digest: bytes, *row: str | int | bytes, what: str) -> None:
        if _digest(*row) != digest:
            raise LedgerError(
                f"{self.path} is damaged: {what} is not what was written. Give store= another path; or `sdkernels runs "
                "drop` takes a run out, so that it is made anew"
            )

    def _read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._clear_errors():
            return self._sqlite.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._clear_errors():
            self._sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sqlite.execute("COMMIT")
            except BaseException:
                if self._sqlite.in_transaction:
                    self._sqlite.execute("ROLLBACK")
                raise

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: {_explained(str(error), self._patience)}") from error
        except UnicodeDecodeError as error:  # by Python's sqlite3, of an error's own text
            raise LedgerError(f"{self.path}: {_MEANINGS['malformed']} ({error})") from error


def _check_name(path: Path) -> None:
    """Refuse what no file can be called, of which ``exists`` says no more than that it is not there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        raise LedgerError(f"store={str(path)[:100]!r}: no file can have this name ({error})") from error


def _one_line(statement: str) -> str:
    return " ".join(statement.split())


def _digest(*row: str | int | bytes) -> bytes:
    """SHA-256 of a row's values, with their types and lengths."""
    total = hashlib.sha256()
    for value in row:
        content = value if isinstance(value, bytes) else str(value).encode()
        total.update(f"{type(value).__name__}:{len(content)}:".encode())
        total.update(content)
    return total.digest()


def _explained(message: str, patience: float) -> str:
    """SQLite's message, and what it means here."""
    for words, meaning in _MEANINGS.items():
        if words in message:
            return f"{meaning.format(patience=patience)} (SQLite: {message})"
    return f"SQLite says: {message}"


_MEANINGS = {
    "FOREIGN KEY": "the run was dropped by another process while it was being made; run again",
    "not a database": "this is no ledger, or it is damaged from its first page on; give store= another path",
    "malformed": "it is damaged; `sqlite3 FILE .recover` gives what can be read of it. Give store= another path",
    "decode": "it is damaged. Give store= another path",
    "disk is full": "the disk is full: the last row was not kept, those before it were. Make room and run again",
    "disk I/O error": "the disk cannot be read or written, or is full; rows written before are as they were",
    "readonly": "it cannot be written: the file, or its folder, is read-only. Give store= a path that is yours",
    "unable to open": "it cannot be opened: the file, or its folder, is not yours, or read-only. Give store= a path "
    "that is yours",
    "locked": "another process has held it for {patience:g} seconds; run again when that one is done",
}
