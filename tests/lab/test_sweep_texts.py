"""Sweeps of language models on texts: the same numbers as training by hand, at every moment, whatever stops it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from sdkernels.cli import app
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.contents import contents
from sdkernels.lab.datasets import load_text
from sdkernels.lab.models import lstm_language_model
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, data, read_sweep, run_sweep
from sdkernels.lab.sweep.table import networks_table
from sdkernels.lab.training import Trainer, TrainingOptions, evaluate, train
from tests.lab.small_sweeps import forbid_training, items, stop_after
from tests.lab.small_texts import make_wikitext2

OPTIONS = {"embedding": 6, "hidden": 8, "layers": 2, "dropout": 0.2}
TRAINING = TrainingOptions(epochs=4, batch_size=8, unroll=20, learning_rate=1e-2, clip_norm=1.0)


def settings(name="wikitext2", **changes):
    return NetworkSettings(name, "lstm", **{"options": OPTIONS, "training": TRAINING} | changes)


def moments(*untils, **changes):
    return tuple(settings(until=until, **changes) for until in untils)


def by_hand(own, vocabulary, tokens):
    model = lstm_language_model(vocabulary, **own.options, seed=seed_for("initialisation", own.seed))
    return model, train(model, tokens, own.training, seed=seed_for("shuffling", own.seed))


def outcome(model, tokens, pieces, unroll):
    """Loss in nats and accuracy: pieces side by side, each from a state of zeros to its last token but one."""
    length = len(tokens) // pieces
    tokens = tokens[: pieces * length].view(pieces, length)
    assert unroll  # which changes nothing, as the state is carried on
    with torch.no_grad():
        logits = model(tokens[:, :-1])[0].double()
    following = tokens[:, 1:]
    return float(F.cross_entropy(logits.flatten(0, 1), following.flatten())), float(
        (logits.argmax(2) == following).double().mean()
    )


def assert_is(done, place, model, training):
    found = done.model(place)
    assert not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    record = done.record(place)
    told = record["epochs"], record["train_accuracy"], record["train_loss"], record["train_perplexity"]
    assert told == (training.epochs, training.accuracy, training.loss, training.perplexity)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_wikitext2(tmp_path_factory.mktemp("data"))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    """Texts are read once a process."""
    yield
    data._read_text.cache_clear()


class TestNumbers:
    def test_a_sweep_is_what_calls_by_hand_give(self, data_dir, store):
        own = settings(seed=3)
        done, text = run_sweep(Sweep((own,)), store, data_dir=data_dir), load_text("wikitext2", data_dir)
        model, training = by_hand(own, len(text.vocabulary), text.train)
        assert_is(done, 0, model, training)
        record = done.record(0)
        for part in ("train", "validation", "test"):
            loss, accuracy = outcome(model, getattr(text, part), 8, 20)
            assert record[f"{part}_loss"] == pytest.approx(loss, rel=1e-5), part
            assert record[f"{part}_perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
            assert record[f"{part}_accuracy"] == pytest.approx(accuracy, abs=1e-12), part
            assert done.text(0, part).tokens.equal(getattr(text, part))
        assert done.text(0).vocabulary == text.vocabulary
        assert record["test_loss"] == evaluate(model, text.test, batch_size=8, unroll=20).loss
        assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3, 4]
        assert record["history"][-1]["loss"] < record["history"][0]["loss"]

    @pytest.mark.parametrize("changes", [{"tied": True}, {"layers": 1, "dropout": 0.0, "hidden": 5}], ids=str)
    def test_of_the_digits_first_tokens(self, store, changes):
        own = settings("digits_tokens", options=OPTIONS | changes, examples=2000)
        done, text = run_sweep(Sweep((own,)), store), load_text("digits_tokens")
        model, training = by_hand(own, 18, text.train[:2000])
        assert_is(done, 0, model, training)
        assert done.record(0)["test_loss"] == evaluate(model, text.test, batch_size=8, unroll=20).loss
        assert not any("validation" in name for name in done.record(0))
        assert done.text(0, "train").tokens.equal(text.train[:2000])

    def test_layers_are_three_and_dropout_none_unless_said(self):
        built = settings("digits_tokens", options={"embedding": 6, "hidden": 8}).build(
            data.read_data(settings("digits_tokens"), None)
        )
        assert (built.layers, built.dropout.p) == (("lstm1", "lstm2", "lstm3"), 0.0)

    def test_the_validation_text_can_be_trained_on(self, data_dir, store, tmp_path):
        """Its words are the vocabulary then, whether or not the training text is there."""
        few = make_wikitext2(tmp_path / "few", ("valid", "test"))
        own = settings(split="validation", examples=300)
        done = run_sweep(Sweep((own,)), store, data_dir=data_dir)
        text = load_text("wikitext2", few)
        assert "oftrain" not in text.vocabulary
        assert "ofvalid" in text.vocabulary
        model, training = by_hand(own, len(text.vocabulary), text.validation[:300])
        assert_is(done, 0, model, training)
        loss, _ = outcome(model, text.test, 8, 20)
        assert done.record(0)["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert not any(name.startswith("validation") for name in done.record(0))
        assert done.text(0, "validation").tokens.equal(text.validation[:300])
        assert done.text(0, "test").tokens.equal(text.test)
        data._read_text.cache_clear()
        assert run_sweep(Sweep((own,)), store, data_dir=few).keys == done.keys
        assert load_text("wikitext2", data_dir, words_of="validation").train.max() < len(text.vocabulary)

    def test_without_a_test_text(self, store, tmp_path):
        few = make_wikitext2(tmp_path / "few", ("train",))
        done = run_sweep(Sweep((settings(),)), store, data_dir=few)
        assert {name for name in networks_table(done) if name.startswith("t")} == {
            "trained_epochs",
            "train_accuracy",
            "train_loss",
            "train_perplexity",
        }


class TestMoments:
    def test_each_network_is_that_of_a_training_that_ends_there(self, data_dir, store):
        done = run_sweep(Sweep(moments(1, 3, None)), store, data_dir=data_dir)
        text = load_text("wikitext2", data_dir)
        for place, until in enumerate((1, 3, 4)):
            own = settings(training=replace(TRAINING, epochs=until))
            assert_is(done, place, *by_hand(own, len(text.vocabulary), text.train))
        table = networks_table(done)
        assert table["trained_epochs"].tolist() == [1, 3, 4]
        assert table["test_perplexity"].nunique() == table["validation_perplexity"].nunique() == 3
        assert table["test_perplexity"].tolist() == pytest.approx(table["test_loss"].map(torch.tensor).map(torch.exp))

    def test_in_the_course_of_a_schedule(self, data_dir, store):
        training = replace(TRAINING, schedule="cosine", optimiser="sgd", momentum=0.9, learning_rate=0.5)
        done = run_sweep(Sweep(moments(1, 2, None, training=training)), store, data_dir=data_dir)
        text = load_text("wikitext2", data_dir)
        model = lstm_language_model(len(text.vocabulary), **OPTIONS, seed=seed_for("initialisation", 0))
        trainer = Trainer(model, text.train, training, seed=seed_for("shuffling", 0))
        for place in (0, 1):
            trainer.run_epoch()
            assert_is(done, place, model, evaluate(model, text.train, epochs=place + 1, batch_size=8, unroll=20))

    @pytest.mark.parametrize("messages", [1, 3, 8, 11])
    def test_a_training_that_is_stopped_ends_with_the_same_bits(self, data_dir, store, tmp_path, monkeypatch, messages):
        """Stopped in the middle of epochs too, where the state that the text has left in the LSTM goes on."""
        sweep = Sweep(moments(1, 3, None), checkpoint_seconds=0)
        whole = run_sweep(sweep, tmp_path / "whole.sdk", data_dir=data_dir)
        with monkeypatch.context() as patch:
            seen = stop_after(patch, messages)
            with pytest.raises(KeyboardInterrupt):
                run_sweep(sweep, store, data_dir=data_dir)
        assert seen.count("state") >= 1
        (state,) = items(store, "training state")
        with Ledger(store) as ledger:
            carried = ledger.item("training state", state).description["carried"]
        done = run_sweep(sweep, store, data_dir=data_dir)
        assert done.keys == whole.keys
        assert {k: content for k, (_, content) in items(store, "network").items()} == {
            k: content for k, (_, content) in items(whole.store, "network").items()
        }
        for place in range(3):
            ours, theirs = done.record(place), whole.record(place)
            assert ours["test_loss"] == theirs["test_loss"]
            assert [e["loss"] for e in ours["history"]] == [e["loss"] for e in theirs["history"]]
        assert not items(store, "training state")
        assert carried is None or len(carried) == 3  # a tuple of two layers' states

    def test_the_second_run_does_nothing(self, data_dir, store, monkeypatch):
        first = run_sweep(Sweep(moments(1, 2)), store, data_dir=data_dir)
        forbid_training(monkeypatch)
        assert run_sweep(Sweep(moments(2, 1)), store, data_dir=data_dir).keys == first.keys[::-1]
        with Ledger(store) as ledger:
            assert contents(ledger)["of"].str.startswith("lstm on wikitext2").all()


class TestOtherNetworks:
    @pytest.mark.parametrize("part", ["train", "valid", "test"])
    def test_other_texts_train_anew(self, store, tmp_path, part):
        folder, own = make_wikitext2(tmp_path), settings(training=TrainingOptions(steps=1, batch_size=4))
        first = run_sweep(Sweep((own,)), store, data_dir=folder)
        path = folder / "wikitext2" / f"{part}.txt"
        path.write_text(path.read_text().replace("w3", "w4", 1))
        data._read_text.cache_clear()
        assert run_sweep(Sweep((own,)), store, data_dir=folder).keys != first.keys

    def test_of_images_nothing_has_changed(self):
        own = NetworkSettings("digits", "mlp", {"hidden": [3]}, split="all")
        assert [*own.record()] == [
            *("data", "model", "options", "training", "split", "examples", "standardise", "corruption"),
            *("corruption_seed", "seed"),
        ]
        assert len(own.record()["training"]) == 17


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"data": "cifar10"}, "model='lstm' reads a text, and data='cifar10' are images: choose one of wikitext2"),
            ({"data": "imagenet"}, "model='lstm' reads a text, and data='imagenet' are images"),
            ({"model": "convnet"}, "model='convnet' takes images, and data='wikitext2' is a text: choose model='lstm'"),
            ({"model": "mlp"}, "model='mlp' takes images, and data='wikitext2' is a text"),
            ({"data": "enwik8"}, "data='enwik8': choose one of digits, .*, imagenet, wikitext2, ptb, digits_tokens"),
            ({"split": "all"}, "split='all': choose one of train, validation"),
            ({"data": "digits", "model": "mlp", "split": "validation"}, "split='validation': choose one of train, all"),
            ({"standardise": True}, "standardise=True is of pixels; wikitext2 is a text: leave it out"),
            ({"corruption": 0.5}, "corruption=0.5 is of labels, of which a text has none"),
            ({"corruption_seed": 0}, "corruption_seed=0 is of labels"),
            ({"image_size": 32}, "image_size=32 is of folders of images; wikitext2 is a text"),
            ({"training": replace(TRAINING, augmentation="crop_flip")}, "augmentation='crop_flip' is of images"),
            ({"until": 5}, "until=5 must be a whole number of the training's epochs, 1..4"),
        ],
        ids=str,
    )
    def test_settings_that_cannot_be(self, changes, says):
        with pytest.raises(ValueError, match=says):
            replace(settings(), **changes)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"units": 3}, "model 'lstm' has no option units; it has dropout, embedding, hidden, layers, tied"),
            ({"vocabulary": 3}, "model 'lstm' has no option vocabulary"),
            ({"hidden": [8]}, r"hidden=\[8\] must be a whole number, at least 1"),
            ({"embedding": 8.0}, "embedding=8.0 must be a whole number"),
            ({"layers": True}, "layers=True must be a whole number"),
            ({"dropout": 1.0}, "dropout=1.0 must be a number, at least 0 and below 1"),
            ({"dropout": "0.1"}, "dropout='0.1' must be a number"),
            ({"tied": "yes"}, "tied='yes' must be true or false"),
        ],
        ids=str,
    )
    def test_options_that_cannot_be(self, options, says, store, monkeypatch):
        forbid_training(monkeypatch)
        with pytest.raises(ValueError, match=f"network 0 .*{says}"):
            run_sweep(Sweep((settings("digits_tokens", options=OPTIONS | options),)), store)
        with pytest.raises(ValueError, match="model 'lstm' needs the option embedding, hidden"):
            run_sweep(Sweep((settings("digits_tokens", options={}),)), store)

    @pytest.mark.parametrize("function", ["cumulative_ablation", "unit_statistics"])
    def test_measures(self, store, monkeypatch, function):
        forbid_training(monkeypatch)
        says = "measure 'm' of network 0: a sweep measures classifiers, and lstm on digits_tokens is a language model"
        for layers in (["lstm1"], ["hidden1"]):
            with pytest.raises(ValueError, match=says):
                run_sweep(Sweep((settings("digits_tokens"),), (Condition("m", function, layers),)), store)

    def test_together(self):
        with pytest.raises(ValueError, match=r"together=2 is of MLPs side by side; network 1, .*is a language model"):
            Sweep((NetworkSettings("digits", "mlp", {"hidden": [3]}), settings()), together=2)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"examples": 10**6}, "wikitext2's train text has 900 tokens; asked for 1000000"),
            (
                {"examples": 15},
                "train text of 15 tokens is too short for 8 pieces of at least 2 each: lower batch_size",
            ),
            (
                {"training": replace(TRAINING, batch_size=300)},
                "wikitext2's validation text of 600 tokens is too short for 300 pieces|is too short for 300",
            ),
        ],
        ids=str,
    )
    def test_texts_that_are_too_short(self, data_dir, store, monkeypatch, changes, says):
        forbid_training(monkeypatch)
        with pytest.raises(ValueError, match=says):
            run_sweep(Sweep((settings(**changes),)), store, data_dir=data_dir)

    def test_texts_that_are_not_there(self, store, tmp_path, monkeypatch):
        forbid_training(monkeypatch)
        few = make_wikitext2(tmp_path / "few", ("valid", "test"))
        for folder, error, says in (
            (None, ValueError, "wikitext2 is read from files"),
            (tmp_path, FileNotFoundError, "wikitext2"),
            (few, FileNotFoundError, "wikitext2 has no train text here, only validation, test"),
        ):
            with pytest.raises(error, match=says):
                run_sweep(Sweep((settings(),)), store, data_dir=folder)
        with pytest.raises(FileNotFoundError, match="digits_tokens has no validation text here"):
            run_sweep(Sweep((settings("digits_tokens", split="validation"),)), store)

    def test_what_texts_and_images_do_not_have(self, store):
        networks = (
            settings("digits_tokens", training=TrainingOptions(steps=1)),
            NetworkSettings("digits", "mlp", {"hidden": [3]}, TrainingOptions(steps=1)),
        )
        done = run_sweep(Sweep(networks), store)
        with pytest.raises(ValueError, match="lstm reads digits_tokens, a text: it has tokens, and no labels"):
            done.labels(0)
        with pytest.raises(ValueError, match="network 0, lstm on digits_tokens, has no validation text; it has train"):
            done.text(0, "validation")
        with pytest.raises(ValueError, match="network 1, mlp on digits, has no test text; it has none"):
            done.text(1)


class TestFiles:
    TEXT = """
