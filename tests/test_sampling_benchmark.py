"""The benchmark of sampling on toys, and the sample size that it compares with."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sdkernels as sd
from python_bench import tables
from python_bench import test_sampling as benchmark
from python_bench.contest import DifferentResultsError
from python_bench.race import Turns
from python_bench.sampling_table import Sampled, SamplingTable, Whole, as_sampling_table, normal_sample_size
from python_bench.test_sampling import TOLERANCES, Population, example_areas, populations, sampled
from python_bench.workloads import prepare, tiny

ROOT = Path(tables.__file__).parents[1]


class Once:
    """What the benchmark uses of pytest-benchmark, which need not be installed here."""

    def pedantic(self, run, rounds):
        assert rounds == 1
        run()


@pytest.fixture(scope="module")
def table() -> SamplingTable:
    kept = {}
    benchmark.test_sampling(Once(), lambda result, name: kept.update({name: result}), True)
    assert list(kept) == ["sampling"]
    return kept["sampling"]


def test_every_population_is_sampled(table):
    expected = [(p.workload.examples, tolerance) for p in populations(True) for tolerance in TOLERANCES]
    assert [(row.whole.population, row.tolerance) for row in table.rows] == expected
    for row in table.rows:
        assert len(row.used) == len(row.normal) == 2
        assert max(row.used) <= row.whole.population
        assert row.error is None or row.error <= row.tolerance
    mlp, small, large = (table.rows[i : i + 3] for i in (0, 3, 6))
    assert max(mlp[2].used) < max(mlp[0].used), "a looser tolerance takes fewer examples"
    assert all(row.error is not None for row in (*mlp, *small))
    assert all(row.error is None and row.whole.examples == 20 for row in large)


def test_the_table_is_kept(table, tmp_path):
    table.write(tmp_path, "sampling")
    assert as_sampling_table(json.loads((tmp_path / "sampling.json").read_text())) == table
    text = tables.of_result(tmp_path / "sampling.json")
    assert "\n".join(table.lines()) in text
    assert "confidence: 0.95; device" in text


def test_a_row_says_what_was_extrapolated():
    row = Sampled("w", 0.01, [100, 300], [80, 121], [2.0, 3.0, 2.5], Whole([30.0], 100, 1000), None)
    assert row.cells() == ("`w`", "1,000", "0.01", "300, 200", "121, 100", "2.50 s", "about 300 s, from 100", "")


def test_areas_of_examples_have_the_areas_as_means():
    task, family = prepare(tiny("cumulative_mlp"), torch.device("cpu"))
    curve = sd.cumulative_ablation(
        task.model,
        list(task.layers),
        (task.inputs, task.labels),
        orders=family.orders,
        points=family.points,
        outcomes=True,
    )
    areas = example_areas(curve, family)
    assert areas.shape == (2, 10)
    torch.testing.assert_close(areas.mean(1), curve.auc())


@pytest.mark.parametrize(
    ("population", "variance", "tolerance"), [(10_000, 0.2, 0.01), (500, 0.05, 0.005), (50, 1, 0.5)]
)
def test_a_normal_interval_is_as_wide_as_the_tolerance(population, variance, tolerance):
    def half_width(n: int) -> float:
        return 1.959964 * math.sqrt(variance / n * (1 - n / population))

    n = normal_sample_size(variance, population, tolerance, 0.95)
    assert half_width(n) <= tolerance < half_width(n - 1)


def test_a_wrong_area_gets_no_row(monkeypatch):
    class Wrong(Turns):
        def take(self, name):
            super().take(name)
            if name == "0.005":
                right = self.results[name]
                self.results[name] = replace(right, sums={**right.sums, "accuracy": right.correct // 2})

    monkeypatch.setattr(benchmark, "Turns", Wrong)
    with pytest.raises(DifferentResultsError, match="where the tolerance is"):
        list(sampled(Population("cumulative_mlp", tiny("cumulative_mlp"), 10, 1)))


def test_the_page_has_its_table():
    assert "<!-- sampling -->" in tables.PAGE.read_text()


def test_the_benchmark_runs_tiny(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "python_bench/test_sampling.py"]
    done = subprocess.run([*command, "--tiny", "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in tmp_path.glob("*.json")} == {"sampling"}
