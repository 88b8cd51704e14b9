"""Sweeps: what they train and measure is what calls by hand give, and is done once."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import sdkernels as sd
from sdkernels.cli import app
from sdkernels.engine.checks import SdkernelsWarning
from sdkernels.engine.ledger import Ledger, LedgerError
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.ensemble import EnsembleTrainer, train_ensemble
from sdkernels.lab.models import mlp
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Condition, NetworkSettings, NetworksFailedError, Sweep, data, network, run_sweep
from sdkernels.lab.sweep.driver import Driver
from sdkernels.lab.sweep.network import Message
from sdkernels.lab.sweep.progress import Progress
from sdkernels.lab.sweep.table import condition_table, networks_table, write_tables
from sdkernels.lab.training import Trainer, TrainingOptions, evaluate, train

OPTIONS = TrainingOptions(epochs=2, learning_rate=1e-2)
ABLATION = Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 2, "points": 5, "seed": 3})
NOISE = Condition("noise", "noise_robustness", ["hidden1"], "test", 200, {"scales": [0.5, 1.0], "repeats": 2})
IMPORTANCE = Condition("importance", "unit_importance", ["hidden1"], examples=300)
DIVERGES = {"training": TrainingOptions(epochs=2, optimiser="sgd", learning_rate=1e30)}


def settings(**changes):
    return NetworkSettings(
        **{"data": "digits", "model": "mlp", "options": {"hidden": [12]}, "training": OPTIONS} | changes
    )


def sweep_of(*changes, conditions=(), **more):
    return Sweep(tuple(settings(**change) for change in changes), conditions, **more)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture
def untrained(monkeypatch):
    """From here on nothing may be trained."""

    def refuse(*_, **__):
        raise AssertionError("a network is trained")

    def forbid():
        for owner in (Trainer, EnsembleTrainer):
            monkeypatch.setattr(owner, "__init__", refuse)

    return forbid


def items(store, kind):
    with Ledger(store) as ledger:
        return {item.key: (item.written, item.content) for item in ledger.items(kind)}


def by_hand(own, train_data, **arguments):
    model = mlp(64, (12,), 10, seed=seed_for("initialisation", own.seed))
    seed = seed_for("corruption", own.seed) if own.corruption_seed is None else own.corruption_seed
    labels = corrupt_labels(train_data.labels, own.corruption, seed)
    training = train(model, (train_data.inputs, labels), own.training, seed=seed_for("shuffling", own.seed))
    return model, labels, training


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 3, "corruption": 0.5},
        {"corruption": 0.5, "corruption_seed": 7, "examples": 400},
        {"standardise": True, "examples": 500},
    ],
    ids=str,
)
def test_a_sweep_is_what_calls_by_hand_give(changes, store):
    own = settings(**changes)
    done = run_sweep(Sweep((own,), (ABLATION, NOISE, IMPORTANCE)), store)
    data, test = load("digits"), load("digits", split="test")
    data = data if own.examples is None else data.first(own.examples)
    if own.standardise:
        data, test = data.standardised(), test.standardised(*data.statistics())
    model, labels, training = by_hand(own, data)
    record, found = done.record(0), done.model(0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])
    tested = evaluate(model, test)
    assert (record["epochs"], record["train_accuracy"], record["train_loss"]) == (
        training.epochs,
        training.accuracy,
        training.loss,
    )
    assert (record["test_accuracy"], record["test_loss"]) == (tested.accuracy, tested.loss)
    assert not found.training
    curve = sd.cumulative_ablation(model, ["relu1"], (data.inputs, labels), orders=2, points=5, seed=3)
    assert done.result(0, "ablation").correct.equal(curve.correct)
    assert done.summary(0, "ablation")["auc"] == pytest.approx(float(curve.auc().mean()))
    noise = sd.noise_robustness(model, ["relu1"], (test.inputs[:200], test.labels[:200]), scales=[0.5, 1.0], repeats=2)
    assert done.result(0, "noise").correct.equal(noise.correct)
    assert done.summary(0, "noise")["lowest"] == float(noise.accuracy.mean(0).min())
    importance = sd.unit_importance(model, ["relu1"], (data.inputs[:300], labels[:300]))
    assert done.result(0, "importance").correct.equal(importance.correct)
    assert done.summary(0, "importance")["accuracy"] == float(importance.baseline["accuracy"])


def test_all_examples_are_trained_on(store):
    done = run_sweep(sweep_of({"split": "all"}, conditions=(ABLATION,)), store)
    assert "test_accuracy" not in done.record(0)
    assert done.result(0, "ablation").examples == 1797
    assert "test_accuracy" not in networks_table(done)


def test_convolutional_networks(store):
    convnet = {"model": "convnet", "options": {"width": 0.03}, "examples": 128}
    condition = Condition("ablation", "cumulative_ablation", ["conv9"], arguments={"orders": 2, "points": 3})
    done = run_sweep(sweep_of(convnet, conditions=(condition,)), store)
    assert done.result(0, "ablation").layers == ("relu9",)
    data = load("digits").first(128).as_images()
    assert evaluate(done.model(0), data).accuracy == done.record(0)["train_accuracy"]


def test_networks_that_are_trained_together(store):
    changes = [{"seed": s, "corruption": c} for c in (0.0, 0.5) for s in (0, 1)]
    sweep = sweep_of(*changes, conditions=(ABLATION,), together=3)
    assert sweep.groups == [[0, 1, 2], [3]]
    done, digits = run_sweep(sweep, store), load("digits")
    models = [mlp(64, (12,), 10, seed=seed_for("initialisation", n.seed)) for n in sweep.networks[:3]]
    labels = [corrupt_labels(digits.labels, n.corruption, seed_for("corruption", n.seed)) for n in sweep.networks[:3]]
    seeds = [seed_for("shuffling", n.seed) for n in sweep.networks[:3]]
    for place, own in enumerate(train_ensemble(models, digits.inputs, torch.stack(labels), OPTIONS, seeds=seeds)):
        assert done.record(place)["train_accuracy"] == own.accuracy
        assert done.record(place)["together"] == 3
        assert [epoch["epoch"] for epoch in done.record(place)["history"]] == [1, 2]
        assert torch.equal(done.model(place).fc1.weight, models[place].fc1.weight)
        assert done.result(place, "ablation").baseline["accuracy"] == own.accuracy
    assert done.record(3)["together"] == 1
    alone = run_sweep(sweep_of(*changes), store)
    assert {*alone.keys} & {*done.keys} == {done.keys[3]}  # one that was trained so is not taken for the other


# Once


def test_the_second_run_does_nothing(store, untrained, monkeypatch):
    sweep = sweep_of({}, {"seed": 1}, conditions=(ABLATION, NOISE))
    run_sweep(sweep, store)
    before = [items(store, kind) for kind in ("network", "condition")]
    untrained()
    monkeypatch.setattr(network, "work_on", lambda _: pytest.fail("there is work"))
    run_sweep(sweep, store)
    assert [items(store, kind) for kind in ("network", "condition")] == before


@pytest.mark.parametrize(
    "conditions",
    [
        (NOISE,),
        (Condition("ablation", "cumulative_ablation", ["hidden1"], arguments={"orders": 3, "points": 5, "seed": 3}),),
    ],
    ids=["another measure", "a changed measure"],
)
def test_another_measure_trains_nothing(conditions, store, untrained):
    first = run_sweep(sweep_of({}, conditions=(ABLATION,)), store)
    before = items(store, "condition")
    untrained()
    again = run_sweep(sweep_of({}, conditions=conditions), store)
    assert again.keys == first.keys
    after = items(store, "condition")
    assert before.items() < after.items()
    assert len(after) == 2


def test_a_measure_under_another_name_is_the_same(store, untrained, monkeypatch):
    run_sweep(sweep_of({}, conditions=(ABLATION,)), store)
    untrained()
    named = Condition("other", ABLATION.function, ABLATION.layers, arguments=ABLATION.arguments)
    monkeypatch.setattr(sd, "cumulative_ablation", lambda *_, **__: pytest.fail("it is measured again"))
    done = run_sweep(sweep_of({}, conditions=(named,)), store)
    assert "other_auc" in networks_table(done)


def test_networks_are_shared_among_sweeps(store, monkeypatch):
    run_sweep(sweep_of({}, {"seed": 1}), store)
    trained, original = [], Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a, seed, **k: (trained.append(seed), original(self, *a, seed=seed, **k))[1]
    )
    run_sweep(sweep_of({"seed": 2}, {"seed": 1}, {}, name="another"), store)
    assert trained == [seed_for("shuffling", 2)]


@pytest.mark.parametrize("changed", ["train", "test"])
def test_other_bytes_of_data_train_anew(changed, store, monkeypatch):
    def other(name, folder, split):
        found = load(name, folder, split=split)
        return replace(found, inputs=found.inputs * (0.5 if split == changed else 1))

    first = run_sweep(sweep_of({}), store)
    data._read.cache_clear()
    monkeypatch.setattr(data, "load", other)
    try:
        assert run_sweep(sweep_of({}), store).keys != first.keys
    finally:
        data._read.cache_clear()


# Stopped


def stop_after(monkeypatch, messages):
    original, seen = Driver.keep, []

    def keep(self, number, message):
        if len(seen) == messages:
            raise KeyboardInterrupt
        seen.append(message.what)
        original(self, number, message)

    monkeypatch.setattr(Driver, "keep", keep)
    return seen


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

    def late(work, member, model, own, training, history):
        message = original(work, member, model, own, training, history)
        with Ledger(store) as ledger, torch.no_grad():
            model.out.weight[0].add_(1.0)
            other = original(work, member, model, own, training, history)
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


# Tables


def test_settings_and_results_of_one_name(store, tmp_path):
    """Settings that vary may be called as a result's columns are, or as how training ended."""
    changes = [
        {"training": TrainingOptions(epochs=epochs, learning_rate=0.05, stop_when_memorised=True), "examples": examples}
        for epochs, examples in ((1, 150), (100, 120))
    ]
    sampled = Condition("sampled", "unit_importance", ["hidden1"], arguments={"tolerance": 0.3})
    done = run_sweep(sweep_of(*changes, conditions=(sampled,)), store)
    table = networks_table(done)
    assert table["epochs"].tolist() == [1, 100]
    assert table["trained_epochs"].tolist() == [1, done.record(1)["epochs"]]
    assert 1 < done.record(1)["epochs"] < 100
    table = condition_table(done, "sampled")
    assert table["network_examples"].tolist() == [150] * 12 + [120] * 12
    assert table["examples"].tolist() == [
        *done.result(0, "sampled").used.tolist(),
        *done.result(1, "sampled").used.tolist(),
    ]
    assert table.columns[:3].tolist() == ["network", "epochs", "network_examples"]


