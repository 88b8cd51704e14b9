"""The recipe end to end on little data, its folder, and a run that is stopped half-way."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from safetensors.torch import load_file

from sdkernels import AblationCurve
from sdkernels.lab.datasets import load
from sdkernels.lab.seeds import seed_for
from sdkernels.paper import fig1a
from sdkernels.paper.run_folder import RunFolder

TINY = {"examples": 80, "hidden": (24, 24), "levels": (0.0, 1.0), "epochs": 300, "learning_rate": 1e-2, "orders": 3}


def test_run_folder_holds_figure_curves_and_report(tmp_path, capsys):
    out = tmp_path / "run"
    report = fig1a.reproduce(out=out, points=9, **TINY)
    written = json.loads((out / "report.json").read_text())
    assert {**written, "folder": str(out)} == json.loads(json.dumps(report))
    assert written["settings"]["examples"] == 80
    assert all(level["versions"]["torch"] and level["training"]["versions"]["torch"] for level in written["levels"])
    assert [level["corruption"] for level in written["levels"]] == [0, 1]
    assert all(level["training"]["memorised"] for level in written["levels"])
    table = pd.read_csv(out / "curves.csv")
    assert len(table) == 2 * 3 * 9
    assert list(table.columns[:5]) == ["corruption", "order", "ablated", "fraction", "correct"]
    for level in written["levels"]:
        curve = AblationCurve.load(out / f"corruption-{level['corruption']}" / "curve.npz")
        assert curve.auc().tolist() == level["auc"]
        assert (curve.correct[:, 0] == 80).all(), "an intact network that memorised is right everywhere"
        (labels,) = load_file(out / f"corruption-{level['corruption']}" / "labels.safetensors").values()
        true = load("digits", split="all").first(80).labels
        assert labels.bincount().tolist() == true.bincount().tolist()
        assert float((labels != true).double().mean()) == level["labels_changed"]
        rows = table[(table.corruption == level["corruption"]) & (table.order == 1)]
        assert rows.correct.tolist() == curve.correct[1].tolist()
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG"
    text = fig1a.auc_table(report)
    assert f"{written['levels'][1]['auc_mean']:.3f}" in text
    assert "not memorised" not in text
    assert "corruption 1.0: training" in capsys.readouterr().err


def test_a_network_that_did_not_memorise_is_said(tmp_path):
    report = fig1a.reproduce(out=tmp_path / "run", **{**TINY, "epochs": 1}, show_progress=False)
    assert fig1a.auc_table(report).count("not memorised") == 2


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = fig1a.reproduce(out=tmp_path / "whole", show_progress=False, **TINY)
    trained = []
    train = fig1a.train
    monkeypatch.setattr(fig1a, "train", lambda *a, **k: trained.append(k["description"]) or train(*a, **k))

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig1a, "cumulative_ablation", stop)
        with pytest.raises(KeyboardInterrupt):
            fig1a.reproduce(out=tmp_path / "run", show_progress=False, **TINY)
    resumed = fig1a.reproduce(out=tmp_path / "run", show_progress=False, **TINY)
    monkeypatch.setattr(fig1a, "cumulative_ablation", stop)  # nothing is left to do
    again = fig1a.reproduce(out=tmp_path / "run", show_progress=False, **TINY)
    assert trained == ["corruption 0.0: training", "corruption 1.0: training"], "no network is trained twice"
    for one, other, third in zip(whole["levels"], resumed["levels"], again["levels"], strict=True):
        assert one["auc"] == other["auc"] == third["auc"]
        assert one["training"]["loss"] == other["training"]["loss"] == third["training"]["loss"]
        assert other["training"]["seconds"] > 0.01, "of the training itself, not of reading it back"


def test_a_folder_with_other_settings_is_not_touched(tmp_path):
    out = tmp_path / "run"
    fig1a.reproduce(out=out, show_progress=False, **TINY)
    before = (out / "report.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(seed differ\).*--fresh"):
        fig1a.reproduce(out=out, show_progress=False, seed=1, **TINY)
    assert (out / "report.json").read_bytes() == before
    fig1a.reproduce(out=out, show_progress=False, seed=1, fresh=True, **TINY)
    assert json.loads((out / "report.json").read_text())["settings"]["seed"] == 1


@pytest.mark.parametrize("marker", [None, "{}", "not json", "[1]"])
def test_a_folder_of_something_else_is_never_touched(tmp_path, marker):
    (tmp_path / "thesis.tex").write_text("precious")
    if marker is not None:
        (tmp_path / RunFolder.MARKER).write_text(marker)
    for fresh in (False, True):
        with pytest.raises(ValueError, match="holds no run of sdkernels"):
            RunFolder(tmp_path, {}, fig1a.FILES, fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex", {}, fig1a.FILES)


def test_fresh_removes_what_the_recipe_wrote_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    fig1a.reproduce(out=out, show_progress=False, **{**TINY, "epochs": 1})
    (out / "notes.txt").write_text("precious")
    (out / "corruption-0.0" / "notes.txt").mkdir()
    RunFolder(out, {"other": 1}, fig1a.FILES, fresh=True)
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert left == ["corruption-0.0", "corruption-0.0/notes.txt", "notes.txt", RunFolder.MARKER]


def test_training_does_not_begin_with_the_corrupted_examples():
    seeds = [seed_for(purpose, 0) for purpose in ("corruption", "shuffling", "initialisation", "orders")]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used here"):
        fig1a.reproduce(out=tmp_path / "run", device="nonsense", **TINY)
    assert not (tmp_path / "run").exists()


def test_the_figure_shows_training_accuracy(tmp_path):
    out = tmp_path / "run"
    fig1a.reproduce(out=out, show_progress=False, **TINY)
    curves = {level: AblationCurve.load(out / f"corruption-{level}" / "curve.npz") for level in TINY["levels"]}
    figure = fig1a._draw(curves, load("digits").first(80), replace(fig1a.PRESETS["quick"], **TINY))
    (ax,) = figure.axes
    for line, curve in zip(ax.lines, curves.values(), strict=False):
        assert line.get_ydata().tolist() == curve.accuracy.mean(0).tolist()
    assert ax.get_ylabel() == "training accuracy"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.0", "1.0", "chance"]


def test_memorised_corruption_falls_sooner_on_the_embedded_default(tmp_path):
    settings = {"examples": 600, "hidden": (96, 96), "levels": (0.0, 0.2, 1.0), "learning_rate": 3e-3}
    report = fig1a.reproduce(out=tmp_path / "run", show_progress=False, **settings)
    clean, some, all_ = (level["auc_mean"] for level in report["levels"])
    assert all(level["training"]["memorised"] for level in report["levels"])
    assert clean > some + 0.05
    assert some > all_


def test_unknown_preset():
    with pytest.raises(ValueError, match="there are quick, small, paper"):
        fig1a.reproduce("large")


def test_the_published_protocol_is_the_paper_preset():
    paper = fig1a.PRESETS["paper"]
    assert (paper.dataset, paper.examples, paper.hidden, paper.epochs) == ("mnist", 60_000, (512, 512), 640)
    assert not paper.stop_when_memorised
    assert paper.levels == (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert paper.orders == 10


def test_memorised_corruption_falls_sooner_on_mnist(data_dir, tmp_path):
    settings = {"examples": 500, "hidden": (128, 128), "levels": (0.0, 0.2, 1.0)}
    report = fig1a.reproduce("small", data_dir=data_dir, out=tmp_path / "run", show_progress=False, **settings)
    clean, some, all_ = (level["auc_mean"] for level in report["levels"])
    assert clean > some > all_


@pytest.mark.slow
def test_small_preset(data_dir, tmp_path):
    report = fig1a.reproduce("small", data_dir=data_dir, out=tmp_path / "run")
    aucs = [level["auc_mean"] for level in report["levels"]]
    assert all(level["training"]["memorised"] for level in report["levels"])
    assert aucs[0] > aucs[1] + 0.05
    assert all(auc <= aucs[1] for auc in aucs[2:])
