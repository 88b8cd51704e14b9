"""Sweeps of ResNets on folders of images: the same numbers as on tensors that hold all of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from typer.testing import CliRunner

import sdkernels as sd
from sdkernels.cli import app
from sdkernels.engine.ledger import Ledger
from sdkernels.lab import folders
from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.folders import load_imagenet
from sdkernels.lab.models import resnet18, resnet50
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, data, read_sweep, run_sweep
from sdkernels.lab.sweep.table import networks_table
from sdkernels.lab.training import TrainingOptions, evaluate, train
from tests.lab.small_folders import CLASSES, make_imagenet
from tests.lab.small_sweeps import forbid_training, items, stop_after

TOP = ["block4.1", "block4.2", "block4.3"]
LAYERS = ["layer4.0.relu@2", "layer4.1.relu@2", "layer4.2.relu@2"]
METRICS = ["accuracy", "top5", "loss"]
ABLATION = Condition(
    "ablation", "cumulative_ablation", TOP, arguments={"orders": 2, "points": 4, "metrics": METRICS, "seed": 3}
)
NOISE = Condition(
    "noise", "noise_robustness", TOP, "test", arguments={"scales": [0.5, 2.0], "repeats": 2, "metrics": METRICS}
)
IMPORTANCE = Condition("importance", "unit_importance", ["block4.3"], "test", 12, {"metrics": METRICS, "batch_size": 5})
STATISTICS = Condition("statistics", "unit_statistics", TOP[:2], "test")


def settings(**changes):
    given = {
        "model": "resnet18",
        "options": {"stride": "last", "width": 1 / 32},
        "training": TrainingOptions(epochs=2, batch_size=16, learning_rate=1e-2),
        "image_size": 32,
        "corruption": 0.5,
    }
    return NetworkSettings("imagenet", **given | changes)


SWEEP = Sweep((settings(),), (STATISTICS,), checkpoint_seconds=0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """The run of a sweep that nothing stops."""
    return run_sweep(SWEEP, tmp_path_factory.mktemp("whole") / "work.sdk", data_dir=data_dir)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "work.sdk"


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    """Folders are listed once a process."""
    yield
    data._read_folder.cache_clear()


def tensors(data_dir, split, resize, crop, standardised):
    """All images float32 [N, 3, crop, crop] and labels, by Pillow and arithmetic."""
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((data_dir / "imagenet" / split / name).iterdir()):
            image = Image.open(path)
            short = min(image.size)
            width, height = (resize * side // short for side in image.size)
            left, top = round((width - crop) / 2), round((height - crop) / 2)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            cut = torch.from_numpy(np.array(image)[top : top + crop, left : left + crop])
            images.append(cut.permute(2, 0, 1).float() / 255)
            labels.append(label)
    inputs = torch.stack(images)
    if standardised:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        inputs = (inputs - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return inputs, torch.tensor(labels)


def assert_same_network(done, model, training, tested):
    record, found = done.record(0), done.model(0).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found[name]), name
    assert (record["train_accuracy"], record["train_loss"]) == (training.accuracy, training.loss)
    assert (record["test_accuracy"], record["test_loss"]) == (tested.accuracy, tested.loss)


def assert_same_end(one, other):
    """Weights, history and results of two runs of a sweep of one network."""
    weights, others = one.model(0).state_dict(), other.model(0).state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    told, told_other = (
        {name: value for name, value in record.items() if name not in ("seconds", "evaluation_seconds", "history")}
        | {"history": [{**epoch, "seconds": 0} for epoch in record["history"]]}
        for record in (one.record(0), other.record(0))
    )
    assert told == told_other
    assert one.result(0, "statistics").mean.equal(other.result(0, "statistics").mean)


class TestNumbers:
    def test_a_sweep_is_what_calls_by_hand_give(self, data_dir, store):
        own = settings(model="resnet50", standardise=True, examples=15)
        done = run_sweep(Sweep((own,), (ABLATION, NOISE, IMPORTANCE, STATISTICS)), store, data_dir=data_dir)
        inputs, true = tensors(data_dir, "train", 37, 32, standardised=True)
        kept = [int(i * 2.4 + 1e-9) for i in range(15)]  # of 36
        train_data = inputs[kept], corrupt_labels(true[kept], 0.5, seed_for("corruption", 0))
        test = tensors(data_dir, "val", 37, 32, standardised=True)
        some = [int(i * 1.5) for i in range(12)]  # of 18, three a class
        model = resnet50(classes=6, stride="last", width=1 / 32, seed=seed_for("initialisation", 0))
        training = train(model, train_data, own.training, seed=seed_for("shuffling", 0))
        assert done.labels(0).equal(train_data[1])
        assert_same_network(done, model, training, evaluate(model, test))
        more = {"metrics": tuple(METRICS)}
        for name, expected in {
            "ablation": sd.cumulative_ablation(model, LAYERS, train_data, orders=2, points=4, seed=3, **more),
            "noise": sd.noise_robustness(model, LAYERS, test, scales=[0.5, 2.0], repeats=2, **more),
            "importance": sd.unit_importance(model, LAYERS[2:], (test[0][some], test[1][some]), batch_size=5, **more),
        }.items():
            result = done.result(0, name)
            assert (result.layers, result.examples) == (expected.layers, expected.examples)
            for metric in METRICS:
                assert result.sums[metric].equal(expected.sums[metric]), (name, metric)
                assert result.baseline_sums[metric].equal(expected.baseline_sums[metric]), (name, metric)
        assert done.result(0, "ablation").sums["top5"].unique().numel() > 1  # of six classes, one is left out
        result, expected = done.result(0, "statistics"), sd.unit_statistics(model, LAYERS[:2], test)
        assert result.mean.equal(expected.mean)
        assert result.class_mean.equal(expected.class_mean)
        assert {f"{name}_accuracy" for name in ("ablation", "noise", "importance")} <= {*networks_table(done)}

    @pytest.mark.parametrize(
        ("changes", "resize", "crop"),
        [({}, 37, 32), ({"image_size": 40, "corruption": 0.0, "seed": 5}, 46, 40)],
        ids=["corrupted", "larger, true labels"],
    )
    def test_training_is_what_it_is_by_hand(self, data_dir, store, changes, resize, crop):
        own = settings(**changes)
        done = run_sweep(Sweep((own,)), store, data_dir=data_dir)
        inputs, labels = tensors(data_dir, "train", resize, crop, standardised=False)
        labels = corrupt_labels(labels, own.corruption, seed_for("corruption", own.seed))
        model = resnet18(classes=6, stride="last", width=1 / 32, seed=seed_for("initialisation", own.seed))
        training = train(model, (inputs, labels), own.training, seed=seed_for("shuffling", own.seed))
        tested = evaluate(model, tensors(data_dir, "val", resize, crop, standardised=False))
        assert_same_network(done, model, training, tested)

    def test_processes_that_decode_change_nothing(self, data_dir, whole, store, monkeypatch):
        made = []
        monkeypatch.setattr(folders, "_FEW", 1)
        monkeypatch.setattr(folders, "reading_processes", lambda: made.append(2) or 2)
        helped = run_sweep(SWEEP, store, data_dir=data_dir)
        assert len(made) == 3  # a training, a test set, a measure
        assert_same_end(whole, helped)

    def test_convolutional_networks_have_the_images_size(self, data_dir, store):
        options = {"model": "convnet", "options": {"width": 0.03}, "image_size": 16, "examples": 12}
        own = replace(settings(), **options)
        done = run_sweep(Sweep((own,)), store, data_dir=data_dir)
        inputs, labels = tensors(data_dir, "train", 18, 16, False)
        labels = corrupt_labels(labels[::3], 0.5, seed_for("corruption", 0))
        assert evaluate(done.model(0), (inputs[::3], labels)).accuracy == done.record(0)["train_accuracy"]


class TestOnce:
    @pytest.mark.parametrize(("messages", "few"), [(1, 1000), (5, 1000), (4, 1)], ids=str)
    def test_an_interrupted_sweep_goes_on_to_the_same_end(self, data_dir, whole, store, monkeypatch, messages, few):
        monkeypatch.setattr(folders, "_FEW", few)
        with monkeypatch.context() as stopped:
            stop_after(stopped, messages)
            with pytest.raises(KeyboardInterrupt):
                run_sweep(SWEEP, store, data_dir=data_dir)
        assert items(store, "training state")
        with monkeypatch.context() as counted:
            again = stop_after(counted, 100)
            done = run_sweep(SWEEP, store, data_dir=data_dir)
        assert len(again) == 8 - messages  # a state after each of six steps, the network, and its measure
        assert_same_end(whole, done)
        assert not items(store, "training state")

    def test_moved_folders_are_the_same_data(self, data_dir, store, tmp_path, monkeypatch):
        first = run_sweep(Sweep((settings(),), (STATISTICS,)), store, data_dir=data_dir)
        (tmp_path / "moved").mkdir()
        (tmp_path / "moved" / "imagenet").symlink_to(data_dir / "imagenet")
        forbid_training(monkeypatch)
        again = run_sweep(Sweep((settings(),), (STATISTICS,)), store, data_dir=tmp_path / "moved")
        assert again.keys == first.keys
        assert again.labels(0).equal(first.labels(0))

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_other_files_train_anew(self, store, tmp_path, split):
        folder = make_imagenet(tmp_path)
        own = settings(training=TrainingOptions(steps=1, batch_size=8))
        first = run_sweep(Sweep((own,)), store, data_dir=folder)
        (folder / "imagenet" / split / "n03" / "n03_1.JPEG").unlink()
        data._read_folder.cache_clear()
        assert run_sweep(Sweep((own,)), store, data_dir=folder).keys != first.keys

    def test_corrupted_labels_are_kept(self, data_dir, store):
        steps = TrainingOptions(steps=1, batch_size=8)
        networks = tuple(settings(corruption=part, training=steps) for part in (0.0, 1.0))
        done = run_sweep(Sweep(networks), store, data_dir=data_dir)
        true = torch.arange(6).repeat_interleave(6)
        assert done.labels(0).equal(true)
        assert done.labels(1).equal(corrupt_labels(true, 1.0, seed_for("corruption", 0)))
        with Ledger(store) as ledger:
            kept = [load(ledger.item("network", key).content) for key in done.keys]
        assert ["training labels" in network for network in kept] == [False, True]


class TestSettings:
    def test_of_the_usual_size(self):
        assert settings(image_size=None).record() == settings(image_size=224).record()
        assert settings(image_size=None).record()["image_size"] == 224
        assert settings(image_size=32).identity() != settings(image_size=33).identity()
        with pytest.raises(ValueError, match="networks 0 and 1 are the same"):
            Sweep((settings(image_size=None), settings(image_size=224)))

    def test_of_other_data_nothing_has_changed(self):
        own = NetworkSettings("digits", "mlp", {"hidden": [3]})
        assert "image_size" not in own.record()

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"image_size": 0}, "image_size=0 must be a whole number, at least 1"),
            ({"image_size": 32.0}, "image_size=32.0 must be a whole number"),
            ({"image_size": True}, "image_size=True must be a whole number"),
            ({"split": "all"}, "split='all': imagenet is trained on its folder train; choose split='train'"),
            ({"model": "mlp"}, "model='mlp' takes data that is in memory, and imagenet is not"),
            ({"data": "cifar10"}, "image_size=32 is of folders of images, data='imagenet'; the images of cifar10"),
            ({"data": "image net"}, "choose one of digits, .*, imagenet"),
        ],
        ids=str,
    )
    def test_that_cannot_be(self, changes, says):
        with pytest.raises(ValueError, match=says):
            replace(settings(), **changes)

    def test_in_a_file(self, tmp_path):
        path = tmp_path / "resnet.toml"
        path.write_text(
            '[network]\ndata = "imagenet"\nmodel = "resnet18"\nstride = "last"\nwidth = 0.03125\ncorruption = 0.5\n'
            "[training]\nepochs = 2\nbatch_size = 16\nlearning_rate = 1e-2\n[grid]\nimage_size = [32, 64]\n"
        )
        sweep = read_sweep(path)
        assert sweep.networks == (settings(), settings(image_size=64))
        assert sweep.varying == ["image_size"]


class TestErrors:
    """What is wrong with the folders shows before anything is trained."""

    def refused(self, error, says, data_dir, store, monkeypatch, condition=STATISTICS, **changes):
        forbid_training(monkeypatch)
        with pytest.raises(error, match=says):
            run_sweep(Sweep((settings(**changes),), (condition,)), store, data_dir=data_dir)

    def test_no_folder(self, store, tmp_path, monkeypatch):
        says = r"imagenet is read from folders of images, DIR/imagenet/train/CLASS/\*\.JPEG"
        self.refused(ValueError, says, None, store, monkeypatch)
        self.refused(FileNotFoundError, f"imagenet/train is not there: {says}", tmp_path, store, monkeypatch)

    def test_other_classes(self, store, tmp_path, monkeypatch):
        folder = make_imagenet(tmp_path, train=1, val=1)
        (folder / "imagenet" / "val" / "n03").rename(folder / "imagenet" / "val" / "n33")
        says = "val has not the classes of .*train: it lacks n03 and adds n33"
        self.refused(ValueError, says, folder, store, monkeypatch)

    def test_too_few_examples(self, data_dir, store, monkeypatch):
        self.refused(ValueError, "imagenet has 36 examples; asked for 37", data_dir, store, monkeypatch, examples=37)
        many = replace(STATISTICS, examples=19)
        says = "measure 'statistics' of network 0: imagenet has 18 examples; asked for 19"
        self.refused(ValueError, says, data_dir, store, monkeypatch, many)

    @pytest.mark.parametrize("size", [0, "five"])
    def test_batches_of_no_size(self, data_dir, store, size):
        steps = settings(training=TrainingOptions(steps=1, batch_size=8))
        condition = replace(STATISTICS, arguments={"batch_size": size})
        with pytest.raises(ValueError, match="measure 'statistics' of network 0: "):
            run_sweep(Sweep((steps,), (condition,)), store, data_dir=data_dir)

    def test_the_command_says_it_in_one_line(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.toml").write_text(
            '[network]\ndata = "imagenet"\nmodel = "resnet50"\n[training]\nepochs = 1\n'
        )
        result = CliRunner().invoke(app, ["sweep", "mine.toml", "--data-dir", "no"])
        assert result.exit_code == 2
        assert "cannot be fetched; see image-net.org" in " ".join(result.output.split())
        assert "Traceback" not in result.output


def test_a_whole_set_is_read_as_published(data_dir):
    images = data.test_data(settings(image_size=None, standardise=True), data_dir).images
    assert (images.resize, images.crop, images.pixels) == (256, 224, "standardised")
    assert images.paths == load_imagenet(data_dir, "test").images.paths


def test_analyses_get_batches_of_the_size_they_ask_for(data_dir):
    loader = data.for_analysis(data.test_data(settings(), data_dir), 5)
    assert [tuple(inputs.shape) for inputs, _ in loader] == [*[(5, 3, 32, 32)] * 3, (3, 3, 32, 32)]
