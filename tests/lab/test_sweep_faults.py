"""Sweeps that were stopped go on, and what goes wrong is named."""

import os
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
import torch

import sdkernels as sd
from sdkernels.engine.checks import SdkernelsWarning
from sdkernels.engine.ledger import Ledger, LedgerError
from sdkernels.lab.datasets import load
from sdkernels.lab.sweep import Condition, NetworksFailedError, network, run_sweep
from sdkernels.lab.sweep.driver import Driver
from sdkernels.lab.sweep.table import condition_table, networks_table
from sdkernels.lab.training import TrainingOptions
from tests.lab.small_sweeps import ABLATION, IMPORTANCE, NOISE, forbid_training, items, stop_after, sweep_of

DIVERGES = {"training": TrainingOptions(epochs=2, optimiser="sgd", learning_rate=1e30)}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture
def untrained(monkeypatch):
    return partial(forbid_training, monkeypatch)


# Stopped


@pytest.mark.parametrize("together", [1, 3])
def test_stopped_before_any_message_it_ends_the_same(together, store, tmp_path, monkeypatch):
    changes = [{"seed": seed} for seed in range(3)]
    sweep = sweep_of(*changes, conditions=(ABLATION,), together=together, checkpoint_seconds=0)
    whole = run_sweep(sweep, tmp_path / "whole.sdk")
    everything, stopped = items(whole.store, "network"), 0
    while True:
        with monkeypatch.context() as patch:
            seen = stop_after(patch, 5 if together == 1 else 2)
            try:
                run_sweep(sweep, store)
                break
            except KeyboardInterrupt:
                stopped += 1
                kept = items(store, "network")
                assert seen.count("network") <= 3
    assert stopped >= 2
    assert {k: c for k, (_, c) in items(store, "network").items()} == {k: c for k, (_, c) in everything.items()}
    assert kept.items() <= items(store, "network").items()
    assert not items(store, "training state")


def test_a_state_of_a_finished_training_is_taken_out(store, monkeypatch):
    sweep = sweep_of({}, checkpoint_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "drop_item", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, store)
    assert len(items(store, "network")) == len(items(store, "training state")) == 1
    run_sweep(sweep, store)
    assert not items(store, "training state")


def test_a_state_that_does_not_fit_begins_anew(store, tmp_path, monkeypatch):
    sweep = sweep_of({}, checkpoint_seconds=0)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, store)
    with Ledger(store) as ledger:
        (state,) = ledger.items("training state")
        ledger.keep_item(state.kind, state.key, {**state.description, "device": "cuda"}, state.content)
    with pytest.warns(SdkernelsWarning, match="network 0 begins anew.*device"):
        run_sweep(sweep, store)
    whole = run_sweep(sweep, tmp_path / "whole.sdk")
    assert [c for _, c in items(store, "network").values()] == [c for _, c in items(whole.store, "network").values()]


def test_weights_of_another_process_are_those_that_are_measured(store, monkeypatch):
    """Two processes whose weights differ in a last bit: the first to finish is kept, with results of its weights."""
    sweep, original, others = sweep_of({}, conditions=(ABLATION,)), network._trained, []

    def late(work, member, model, *more):
        message = original(work, member, model, *more)
        with Ledger(store) as ledger, torch.no_grad():
            model.out.weight[0].add_(1.0)
            other = original(work, member, model, *more)
            ledger.keep_item("network", driver_key(sweep, store), other.record, other.content)
            others.append(model.out.weight.clone())
            model.out.weight[0].sub_(2.0)
        return message

    monkeypatch.setattr(network, "_trained", late)
    done = run_sweep(sweep, store)
    assert torch.equal(done.model(0).out.weight, others[0])
    digits = load("digits")
    expected = sd.cumulative_ablation(
        done.model(0), ["relu1"], (digits.inputs, digits.labels), orders=2, points=5, seed=3
    )
    assert done.result(0, "ablation").correct.equal(expected.correct)


def driver_key(sweep, store):
    with Ledger(store) as ledger:
        return Driver(ledger, sweep, None, "cpu").keys[0]


