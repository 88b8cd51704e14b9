"""What needs an optional package says so, and by which extra it comes, where none is installed."""

import json
import subprocess
import sys

import pytest

from sdkernels.analysis.extras import BROUGHT, require
from tests import missing


@pytest.fixture(scope="module")
def said() -> dict[str, str | None]:
    """What every case raised in a process that finds torch and NumPy alone."""
    run = subprocess.run([sys.executable, missing.__file__, "--hide"], capture_output=True, text=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", missing.CASES)
def test_what_is_missing_is_named_with_its_extra(said, name):
    assert missing.is_right(name, said[name]), said[name]


def test_the_command_line_says_it_without_a_traceback(capsys, monkeypatch):
    typer = pytest.importorskip("typer")
    from sdkernels import cli

    app = typer.Typer()
    app.command()(lambda: require("sdkernels_none.pandas", "a test"))
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setitem(BROUGHT, "sdkernels_none", ("pandas", "paper"))
    monkeypatch.setattr(sys, "argv", ["sdkernels"])
    with pytest.raises(
        SystemExit, match=r"^sdkernels: a test needs pandas: `python -m pip install \"sdkernels\[paper\]\"`$"
    ):
        cli.main()


def test_an_import_that_fails_otherwise_is_not_taken_for_a_missing_extra():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'sdkernels_none'$"):
        require("sdkernels_none", "a test")
