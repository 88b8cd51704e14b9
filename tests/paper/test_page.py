"""The page of all figures: the largest preset of each, what is missing, and nothing that no report says."""

import json

import pytest

from sdkernels.paper.catalogue import PAPERS, RECIPES
from sdkernels.paper.claims import FAILS, HOLDS, Claim
from sdkernels.paper.page import largest, main, read_reports, write_page


def _report(folder, figure, preset, ours="0.25", **more):
    path = folder / f"{figure}-{preset}"
    path.mkdir(parents=True)
    (path / "figure.png").write_bytes(f"picture of {figure} {preset}".encode())
    claims = [
        Claim("It falls | sooner", "-0.7", ours, 0.125, 0.375, HOLDS, "12 networks"),
        Claim("It rises", "", "0.01", -0.1, 0.1, FAILS, "undecided"),
    ]
    report = {
        "figure": figure,
        "title": RECIPES[figure].title,
        "preset": preset,
        "changes": {},
        "choices": {"optimiser": "unpublished; Adam"},
        "not_reproduced": {},
        "machine": {"device": "cpu", "processor": "Abacus", "threads": 2, "versions": {"torch": "2.13.0"}},
        "seconds": {"training_and_measuring": 721.0, "this_call": 1.0},
        "networks": [
            {"part": "corruption", "network": 0, "settings": {}, "key": "a", "train_accuracy": 1.0},
            {"part": "corruption", "network": 1, "settings": {}, "key": "b", "train_accuracy": 0.5},
            {"part": "corruption", "network": 2, "settings": {}, "key": "c", "failed": "diverged"},
        ],
        "claims": [claim.record() for claim in claims],
        **more,
    }
    (path / "report.json").write_text(json.dumps(report))
    return report


@pytest.fixture
def page(tmp_path):
    runs = tmp_path / "runs"
    _report(runs, "fig1a", "quick", ours="0.99")
    _report(runs, "fig1a", "small", changes={"levels": [0, 1]})
    missing = {"corruption": "not reproduced: needs ImageNet"}
    _report(runs, "fig1c", "quick", networks=[], claims=[], not_reproduced=missing)
    path = tmp_path / "docs" / "reproduction.md"
    path.parent.mkdir()
    write_page(largest(read_reports([runs])), path)
    return path


def test_the_largest_preset_is_shown(page):
    text = page.read_text()
    assert "| [fig1a](#fig1a) | small | 1 | 1 | 0 | 12 min |" in text
    assert "0.99" not in text
    assert (page.parent / "reproduction" / "fig1a.png").read_bytes() == b"picture of fig1a small"
    assert f"![{RECIPES['fig1a'].title}](reproduction/fig1a.png)" in text


def test_a_section_says_claims_networks_machine_time_command_and_choices(page):
    section = page.read_text().split("## fig1a")[1].split("## fig1b")[0]
    assert r"| It falls \| sooner | -0.7 | 0.25 (0.12 to 0.38) | holds | 12 networks |" in section
    assert "2 networks, training accuracy 0.500 to 1.000; 1 left out, whose training diverged" in section
    assert "Abacus, 2 threads, torch 2.13.0, 12 min" in section
    assert "sdkernels reproduce fig1a --preset small --data-dir DIR --set levels='[0, 1]'" in section
    assert "- optimiser: unpublished; Adam" in section


def test_times_are_of_all_that_was_done_and_workers_are_said(tmp_path):
    took = {"training_and_measuring": 600.0, "comparing": 60.0, "table_and_claims": 6.0, "this_call": 9999.0}
    machine = {"device": "cpu", "processor": "Abacus", "threads": 1, "workers": 2, "versions": {"torch": "2.13.0"}}
    _report(tmp_path, "fig1a", "small", seconds=took, machine=machine)
    write_page(largest(read_reports([tmp_path])), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| 11 min |" in text
    assert "Abacus, 2 workers of 1 thread, torch 2.13.0, 11 min for all of it:" in text


def test_a_figure_without_networks_is_shown(tmp_path):
    _report(tmp_path, "cca2", "quick", networks=[])
    write_page(largest(read_reports([tmp_path])), tmp_path / "page.md")
    section = (tmp_path / "page.md").read_text().split("## cca2")[1].split("## cca3")[0]
    assert "It falls" in section
    assert "Abacus" in section


def test_what_was_not_run_is_said(page):
    text = page.read_text()
    assert "| [fig1b](#fig1b) | not yet run |" in text
    assert "| [fig1c](#fig1c) | not reproduced: needs ImageNet |" in text
    assert "**corruption: not reproduced: needs ImageNet.**" in text.split("## fig1c")[1]
    assert "![" not in text.split("## fig1c")[1]
    assert text.count("\n## ") == len(RECIPES)
    for paper, recipes in PAPERS.items():
        table = text.split(f"[*{paper}*]")[1].split("\n\n")[1]
        assert [line.split("]")[0] for line in table.splitlines()[2:]] == [f"| [{recipe.name}" for recipe in recipes]


def test_a_smaller_preset_that_ran_goes_before_a_larger_one_that_did_not(tmp_path):
    _report(tmp_path, "fig1c", "quick")
    _report(tmp_path, "fig1c", "small", networks=[], claims=[], not_reproduced={"corruption": "not reproduced"})
    assert largest(read_reports([tmp_path]))["fig1c"]["preset"] == "quick"


def test_figures_are_added_to_a_page_that_shows_others(page, tmp_path):
    shown = page.read_text()
    write_page({}, page)
    assert page.read_text() == shown
    _report(tmp_path / "later", "fig1a", "quick", ours="0.99")
    _report(tmp_path / "later", "fig1b", "small", ours="0.75")
    _report(tmp_path / "later", "fig1c", "quick", ours="0.75")
    write_page(largest(read_reports([tmp_path / "later"])), page)
    text = page.read_text()
    assert text.split("## fig1a")[1].split("## fig1b")[0] == shown.split("## fig1a")[1].split("## fig1b")[0]
    assert (page.parent / "reproduction" / "fig1a.png").read_bytes() == b"picture of fig1a small"
    assert "| [fig1a](#fig1a) | small |" in text
    assert "| [fig1b](#fig1b) | small |" in text
    assert "| [fig1c](#fig1c) | quick |" in text
    assert "0.75" in text.split("## fig1b")[1].split("## fig1c")[0]
    _report(tmp_path / "last", "fig1a", "small", ours="0.5")
    write_page(largest(read_reports([tmp_path / "last"])), page)
    assert "| It falls \\| sooner | -0.7 | 0.5 (" in page.read_text().split("## fig1a")[1].split("## fig1b")[0]


def test_a_page_is_a_file_of_the_users_own(tmp_path, monkeypatch, capsys):
    _report(tmp_path / "runs", "fig1a", "small")
    (tmp_path / "page.md").symlink_to("/dev/full")  # reading it would never end
    for page in ("page.md", "a" * 5000):
        monkeypatch.setattr("sys.argv", ["page", "--runs", str(tmp_path / "runs"), "--page", str(tmp_path / page)])
        with pytest.raises(SystemExit) as stopped:
            main()
        says = capsys.readouterr().err
        assert (stopped.value.code, len(says) < 1100) == (2, True)
        assert page[:500] in says