def test_tables_are_written_whole(store, tmp_path):
    done = run_sweep(sweep_of({}, {"seed": 1}, conditions=(ABLATION,)), store)
    out = tmp_path / "out"
    out.mkdir()
    (out / "ablation.csv.123.partial").write_text("half a ta")
    (out / "mine.csv.1.partial").write_text("another's")
    for _ in range(2):
        assert write_tables(done, out) == [out / "networks.csv", out / "ablation.csv"]
    assert {path.name for path in out.iterdir()} == {"networks.csv", "ablation.csv", "mine.csv.1.partial"}
    table = pd.read_csv(out / "networks.csv")
    assert table.columns[:3].tolist() == ["network", "seed", "trained_epochs"]
    assert table["train_accuracy"].tolist() == pytest.approx(
        [done.record(i)["train_accuracy"] for i in (0, 1)], rel=1e-9
    )
    table = pd.read_csv(out / "ablation.csv")
    assert table["network"].tolist() == [0] * 10 + [1] * 10
    correct = [
        *done.result(0, "ablation").correct.flatten().tolist(),
        *done.result(1, "ablation").correct.flatten().tolist(),
    ]
    assert table["correct"].tolist() == correct


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text, *arguments):
        (tmp_path / "mine.toml").write_text(text)
        with warnings.catch_warnings():
            return CliRunner().invoke(app, ["sweep", "mine.toml", *arguments])

    return run