[network]
data = "wikitext2"
model = "lstm"
embedding = 6
hidden = 8
layers = 2
dropout = 0.2
[training]
epochs = 4
batch_size = 8
unroll = 20
learning_rate = 1e-2
clip_norm = 1.0
[grid]
until = [1, 4]
"""

    def test_a_file_says_it(self, tmp_path):
        path = tmp_path / "texts.toml"
        path.write_text(self.TEXT)
        assert read_sweep(path).networks == moments(1, 4)
        assert read_sweep(path).groups == [[0, 1]]

    def test_the_command_trains_it(self, data_dir, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "texts.toml").write_text(self.TEXT)
        result = CliRunner().invoke(app, ["sweep", "texts.toml", "--data-dir", str(data_dir)])
        assert result.exit_code == 0, result.output
        table = (tmp_path / "runs" / "texts" / "networks.csv").read_text().splitlines()
        assert len(table) == 3
        assert table[0].startswith("network,until,trained_epochs,memorised,train_accuracy,train_loss,train_perplexity,")
        assert table[0].endswith("validation_perplexity,test_accuracy,test_loss,test_perplexity")

    def test_what_it_cannot_do_is_one_line(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "texts.toml").write_text(self.TEXT + "corruption = [0.5]\n")
        result = CliRunner().invoke(app, ["sweep", "texts.toml"])
        assert result.exit_code == 2
        assert "corruption=0.5 is of labels" in " ".join(result.output.split())
        assert "Traceback" not in result.output
