"""What befalls a ledger's file: every fault gives a clear error or the right numbers, and leaves the old rows.

``FAULTS`` is the table; each of its rows is one fault, how it is brought about, and what must be said.
"""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sdkernels.analysis.ablation import unit_importance
from sdkernels.engine import ledger as ledger_module
from sdkernels.engine.ledger import Ledger, LedgerError
from tests.engine.stored import SIZE, differences, examples, network, set_small_tiles, tiles_scored

NOBODY = 65534


def call(store: Path | None) -> Any:
    """Seven tiles; by hooks, which begin sooner."""
    return unit_importance(network(), "3", examples(), method="loop", store=store)


@pytest.fixture(autouse=True)
def _tiles_are_small(monkeypatch):
    set_small_tiles(monkeypatch)


class Fault(NamedTuple):
    """Something that befalls a file."""

    name: str
    how: str
    within: Callable[[Path], Any]  # a context in which it is so, given the path of a ledger that has a finished run
    says: str  # what the error must match
    keeps: bool = True  # whether the file is a ledger again afterwards


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """The file system of the ledger is full."""
    with Ledger(path, must_exist=True):  # the log's index is there
        rest = path.with_name("rest")
        try:
            with rest.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
        yield
    rest.unlink()


@contextmanager
def no_pages(path: Path) -> Iterator[None]:
    """SQLite may add no page."""
    connect = sqlite3.connect

    def connecting(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module.sqlite3, "connect", connecting)
        yield


@contextmanager
def no_longer_files(path: Path) -> Iterator[None]:
    """No file may grow beyond what this one has."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do anything; the effective user for a while is one who may not."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(was)


@contextmanager
def modes(path: Path, file: int, folder: int) -> Iterator[None]:
    """What may be done with the file, and in its folder."""
    path.chmod(file)
    path.parent.chmod(folder)
    try:
        with as_nobody():
            yield
    finally:
        path.parent.chmod(0o777)
        path.chmod(0o666)


@contextmanager
def instead(path: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Something else stands there."""
    away = path.with_name("away")
    path.rename(away)
    make(path)
    yield
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    away.rename(path)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process is within a transaction."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdkernels.analysis.measure.Ledger", partial(Ledger, patience=0.1))
        yield
    other.close()


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """Its folder is gone."""
    away = path.parent.with_name("moved away")
    path.parent.rename(away)
    yield
    away.rename(path.parent)


def other_program(path: Path) -> None:
    """A SQLite file with a table of another program's."""
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE runs (id INTEGER)")
    other.commit()
    other.close()


