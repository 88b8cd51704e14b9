"""The command line with hostile arguments: exit code 0 with what was asked for, or few lines that say what was wrong.

``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_command_line.py`` tries that many; what is tried is the same each time.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import Phase, settings
from hypothesis import given as tried_with
from hypothesis import strategies as st
from typer.testing import CliRunner

from sdkernels.cli import app
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.sweep import read_sweep, run_sweep
from tests.fuzz.bounds import within_bounds

NUMBER = int(os.environ.get("SDKERNELS_FUZZ", "500"))
LONGEST = 2500  # letters on standard error

SPEC = """
[network]
data = "digits"
model = "mlp"
hidden = [2]
examples = 20
[training]
epochs = 1
batch_size = 20
[[measure]]
name = "importance"
function = "unit_importance"
layers = ["hidden1"]
examples = 10
"""

# What a shell can hand over: no NUL, and bytes that are no text as lone surrogates.
HOSTILE = {
    *("", " ", ".", "..", "-", "--", "--help", "--zzz", "/", "../../../../../../nonexistent/x", "a\nb", "\x1b[31mred"),
    *("[bold]x[/red]", "'\"`$(x)", "\u0663", "\uff11", "\u202eabc", "\U0001f600", "null", "true", "0x10", "1_000"),
    *("-1", "0", "1", "2", "0.5", str(2**31), str(2**63), str(10**30), "9" * 5000, "nan", "NaN", "inf", "-inf"),
    *("1e400", "1e300", "1e-300", "a" * 300, "a" * 100_000, "a/" * 5000, "[" * 100_000, '{"a": [1]}', "=", "=1", "a=b"),
    *("seed=", "seed=NaN", "seed=1e999", "seed={}", "seed=\udcff", "orders=[[1]]", "batch_size=0", "epochs=1e400"),
    *("local", "auto", "ray://x", "127.0.0.1:99999999", "127.0.0.1:-1", "http://", "http://[", "file:///etc/passwd"),
    *("cuda", "cuda:9", "meta", "cpu", "cpu:3", "mnist", "all", "list", "spec.toml", "work.sdk", "out.csv"),
    *("there/file", "there/file/x", "there/folder", "there/full", "there/circle", "there/circle.csv", "there/dangling"),
    *("there/bytes", "there/folder.csv", "there/full.csv", "none/x", "none/x.csv", "a" * 300 + ".csv"),
    *("/dev/null", "/dev/full", "/dev/null/x", "/proc/self/mem", "/proc/x"),
    *map(os.fsdecode, (b"\xff\xfe", b"caf\xe9.toml", b"\xff.csv")),
}

# Arguments that each command takes as they are.
USES: dict[tuple[str, ...], dict[str, str]] = {
    ("data", "fetch"): {"names": "mnist", "data_dir": "data", "mirror": "http://127.0.0.1:1"},
    ("data", "list"): {},
    ("doctor",): {},
    ("reproduce",): {"figure": "fig1a", "device": "cpu"},
    ("runs", "check"): {"store": "work.sdk"},
    ("runs", "drop"): {"store": "work.sdk", "wanted": "1"},
    ("runs", "export"): {"store": "work.sdk", "wanted": "1", "out": "out.csv"},
    ("runs", "list"): {"store": "work.sdk"},
    ("runs", "show"): {"store": "work.sdk", "wanted": "1"},
    ("sweep",): {"spec": "spec.toml", "device": "cpu"},
}
# Where there is something to be found by a data directory.
READING = {("reproduce",): {"preset": "small"}, ("sweep",): {"spec": "mnist.toml"}}


def _commands(command: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*at, name))
    else:
        yield at, command


COMMANDS = dict(_commands(typer.main.get_command(app)))
TRIED = [
    (at, parameter.name)
    for at, command in sorted(COMMANDS.items())
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


def line(at: tuple[str, ...], given: dict[str, str]) -> list[str]:
    """A command as it is typed."""
    options, places = list(at), []
    for parameter in COMMANDS[at].params:
        if parameter.name in given:
            if parameter.param_type_name == "argument":
                places.append(given[parameter.name])
            else:
                options += [parameter.opts[0], given[parameter.name]]
    return options + places


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A ledger with a network and a measure."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "spec.toml").write_text(SPEC)
    run_sweep(read_sweep(folder / "spec.toml"), folder / "work.sdk")
    return folder / "work.sdk"


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_reached(finished):
    """Nothing is trained, and no other machine is asked."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def no_host(_request: Any, timeout: float) -> None:
        with socket.socket() as one:
            one.settimeout(timeout)
        raise urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "no such host"))

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SDKERNELS_DATA", raising=False)
        patch.delenv("SDKERNELS_MIRROR", raising=False)
        patch.setattr("sdkernels.lab.sweep.run.work_on", stop)
        patch.setattr(urllib.request, "urlopen", no_host)
        patch.setattr("torch.set_num_threads", lambda _count: None)
        patch.setattr("sdkernels.lab.cluster.ray_workers._start_here", stop)
        patch.setattr("sdkernels.lab.cluster.ray_workers._connect", _no_cluster)
        yield


