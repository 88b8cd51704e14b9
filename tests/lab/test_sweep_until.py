"""Networks in the middle of their training: those of a training that ended there, from one training for all of them."""

from dataclasses import replace

import pytest
import torch

import sdkernels as sd
from sdkernels.engine.checks import SdkernelsWarning
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.models import convnet, mlp
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import NetworksFailedError, read_sweep, run_sweep
from sdkernels.lab.sweep.network import Message
from sdkernels.lab.sweep.progress import Progress
from sdkernels.lab.sweep.table import condition_table, networks_table
from sdkernels.lab.training import Trainer, TrainingOptions, evaluate, train
from tests.lab.small_sweeps import ABLATION, NOISE, forbid_training, items, settings, stop_after, sweep_of

FIVE = TrainingOptions(epochs=5, learning_rate=1e-2)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture
def epochs(monkeypatch):
    """The epochs that were begun, or gone on with: a training's seed, and epoch."""
    begun, original = [], Trainer.run_epoch

    def run_epoch(self, *arguments):
        begun.append((self.seed, self.epoch + 1))
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    return begun


def moments(*untils, **changes):
    return [{"training": FIVE, "until": until, **changes} for until in untils]


def assert_is(done, place, model, training):
    """One of a sweep's networks is this one, to the last bit."""
    record, found = done.record(place), done.model(place).state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name
    told = record["epochs"], record["train_accuracy"], record["train_loss"], record["memorised"]
    assert told == (training.epochs, training.accuracy, training.loss, training.memorised)


# What the networks are


@pytest.mark.parametrize(
    "untils", [(1, 2, 5), (1, 2, None), (None, 3, 1, 4), (2,)], ids=lambda untils: "-".join(map(str, untils))
)
def test_each_network_is_that_of_a_training_that_ends_there(untils, store):
    done = run_sweep(sweep_of(*moments(*untils, seed=4, corruption=0.5), conditions=(ABLATION, NOISE)), store)
    digits, test = load("digits"), load("digits", split="test")
    labels = corrupt_labels(digits.labels, 0.5, seed_for("corruption", 4))
    assert len({*done.keys}) == len(untils)
    for place, until in enumerate(untils):
        model = mlp(64, (12,), 10, seed=seed_for("initialisation", 4))
        shorter = replace(FIVE, epochs=until or 5)
        training = train(model, (digits.inputs, labels), shorter, seed=seed_for("shuffling", 4))
        assert_is(done, place, model, training)
        record, tested = done.record(place), evaluate(model, test)
        assert (record["test_accuracy"], record["test_loss"]) == (tested.accuracy, tested.loss)
        assert [epoch["epoch"] for epoch in record["history"]] == [*range(1, (until or 5) + 1)]
        assert record["seconds"] == sum(epoch["seconds"] for epoch in record["history"])
        assert record["together"] == 1
        assert record["settings"].get("until") == until
        assert done.labels(place).equal(labels)
        curve = sd.cumulative_ablation(model, ["relu1"], (digits.inputs, labels), orders=2, points=5, seed=3)
        assert done.result(place, "ablation").correct.equal(curve.correct)
    with Ledger(store) as ledger:
        assert ledger.kinds()["network"] == len(untils)


def test_looking_at_a_network_changes_nothing_of_its_training(store, tmp_path):
    """Of batch norm, momentum, augmentation and a schedule, which all remember."""
    options = TrainingOptions(
        epochs=3,
        optimiser="sgd",
        momentum=0.9,
        learning_rate=0.05,
        schedule="cosine",
        batch_size=32,
        augmentation="crop_flip",
    )
    own = {"model": "convnet", "options": {"width": 0.05}, "examples": 128, "training": options}
    done = run_sweep(sweep_of(*({**own, "until": until} for until in (1, 2, None))), store)
    plain = run_sweep(sweep_of(own), tmp_path / "plain.sdk")
    assert done.keys[2] == plain.keys[0]
    kept, (_, expected) = items(store, "network"), *items(plain.store, "network").values()
    assert kept[done.keys[2]][1] == expected
    told = [{k: v for k, v in n.items() if not k.endswith("seconds")} for n in (done.record(2), plain.record(0))]
    for record in told:
        record["history"] = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["history"]]
    assert told[0] == told[1]
    model = convnet(width=0.05, in_channels=1, image_size=8, seed=seed_for("initialisation", 0))
    trainer = Trainer(model, load("digits").first(128).as_images(), options, seed=seed_for("shuffling", 0))
    for place in (0, 1):  # in the course of the whole training's schedule, not of a shorter one's
        trainer.run_epoch()
        assert_is(done, place, model, evaluate(model, load("digits").first(128).as_images(), epochs=place + 1))


