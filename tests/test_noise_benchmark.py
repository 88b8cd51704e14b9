"""The benchmark of noise on toys: every workload runs, opponents add the right noise, other results get no ratio."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sdkernels as sd
from python_bench import noise_contest, tables
from python_bench import test_noise as benchmark
from python_bench.contest import OURS, DifferentResultsError
from python_bench.noise_contest import DEVIATIONS, NoiseContest, accuracy_disagreement, loss_disagreement
from python_bench.noise_workloads import NOISE_WORKLOADS, prepare_noise, tiny_noise
from python_bench.opponents import Scores, Setting
from python_bench.opponents.noise import NOISE_OPPONENTS, normals_like
from tests.rounds import Rounds

ROOT = Path(tables.__file__).parents[1]


@pytest.mark.parametrize("name", NOISE_WORKLOADS)
def test_every_workload_is_raced(name, tmp_path):
    kept = {}
    benchmark.test_noise(name, Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept[name]
    assert list(race.seconds) == [OURS, *NOISE_OPPONENTS]
    assert all(len(seconds) == 1 for seconds in race.seconds.values())
    assert set(race.parts) == set(NOISE_OPPONENTS), "a toy's opponents have no time, so they do a part"
    # Three runs of three scales; where each has draws of its own, what is faster: one at a time, or three together.
    wanted = (9,) if NOISE_WORKLOADS[name].same_draws else (8, 9)
    assert race.parts["hand-written prefix cache"].done in wanted
    race.write(tmp_path, name)
    assert tables.as_race(json.loads((tmp_path / f"{name}.json").read_text())) == race
    table = tables.of_result(tmp_path / f"{name}.json")
    assert "| hook loop |" in table
    assert f"{DEVIATIONS}: given to all" in table


@pytest.mark.parametrize("name", NOISE_WORKLOADS)
def test_deviations_are_the_package_s(name):
    task = prepare_noise(tiny_noise(name))
    network = task.network
    measured = sd.noise_robustness(network.model, list(network.layers), (network.inputs, network.labels), scales=[0.0])
    assert list(task.deviations) == list(measured.deviations)
    for layer, deviations in task.deviations.items():
        torch.testing.assert_close(deviations.double(), measured.deviations[layer], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", [Setting(10), Setting(4, 3), Setting(4, 3, True)], ids=str)
@pytest.mark.parametrize("opponent", NOISE_OPPONENTS)
@pytest.mark.parametrize("name", NOISE_WORKLOADS)
def test_no_noise_leaves_the_network_intact(name, opponent, setting):
    task = prepare_noise(tiny_noise(name))
    task = replace(task, factors=torch.zeros_like(task.factors))
    whole = task.channels_last() if setting.channels_last and task.network.inputs.ndim == 4 else task
    scores = NOISE_OPPONENTS[opponent](whole, setting)
    with torch.no_grad():
        logits = task.network.model(task.network.inputs)
    assert (scores.correct == (logits.argmax(1) == task.network.labels).sum()).all()
    loss = torch.nn.functional.cross_entropy(logits, task.network.labels).double()
    torch.testing.assert_close(scores.loss, loss.expand(12), rtol=1e-5, atol=0)


@pytest.mark.parametrize("opponent", NOISE_OPPONENTS)
@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_draws_are_shared_where_they_should_be(network, opponent):
    task = prepare_noise(tiny_noise(f"noise_{network}"))
    task = replace(task, factors=torch.full((6,), 2.0), draws=torch.tensor([0, 0, 0, 1, 1, 1]))
    loss = NOISE_OPPONENTS[opponent](task, Setting(4)).loss
    torch.testing.assert_close(loss, loss[[0, 0, 0, 3, 3, 3]], rtol=1e-6, atol=0)
    assert abs(float(loss[0] - loss[3])) > 1e-4
    own = NOISE_OPPONENTS[opponent](replace(task, draws=torch.arange(6)), Setting(4)).loss
    assert len(own.unique()) == 6


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_kept_noise_serves_any_number_of_configurations_side_by_side(network):
    task = prepare_noise(tiny_noise(f"noise_{network}"))
    one, three = (NOISE_OPPONENTS["hand-written prefix cache"](task, Setting(4, fold)) for fold in (1, 3))
    assert torch.equal(one.correct, three.correct)
    torch.testing.assert_close(one.loss, three.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NOISE_WORKLOADS)
def test_scores_tell_noise_of_another_size(name):
    workload = tiny_noise(name)
    examples = 3000 if "mlp" in name else 500
    task = prepare_noise(replace(workload, network=replace(workload.network, examples=examples)))
    task = replace(task, factors=torch.full((12,), 2.0), draws=torch.arange(12))
    at = torch.zeros(12, dtype=torch.int64)
    hooks, cache = (NOISE_OPPONENTS[opponent](task, Setting(100)) for opponent in NOISE_OPPONENTS)
    other = NOISE_OPPONENTS["hook loop"](replace(task, factors=2 * task.factors), Setting(100))

    def errors(scores: Scores) -> list[float]:
        accuracy = accuracy_disagreement(hooks.correct[:, None], scores.correct, at, examples)
        return [accuracy, loss_disagreement(hooks.loss[:, None], scores.loss, at, hooks.loss.var(0, keepdim=True))]

    assert max(errors(cache)) < 6
    assert max(errors(other)) > 8


def test_disagreement_is_counted_in_standard_errors():
    ours, theirs = torch.tensor([[900, 500]]), torch.tensor([600])
    error = math.sqrt(0.55 * 0.45 / 1000 * 2)
    assert accuracy_disagreement(ours, theirs, torch.tensor([1]), 1000) == pytest.approx(0.1 / error, rel=1e-3)
    runs, at = torch.tensor([[400], [600]]), torch.tensor([0, 0])  # differ by more than binomial
    assert accuracy_disagreement(runs, runs[:, 0] + 100, at, 1000) == pytest.approx(1 / math.sqrt(2))
    assert accuracy_disagreement(torch.tensor([[1000]]), torch.tensor([1000]), torch.tensor([0]), 1000) == 0
    losses, variance = torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.tensor([0.01, 0.25])
    assert loss_disagreement(losses, torch.tensor([4.0, 5.0]), torch.tensor([1, 1]), variance) == pytest.approx(3)
    assert loss_disagreement(losses, torch.tensor([1.0, 4.5]), torch.tensor([0, 1]), variance) == pytest.approx(6**0.5)


def test_losses_vary_from_run_to_run_as_their_squares_say():
    contest = NoiseContest(replace(tiny_noise("noise_mlp"), runs=200), 0.0)
    contest.run_ours()
    measured = contest.turns.results[OURS].loss.var(0)  # [T]
    said = contest._loss_variance()
    assert said.shape == measured.shape
    assert (said > 0.8 * measured).all()
    assert said[-1] < 2 * measured[-1], "where nearly all variance is the noise's"


def test_normals_lie_in_memory_as_what_they_are_added_to():
    x = torch.zeros(6, 50, 4, 4).contiguous(memory_format=torch.channels_last)
    drawn = normals_like(x, 3, torch.Generator().manual_seed(0))
    assert drawn[1].stride() == x.stride()
    assert len(drawn.unique()) > 0.99 * drawn.numel(), "copies have normals of their own"
    assert abs(float(drawn.mean())) < 0.05
    assert abs(float(drawn.std()) - 1) < 0.05


class TestOtherResults:
    def test_at_scale_zero_get_no_ratio(self, monkeypatch):
        def miscounts(task, setting):
            scores = NOISE_OPPONENTS["hook loop"](task, setting)
            return scores._replace(correct=scores.correct + 1)

        monkeypatch.setattr(noise_contest, "NOISE_OPPONENTS", {"hook loop": miscounts})
        with pytest.raises(DifferentResultsError, match="at scale 0"):
            self.raced(tiny_noise("noise_mlp"))

    def test_at_other_scales_get_no_ratio(self, monkeypatch):
        def deaf(task, setting):
            return NOISE_OPPONENTS["hook loop"](replace(task, factors=0 * task.factors), setting)

        monkeypatch.setattr(noise_contest, "NOISE_OPPONENTS", {"hook loop": deaf})
        workload = tiny_noise("noise_mlp")
        with pytest.raises(DifferentResultsError, match="losses, in standard errors"):
            self.raced(replace(workload, network=replace(workload.network, examples=300)))

    def raced(self, workload):
        contest = NoiseContest(workload, 0.0)
        contest.run_opponents()
        contest.run_ours()
        return contest.result()


def test_a_missed_floor_fails_after_the_report(monkeypatch):
    def with_floor(name):
        workload = tiny_noise(name)
        return replace(workload, network=replace(workload.network, floors={"hook loop": 1e9}))

    monkeypatch.setattr(benchmark, "tiny_noise", with_floor)
    kept = []
    with pytest.raises(AssertionError, match="below"):
        benchmark.test_noise("noise_mlp", Rounds(), lambda race, _name: kept.append(race), True)
    assert len(kept) == 1


def test_opponents_need_nothing_of_the_package():
    code = "import sys; sys.modules['sdkernels'] = None; import python_bench.opponents.noise"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_page_has_a_table_for_every_workload():
    page = tables.PAGE.read_text()
    assert all(f"<!-- {name} -->" in page for name in NOISE_WORKLOADS)


def test_the_benchmark_runs_tiny(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "python_bench/test_noise.py"]
    done = subprocess.run(
        [*command, "--tiny", "-k", "mlp", "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in tmp_path.glob("*.json")} == {"noise_mlp", "noise_mlp_own_draws"}
