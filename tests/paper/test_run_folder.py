"""A run folder never loses or mixes runs, and never touches what is not its own."""

import json

import pytest

from sdkernels.paper.run_folder import RunFolder

FILES = ("figure.png", "report.json")


def test_nothing_is_made_before_something_is_written(tmp_path):
    folder = RunFolder(tmp_path / "run", {"seed": 0}, FILES)
    assert not folder.path.exists()
    folder.write_json("report.json", {"a": 1})
    assert sorted(path.name for path in folder.path.iterdir()) == ["report.json", RunFolder.MARKER]


def test_the_same_run_may_write_again(tmp_path):
    for content in (1, 2):
        RunFolder(tmp_path, {"seed": 0, "levels": (0, 1)}, FILES).write_json("report.json", content)
    assert json.loads((tmp_path / "report.json").read_text()) == 2


def test_a_run_with_other_settings_is_not_touched(tmp_path):
    RunFolder(tmp_path, {"seed": 0}, FILES).write_json("report.json", "precious")
    with pytest.raises(ValueError, match=r"other settings \(seed differ\).*--fresh"):
        RunFolder(tmp_path, {"seed": 1}, FILES)
    assert json.loads((tmp_path / "report.json").read_text()) == "precious"


def test_fresh_removes_what_the_recipe_wrote_and_nothing_else_once_there_is_something_new(tmp_path):
    old = RunFolder(tmp_path, {"seed": 0}, FILES)
    old.write_json("report.json", "old")
    old.write("figure.png", lambda path: path.write_bytes(b"old"))
    (tmp_path / "notes.txt").write_text("precious")
    new = RunFolder(tmp_path, {"seed": 1}, FILES, fresh=True)
    assert (tmp_path / "figure.png").exists(), "it may yet fail"
    new.write_json("report.json", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "report.json", RunFolder.MARKER]
    assert json.loads((tmp_path / "report.json").read_text()) == "new"
    RunFolder(tmp_path, {"seed": 1}, FILES).write_json("report.json", "newer")


@pytest.mark.parametrize("marker", [None, "{}", "not json", "[1]"])
def test_a_folder_of_something_else_is_never_touched(tmp_path, marker):
    (tmp_path / "thesis.tex").write_text("precious")
    if marker is not None:
        (tmp_path / RunFolder.MARKER).write_text(marker)
    for fresh in (False, True):
        with pytest.raises(ValueError, match="holds no run of sdkernels"):
            RunFolder(tmp_path, {}, FILES, fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex", {}, FILES)


def test_a_file_is_whole_or_not_there(tmp_path):
    folder = RunFolder(tmp_path, {}, FILES)

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        folder.write("figure.png", fail)
    assert not (tmp_path / "figure.png").exists()