def test_a_training_that_ends_sooner_leaves_its_last_network(store):
    options = TrainingOptions(epochs=200, learning_rate=0.05, stop_when_memorised=True)
    own = {"training": options, "examples": 120}
    done = run_sweep(sweep_of(*({**own, "until": until} for until in (1, 150, 200))), store)
    plain = run_sweep(sweep_of(own), store)
    last = plain.record(0)["epochs"]
    assert 1 < last < 150
    assert [done.record(place)["epochs"] for place in range(3)] == [1, last, last]
    assert [done.record(place)["memorised"] for place in range(3)] == [False, True, True]
    for place in (1, 2):
        assert torch.equal(done.model(place).fc1.weight, plain.model(0).fc1.weight)
    assert not torch.equal(done.model(0).fc1.weight, plain.model(0).fc1.weight)


def test_they_have_rows_of_their_own(store):
    done = run_sweep(sweep_of(*moments(1, 5), *moments(1, 5, seed=1), conditions=(ABLATION,)), store)
    table = networks_table(done)
    assert table.columns[:3].tolist() == ["seed", "until", "trained_epochs"]
    assert table["until"].tolist() == table["trained_epochs"].tolist() == [1, 5, 1, 5]
    assert table["train_accuracy"].nunique() == 4
    table = condition_table(done, "ablation")
    assert table.groupby("network")["until"].unique().tolist() == [[1], [5], [1], [5]]


# How they are trained


def test_a_training_is_run_once_and_no_longer_than_needed(store, epochs, monkeypatch):
    shuffling = [seed_for("shuffling", seed) for seed in (0, 1)]
    sweep = sweep_of(*moments(1, 3), *moments(1, 3, seed=1))
    run_sweep(sweep, store)
    assert epochs == [(seed, epoch) for seed in shuffling for epoch in (1, 2, 3)]
    del epochs[:]
    run_sweep(sweep_of(*moments(1, 2, 3)), store)  # what is kept is not trained again, and the rest at one go
    assert epochs == [(shuffling[0], 1), (shuffling[0], 2)]
    before = items(store, "network")
    assert len(before) == 5
    forbid_training(monkeypatch)
    run_sweep(sweep_of(*moments(3, 2, 1), conditions=(ABLATION,)), store)  # their order does not matter
    run_sweep(sweep, store)
    assert items(store, "network") == before


@pytest.mark.parametrize(
    ("together", "changes", "expected"),
    [
        (1, [*moments(1, 2, 5), *moments(1, 2, 5, seed=1)], [[0, 1, 2], [3, 4, 5]]),
        (4, [*moments(1, 2, 5), *moments(1, 2, 5, seed=1)], [[0, 1, 2], [3, 4, 5]]),
        (4, [*moments(1), *moments(1, seed=1), *moments(2), *moments(2, seed=1)], [[0, 2], [1, 3]]),
        (4, [*moments(1), *moments(1, seed=1)], [[0], [1]]),
        (4, [*moments(None, seed=1), *moments(None, 2), *moments(None, seed=2)], [[0], [1, 2], [3]]),
        (4, [*moments(None, seed=1), *moments(None), *moments(3, seed=2), *moments(None, seed=3)], None),
        (1, [*moments(1), *moments(2, examples=9), *moments(3, training=replace(FIVE, epochs=4))], [[0], [1], [2]]),
    ],
    ids=["fastest", "no ensemble", "slowest", "alone", "an end among moments", "ensembles between", "other trainings"],
)
def test_groups(together, changes, expected):
    assert sweep_of(*changes, together=together).groups == (expected or [[0, 1], [2], [3]])


