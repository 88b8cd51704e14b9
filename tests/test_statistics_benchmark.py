"""The benchmark of unit statistics on toys: it runs, and a speed-up at other results is none."""

import json
from dataclasses import replace

import pytest
import torch

import sdkernels as sd
from python_bench import tables
from python_bench import test_statistics as benchmark
from python_bench.contest import OURS, DifferentResultsError
from python_bench.statistics_contest import ADDED, FORWARD, HOOKS, MOMENTS, NETWORKS, TOYS, Hooks, check
from tests.rounds import Rounds


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_raced(name, tmp_path):
    kept = {}
    benchmark.test_statistics(name, Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept[name]
    assert list(race.seconds) == [OURS, MOMENTS, HOOKS, FORWARD]
    assert race.notes["layers"] == len(NETWORKS[name].layers)
    race.write(tmp_path, name)
    assert tables.as_race(json.loads((tmp_path / f"{name}.json").read_text())) == race
    assert f"{OURS}, {ADDED}: " in tables.of_result(tmp_path / f"{name}.json")


@pytest.mark.parametrize("name", NETWORKS)
def test_other_results_are_no_speed_up(name):
    toy = TOYS[name]
    model = toy.build().eval()
    inputs, labels = torch.rand(40, *toy.shape, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10
    found = Hooks(model, toy.layers).run(inputs, labels, 16)
    stats = sd.unit_statistics(model, toy.layers, (inputs, labels), cells=0)
    check(stats, found)
    assert not any(module._forward_hooks for module in model.modules())
    for wrong in (
        replace(stats, mean=stats.mean * 1.01),
        replace(stats, mean=stats.mean * torch.nan),
        replace(stats, fired_elements=stats.fired_elements + 1),
    ):
        with pytest.raises(DifferentResultsError):
            check(wrong, found)
