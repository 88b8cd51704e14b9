"""Statistics of units as a measure of a sweep's networks, and what a sweep's work took and where it was done."""

import time
from functools import wraps

import pytest
import torch

import sdkernels as sd
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.contents import kept_table
from sdkernels.lab.datasets import load
from sdkernels.lab.models import mlp
from sdkernels.lab.sweep import Condition, network, run_sweep
from sdkernels.lab.sweep.table import condition_table, networks_table
from sdkernels.lab.training import Trainer, TrainingOptions
from tests.lab.small_sweeps import ABLATION, IMPORTANCE, NOISE, OPTIONS, sweep_of

UNITS = Condition("units", "unit_statistics", ["hidden1"], on="test")
MOMENTS = [{"training": TrainingOptions(epochs=3), "until": until} for until in (1, 3)]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


# Statistics of units


def test_unit_statistics_are_those_of_a_call_by_hand(store, tmp_path):
    done = run_sweep(sweep_of({}, {"seed": 1}, conditions=(UNITS, ABLATION)), store)
    test = load("digits", split="test")
    for place in (0, 1):
        by_hand = sd.unit_statistics(done.model(place), ["relu1"], (test.inputs, test.labels))
        found = done.result(place, "units")
        assert isinstance(found, sd.UnitStatistics)
        assert found.layers == ("relu1",)
        for name in ("class_mean", "class_variance", "histogram", "edges", "fired_elements"):
            assert torch.equal(getattr(found, name), getattr(by_hand, name)), name
    table = condition_table(done, "units")
    assert len(table) == 24
    assert {"network", "seed", "layer", "selectivity", "mutual_information", "dead"} <= {*table.columns}
    with Ledger(store) as ledger:
        exported = kept_table(ledger, "condition", UNITS.key(done.keys[1]))
    assert exported["mean"].tolist() == table["mean"].tolist()[12:]