def test_ensembles_and_moments_in_one_sweep(store, tmp_path):
    """Keys and results stand at their places, whatever the groups."""
    sweep = sweep_of(*moments(2), *moments(None, seed=1), *moments(None, seed=2), *moments(1), together=2)
    assert sweep.groups == [[0, 3], [1, 2]]
    done = run_sweep(sweep, store)
    assert [done.record(place)["together"] for place in range(4)] == [1, 2, 2, 1]
    assert [done.record(place)["epochs"] for place in range(4)] == [2, 5, 5, 1]
    assert [done.record(place)["settings"]["seed"] for place in range(4)] == [0, 1, 2, 0]
    alone = run_sweep(sweep_of(*moments(1, 2)), tmp_path / "alone.sdk")
    assert alone.keys == (done.keys[3], done.keys[0])


def test_the_network_of_the_last_epoch_is_that_of_the_end(store, monkeypatch):
    first = run_sweep(sweep_of(*moments(2, 5)), store)
    forbid_training(monkeypatch)
    assert run_sweep(sweep_of(*moments(None)), store).keys == first.keys[1:]
    with pytest.raises(ValueError, match="networks 0 and 1 are the same: until None"):
        sweep_of(*moments(5, None))


# Stopped


def test_stopped_at_any_message_it_ends_the_same(store, tmp_path, monkeypatch, epochs):
    sweep = sweep_of(*moments(1, 2, 4, examples=300), conditions=(ABLATION,), checkpoint_seconds=0)
    with monkeypatch.context() as patch:
        messages = stop_after(patch, -1)
        whole = items(run_sweep(sweep, tmp_path / "whole.sdk").store, "network")
    assert [m for m in messages if m != "state"] == ["network"] * 3 + ["condition"] * 3
    assert messages.count("state") == 12  # three steps an epoch, four epochs
    for stop in range(len(messages)):
        path = tmp_path / f"{stop}.sdk"
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(KeyboardInterrupt):
                run_sweep(sweep, path)
        before, states = items(path, "network"), items(path, "training state")
        assert len(states) == (1 if 0 < stop < messages.index("condition") else 0)
        with Ledger(path) as ledger:
            position = [state.description["step"] for state in ledger.items_without_content("training state")]
        del epochs[:]
        run_sweep(sweep, path)
        if len(before) < 3:  # the epoch of the state, which may be one step from its end
            assert epochs[0][1] == ((position[0] - 1) // 3 + 1 if position else 1)
        else:
            assert not epochs
        assert before.items() <= items(path, "network").items()
        assert {k: c for k, (_, c) in items(path, "network").items()} == {k: c for k, (_, c) in whole.items()}
        assert not items(path, "training state")


@pytest.mark.parametrize(("stop", "epoch"), [(30, 3), (40, 4)], ids=["right after it", "later"])
def test_a_state_beyond_a_network_that_is_gone_is_not_gone_on_from(stop, epoch, store, tmp_path, monkeypatch, epochs):
    sweep = sweep_of(*moments(1, 2, 4), checkpoint_seconds=0)
    whole = run_sweep(sweep, tmp_path / "whole.sdk")
    with monkeypatch.context() as patch:
        seen = stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, store)
    assert seen.count("network") == 2
    with Ledger(store) as ledger:
        ledger.drop_item("network", whole.keys[1])
    kept = items(store, "network")
    del epochs[:]
    with pytest.warns(
        SdkernelsWarning, match=f"network 0 begins anew: .* epoch {epoch}, and the network after epoch 2 is"
    ):
        run_sweep(sweep, store)
    assert [begun for _, begun in epochs if begun == 1] == [1] * 13  # with a pause after each of its steps
    assert kept.items() <= items(store, "network").items()
    assert {k: c for k, (_, c) in items(store, "network").items()} == {
        k: c for k, (_, c) in items(whole.store, "network").items()
    }


def test_a_training_that_diverges_leaves_the_networks_before(store, monkeypatch):
    original = Trainer.run_epoch

    def run_epoch(self, *arguments):
        if self.epoch == 3:
            with torch.no_grad():
                self.model.fc1.weight.fill_(float("nan"))
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    with pytest.raises(NetworksFailedError, match=r"network 2 \(until 4\).*diverged.*network 3") as raised:
        run_sweep(sweep_of(*moments(1, 2, 4, 5), conditions=(ABLATION,)), store)
    done = raised.value.networks
    assert [*done.failed] == [2, 3]
    assert [done.record(place)["epochs"] for place in (0, 1)] == [1, 2]
    assert networks_table(done)["ablation_auc"].isna().tolist() == [False, False, True, True]