TEXT = """
checkpoint_seconds = 0
[network]
data = "digits"
model = "mlp"
hidden = [8]
[training]
epochs = 2
[grid]
seed = [0, 1]
[[measure]]
name = "ablation"
function = "cumulative_ablation"
layers = ["hidden1"]
orders = 2
points = 3
"""


def test_the_command_and_its_files(command, tmp_path):
    result = command(TEXT)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "runs" / "mine").iterdir()} == {"networks.csv", "ablation.csv"}
    assert (tmp_path / "mine.sdk").exists()
    for words in (
        "train_accuracy",
        "ablation_auc",
        "wrote runs/mine/networks.csv",
        "network 1: ablation",
    ):
        assert words in result.output, words
    assert "100%" in result.output
    again = command(TEXT)
    assert again.exit_code == 0
    assert "4.0 of 4" in again.output
    assert "network 1" not in again.output  # nothing is done


def test_progress_counts_trainings_that_are_under_way():
    changes = [{"seed": s} for s in range(4)]
    sweep = sweep_of(*changes, {"training": TrainingOptions(steps=9)}, conditions=(ABLATION,), together=4)
    history = {"history": [{"epoch": 1, "accuracy": [0.5, 0.25]}]}
    with Progress(sweep, 10, 2, True) as progress:
        for number, message, pieces, words in (
            (0, Message(0, "state", "", history, b"", 0.5), 4.0, "networks 0 to 3: epoch 1 of 2, accuracy 0.2500"),
            (0, Message(0, "network", "", history, b""), 4.0, "networks 0 to 3: epoch 1 of 2, accuracy 0.2500"),
            (0, Message(3, "failure", "", {"error": "!"}, b""), 3.0, "networks 0 to 3: has failed"),
            (0, Message(1, "condition", "ablation", {}, b""), 4.0, "network 1: ablation"),
            (1, Message(4, "state", "", {"history": []}, b"", 0.25), 4.25, "network 4: begun"),
        ):
            progress.see(number, message)
            assert progress._bar.n == pieces
            assert progress._words(number, message) == words