def test_the_summary_of_unit_statistics(store):
    """Of selectivities, live units' alone: a unit of mean activations 3 and 1 has (3 - 1) / (3 + 1)."""
    model = mlp(1, (3,), 2, seed=0).eval()
    with torch.no_grad():
        model.fc1.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        model.fc1.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    inputs, labels = torch.tensor([[2.0], [4.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    found = sd.unit_statistics(model, "relu1", (inputs, labels))
    summary = network.summary(found)
    assert summary == {"dead": 2.0, "selectivity": 0.5, "mutual_information": pytest.approx(1 / 3)}
    assert all(isinstance(value, float) for value in summary.values())
    assert network.summary(sd.unit_statistics(model, "relu1", (inputs, labels), cells=0)) == {
        "dead": 2.0,
        "selectivity": 0.5,
    }
    assert network.summary(sd.unit_statistics(model, "relu1", (inputs, labels), cells=4)).keys() == summary.keys()
    one_class = sd.unit_statistics(model, "relu1", (inputs, torch.zeros(4, dtype=torch.int64)))
    assert "selectivity" not in network.summary(one_class)


def test_the_summary_stands_in_the_table(store):
    done = run_sweep(sweep_of({}, conditions=(UNITS,)), store)
    units, row = done.result(0, "units").to_pandas(), networks_table(done).loc[0]
    assert row["units_dead"] == units["dead"].sum()
    assert row["units_selectivity"] == pytest.approx(units["selectivity"].mean())  # nan are left out
    assert row["units_mutual_information"] == pytest.approx(units["mutual_information"].mean())


def test_unit_statistics_where_workers_share_tiles(store, monkeypatch):
    """They go over the data by themselves, and the other measures by all who are there."""
    given, original = [], sd.cumulative_ablation

    @wraps(original)
    def noted(*arguments, workers, **more):
        given.append(workers)
        return original(*arguments, **more)

    monkeypatch.setattr(sd, "cumulative_ablation", noted)

    class Nobody:
        count = sharing = 2

        def run(self, start, tasks):
            do = start()
            for name, argument in tasks:
                for message in do(argument()):
                    yield name, message

    nobody = Nobody()
    done = run_sweep(sweep_of({}, conditions=(UNITS, ABLATION)), store, workers=nobody)
    assert given == [nobody]
    assert done.result(0, "units").examples == 360


def test_an_argument_that_unit_statistics_do_not_have():
    with pytest.raises(ValueError, match="unit_statistics has no argument 'cell'; close: cells"):
        Condition("units", "unit_statistics", ["hidden1"], arguments={"cell": 3})


# Seconds


@pytest.fixture
def clock(monkeypatch):
    """Epochs take 10 seconds, a network's evaluation a half, measurements 1 + their number."""
    original, measure, trained = Trainer.run_epoch, network._measure, network._trained

    def run_epoch(self, *arguments):
        metrics = original(self, *arguments)
        object.__setattr__(metrics, "seconds", 10.0)
        return metrics

    def measured(work, member, condition, model):
        message = measure(work, member, condition, model)
        assert 0 < message.record["seconds"] < 60
        return message._replace(record={**message.record, "seconds": {"ablation": 1.0, "noise": 2.0}[condition.name]})

    def evaluated(*arguments):
        message = trained(*arguments)
        assert 0 < message.record["evaluation_seconds"] < 60
        return message._replace(record={**message.record, "evaluation_seconds": 0.5})

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    monkeypatch.setattr(network, "_trained", evaluated)
    monkeypatch.setattr(network, "_measure", measured)


def test_seconds_of_trainings_and_measurements(clock, store):
    def seconds(*changes, **more):
        return run_sweep(sweep_of(*changes, **more), store).seconds()

    assert seconds({}) == 20.5
    assert seconds({}, {"seed": 1}, conditions=(ABLATION,)) == 43
    assert seconds({}, {"seed": 1}) == 41  # of this sweep's networks and measures alone
    assert seconds({}, conditions=(ABLATION, NOISE)) == 23.5
    assert seconds(*MOMENTS) == 31  # one training
    assert seconds(*MOMENTS, conditions=(NOISE,)) == 35
    assert seconds(MOMENTS[0]) == 10.5
    again = Condition("noise", "cumulative_ablation", ABLATION.layers, arguments=ABLATION.arguments)
    assert seconds({}, conditions=(ABLATION, again)) == 21.5  # one measurement under two names


def seconds_of(done, place):
    record = done.record(place)
    return record["seconds"] + record["evaluation_seconds"]


def test_seconds_of_networks_that_were_trained_together(store):
    done = run_sweep(sweep_of({}, {"seed": 1}, together=2), store)
    assert done.seconds() == pytest.approx(sum(seconds_of(done, place) for place in (0, 1)))
    assert done.seconds() > 0


def test_seconds_and_place_stand_in_the_ledger(store):
    begin = time.perf_counter()
    done = run_sweep(sweep_of({"training": OPTIONS}, conditions=(ABLATION, IMPORTANCE)), store, device="cpu")
    assert 0 < done.seconds() <= time.perf_counter() - begin
    assert (done.record(0)["device"], done.record(0)["threads"]) == ("cpu", torch.get_num_threads())
    with Ledger(store) as ledger:
        about = [item.description for item in ledger.items_without_content("condition")]
    assert sum(one["seconds"] for one in about) + seconds_of(done, 0) == pytest.approx(done.seconds())
    for one in about:
        assert (one["device"], one["threads"]) == ("cpu", torch.get_num_threads())
        assert one["summary"].keys() >= {"accuracy"}


def test_measurements_of_before_count_nothing(store):
    """Ledgers that were written when nobody noted how long a measurement took."""
    sweep = sweep_of({}, conditions=(ABLATION,))
    done = run_sweep(sweep, store)
    with Ledger(store) as ledger:
        (item,) = ledger.items("condition")
        before = {name: item.description[name] for name in item.description if name not in ("seconds", "device")}
        ledger.keep_item(item.kind, item.key, before, item.content)
    assert done.seconds() == pytest.approx(seconds_of(done, 0))
