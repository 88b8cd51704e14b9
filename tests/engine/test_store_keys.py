"""store=: which calls are the same, and which are not."""

from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import nn

from sdkernels.analysis.ablation import cumulative_ablation, unit_importance
from sdkernels.engine.ledger import Ledger
from tests.engine.stored import (
    differences,
    examples,
    network,
    set_small_tiles,
    tiles_scored,
)

BOTH = ["1", "3"]
HALF = torch.tensor([0.5, 0.25, 0.0, -1.0, 2.0], dtype=torch.float64)


def squared(logits, labels):
    return logits.gather(1, labels[:, None])[:, 0].square()


@pytest.fixture(autouse=True)
def _tiles_are_small(monkeypatch):
    set_small_tiles(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "work.sdk"


CHANGES = {
    "weight": lambda: {"model": _with(lambda m: _bump(m[0].weight))},
    "slope": lambda: {"model": _with(lambda m: setattr(m[3], "negative_slope", 0.2))},
    "hook": lambda: {"model": _with(lambda m: m[0].register_forward_hook(lambda *a: a[2] + 1))},
    "own forward": lambda: {"model": _with(lambda m: setattr(m[1], "forward", torch.nn.functional.softplus))},
    "layers": lambda: {"layers": ["3", "1"]},
    "orders": lambda: {"orders": 2},
    "seed": lambda: {"seed": 1},
    "points": lambda: {"points": [0, 1]},
    "value": lambda: {"value": 1e-300},
    "value by layer": lambda: {"value": {"1": 0.0, "3": HALF}},
    "metrics": lambda: {"metrics": ["accuracy", squared]},
    "outcomes": lambda: {"outcomes": True},
    "precision": lambda: {"precision": "float32"},
    "method": lambda: {"method": "loop"},
    "within": lambda: {"within": (0.0, 1.0)},
}


def _with(change):
    model = network()
    change(model)
    return model


def _bump(weight):
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(9.0))


def test_any_change_of_a_call_is_other_work(store):
    base = {"model": network(), "layers": BOTH, "data": examples(24), "orders": 1, "points": 3}
    cumulative_ablation(**base, store=store)
    for name, change in CHANGES.items():
        given = {**base, **change()}
        with tiles_scored() as scored:
            found = cumulative_ablation(**given, store=store)
        assert len(scored) == 2, name
        assert not differences(found, cumulative_ablation(**given), sums_within=1e-10), name
    same = {"batch_size": 5, "memory_fraction": 0.1, "configs_per_batch": 2}
    with tiles_scored() as scored:
        cumulative_ablation(**base, **same, store=store)
    assert not scored
    with Ledger(store) as ledger:
        assert len(ledger.runs()) == 1 + len(CHANGES)


class Scaled(nn.Module):
    """Logits times what stands where no digest looks: in a list that another object holds, made by C code."""

    def __init__(self, held) -> None:
        super().__init__()
        self.first, self.rest, self.held = network()[0], network()[1:], held

    def forward(self, x):
        return self.rest(self.first(x)) * next(self.held)


def test_a_model_that_changed_where_no_digest_sees_it_begins_a_new_run(store):
    from itertools import repeat  # an iterator of C: its type is all that can be told

    data = examples(30)
    first, second = (unit_importance(Scaled(repeat(x)).eval(), "rest.1", data, store=store) for x in (1.0, -1.0))
    assert differences(first, second)
    for x, then in ((1.0, first), (-1.0, second)):
        with tiles_scored() as scored:
            assert not differences(unit_importance(Scaled(repeat(x)).eval(), "rest.1", data, store=store), then)
        assert not scored
    changed = data[0].clone()
    changed[0] += 1  # among those by which a model is known
    found = unit_importance(Scaled(repeat(2.0)).eval(), "rest.1", (changed, data[1]), store=store)
    assert not differences(
        found, unit_importance(Scaled(repeat(2.0)).eval(), "rest.1", (changed, data[1])), sums_within=1e-10
    )
    with Ledger(store) as ledger:
        keys = [run.key for run in ledger.runs()]
    assert [key[64:] for key in keys] == ["", "-1", "-2"]
    assert len({key[:64] for key in keys}) == 1


class Counting(nn.Module):
    """Counts its passes, keeps its last output, and is the same function for all that."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes, self.last = network(), 0, None
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        self.seen += 1
        self.last = self.inner(x)
        return self.last


def test_what_a_pass_writes_is_no_part_of_the_model(store):
    model, data = Counting().eval(), examples()
    at_once = unit_importance(model, "inner.1", data, store=store)
    with tiles_scored() as scored:
        assert not differences(unit_importance(model, "inner.1", data, store=store), at_once)
        assert not differences(unit_importance(Counting().eval(), "inner.1", data, store=store), at_once)
    assert not scored


def test_a_metric_that_was_renamed_is_another(store):
    data = examples(20)

    other = FunctionType(squared.__code__, squared.__globals__, "other")
    for metric in (squared, other):
        found = unit_importance(network(), "1", data, metrics=metric, store=store)
        assert set(found.sums) == {"accuracy", metric.__name__}


def test_a_metric_that_cannot_be_digested_is_refused(store):
    file = open(__file__)  # noqa: SIM115
    with file, pytest.raises(TypeError, match="leave out store="):
        unit_importance(network(), "1", examples(9), metrics=lambda a, b: b * bool(file), store=store)
