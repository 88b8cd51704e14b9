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


def test_the_installed_command():
    command = os.path.join(os.path.dirname(sys.executable), "sdkernels")
    output = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "reproduce" in output
    assert "doctor" in output
