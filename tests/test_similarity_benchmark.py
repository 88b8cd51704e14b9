"""The benchmark of similarity on toys: it runs, and a speed-up at other results is none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from python_bench import similarity_contest as contest
from python_bench import tables
from python_bench import test_similarity as benchmark
from python_bench.contest import OURS, DifferentResultsError
from python_bench.opponents.cca_pair import PAIRWISE, RawSums, mean_cca, mean_cca_by_pseudo_inverses
from python_bench.race import Turns
from python_bench.similarity_contest import RAW, TOY_STREAM, TOYS, WORKLOADS, AllPairs, Streaming
from tests.rounds import Rounds

ROOT = Path(tables.__file__).parents[1]


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_method_is_raced(name, tmp_path):
    kept = {}
    benchmark.test_all_pairs(name, Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept[name]
    assert list(race.seconds) == [OURS, *PAIRWISE[WORKLOADS[name].method]]
    assert "timed on 2 of 3 pairs" in race.table()
    race.write(tmp_path, name)
    assert tables.as_race(json.loads((tmp_path / f"{name}.json").read_text())) == race


def test_streaming_is_raced(monkeypatch):
    monkeypatch.setattr(benchmark, "memory_taken", lambda _maps, positions: positions * 2**20)
    kept = {}
    benchmark.test_streaming(Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept["similarity_streaming"]
    assert list(race.seconds) == [OURS, RAW]
    assert race.notes["2,000 positions, memory taken (MiB)"] == 2000


def test_memory_is_that_of_a_process_of_its_own():
    held = torch.ones(2**27)  # half a GiB of this one
    assert 0 < contest.memory_taken(TOY_STREAM, 1000) < 2**28 < held.nbytes


def test_numpys_ways_agree():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 200))
    y[:3] += x[:3]
    expected, backwards = mean_cca(x, y)
    assert backwards == expected
    assert 0.1 < expected < 0.9
    assert mean_cca_by_pseudo_inverses(x, y)[0] == pytest.approx(expected, abs=1e-12)
    sums = RawSums()
    for start in range(0, 200, 30):
        sums.add(x.T[start : start + 30], y.T[start : start + 30])
    assert sums.distance(5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", WORKLOADS)
def test_other_distances_are_no_speed_up(name):
    pairs = AllPairs(TOYS[name])
    for contestant in pairs.turns.seconds:
        pairs.turns.take(contestant)
    assert pairs.check() < 1e-12
    for wrong in (pairs.turns.results[OURS] + 1e-6, pairs.turns.results[OURS] * torch.nan):
        pairs.turns.results[OURS] = wrong
        with pytest.raises(DifferentResultsError):
            pairs.check()


def test_other_distances_of_maps_are_no_speed_up():
    maps = Streaming(TOY_STREAM)
    maps.turns = Turns({OURS: lambda: maps.ours() + 1e-6, RAW: maps.raw_sums})
    for contestant in (OURS, RAW):
        maps.turns.take(contestant)
    with pytest.raises(DifferentResultsError, match="distances differ"):
        maps.check()


def test_opponents_need_nothing_of_the_package():
    code = "import sys; sys.modules['sdkernels'] = None; import python_bench.opponents.cca_pair"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
