"""``sdkernels reproduce``."""

import json

import pytest
from typer.testing import CliRunner

from sdkernels.cli import app
from sdkernels.lab.sweep import network
from sdkernels.paper import catalogue
from sdkernels.paper.catalogue import RECIPES
from tests.paper.small_runs import FIG1A

SMALL = [text for name, value in FIG1A.items() for text in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.delenv("SDKERNELS_DATA", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def test_a_figure_prints_its_claims_and_files(run, tmp_path):
    result = run("fig1a", "--out", tmp_path, *SMALL)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "fig1a-quick"
    report = json.loads((folder / "report.json").read_text())
    shown = " ".join(result.output.split())
    for claim in report["claims"]:
        assert claim["claim"] in shown
        assert claim["ours"] in shown
    for name in ("figure.png", "figure.pdf", "data.csv", "claims.md", "report.json"):
        assert f"wrote {folder / name}" in result.output.replace("\n", "")
    assert report["options"]["networks"]["training"]["epochs"] == 300
    assert (tmp_path / "networks.sdk").is_file()


def test_list_says_what_there_is(run):
    lines = run("list").output.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert "Cumulative ablation by label corruption" in lines[0]


def test_options_are_shown_and_nothing_is_run(run, tmp_path):
    result = run("fig1a", "--options", "--preset", "paper", "--set", "orders=3", "--out", tmp_path)
    assert result.exit_code == 0
    assert "ablation.orders = 3" in result.output
    assert "networks.training.epochs = 640" in result.output
    assert not list(tmp_path.iterdir())


def test_all_goes_on_after_a_figure_that_cannot_be_reproduced(run, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "RECIPES", {name: RECIPES[name] for name in ("fig1b", "fig1c", "fig1a")})
    result = run("all", "--out", tmp_path, *SMALL, "--set", "batch_size=0")
    assert result.exit_code == 2
    assert "batch_size=0 must be a whole number" in result.output
    monkeypatch.setattr(catalogue, "RECIPES", {name: RECIPES[name] for name in ("fig1c", "fig1a")})
    result = run("all", "--out", tmp_path, *SMALL)
    assert result.exit_code == 0, result.output
    assert "corruption: not reproduced: needs ImageNet" in result.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["fig1a-quick", "fig1c-quick"]


def test_stopped_it_says_how_to_go_on(run, tmp_path, monkeypatch):
    def stop(_work):
        raise KeyboardInterrupt

    monkeypatch.setattr("sdkernels.lab.sweep.run.work_on", stop)
    result = run("fig1a", "--out", tmp_path, *SMALL)
    assert result.exit_code == 130
    assert "run the same command again" in result.output


def test_a_missing_data_set_is_one_clear_line(run, tmp_path):
    result = run("fig1a", "--preset", "small", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "train-images-idx3-ubyte.gz" in result.output
    assert "sdkernels data fetch mnist" in result.output
    assert "yann.lecun.com" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "fig1a-small").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fig9z"], "there are fig1a, fig1b"),
        (["fig1a", "--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["fig1a", "--out", "/dev/null/x"], "Not a directory"),
        (["fig1a", "--set", "seed"], "write --set NAME=VALUE"),
        (["fig1a", "--set", "seed=1", "--set", "seed=2"], "given twice"),
        (["fig1a", "--set", "seed=-1"], "seed"),
        (["fig1a", "--set", "epoch=5"], "close: epochs"),
        (["fig1a", "--set", "epochs=many"], "epochs='many' must be a whole number or null"),
        (["fig1a", "--preset", "small"], "read from files"),
        (["all", "--set", "epoch=5"], "no figure has an option 'epoch'"),
    ],
)
def test_misuse_is_one_clear_line(run, arguments, says, monkeypatch, tmp_path):
    monkeypatch.setattr(network, "work_on", lambda *_: pytest.fail("work was begun"))
    result = run(*arguments, *([] if "--out" in arguments else ["--out", tmp_path]))
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output