def test_progress_counts_what_is_missing_of_a_training():
    sweep = sweep_of(*moments(1), *moments(1, seed=1), *moments(2))
    history = {"history": [{"epoch": 1, "accuracy": 0.5}]}
    with Progress(sweep, 3, 0, True) as progress:
        for number, message, pieces, words in (
            (0, Message(0, "state", "", history, b"", 0.25), 0.5, "networks 0, 2: epoch 1 of 5, accuracy 0.5000"),
            (0, Message(0, "network", "", history, b""), 1.0, "networks 0, 2: epoch 1 of 5, accuracy 0.5000"),
            (0, Message(0, "state", "", history, b"", 0.25), 1.5, "networks 0, 2: epoch 1 of 5, accuracy 0.5000"),
            (0, Message(2, "network", "", history, b""), 2.0, "networks 0, 2: epoch 1 of 5, accuracy 0.5000"),
        ):
            progress.see(number, message)
            assert progress._bar.n == pieces
            assert progress._words(number, message) == words


def test_a_state_says_how_much_of_its_group_it_is(store, monkeypatch):
    """What is kept counts by itself: the bar never goes beyond what is done."""
    seen = []
    monkeypatch.setattr(Progress, "see", lambda _, number, message: seen.append((message.what, message.done)))
    run_sweep(sweep_of(*moments(1, 5, examples=300), checkpoint_seconds=0), store)
    done = [share for what, share in seen if what == "state"]
    assert done[:3] == [1 / 15, 2 / 15, 3 / 15]
    assert done[3:6] == [4 / 30, 5 / 30, 6 / 30]


# What is refused, and files


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"until": 0}, "until=0 must be a whole number of the training's epochs, 1..2"),
        ({"until": 3}, "until=3 must be a whole number of the training's epochs, 1..2"),
        ({"until": True}, "until=True must be"),
        ({"until": 1.0}, "until=1.0 must be"),
        ({"until": "1"}, "until='1' must be"),
        (
            {"until": 1, "training": TrainingOptions(steps=30)},
            "until=1 counts epochs, and .* steps=30: give it by epochs",
        ),
    ],
    ids=str,
)
def test_moments_that_there_are_not(changes, says):
    with pytest.raises(ValueError, match=says):
        settings(**changes)


@pytest.mark.parametrize("grid", ["seed = [0, 1]\nuntil = [1, 2, 5]", "until = [1, 2, 5]\nseed = [0, 1]"])
def test_files_say_moments_in_their_grid(grid, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        f"[network]\ndata = 'digits'\nmodel = 'mlp'\nhidden = [12]\n[training]\nepochs = 5\n[grid]\n{grid}\n"
    )
    sweep = read_sweep(path)
    assert {tuple(sweep.networks[i].until for i in group) for group in sweep.groups} == {(1, 2, 5)}
    assert sorted(sweep.networks[group[0]].seed for group in sweep.groups) == [0, 1]
    path.write_text(path.read_text().replace("5]", "6]"))
    with pytest.raises(ValueError, match=r"mine\.toml: until=6 must be"):
        read_sweep(path)


def test_dropout_draws_what_it_draws_unseen(store):
    """Each moment of a training with dropout is that of one that ends there; analyses see what comes before it."""
    dropping = {"options": {"hidden": [12], "dropout": 0.3}}
    done = run_sweep(sweep_of(*moments(2, 5, **dropping), conditions=(ABLATION,)), store)
    for place, until in enumerate((2, 5)):
        model = mlp(64, (12,), 10, seed=seed_for("initialisation", 0), dropout=0.3)
        training = train(model, load("digits"), replace(FIVE, epochs=until), seed=seed_for("shuffling", 0))
        assert_is(done, place, model, training)
        assert done.result(place, "ablation").layers == ("relu1",)
        assert done.result(place, "ablation").baseline["accuracy"] == training.accuracy
