"""The benchmark of attributions on toys: every workload runs, and a speed-up at other results is none."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from python_bench import tables
from python_bench import test_attribution as benchmark
from python_bench.contest import LEAST, OURS, DifferentResultsError
from python_bench.opponents import Setting
from python_bench.opponents.attributions import ATTRIBUTIONS
from python_bench.workloads import prepare
from tests.rounds import Rounds

ROOT = Path(tables.__file__).parents[1]
EXPECTED = [name for name in ATTRIBUTIONS if name != "captum" or importlib.util.find_spec("captum")]


@pytest.mark.parametrize("name", benchmark.WORKLOADS)
def test_every_workload_is_raced(name, tmp_path):
    kept = {}
    benchmark.test_attribution(name, Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept[name]
    assert list(race.seconds) == [OURS, benchmark.FURTHER, *EXPECTED]
    assert all(len(seconds) == 1 for seconds in race.seconds.values())
    if race.notes["units"] > LEAST:
        assert set(race.parts) == set(EXPECTED), "a toy's opponents have no time, so they do a part"
    race.write(tmp_path, name)
    assert tables.as_race(json.loads((tmp_path / f"{name}.json").read_text())) == race
    assert "| hook loop |" in tables.of_result(tmp_path / f"{name}.json")


@pytest.mark.parametrize("setting", [Setting(10), Setting(10, 3), Setting(10, 3, True)], ids=str)
@pytest.mark.parametrize("name", benchmark.WORKLOADS)
def test_opponents_do_any_units(name, setting):
    pytest.importorskip("captum")
    task, _ = prepare(benchmark.tiny(name), torch.device("cpu"))
    task = task.only(torch.arange(1, len(task.ablated), 2))
    whole = task.channels_last() if setting.channels_last and task.inputs.ndim == 4 else task
    found, expected = (ATTRIBUTIONS[name](whole, setting) for name in ("captum", "hook loop"))
    assert found.shape == (len(task.labels), len(task.ablated))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 1e-3


def test_other_results_get_no_ratio(monkeypatch):
    wrong = {"hook loop": lambda task, setting: ATTRIBUTIONS["hook loop"](task, setting) + 1e-3}
    monkeypatch.setattr(benchmark, "ATTRIBUTIONS", wrong)
    attributions = benchmark.Attributions(benchmark.tiny("attribution_mlp"), 0.0)
    attributions.run_others()
    attributions.run_ours()
    with pytest.raises(DifferentResultsError, match="hook loop"):
        attributions.result()


def test_the_benchmark_runs_tiny(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "python_bench/test_attribution.py"]
    done = subprocess.run(
        [*command, "--tiny", "-k", "mlp", "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in tmp_path.glob("*.json")} == {"attribution_mlp"}
