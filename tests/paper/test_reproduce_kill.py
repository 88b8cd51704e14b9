"""``sdkernels reproduce``, killed again and again, ends with the numbers of a run that was not."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from sdkernels.paper.reproduce import FILES
from tests.lab import forking
from tests.paper.small_runs import FIG1A

ALONE = {**FIG1A, "together": 1}  # each network is kept when it is trained
CHANGES = [text for name, value in ALONE.items() for text in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def command():
    """Runs ``sdkernels reproduce``, and kills it ``wait`` seconds after the ledger was first written."""
    script = subprocess.Popen(
        [sys.executable, forking.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert script.stdout.readline() == "ready\n"

    def run(folder, wait=None):
        order = {
            "arguments": ["reproduce", "fig1a", "--out", str(folder), *CHANGES],
            "wait": wait,
            "moment": None if wait is None else "written",
            "store": str(folder / "networks.sdk"),
            "out": str(folder),
            "log": str(folder.with_suffix(".log")),
        }
        script.stdin.write(json.dumps(order) + "\n")
        script.stdin.flush()
        return json.loads(script.stdout.readline())["code"]

    yield run
    script.stdin.close()
    script.stdout.close()
    script.wait()


def test_killed_again_and_again_it_ends_with_the_same_numbers(command, tmp_path):
    assert command(tmp_path / "whole") == 0
    codes = []
    for wait in (0, 0.3, 0.05, 0.6, 0.1, 1.0):
        codes.append(command(tmp_path / "killed", wait=wait))
        left = {path.name for path in (tmp_path / "killed").glob("fig1a-quick/*") if not path.name.startswith(".")}
        assert left <= {"sdkernels-run.json", *FILES}, "half a file under a whole one's name"
        if codes[-1] == 0:  # it was over before its time had come
            break
    assert codes[0] == -9
    assert command(tmp_path / "killed") == 0
    reports = [
        json.loads((tmp_path / name / "fig1a-quick" / "report.json").read_text()) for name in ("whole", "killed")
    ]
    assert reports[0]["claims"] == reports[1]["claims"]
    assert [n["train_loss"] for n in reports[0]["networks"]] == [n["train_loss"] for n in reports[1]["networks"]]
    tables = [pd.read_csv(tmp_path / name / "fig1a-quick" / "data.csv") for name in ("whole", "killed")]
    counts = ["network", "order", "ablated", "correct"]
    pd.testing.assert_frame_equal(tables[0][counts], tables[1][counts])
    steps = [line for line in (tmp_path / "killed.log").read_text().splitlines() if json.loads(line)[0] == "step"]
    whole = [line for line in (tmp_path / "whole.log").read_text().splitlines() if json.loads(line)[0] == "step"]
    assert set(steps) == set(whole)
    assert len(whole) == len(set(whole))
