"""What watching every layer adds to a network's own forward pass, and what hooks with torch's reductions add."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch

import sdkernels as sd
from python_bench.contest import OURS
from python_bench.race import Race, Turns
from python_bench.statistics_contest import ADDED, FORWARD, HOOKS, MOMENTS, NETWORKS, TOYS, Hooks, check, forward
from python_bench.workloads import CLASSES

TURNS = 11


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics(name, benchmark, report, is_tiny):
    watching = (TOYS if is_tiny else NETWORKS)[name]
    model = watching.build().eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(watching.examples, *watching.shape, generator=generator)
    labels = torch.randint(0, CLASSES, (watching.examples,), generator=generator)
    size = watching.batch_size
    take = partial(sd.unit_statistics, model, watching.layers, (inputs, labels), batch_size=size)
    hooks = Hooks(model, watching.layers)
    contestants: dict[str, Callable[[], Any]] = {
        OURS: take,
        MOMENTS: partial(take, cells=0),
        HOOKS: partial(hooks.run, inputs, labels, size),
        FORWARD: partial(forward, model, inputs, size),
    }
    check(take(), contestants[HOOKS]())
    turns = Turns(contestants)

    def run_others() -> None:
        for other in contestants:
            if other != OURS:
                turns.take(other)

    benchmark.pedantic(lambda: turns.take(OURS), setup=run_others, rounds=1 if is_tiny else TURNS)
    alone = turns.seconds[FORWARD]
    added = {
        f"{what}, {ADDED}": f"{median(t / f for t, f in zip(turns.seconds[what], alone, strict=True)) - 1:.1%}"
        for what in (OURS, MOMENTS, HOOKS)
    }
    notes = {"examples": watching.examples, "batch": size, "layers": len(watching.layers), **added}
    result = Race(watching.title.format(examples=f"{watching.examples:,}"), turns.seconds, notes)
    report(result, name)
    benchmark.extra_info["seconds"] = dict(result.seconds)
