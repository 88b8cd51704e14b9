"""How long many small networks take side by side, one after the other, and by torch.func."""

from typing import Any

import pytest
import torch

from python_bench.contest import OURS
from python_bench.peaks import PRODUCT, peaks
from python_bench.race import Race, Turns
from python_bench.training_contest import ENSEMBLES, EXACT, RATES, ROUNDED, TOYS, Rows, check

TURNS = 7


@pytest.mark.parametrize("name", ENSEMBLES)
def test_training(name, benchmark, report, is_tiny):
    ensemble = (TOYS if is_tiny else ENSEMBLES)[name]
    exact = Rows(ensemble, torch.float64, epochs=1)
    for other in exact.contestants().values():
        check(exact.side_by_side(), other(), EXACT)
    rows = Rows(ensemble)
    for other in rows.contestants().values():
        check(rows.side_by_side(), other(), ROUNDED)
    turns = Turns({OURS: rows.side_by_side, **rows.contestants()})

    def run_others() -> None:
        for other in rows.contestants():
            turns.take(other)

    benchmark.pedantic(lambda: turns.take(OURS), setup=run_others, rounds=1 if is_tiny else TURNS)
    notes: dict[str, Any] = {
        "examples": ensemble.examples,
        "epochs": ensemble.epochs,
        "learning rates": len(RATES),
        "label sets": ensemble.networks,
        "GFLOP of products": round(rows.gflop, 3),
        PRODUCT: peaks(torch.device("cpu"), small=is_tiny)[PRODUCT],
    }
    title = ensemble.title.format(networks=ensemble.networks, batch_size=ensemble.batch_size)
    result = Race(title, turns.seconds, notes)
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)
