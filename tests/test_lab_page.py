"""docs/lab.md and the sweeps of docs/sweeps: what they show runs, or can be read, as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdkernels
from sdkernels.lab.sweep import read_sweep

DOCS = Path(sdkernels.__file__).parent.parent / "docs"
PAGE = DOCS / "lab.md"


def test_the_example_runs_when_pasted_and_goes_on_when_run_again(tmp_path):
    example = blocks("python")[0]
    first, second = (
        subprocess.run(
            [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert first == second
    assert float(re.search(r"accuracy=(\d\.\d+)", first).group(1)) > 0.97
    assert len(re.findall(r"\d\.\d{4}", first.partition("tensor(")[2])) == 10
    kept = {path.name for path in (tmp_path / "digits-mlp").glob("*.safetensors")}
    assert kept == {"latest.safetensors", *(f"epoch-{epoch:06d}.safetensors" for epoch in (1, 5, 20))}


def test_the_sweep_that_is_shown_can_be_read(tmp_path):
    path = tmp_path / "digits.toml"
    path.write_text(blocks("toml")[0])
    sweep = read_sweep(path)
    assert (len(sweep.networks), sweep.varying, [c.name for c in sweep.conditions]) == (
        6,
        ["corruption", "seed"],
        ["ablation"],
    )


def test_the_sweep_of_language_models_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = blocks("toml")[1]
    sweep = read_sweep(written(tmp_path, text))
    assert [network.until for network in sweep.networks] == [1, 2, 4, 8]
    assert sweep.groups == [[0, 1, 2, 3]]
    written(tmp_path, text.replace("= 100", "= 6").replace("[training]", "examples = 2000\n[training]"))
    found = {}
    exec(blocks("python")[1], found)
    assert found["windows"].shape == (500, 20)
    assert found["last"].layers == ("lstm1", "lstm2")
    assert found["networks"].record(3)["epochs"] == 8


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def written(folder, text):
    path = folder / "texts.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((DOCS / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_folder_can_be_read(path):
    sweep = read_sweep(path)
    assert (sweep.name, len(sweep.networks)) == (path.stem, 1)
    assert f"sdkernels sweep docs/sweeps/{path.name} " in path.read_text()
    assert f"docs/sweeps/{path.name} " in PAGE.read_text()