def later_format(path: Path) -> None:
    """A ledger that a later version has written."""
    Ledger(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 2")
    other.close()


def damaged(path: Path) -> None:
    """A ledger whose second half is zeros."""
    content = path.with_name("away").read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


FAULTS = [
    Fault("full disk", "a tmpfs of 300 KiB, filled", no_room, "full"),
    Fault(
        "full disk, as SQLite sees it", "`PRAGMA max_page_count`", no_pages, "the disk is full: the last row was not"
    ),
    Fault("a limit on files' size", "`RLIMIT_FSIZE` of 4 KiB", no_longer_files, "the disk"),
    Fault("read-only file", "mode 444, as another user", partial(modes, file=0o444, folder=0o777), "read-only"),
    Fault("read-only folder", "mode 555, as another user", partial(modes, file=0o666, folder=0o555), "read-only"),
    Fault("unreadable file", "mode 000, as another user", partial(modes, file=0, folder=0o777), "cannot be opened"),
    Fault("unreadable folder", "mode 000, as another user", partial(modes, file=0o666, folder=0), "cannot be opened"),
    Fault(
        "a folder in its place",
        "`mkdir`",
        partial(instead, make=Path.mkdir),
        "is a folder; .* Give store= its path",
    ),
    Fault("a pipe in its place", "`mkfifo`", partial(instead, make=os.mkfifo), "is no plain file"),
    Fault("no such folder", "the folder renamed", moved, "there is no folder .*; make it first"),
    Fault(
        "a text file",
        "a README in its place",
        partial(instead, make=lambda path: path.write_text("# Results\n\n" + "all is well\n" * 500)),
        "this is no ledger, or it is damaged from its first page on",
    ),
    Fault(
        "a short text file", "one byte", partial(instead, make=lambda path: path.write_text("x")), "this is no ledger"
    ),
    Fault(
        "another program's SQLite file", "a table of that name", partial(instead, make=other_program), "another prog"
    ),
    Fault("a later format", "`PRAGMA user_version = 2`", partial(instead, make=later_format), "a ledger of format 2"),
    Fault("half of it zeros", "written over", partial(instead, make=damaged), "is damaged"),
    Fault("held for too long", "another process's transaction", held, "another process has held it for 0.1 seconds"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may enter."""
    outer = Path(tempfile.mkdtemp())
    outer.chmod(0o755)
    inner = outer / "work"
    inner.mkdir()
    inner.chmod(0o777)
    yield inner
    shutil.rmtree(outer)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own at the folder; the test is skipped where that may not be made."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounts no tmpfs here: needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(path: Path) -> Any:
    """A ledger with one run of seven tiles, and half of another; what the first run gave."""
    found = call(path)
    path.chmod(0o666)
    return found


def message_of(fault: Fault, path: Path) -> str:
    """What a call says while it is so: another one than that which is kept already."""
    with fault.within(path):
        with pytest.raises(OSError, match=fault.says) as caught, tiles_scored():
            unit_importance(network(seed=9), "1", examples(), method="loop", store=path)
        assert isinstance(caught.value, LedgerError)
        assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_and_leaves_the_old_rows(fault, folder):
    path = folder / "work.sdk"
    with small_disk(folder) if fault.within is no_room else nullcontext():
        before = fill(path)
        message_of(fault, path)
        with Ledger(path) as ledger:
            rows = ledger.check()
            assert len(list(ledger.tiles(ledger.runs()[0]))) == 7
        with tiles_scored() as scored:
            assert not differences(call(path), before)
        assert not scored
        assert rows >= 8
        other = partial(unit_importance, network(seed=9), "1", examples(), method="loop")
        assert not differences(other(store=path), other(), sums_within=1e-10)  # and it goes on


def test_an_empty_file_becomes_a_ledger(tmp_path):
    path = tmp_path / "work.sdk"
    path.touch()
    found = call(path)
    with Ledger(path) as ledger:
        assert ledger.check() == 8
    assert not differences(found, call(None), sums_within=1e-10)


def outcome_of(path: Path, right: Any) -> str:
    """What a call with a damaged file comes to: "right" or "refused"; anything else fails."""
    try:
        found = call(path)
    except LedgerError as error:
        return "refused" if str(path) in str(error) else f"refused: {error}"
    assert not differences(found, right)
    return "right"


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> Path:
    """A ledger of four tiles of a run, closed."""
    path = tmp_path_factory.mktemp("faults") / "closed.sdk"
    with pytest.MonkeyPatch.context() as patch:
        set_small_tiles(patch)
        call(path)
    other = sqlite3.connect(path)
    other.execute("DELETE FROM tiles WHERE start >= ?", (5 * SIZE,))
    other.commit()
    other.close()
    return path


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        set_small_tiles(patch)
        return call(tmp_path_factory.mktemp("faults") / "right.sdk")


def test_a_file_cut_short_is_refused(closed, right, tmp_path):
    content, path = closed.read_bytes(), tmp_path / "cut.sdk"
    length, outcomes = 1, {}
    while length < len(content):
        for cut in (length, len(content) - length):
            path.write_bytes(content[:cut])
            outcomes[cut] = outcome_of(path, right)
        length *= 2
    assert {cut for cut, outcome in outcomes.items() if outcome == "right"} <= set(
        range(len(content) - 4096, len(content))
    )


def test_flipped_bytes_never_give_a_wrong_number(closed, right, tmp_path):
    content, path, outcomes = closed.read_bytes(), tmp_path / "flipped.sdk", []
    written = [i for i, byte in enumerate(content) if byte]
    for seed in range(200):
        chance = random.Random(seed)
        flipped = bytearray(content)
        for _ in range(chance.choice((1, 1, 4, 32))):
            at = chance.choice(written) if chance.random() < 0.8 else chance.randrange(len(content))
            flipped[at] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        outcomes.append(outcome_of(path, right))
    assert outcomes.count("refused") > 20
    assert outcomes.count("right") > 5


@pytest.fixture
def crashed(tmp_path, closed) -> Path:
    """A ledger as a process leaves it that is killed: three tiles in the file, four more in the log."""
    path, copy = tmp_path / "open.sdk", tmp_path / "crashed.sdk"
    with Ledger(path) as ledger:
        call(path)
        ledger._sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        unit_importance(network(seed=9), "1", examples(), method="loop", store=path)
        for end in ("", "-wal", "-shm"):
            shutil.copy(tmp_path / f"open.sdk{end}", tmp_path / f"crashed.sdk{end}")
    assert (tmp_path / "crashed.sdk-wal").stat().st_size > 0
    return copy


@pytest.mark.parametrize("fault", ["none", "no log", "no index", "log cut", "log flipped", "no file", "another file"])
def test_a_log_that_is_lost_or_damaged_costs_rows_and_no_number(fault, crashed, right):
    wal, shm = (crashed.with_name(crashed.name + end) for end in ("-wal", "-shm"))
    content = wal.read_bytes()
    if fault in ("no log", "no index"):
        (wal if fault == "no log" else shm).unlink()
    elif fault == "log cut":
        wal.write_bytes(content[: len(content) // 2 + 100])
    elif fault == "log flipped":
        half = len(content) // 2
        wal.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
        shm.unlink()
    elif fault in ("no file", "another file"):
        crashed.unlink()
        if fault == "another file":
            shutil.copy(crashed.with_name("open.sdk"), crashed)
    outcome = outcome_of(crashed, right)
    assert outcome in ("right", "refused")
    assert outcome == "right" or fault == "no file"
    if fault not in ("no file", "another file"):
        with Ledger(crashed) as ledger:
            assert len(list(ledger.tiles(ledger.runs()[0]))) == 7
            assert ledger.check() == (16 if fault in ("none", "no index") else ledger.check())


def test_a_file_that_is_deleted_meanwhile_is_written_to_its_end_and_lost(tmp_path, right):
    path = tmp_path / "work.sdk"
    keep, kept = Ledger.keep_tile, []

    def keeping(self, *tile):
        keep(self, *tile)
        kept.append(tile)
        if len(kept) == 3:
            for end in ("", "-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
        if len(kept) == 4:  # another process begins one of the same name
            with Ledger(path) as other:
                other.keep_item("network", "a", {}, b"theirs")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "keep_tile", keeping)
        assert not differences(call(path), right)
    with Ledger(path) as ledger:
        assert ledger.item("network", "a").content == b"theirs"
        assert ledger.check() == 1
    with tiles_scored() as scored:
        assert not differences(call(path), right)
    assert len(scored) == 7