@pytest.mark.parametrize(
    ("text", "arguments", "code", "says"),
    [
        ("x = [", (), 2, "mine.toml: "),
        (TEXT.replace("orders", "ordres"), (), 2, "has no argument 'ordres'; close: orders"),
        (TEXT.replace("orders = 2", "orders = 'two'"), (), 2, "measure 'ablation' of network 0"),
        (
            TEXT.replace("epochs = 2", "epochs = 2\noptimiser = 'sgd'\nlearning_rate = 1e30"),
            (),
            1,
            "network 1 (seed 1)",
        ),
        (TEXT, ("--out", "mine.toml"), 2, "mine.toml"),
        (TEXT, ("--store", "mine.toml"), 2, "is no ledger"),
        (TEXT, ("--store", "no/such/mine.sdk"), 2, "there is no folder"),
        (TEXT.replace('"digits"', '"mnist"'), (), 2, "data"),
        (TEXT.replace('"digits"', '"mnist"'), ("--data-dir", "no"), 2, "sdkernels data fetch mnist"),
    ],
    ids=["toml", "argument", "value", "diverged", "out", "store", "folder", "no data", "missing data"],
)
def test_misuse_is_one_clear_line(text, arguments, code, says, command, monkeypatch):
    monkeypatch.delenv("SDKERNELS_DATA", raising=False)
    result = command(text, *arguments)
    assert result.exit_code == code, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_damaged_ledger_is_one_clear_line(command, tmp_path):
    assert command(TEXT).exit_code == 0
    with Ledger(tmp_path / "mine.sdk") as ledger:
        ledger._sqlite.execute("UPDATE items SET content = x'00' WHERE kind = 'condition'")
    result = command(TEXT)
    assert result.exit_code == 2
    assert "mine.sdk is damaged: condition" in result.output


def test_ctrl_c(command, monkeypatch):
    stop_after(monkeypatch, 3)
    result = command(TEXT)
    assert result.exit_code == 130
    assert "run the same command again to go on" in result.output