def _no_cluster(_ray: Any, address: str) -> None:
    raise ConnectionError(f"address={address!r}: no Ray cluster answers there")


def place(top: Path, ledger: Path) -> Path:
    """A folder two levels down, with all that hostile paths speak of."""
    here = top / "a" / "b"
    there = here / "there"
    for folder in ("folder", "full", "folder.csv"):
        (there / folder).mkdir(parents=True)
    (there / "full" / "x").write_text("x")
    (there / "file").write_text("x")
    (there / "bytes").write_bytes(bytes(range(256)) * 10)
    for name, to in (("circle", "circle"), ("circle.csv", "circle.csv"), ("dangling", "no"), ("full.csv", "/dev/full")):
        (there / name).symlink_to(to)
    (here / "spec.toml").write_text(SPEC)
    (here / "mnist.toml").write_text(SPEC.replace("digits", "mnist"))
    shutil.copy(ledger, here / "work.sdk")
    return here


def listing(top: Path) -> dict[Path, bytes | None]:
    """All that is there, with what it holds."""
    return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in top.rglob("*")}


def check(code: int, says: str, changed: set[Path], may_change: list[Path]) -> None:
    """What a command left: a known exit code, few lines, nothing where nobody asked for it."""
    assert code in (0, 2, 130), says[-1000:]
    assert len(says) <= LONGEST, f"{len(says)} letters: {says[:500]}"
    assert "Traceback" not in says
    assert "\x1b[31mred" not in says
    assert says.strip() or code == 0
    stray = [path for path in changed if not any(one in (path, *path.parents) for one in may_change)]
    assert not [path for path in changed if path.name.endswith(".partial")], changed
    assert not stray, stray


