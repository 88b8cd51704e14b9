"""Sweeps as files say them: what is read, what is refused, and what makes two networks one."""

from dataclasses import replace
from pathlib import Path

import pytest

import sdkernels
from sdkernels.lab.datasets import load
from sdkernels.lab.sweep import Condition, NetworkSettings, Sweep, read_sweep
from sdkernels.lab.training import TrainingOptions

GOOD = """
[network]
data = "digits"
model = "mlp"
hidden = [8]
[training]
epochs = 2
"""
MEASURE = """
[[measure]]
name = "noise"
function = "noise_robustness"
layers = ["hidden1"]
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return read_sweep(path)

    return read


def network(**changes):
    given = {"data": "digits", "model": "mlp", "options": {"hidden": [8]}, "training": TrainingOptions(epochs=2)}
    return NetworkSettings(**{**given, **changes})


def test_the_least_that_a_file_says(read):
    sweep = read(GOOD)
    assert sweep == Sweep((network(),), (), "mine")
    assert (sweep.checkpoint_seconds, sweep.together) == (10.0, 1)


def test_everything_that_a_file_says(read):
    sweep = read(
        'name = "all"\ncheckpoint_seconds = 3\ntogether = 2\n'
        + GOOD.replace("hidden = [8]", "hidden = [8]\nexamples = 500\nstandardise = true\nsplit = 'all'")
        + "[grid]\ncorruption = [0.0, 0.5]\nlearning_rate = [0.1, 0.2]\nseed = [4, 5]\n"
        + MEASURE
        + "on = 'train'\nexamples = 100\nrepeats = 3\nscales = [0.5, 1.0]\n"
    )
    assert (sweep.name, sweep.checkpoint_seconds, sweep.together) == ("all", 3.0, 2)
    told = [(n.corruption, n.training.learning_rate, n.seed) for n in sweep.networks]
    assert told == [(c, r, s) for c in (0.0, 0.5) for r in (0.1, 0.2) for s in (4, 5)]  # the last varies fastest
    assert {(n.examples, n.standardise, n.split) for n in sweep.networks} == {(500, True, "all")}
    arguments = {"repeats": 3, "scales": [0.5, 1.0]}
    assert sweep.conditions == (Condition("noise", "noise_robustness", ("hidden1",), "train", 100, arguments),)
    assert sweep.varying == ["learning_rate", "corruption", "seed"]
    assert sweep.label(3) == "learning_rate 0.2, corruption 0.0, seed 5"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "Invalid value"),
        ("[networks]\na = 1", "there is no entry networks; there are network, training, grid, measure, name"),
        ("", "network: there is no data"),
        (GOOD.replace('data = "digits"', ""), "network: there is no data"),
        (GOOD.replace('model = "mlp"', ""), "network: there is no model"),
        (GOOD.replace('"digits"', '"digit"'), "data='digit': choose one of digits"),
        (GOOD.replace('"mlp"', '"vgg"'), "model='vgg': choose one of mlp, convnet"),
        (GOOD.replace("epochs = 2", "epoch = 2"), "there is no training option epoch"),
        (GOOD.replace("epochs = 2", ""), "training needs a length"),
        (GOOD.replace("epochs = 2", "epochs = '2'"), "epochs='2' must be a whole number"),
        (GOOD.replace("hidden = [8]", "hidden = [8]\nepochs = 3"), "network: epochs stands in"),
        ("network = 5", "network=5 must be a table"),
        ("grid = [1]\n" + GOOD, "grid=.* must be a table"),
        (GOOD + "[grid]\nseed = 3", "grid: seed=3 must be a list of values"),
        (GOOD + "[grid]\nseed = []", "grid: seed=.. must be a list of values, at least one"),
        (GOOD + "[grid]\nseed = [1, 2, 1]", "networks 0 and 2 are the same: seed 1"),
        (GOOD + "[grid]\nlearning_rate = [1, 1.0]", "networks 0 and 1 are the same"),
        (GOOD + "[grid]\nepochs = [1, 3]", "epochs stands in grid, and in network or training too"),
        (GOOD.replace("hidden = [8]", "seed = -1"), "seed=-1 must be a whole number, at least 0"),
        (GOOD.replace("hidden = [8]", "seed = 1.5"), "seed=1.5 must be a whole number"),
        (GOOD.replace("hidden = [8]", "seed = true"), "seed=True must be a whole number"),
        (GOOD.replace("hidden = [8]", "examples = 0"), "examples=0 must be a whole number, at least 1"),
        (GOOD.replace("hidden = [8]", "standardise = 1"), "standardise=1 must be true or false"),
        (GOOD.replace("hidden = [8]", "corruption = 1.5"), "corruption=1.5 must be a number in 0..1"),
        (GOOD.replace("hidden = [8]", "corruption = true"), "corruption=True must be a number"),
        (GOOD.replace("hidden = [8]", "split = 'test'"), "split='test': choose one of train, all"),
        ("together = 0\n" + GOOD, "together=0 must be a whole number of networks"),
        ("together = true\n" + GOOD, "together=True must be a whole number of networks"),
        ("checkpoint_seconds = 'often'\n" + GOOD, "checkpoint_seconds='often' must be a number"),
        ("checkpoint_seconds = -1\n" + GOOD, "checkpoint_seconds=-1 must be a number, at least 0"),
        ("checkpoint_seconds = nan\n" + GOOD, "checkpoint_seconds=nan must be a number"),
        ("name = 3\n" + GOOD, "name=3 names a folder"),
        ("name = '../x'\n" + GOOD, "name='../x' names a folder"),
        (GOOD + MEASURE.replace("[[measure]]", "[measure]"), "write .*measure.*, with two brackets"),
        (GOOD + MEASURE.replace('name = "noise"', ""), "measure '': there is no name"),
        (GOOD + MEASURE.replace('layers = ["hidden1"]', ""), "measure 'noise': there is no layers"),
        (GOOD + MEASURE.replace('function = "noise_robustness"', ""), "measure 'noise': there is no function"),
        (GOOD + MEASURE.replace("noise_robustness", "noise"), "function='noise': choose one of cumulative_ablation"),
        (GOOD + MEASURE.replace('["hidden1"]', '"hidden1"'), "layers='hidden1' must be a list of names"),
        (GOOD + MEASURE.replace('["hidden1"]', "[1]"), "layers=.1. must be a list of names"),
        (GOOD + MEASURE.replace('["hidden1"]', "[]"), "layers=.. must be a list of names"),
        (GOOD + MEASURE + "on = 'validation'", "on='validation': choose 'train' or 'test'"),
        (GOOD + MEASURE + "examples = -1", "examples=-1 must be a whole number, at least 1"),
        (GOOD + MEASURE + "repeat = 3", "noise_robustness has no argument 'repeat'; close: repeats"),
        (GOOD + MEASURE + "example = 3", "noise_robustness has no argument 'example'; close: examples"),
        (GOOD + MEASURE + "store = 'a.sdk'", "store are the sweep's own"),
        (GOOD + MEASURE + "repeats = 1979-05-27", "measure 'noise': repeats=.*1979, 5, 27.* cannot be an argument"),
        (GOOD + MEASURE + MEASURE.replace("noise", "Noise", 1), "two measures have one name: noise, noise"),
        (GOOD + MEASURE.replace('"noise"', '"networks"'), "cannot be empty, have slashes in it, or be one of network"),
        (GOOD + MEASURE.replace('"noise"', '"test"'), "measure 'test': it names a file and columns"),
        (GOOD + MEASURE.replace('"noise"', '"a/b"'), "measure 'a/b': it names a file and columns"),
        (GOOD + MEASURE.replace('"noise"', '""'), "measure '': it names a file and columns"),
        (GOOD + MEASURE.replace('"noise"', "5"), "measure 5: it names a file and columns"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be(text, says, read):
    with pytest.raises(ValueError, match=f"(?s)mine.toml: .*{says}"):
        read(text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml is not there"):
        read_sweep(tmp_path / "none.toml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"mine\.toml: "):
        read_sweep(tmp_path / "mine.toml")


def test_a_sweep_needs_a_network():
    with pytest.raises(ValueError, match="at least one network"):
        Sweep(())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {}}, "model 'mlp' needs the option hidden"),
        ({"options": {"hidden": [8], "width": 2}}, "model 'mlp' has no option width; it has dropout, hidden"),
        ({"options": {"hidden": 8}}, "hidden=8 must be a list of whole numbers"),
        ({"options": {"hidden": [8, 0]}}, "must be a list of whole numbers, at least 1"),
        ({"options": {"hidden": ["8"]}}, "must be a list of whole numbers, at least 1"),
        ({"options": {"hidden": [8], "dropout": 1}}, "dropout=1 must be a number, at least 0 and below 1"),
        ({"options": {"hidden": [8], "dropout": -0.1}}, "dropout=-0.1 must be a number"),
        ({"options": {"hidden": [8], "dropout": "0.1"}}, "dropout='0.1' must be a number"),
        ({"options": {"hidden": [8], "dropout": True}}, "dropout=True must be a number"),
        ({"model": "convnet", "options": {"classes": 3}}, "no option classes; it has batch_norm, head, width"),
        ({"model": "convnet", "options": {"head": "none"}}, "head='none': choose 'average' or 'flatten'"),
        ({"model": "convnet", "options": {"width": "wide"}}, "model 'convnet' with options {'width': 'wide'}: "),
        ({"model": "resnet18", "options": {"stride": "middle"}}, "model 'resnet18' with options"),
    ],
    ids=str,
)
def test_options_that_a_model_does_not_have(changes, says):
    with pytest.raises(ValueError, match=says):
        network(**changes).build(load("digits"))


@pytest.mark.parametrize("model", ["convnet", "resnet18", "resnet50"])
def test_every_model_is_built_for_its_data(model):
    digits = load("digits").as_images()
    built = network(model=model, options={"width": 0.03}).build(digits).eval()
    assert built(digits.inputs[:2]).shape == (2, 10)


# Keys


def key(settings, *data):
    return settings.key(settings.build(load("digits")), *(data or ("train", "test")))


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"hidden": [9]}},
        {"options": {"hidden": [8, 8]}},
        {"options": {"hidden": [8], "dropout": 0.5}},
        {"model": "convnet", "options": {"width": 0.02}},
        {"split": "all"},
        {"examples": 100},
        {"standardise": True},
        {"corruption": 0.5},
        {"corruption_seed": 0},
        {"seed": 1},
        {"training": TrainingOptions(epochs=3)},
        {"training": TrainingOptions(steps=3)},
        {"training": TrainingOptions(epochs=2, learning_rate=2e-3)},
        {"training": TrainingOptions(epochs=2, batch_size=64)},
        {"training": TrainingOptions(epochs=2, stop_when_memorised=True)},
    ],
    ids=str,
)
def test_every_setting_makes_another_network(changes):
    assert key(network(**changes)) != key(network())


def test_other_data_make_another_network():
    keys = {key(network(), *data) for data in (("a", "b"), ("a", "c"), ("c", "b"), ("b", "a"))}
    assert len(keys) == 4


def test_another_initialisation_makes_another_network(monkeypatch):
    before = key(network())
    monkeypatch.setattr("sdkernels.lab.sweep.settings.seed_for", lambda purpose, seed: seed)
    assert key(network()) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"corruption": 0}, {"corruption": 0.0}),
        ({"options": {"hidden": (8,)}}, {"options": {"hidden": [8]}}),
        ({"training": TrainingOptions(epochs=2, learning_rate=1)}, {"training": TrainingOptions(2, learning_rate=1.0)}),
    ],
    ids=["0 and 0.0", "tuple and list", "1 and 1.0"],
)
def test_what_is_the_same_in_other_words(one, other):
    assert key(network(**one)) == key(network(**other))


def test_the_order_of_options_makes_no_other_network():
    options = {"width": 0.02, "batch_norm": False}
    one = network(model="convnet", options=options)
    other = network(model="convnet", options=dict(reversed(options.items())))
    assert key(one) == key(other)


def test_conditions_keys():
    given = {"name": "a", "function": "noise_robustness", "layers": ["hidden1"], "arguments": {"repeats": 3, "seed": 1}}
    one = Condition(**given)
    assert one.key("network") == replace(one, name="b").key("network")
    assert one.key("network") == replace(one, arguments={"seed": 1, "repeats": 3}).key("network")
    changes = [
        {"function": "unit_importance", "arguments": {"seed": 1}},
        {"layers": ["hidden2"]},
        {"layers": ["hidden1", "hidden2"]},
        {"on": "test"},
        {"examples": 5},
        {"arguments": {"repeats": 4, "seed": 1}},
        {"arguments": {"repeats": 3}},
    ]
    keys = {Condition(**{**given, **change}).key("network") for change in changes}
    assert len({*keys, one.key("network"), one.key("another")}) == len(changes) + 2


# Groups


def groups(together, *changes):
    return Sweep(tuple(network(**change) for change in changes), together=together).groups


def rate(value):
    return TrainingOptions(epochs=2, learning_rate=value)


def test_groups_are_of_networks_that_go_together():
    seeds = [{"seed": seed} for seed in range(5)]
    assert groups(1, *seeds) == [[0], [1], [2], [3], [4]]
    assert groups(2, *seeds) == [[0, 1], [2, 3], [4]]
    assert groups(9, *seeds) == [[0, 1, 2, 3, 4]]
    assert groups(9, {}, {"corruption": 0.5}, {"corruption_seed": 1}, {"training": rate(0.1)}) == [[0, 1, 2, 3]]
    decay = TrainingOptions(epochs=2, weight_decay=0.1)
    assert groups(9, {}, {"training": decay}, {"options": {"hidden": [9]}}) == [[0, 1], [2]]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"hidden": [9]}},
        {"examples": 9},
        {"standardise": True},
        {"split": "all"},
        {"training": TrainingOptions(epochs=3)},
        {"training": TrainingOptions(epochs=2, batch_size=9)},
    ],
    ids=str,
)
def test_networks_that_do_not_go_together(change):
    assert groups(9, {}, change, {"seed": 1}) == [[0], [1], [2]]


def test_convolutional_networks_are_trained_alone():
    convnets = [{"model": "convnet", "options": {"width": 0.02}, "seed": seed} for seed in (0, 1)]
    assert groups(9, *convnets) == [[0], [1]]


def test_perceptrons_with_dropout_are_trained_alone():
    dropping = [{"options": {"hidden": [8], "dropout": 0.5}, "seed": seed} for seed in (0, 1)]
    zero = [{"options": {"hidden": [8], "dropout": 0.0}, "seed": seed} for seed in (0, 1)]
    assert groups(9, *dropping) == [[0], [1]]
    assert groups(9, *zero) == [[0, 1]]
    assert groups(9, {}, *dropping, {"seed": 1}) == [[0], [1], [2], [3]]


def test_the_documents_sweeps_can_be_read():
    folder = Path(sdkernels.__file__).parent.parent / "docs" / "sweeps"
    found = [read_sweep(path) for path in sorted(folder.glob("*.toml"))]
    assert found
    for sweep in found:
        for settings in sweep.networks:
            flat = settings.model == "mlp"
            digits = load("digits")
            settings.build(digits if flat else digits.as_images())


def test_the_pages_sweep_can_be_read(read):
    page = (Path(sdkernels.__file__).parent.parent / "docs" / "lab.md").read_text()
    assert len(read(page.split("```toml\n")[1].split("```")[0]).networks) == 6
