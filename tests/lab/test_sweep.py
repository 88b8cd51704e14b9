"""Sweeps: what they train and measure is what calls by hand give, and is done once."""

import warnings
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

import sdkernels as sd
from sdkernels.cli import app
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.ensemble import train_ensemble
from sdkernels.lab.models import mlp
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Condition, Sweep, data, network, run_sweep
from sdkernels.lab.sweep.network import Message
from sdkernels.lab.sweep.progress import Progress
from sdkernels.lab.sweep.table import condition_table, networks_table, write_tables
from sdkernels.lab.training import Trainer, TrainingOptions, evaluate, train
from tests.lab.small_sweeps import (
    ABLATION,
    IMPORTANCE,
    NOISE,
    OPTIONS,
    forbid_training,
    items,
    settings,
    stop_after,
    sweep_of,
)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture
def untrained(monkeypatch):
    return partial(forbid_training, monkeypatch)


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
    assert done.labels(0).equal(labels)
    with Ledger(store) as ledger:  # kept with the network, where they are not the data's own
        kept = safetensors.torch.load(ledger.item("network", done.keys[0]).content)
    assert ("training labels" in kept) == bool(own.corruption)
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