def run(
    words: list[str], ledger: Path, wrote: list[str], environment: dict[str, str], content: str | bytes = SPEC
) -> None:
    """Run a command here, and see what it leaves."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        here = place(top, ledger)
        (here / "spec.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        there = listing(top)
        os.chdir(here)
        try:
            with within_bounds():
                result = CliRunner().invoke(app, words, env=environment)
        finally:
            os.chdir(before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        after = listing(top)
        changed = {path for path in {*there, *after} if there.get(path, b"?") != after.get(path, b"?")}
        named = [Path(known(here / name)) for name in wrote for known in (os.path.normpath, os.path.realpath)]
        # Folders above what was named are made too.
        above = [path for one in named for path in one.parents if path not in (top, here, *here.parents)]
        check(result.exit_code, result.stderr, changed - {*above}, named)


# What each command writes, beside what it is told by an option of these names.
WRITES = {
    ("data", "fetch"): ["data"],
    ("reproduce",): ["runs"],
    ("runs", "drop"): ["work.sdk", "work.sdk-wal", "work.sdk-shm"],
    ("runs", "export"): ["out.csv"],
    ("sweep",): ["runs", "spec.sdk", "mnist.sdk", "spec.sdk-wal", "spec.sdk-shm"],
}
WRITTEN = ("data_dir", "out", "store")


QUICKLY = {"deadline": None, "derandomize": True, "database": None, "phases": [Phase.generate]}


@settings(max_examples=NUMBER // 5, **QUICKLY)
@tried_with(st.sampled_from(TRIED), st.sampled_from(sorted(HOSTILE)))
def test_any_argument(finished, at, value):
    command, name = at
    given = USES[command] | (READING.get(command, {}) if name == "data_dir" else {}) | {name: value}
    wrote = [*WRITES.get(command, []), *([value, f"{value}-wal", f"{value}-shm"] if name in WRITTEN else [])]
    if (command, name) == (("sweep",), "spec"):
        wrote.append(str(Path(value).with_suffix(".sdk")) if Path(value).name else value)
    run(line(command, given), finished, wrote, {})


VARIABLES = ("COLUMNS", "LINES", "TERMINAL_WIDTH", "TERM", "NO_COLOR", "FORCE_COLOR", "LANG", "SDKERNELS_BACKEND")


@settings(max_examples=NUMBER // 10, **QUICKLY)
@tried_with(st.sampled_from(VARIABLES), st.sampled_from(sorted(HOSTILE)), st.sampled_from(["--help", "--zzz"]))
def test_any_variable(finished, name, value, option):
    run(["sweep", option], finished, [], {name: value})


# All entries of a spec, and what hostile TOML may hold in the place of their values.
FULL = """
name = "mine"
checkpoint_seconds = 10
together = 1
[network]
data = "digits"
model = "mlp"
hidden = [2]
dropout = 0.0
examples = 20
split = "train"
standardise = true
corruption = 0.5
corruption_seed = 1
until = 1
[training]
epochs = 1
batch_size = 20
optimiser = "adam"
learning_rate = 0.1
momentum = 0.0
weight_decay = 0
schedule = "constant"
warmup = 0
milestones = []
decay = 0.1
unroll = 35
precision = "float32"
clip_norm = 1.0
stop_when_memorised = false
augmentation = "none"
[grid]
seed = [0]
[[measure]]
name = "curve"
function = "cumulative_ablation"
layers = ["hidden1"]
on = "train"
examples = 10
orders = 2
points = 3
batch_size = 4
metrics = ["loss"]
"""
ENTRIES = FULL.splitlines()
VALUES = (
    *("0", "-1", "1", "2", "0.5", "-0.5", "1e300", "1e400", "nan", "inf", "-inf", "9223372036854775807"),
    *("true", "false", "99999999999999999999999999", "0x10", "0o7", "1_000", "1979-05-27T07:32:00Z", "07:32:00"),
    *('""', '" "', '"zzz"', '".."', '"../x"', '"/x"', '"CON:"', r'"\u0000"', r'"\n"', r'"\u0663"', "'a'", '"auto"'),
    *("[]", "[[]]", "[0]", "[-1]", "[1.5]", '["a"]', "[true]", "[nan]", "{}", "{a = 1}", "[{}]", "1979-05-27"),
    *("[" * 3000 + "]" * 3000, "9" * 5000, '"' + "a" * 10_000 + '"', "", "=", '"', "[", "\u0663", "\ufeff1"),
)
PLACES = [place for place, entry in enumerate(ENTRIES) if " = " in entry]


def spec(changes: dict[int, str]) -> str:
    """A file of all entries, some of them changed."""
    names = [entry.split(" = ")[0] for entry in ENTRIES]
    return "\n".join(f"{names[at]} = {changes[at]}" if at in changes else entry for at, entry in enumerate(ENTRIES))


@settings(max_examples=NUMBER * 3 // 10, **QUICKLY)
@tried_with(st.dictionaries(st.sampled_from(PLACES), st.sampled_from(VALUES), max_size=2))
def test_any_spec(finished, changes):
    run(["sweep", "spec.toml", "--device", "cpu"], finished, WRITES["sweep",], {}, spec(changes))


BYTES = (b"\xff\xfe", b"\0", b'name = "\xff"', b"\xef\xbb\xbf" + SPEC.encode(), b"[" * 10**6)


@pytest.mark.parametrize("content", BYTES, ids=lambda content: repr(content[:8]))
def test_a_spec_that_is_no_text(finished, content):
    run(["sweep", "spec.toml", "--device", "cpu"], finished, WRITES["sweep",], {}, content)


COMMAND = shlex.quote(str(Path(sys.executable).parent / "sdkernels"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        ("runs list work.sdk | true; exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("runs list work.sdk > /dev/full", (2,), "sdkernels runs list work.sdk: [Errno 28] No space left on device"),
        ("runs list work.sdk >&- <&-", (0,), ""),
        ("sweep spec.toml --store new.sdk 2>&-", (0,), ""),
        ("runs list $'\\xff'", (2,), r"sdkernels runs list \udcff: \udcff is not there"),
    ],
)
def test_a_process(typed, code, says, finished, tmp_path):
    here = place(tmp_path, finished)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["bash", "-c", f"{COMMAND} {typed}"], cwd=here, env=environment, capture_output=True, timeout=300
    )
    assert done.returncode in code, done.stderr
    assert done.stderr.decode().startswith(says)
    assert len(done.stderr.splitlines()) == bool(says)
    if "new.sdk" in typed:
        with Ledger(here / "new.sdk", must_exist=True) as ledger:
            assert ledger.check() > 2


def test_every_command_is_used():
    assert COMMANDS.keys() == USES.keys()
