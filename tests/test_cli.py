"""The command line and doctor."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sdkernels import doctor
from sdkernels.cli import app


@pytest.fixture
def run():
    return lambda *arguments, **environment: CliRunner().invoke(app, list(arguments), env=environment)


def test_reproduce_prints_the_table(run, tmp_path):
    out = tmp_path / "run"
    result = run("reproduce", "fig1a", "--out", str(out), "--epochs", "1", "--orders", "2", "--points", "3")
    assert result.exit_code == 0, result.output
    assert "AUC (mean ± sd over orders)" in result.output
    assert result.output.count("not memorised") == 6
    assert f"wrote {out / 'figure.png'}" in result.output.replace("\n", "")
    assert {"figure.png", "curves.csv", "report.json"} <= {path.name for path in out.iterdir()}


def test_a_missing_data_set_is_one_clear_line(run, tmp_path):
    result = run("reproduce", "fig1a", "--preset", "small", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "train-images-idx3-ubyte.gz" in result.output
    assert "sdkernels data fetch mnist" in result.output
    assert "yann.lecun.com" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_unknown_figure(run):
    result = run("reproduce", "fig9z")
    assert result.exit_code == 2
    assert "fig1a" in result.output


def test_doctor_is_one_screen(run):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) <= 24
    for name in ("sdkernels", "torch", "native CPU core", "CUDA", "Triton", "Triton interpreter", "ops run on"):
        assert any(line.startswith(name) for line in lines), name


def test_doctor_names_a_missing_core(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sdkernels._C", None)
    result = run("doctor")
    assert result.exit_code == 1
    assert "broken" in result.output
    assert "pip install ." in result.output


def test_doctor_finds_a_core_that_computes_something_else(run, monkeypatch):
    monkeypatch.setitem(doctor.IMPLEMENTATIONS, "native", lambda out, *_: out.fill_(1.0))
    result = run("doctor")
    assert result.exit_code == 1
    assert "other numbers than the reference" in result.output


def test_doctor_shows_the_backend_asked_for(run):
    assert "cpu: reference" in run("doctor", SDKERNELS_BACKEND="reference").output


def test_doctor_refuses_an_unknown_backend(run):
    result = run("doctor", SDKERNELS_BACKEND="nonsense")
    assert result.exit_code == 1
    assert "'nonsense' is no backend" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--out", "/dev/null/x"], "Not a directory"),
        (["--seed", "-1"], "--seed"),
        (["--preset", "small"], "read from files"),
    ],
)
def test_misuse_is_one_clear_line(run, arguments, says, monkeypatch):
    monkeypatch.delenv("SDKERNELS_DATA", raising=False)
    result = run("reproduce", "fig1a", *arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output


def test_the_installed_command():
    command = os.path.join(os.path.dirname(sys.executable), "sdkernels")
    output = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "reproduce" in output
    assert "doctor" in output