def test_two_processes_at_once(tmp_path):
    spec = tmp_path / "both.toml"
    spec.write_text(
        "checkpoint_seconds = 0\n[network]\ndata = 'digits'\nmodel = 'mlp'\nhidden = [12]\n[training]\nepochs = 3\n"
        "[grid]\nseed = [0, 1, 2]\n[[measure]]\nname = 'ablation'\nfunction = 'cumulative_ablation'\n"
        "layers = ['hidden1']\norders = 3\npoints = 7\n"
    )
    command = [
        sys.executable,
        "-c",
        "from sdkernels.cli import main; main()",
        "sweep",
        str(spec),
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    for process in both:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    store = tmp_path / "both.sdk"
    assert (len(items(store, "network")), len(items(store, "condition"))) == (3, 3)
    assert not items(store, "training state")
    assert not list(tmp_path.glob("*.partial"))
    assert len(pd.read_csv(tmp_path / "ablation.csv")) == 3 * 21


# What goes wrong


@pytest.mark.parametrize("together", [1, 3])
def test_a_network_that_diverges_is_named_and_the_others_are_done(together, store, tmp_path, untrained):
    sweep = sweep_of({}, DIVERGES, {"seed": 1}, conditions=(ABLATION,))
    if together > 1:
        adam = TrainingOptions(epochs=2, optimiser="sgd", learning_rate=0.1)
        sweep = sweep_of(
            {"training": adam}, DIVERGES, {"training": adam, "seed": 1}, conditions=(ABLATION,), together=3
        )
        assert sweep.groups == [[0, 1, 2]]
    with pytest.raises(NetworksFailedError, match=r"network 1 \(.*1e\+30.*diverged.* 2 of 3 networks") as raised:
        run_sweep(sweep, store)
    done = raised.value.networks
    assert [*done.failed] == [1]
    table = networks_table(done)
    assert table["ablation_auc"].isna().tolist() == [False, True, False]
    assert condition_table(done, "ablation")["network"].unique().tolist() == [0, 2]
    with pytest.raises(LookupError, match=r"is not there: .*diverged"):
        done.record(1)
    before = items(store, "network")
    assert len(before) == 2
    with pytest.raises(NetworksFailedError):  # tried again, and the others left as they are
        run_sweep(sweep, store)
    assert items(store, "network") == before


def test_a_sweep_of_which_all_networks_diverge(store):
    with pytest.raises(NetworksFailedError, match="The other 0 of 1 networks") as raised:
        run_sweep(sweep_of(DIVERGES, conditions=(ABLATION,)), store)
    assert condition_table(raised.value.networks, "ablation").empty


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (sweep_of({}, {"options": {"hidden": [-1]}}), r"network 1 \(hidden \[-1\]\): model 'mlp'"),
        (sweep_of({}, {"options": {"width": 1}}), "model 'mlp' has no option width"),
        (
            sweep_of({}, conditions=(Condition("a", "unit_importance", ["hidden2"]),)),
            "measure 'a' of network 0: the model has no layer 'hidden2'",
        ),
        (
            sweep_of({"split": "all"}, conditions=(NOISE,)),
            "measure 'noise' of network 0: on='test': the network is trained on all examples",
        ),
        (sweep_of({"examples": 299}, conditions=(IMPORTANCE,)), "digits has 299 examples; asked for 300"),
        (sweep_of({"examples": 2000}), "digits has 1437 examples; asked for 2000"),
    ],
    ids=["model", "option", "layer", "test", "examples of a measure", "examples"],
)
def test_what_is_wrong_shows_before_any_training(sweep, says, store, untrained):
    untrained()
    with pytest.raises(ValueError, match=says):
        run_sweep(sweep, store)


def test_a_value_that_a_measure_does_not_take_names_the_measure(store, untrained):
    wrong = Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 0})
    with pytest.raises(ValueError, match=r"measure 'ablation' of network 0: .*orders"):
        run_sweep(sweep_of({}, conditions=(wrong,)), store)
    untrained()  # the network is kept
    run_sweep(sweep_of({}, conditions=(ABLATION,)), store)


def test_no_such_measure(store):
    done = run_sweep(sweep_of({}, conditions=(ABLATION,)), store)
    with pytest.raises(ValueError, match="there is no measure 'noise'; there are"):
        done.result(0, "noise")


def test_what_was_dropped_meanwhile(store):
    done = run_sweep(sweep_of({}), store)
    with Ledger(store) as ledger:
        ledger.drop_item("network", done.keys[0])
    with pytest.raises(LookupError, match="run the sweep again"):
        done.model(0)


def test_a_damaged_network_is_not_taken_for_right(store):
    sweep = sweep_of({}, conditions=(ABLATION,))
    done = run_sweep(sweep, store)
    with Ledger(store) as ledger:
        ledger._sqlite.execute("UPDATE items SET content = x'00' WHERE kind = 'network'")
    for read in (done.model, done.record):
        with pytest.raises(LedgerError, match="is damaged: network"):
            read(0)
