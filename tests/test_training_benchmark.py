"""The benchmark of training side by side on toys: it runs, and a speed-up at other results is none."""

import json
from dataclasses import replace

import pytest
import torch

from python_bench import tables
from python_bench import test_training as benchmark
from python_bench.contest import OURS, DifferentResultsError
from python_bench.training_contest import ALONE, ENSEMBLES, EXACT, FUNC, ROUNDED, TOYS, Rows, check
from tests.rounds import Rounds


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_ensemble_is_raced(name, tmp_path):
    kept = {}
    benchmark.test_training(name, Rounds(), lambda race, name: kept.update({name: race}), True)
    race = kept[name]
    assert list(race.seconds) == [OURS, ALONE, FUNC]
    assert race.notes["label sets"] == TOYS[name].networks
    race.write(tmp_path, name)
    assert tables.as_race(json.loads((tmp_path / f"{name}.json").read_text())) == race
    assert ALONE in tables.of_result(tmp_path / f"{name}.json")


def test_networks_start_afresh_and_differ():
    rows = Rows(TOYS["training_digits"], torch.float64)
    first, second = rows.side_by_side(), rows.side_by_side()
    assert torch.equal(first.parameters, second.parameters)
    assert len({result.loss for result in first.results}) == len(first.results) == 9


def test_other_results_are_no_speed_up():
    rows = Rows(TOYS["training_digits"], torch.float64)
    ours, theirs = rows.side_by_side(), rows.one_after_the_other()
    check(ours, theirs, EXACT)
    worse = [replace(ours.results[0], loss=ours.results[0].loss * 1.1), *ours.results[1:]]
    longer = [replace(ours.results[0], epochs=3), *ours.results[1:]]
    for wrong in (
        replace(ours, parameters=ours.parameters * 1.01),
        replace(ours, parameters=ours.parameters.flip(0)),
        replace(ours, parameters=ours.parameters * torch.nan),
        replace(ours, results=worse),
        replace(ours, results=longer),
    ):
        with pytest.raises(DifferentResultsError):
            check(wrong, theirs, ROUNDED)
