"""The benchmark suite on toys: every workload runs, opponents give the same results, tables say what was timed."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from python_bench import contest, tables
from python_bench import test_engine as engine_benchmark
from python_bench import test_growth as growth_benchmark
from python_bench.contest import OURS, PLANNED, Contest, DifferentResultsError, planned_gflop, run_contest, sample
from python_bench.opponents import OPPONENTS, Setting, captum_ablation, hook_loop
from python_bench.race import Growth, Part, Race
from python_bench.workloads import WORKLOADS, prepare, tiny
from tests.rounds import Rounds

ROOT = Path(tables.__file__).parents[1]
CPU = torch.device("cpu")
HAS_CAPTUM = importlib.util.find_spec("captum") is not None


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_raced(name, tmp_path):
    kept = {}
    engine_benchmark.test_engine(name, Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept[name]
    expected = [opponent for opponent in OPPONENTS if opponent != "captum" or (HAS_CAPTUM and name.startswith("units"))]
    assert list(race.seconds) == [OURS, *expected]
    assert all(len(seconds) == 1 for seconds in race.seconds.values())
    assert PLANNED in race.notes
    if name.startswith("units"):
        assert "hook loop" in race.parts, "a toy's opponents have no time, so they do a part"
        assert "timed on 8 of" in race.table()
    race.write(tmp_path, name)
    assert tables.as_race(json.loads((tmp_path / f"{name}.json").read_text())) == race
    assert "| hook loop |" in tables.of_result(tmp_path / f"{name}.json")
    assert f"`{name}`" in tables.ratios(tmp_path)
    assert f"`{name}`" in tables.limits(tmp_path)


@pytest.mark.parametrize("name", WORKLOADS)
def test_stages_are_the_network(name):
    task, _ = prepare(tiny(name), CPU)
    x = task.inputs
    with torch.no_grad():
        for _, stage in task.stages(task.model):
            before = x.clone()
            after = stage(x)
            assert torch.equal(x, before), "a step must not write into what it is given"
            x = after
        torch.testing.assert_close(x, task.model(task.inputs))


@pytest.mark.parametrize("setting", [Setting(10), Setting(4), Setting(4, 3)], ids=str)
@pytest.mark.parametrize("opponent", ["hand-written prefix cache", "torch.func.vmap"])
@pytest.mark.parametrize("name", ["cumulative_mlp", "cumulative_convnet", "cumulative_resnet50"])
def test_opponents_do_any_configurations(name, opponent, setting):
    task, _ = prepare(tiny(name), CPU)
    units = task.ablated.shape[1]
    ablated = torch.rand(7, units, generator=torch.Generator().manual_seed(3)) < 0.5
    ablated[0] = False
    ablated[1:4, : task.widths[0]] = False
    ablated[2:4, : units - task.widths[-1]] = False
    task = replace(task, ablated=ablated)
    scores, expected = OPPONENTS[opponent](task, setting), hook_loop(task, Setting(5))
    assert torch.equal(scores.correct, expected.correct)
    torch.testing.assert_close(scores.loss, expected.loss, rtol=1e-5, atol=0)
    assert len(expected.loss.unique()) > 4, "ablations must matter"


@pytest.mark.parametrize("opponent", ["hook loop", "hand-written prefix cache", "torch.func.vmap"])
@pytest.mark.parametrize("name", ["units_convnet", "cumulative_resnet50"])
def test_memory_layout_changes_nothing(name, opponent):
    task, _ = prepare(tiny(name), CPU)
    task = task.only(torch.arange(0, len(task.ablated), 2))
    other = task.channels_last()
    assert other.inputs.stride() != task.inputs.stride()
    setting = Setting(10, 1 if opponent == "hook loop" else 3)
    scores, expected = OPPONENTS[opponent](other, setting), OPPONENTS[opponent](task, setting)
    assert torch.equal(scores.correct, expected.correct)
    torch.testing.assert_close(scores.loss, expected.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("setting", [Setting(10), Setting(4, 3)], ids=str)
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name.startswith("units")])
def test_captum_gives_exact_counts(name, setting):
    pytest.importorskip("captum")
    task, _ = prepare(tiny(name), CPU)
    task = task.only(torch.arange(0, len(task.ablated), 3))
    scores, expected = captum_ablation(task, setting), hook_loop(task, Setting(10))
    assert torch.equal(scores.correct, expected.correct)
    torch.testing.assert_close(scores.loss, expected.loss, rtol=1e-6, atol=0)


def test_without_captum_the_others_race(monkeypatch):
    monkeypatch.setattr(contest.importlib.util, "find_spec", lambda _name: None)
    assert Contest(tiny("units_mlp"), CPU, 0.0).opponents == [name for name in OPPONENTS if name != "captum"]


def test_batch_norms_are_not_the_identity():
    norms = [m for m in tiny("units_convnet").build().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 11
    for norm in norms:
        for values, identity in [(norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)]:
            assert (values - identity).abs().max() > 0.05


class TestOtherResults:
    @pytest.fixture
    def wrong(self, monkeypatch):
        """A contest whose hook loop miscounts."""

        def miscounts(task, setting):
            scores = hook_loop(task, setting)
            return scores._replace(correct=scores.correct + 1)

        monkeypatch.setattr(contest, "OPPONENTS", {**OPPONENTS, "hook loop": miscounts})
        return Contest(tiny("cumulative_mlp"), CPU, 0.0)

    def test_get_no_ratio(self, wrong):
        wrong.run_opponents()
        wrong.run_ours()
        with pytest.raises(DifferentResultsError, match="6 of 6 counts differ"):
            wrong.result()

    def test_are_left_out_where_asked(self, wrong):
        race = run_contest(wrong)
        assert "hook loop" not in race.seconds
        assert list(wrong.differences()) == ["hook loop"]


def test_a_missed_floor_fails_after_the_report(monkeypatch):
    floors = {"hook loop": 1e9}
    monkeypatch.setattr(engine_benchmark, "tiny", lambda name: replace(tiny(name), floors=floors))
    kept = []
    with pytest.raises(AssertionError, match="below"):
        engine_benchmark.test_engine("cumulative_mlp", Rounds(), lambda race, _name: kept.append(race), True)
    assert len(kept) == 1


def test_a_part_is_scaled():
    race = Race("t", {OURS: [2.0, 4.0], "other": [1.0, 1.0]}, {}, {"other": Part(5, 50)})
    assert race.ratios("other") == [5.0, 2.5]
    assert "| other | 10.00 s, timed on 5 of 50 configurations | 3.75 (2.50 to 5.00) |" in race.table()
    assert race.ratios(OURS) == [1.0, 1.0]
    assert Part(5, 50, once=0.5).scaled(1.0) == 5.5


@pytest.mark.parametrize("opponent", OPPONENTS)
def test_opponents_do_nothing_where_nothing_is_asked(opponent):
    if opponent == "captum":
        pytest.importorskip("captum")
    task, _ = prepare(tiny("units_mlp"), CPU)
    scores = OPPONENTS[opponent](task.only(torch.arange(0)), Setting(4))
    assert scores.correct.shape == scores.loss.shape == (0,)


@pytest.mark.parametrize(("count", "size", "block"), [(100, 8, 1), (330, 8, 3), (2816, 50, 8), (7, 9, 2), (5, 5, 5)])
def test_samples_are_spread(count, size, block):
    chosen = sample(count, size, block, torch.Generator().manual_seed(0))
    assert len(chosen.unique()) == len(chosen)
    assert 0 <= chosen.min() <= chosen.max() < count
    assert len(chosen) >= min(size, count // block * block)
    whole = chosen.view(-1, block)
    assert torch.equal(whole, whole[:, :1] + torch.arange(block))


def test_plans_are_read():
    plan = "\n".join(["node  mode    MFLOP", "fc1   shared  0.800", "all           1.250", "3 configurations"])
    assert planned_gflop(plan, 2000) == 2.5
    assert planned_gflop("6 configurations; loop: the whole model once each", 10) is None


@pytest.mark.parametrize("network", growth_benchmark.NETWORKS)
@pytest.mark.parametrize("size", growth_benchmark.SIZES)
def test_growth_is_measured(network, size, tmp_path):
    kept: dict[str, Growth] = {}
    growth_benchmark.test_growth(network, size, Rounds(), lambda result, name: kept.update({name: result}), True)
    ((name, result),) = kept.items()
    values = list(result.rows)
    assert values[1] == 2 * values[0]
    result.write(tmp_path, name)
    lines = result.table().splitlines()
    assert f"| {size} | time (median) | times the row before |" in lines
    assert [line for line in lines if line.startswith("|")] == [
        line for line in tables.of_result(tmp_path / f"{name}.json").splitlines() if line.startswith("|")
    ]


def test_the_page_shows_the_results_that_are_kept():
    page = tables.PAGE.read_text()
    assert tables.filled(page, tables.RESULTS) == page, "run python -m python_bench.tables"
    for name in ("ratios", "limits", *WORKLOADS):
        assert f"<!-- {name} -->" in page
    for network in growth_benchmark.NETWORKS:
        for size in growth_benchmark.SIZES:
            assert f"<!-- growth_{network}_{size} -->" in page


def test_a_page_is_filled(tmp_path):
    Race("t", {OURS: [0.5], "hook loop": [1.0]}, {"hook loop's best": "3 examples"}).write(tmp_path, "units_mlp")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- units_mlp -->\nold\n<!-- end -->\nb\n<!-- units_convnet -->\n<!-- end -->\n")
    assert tables.main(["--results", str(tmp_path), "--page", str(page)]) == 0
    written = page.read_text()
    assert "| hook loop | 1.00 s | 2.0 | 2.0 to 2.0 |" in written
    assert "hook loop's best: 3 examples; device: CPU" in written
    assert f"<!-- units_convnet -->\n{tables.NOT_MEASURED}\n<!-- end -->" in written
    assert "old" not in written


def test_opponents_need_nothing_of_the_package():
    code = "import sys; sys.modules['sdkernels'] = None; import python_bench.opponents, python_bench.opponents.stages"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_suite_runs_tiny(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "python_bench", "--tiny"]
    command += ["-k", "cumulative_mlp_all or mlp-points", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in tmp_path.glob("*.json")} == {"cumulative_mlp_all_points", "growth_mlp_points"}
