"""The runner: what it writes, what it shares between figures, and a run that is stopped half-way."""

import json
from dataclasses import replace

import pandas as pd
import pytest

import sdkernels.paper.reproduce as runner
from sdkernels.lab.sweep import NetworksFailedError, network
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.claims.claim import VERDICTS
from sdkernels.paper.options import option_values
from sdkernels.paper.recipe import PRESETS
from sdkernels.paper.reproduce import FILES, STORE, reproduce
from sdkernels.paper.run_folder import RunFolder
from tests.paper.small_runs import FIG1A

FIG2A = {**{k: v for k, v in FIG1A.items() if k not in ("orders", "points")}, "scales": 4, "runs": 2}
ALL = (
    "fig1a fig1b fig1c fig2a fig2b fig3a fig3b fig4a fig4b fig4c fig5a fig5b fig6a fig6b fig7 figA1 figA2 figA3 figA4 "
    "cca1 cca2 cca3 cca4 cca5 cca6 ccaA3"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, reproduce("fig1a", out=out, show_progress=False, **FIG1A)


def test_there_is_a_recipe_for_every_figure():
    assert list(RECIPES) == ALL.split()


@pytest.mark.parametrize("name", ALL.split())
def test_a_recipe_says_all_that_it_must(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert f"figure {name[3:]}" in recipe.title
    assert recipe.choices
    for preset in PRESETS:
        sweeps = recipe.sweeps(recipe.presets[preset])
        data = {settings.data for sweep in sweeps.values() for settings in sweep.networks}
        texts = {"wikitext2", "ptb"}
        allowed = {"quick": {"digits", "digits_tokens", "imagenet"}}.get(
            preset, {"mnist", "cifar10", "imagenet", *texts}
        )
        assert data <= allowed
        of_imagenet = {part for part, sweep in sweeps.items() if sweep.networks[0].data == "imagenet"}
        assert of_imagenet == {part for part, need in recipe.needs.items() if need == "ImageNet"}
        json.dumps(option_values(recipe.presets[preset]))


def test_the_folder_holds_figure_data_claims_and_report(folder):
    out, report = folder
    path = out / "fig1a-quick"
    assert {entry.name for entry in path.iterdir()} == {*FILES, RunFolder.MARKER}
    written = json.loads((path / "report.json").read_text())
    assert {**written, "folder": str(path)} == json.loads(json.dumps(report))
    assert (path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (path / "figure.pdf").read_bytes()[:4] == b"%PDF"
    table = pd.read_csv(path / "data.csv")
    assert len(table) == 4 * 3 * 9
    assert (table.accuracy - table.correct / 80).abs().max() < 1e-9
    assert written["options"]["networks"]["examples"] == 80
    assert written["changes"] == json.loads(json.dumps(FIG1A))
    assert [network["settings"]["corruption"] for network in written["networks"]] == [0, 0, 1, 1]
    assert all(network["memorised"] and network["train_accuracy"] == 1 for network in written["networks"])
    assert written["machine"]["versions"]["torch"]
    assert written["machine"]["workers"] == 1
    assert written["seconds"]["training_and_measuring"] > 0
    assert {claim["verdict"] for claim in written["claims"]} <= {*VERDICTS}
    rows = (path / "claims.md").read_text().splitlines()
    assert len(rows) == 2 + len(written["claims"])
    assert all(claim["claim"] in row for claim, row in zip(written["claims"], rows[2:], strict=True))


def test_nothing_is_done_twice_and_figures_share_networks(folder, monkeypatch):
    out, report = folder
    monkeypatch.setattr(network, "_train_together", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(network, "_train_alone", lambda *_: pytest.fail("trained again"))
    other = reproduce("fig2a", out=out, show_progress=False, **FIG2A)
    assert [n["key"] for n in other["networks"]] == [n["key"] for n in report["networks"]]
    monkeypatch.setattr(network, "_measure", lambda *_: pytest.fail("measured again"))
    before = pd.read_csv(out / "fig1a-quick" / "data.csv")
    again = reproduce("fig1a", out=out, show_progress=False, **FIG1A)
    assert again["claims"] == report["claims"]
    pd.testing.assert_frame_equal(pd.read_csv(out / "fig1a-quick" / "data.csv"), before)


def test_a_store_elsewhere_is_read_and_written(folder, tmp_path, monkeypatch):
    store = tmp_path / "kept" / "all.sdk"
    store.parent.mkdir()
    store.write_bytes((folder[0] / STORE).read_bytes())
    monkeypatch.setattr(network, "_train_together", lambda *_: pytest.fail("trained again"))
    again = reproduce("fig1a", out=tmp_path / "runs", store=store, show_progress=False, **FIG1A)
    assert again["claims"] == folder[1]["claims"]
    assert not (tmp_path / "runs" / STORE).exists()


def test_a_stopped_run_goes_on_to_the_same_numbers(folder, tmp_path, monkeypatch):
    whole = folder[1]
    measured = []
    measure = network._measure

    def stop_at_the_third(work, member, condition, model):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(member.place)
        return measure(work, member, condition, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "_measure", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            reproduce("fig1a", out=tmp_path, show_progress=False, **FIG1A)
    assert not (tmp_path / "fig1a-quick").exists()
    monkeypatch.setattr(network, "_train_together", lambda *_: pytest.fail("trained again"))
    resumed = reproduce("fig1a", out=tmp_path, show_progress=False, **FIG1A)
    assert resumed["claims"] == whole["claims"]
    assert [n["train_loss"] for n in resumed["networks"]] == [n["train_loss"] for n in whole["networks"]]


def test_parts_that_need_imagenet_are_left_out_and_said(tmp_path):
    report = reproduce("fig1c", out=tmp_path, data_dir=tmp_path, show_progress=False)
    assert report["not_reproduced"] == {"corruption": "not reproduced: needs ImageNet"}
    assert report["claims"] == []
    assert json.loads((tmp_path / "fig1c-quick" / "report.json").read_text())["networks"] == []


def test_networks_that_diverged_are_left_out_and_said(tmp_path, monkeypatch):
    recipe = RECIPES["fig1a"]

    def with_a_wild_one(options):
        (sweep,) = recipe.sweeps(options).values()
        wild = replace(sweep.networks[0], seed=7, training=replace(sweep.networks[0].training, learning_rate=1e12))
        return {"corruption": replace(sweep, networks=(*sweep.networks, wild), together=1)}

    monkeypatch.setitem(runner.RECIPES, "fig1a", replace(recipe, sweeps=with_a_wild_one))
    report = reproduce("fig1a", out=tmp_path, show_progress=False, **{**FIG1A, "repeats": 1})
    assert ["failed" in network for network in report["networks"]] == [False, False, True]
    assert "diverged" in report["networks"][2]["failed"]
    assert pd.read_csv(tmp_path / "fig1a-quick" / "data.csv").network.unique().tolist() == [0, 1]
    monkeypatch.setitem(
        runner.RECIPES,
        "fig1a",
        replace(
            recipe, sweeps=lambda o: {k: replace(s, networks=s.networks[2:]) for k, s in with_a_wild_one(o).items()}
        ),
    )
    with pytest.raises(NetworksFailedError):
        reproduce("fig1a", out=tmp_path / "none", show_progress=False, **{**FIG1A, "repeats": 1})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"figure": "fig9"}, "there is no recipe for 'fig9'; there are fig1a, "),
        ({"preset": "large"}, "there are quick, small, paper"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
        ({"ordrs": 3}, "there is no option 'ordrs'; close: orders"),
        ({"orders": "many"}, "orders='many' must be a whole number"),
        ({"levels": [0, "all"]}, "levels=.* must be a list of numbers"),
        ({"preset": "small"}, "mnist is read from files"),
    ],
)
def test_misuse_is_refused_before_anything_is_trained(tmp_path, arguments, says, monkeypatch):
    monkeypatch.setattr(network, "work_on", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=says):
        reproduce(**{"figure": "fig1a", **arguments}, out=tmp_path, show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["networks.sdk"])
