"""Comparing a sweep's networks: what is compared, on which inputs, what is kept, and what is refused."""

import pytest
import torch

import sdkernels as sd
import sdkernels.lab.sweep.comparison as comparing
from sdkernels.engine.ledger import Ledger
from sdkernels.lab.contents import kept_table
from sdkernels.lab.datasets import load, load_text
from sdkernels.lab.sweep import Comparison, NetworkSettings, Sweep, compare_networks, run_sweep
from sdkernels.lab.tokens import token_windows
from sdkernels.lab.training import TrainingOptions

OPTIONS = TrainingOptions(epochs=2, batch_size=64)
LAYERS = ("hidden1", "hidden2")


def _mlp(seed, **more):
    return NetworkSettings("digits", "mlp", {"hidden": [12, 8]}, OPTIONS, examples=300, seed=seed, **more)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    settings = (_mlp(0), _mlp(1), _mlp(2, corruption=1.0), _mlp(0, until=1), _mlp(3, standardise=True))
    return run_sweep(Sweep(settings), tmp_path_factory.mktemp("sweep") / "networks.sdk")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    training = TrainingOptions(epochs=1, batch_size=8, unroll=10)
    shape = {"embedding": 6, "hidden": 5, "layers": 2, "tied": False}
    settings = NetworkSettings("digits_tokens", "lstm", shape, training, examples=1000)
    return run_sweep(Sweep((settings,)), tmp_path_factory.mktemp("texts") / "networks.sdk")


def _activations(model, inputs):
    found, x = {}, inputs
    for name, module in model.named_children():
        x = module(x)
        found[name] = x.detach()
    return found


@pytest.mark.parametrize("on", ["train", "test"])
def test_pairs_of_networks_are_compared_on_the_sweeps_own_inputs(networks, on):
    found = compare_networks(networks, Comparison("all", "pairwise_similarity", (0, 2, 1), LAYERS, on=on)).result
    inputs = load("digits", split=on).inputs.flatten(1)[: 300 if on == "train" else None]
    assert found.names == ("0", "2", "1")
    assert found.examples == len(inputs)
    own = [_activations(networks.model(place), inputs) for place in (0, 2, 1)]
    for layer, name in enumerate(("relu1", "relu2")):
        expected = sd.similarity(own[0][name], own[1][name]).distance
        assert float(found.distance[layer, 0, 1]) == pytest.approx(expected, abs=1e-9)


def test_so_many_examples_and_arguments_are_the_functions(networks):
    asked = Comparison("two", "compare_layers", (0, 1), LAYERS, examples=120, arguments={"method": "cka"})
    found = compare_networks(networks, asked).result
    inputs = load("digits", split="train").inputs.flatten(1)[:120]
    own = [_activations(networks.model(place), inputs) for place in (0, 1)]
    expected = sd.similarity(own[0]["relu1"], own[1]["relu2"], method="cka").distance
    assert float(found.distance[0, 1]) == pytest.approx(expected, abs=1e-9)
    assert found.examples == 120


def test_moments_of_a_training_are_called_by_their_epochs(networks):
    found = compare_networks(networks, Comparison("over", "similarity_over_training", (3, 0), LAYERS)).result
    assert found.moments == (1, 2)
    assert bool((found.distance[:, 0] > 1e-4).all())
    assert found.distance[:, 1].tolist() == [0.0, 0.0]


def test_steps_of_a_language_model(language):
    asked = Comparison("steps", "similarity_over_steps", (0,), ("lstm1", "lstm2"), on="test", steps=6, examples=80)
    found = compare_networks(language, asked).result
    windows = token_windows(load_text("digits_tokens").test, 6, 80)
    model = language.model(0)
    with torch.no_grad():
        below, _ = model.lstm1(model.embedding(windows))
    expected = sd.similarity(below[:, 2], below[:, 5]).distance
    assert float(found.distance[0, 2]) == pytest.approx(expected, abs=1e-9)


def test_a_comparison_is_kept_with_its_time_and_exported(networks, monkeypatch):
    asked = Comparison("kept", "pairwise_similarity", (0, 1), LAYERS, arguments={"method": "svcca"})
    first = compare_networks(networks, asked)
    assert first.seconds > 0
    monkeypatch.setattr(comparing, "_compare", lambda *_: pytest.fail("compared again"))
    again = compare_networks(networks, Comparison("other name", *list(vars(asked).values())[1:]))
    assert again.seconds == first.seconds
    assert torch.equal(again.result.distance, first.result.distance)
    with Ledger(networks.store) as ledger:
        keys = [item.key for item in ledger.items_without_content(comparing.COMPARISON)]
        tables = [kept_table(ledger, comparing.COMPARISON, key) for key in keys]
    assert any(table.equals(first.result.to_pandas()) for table in tables)


@pytest.mark.parametrize(
    "change",
    [
        {"networks": (1, 0)},
        {"layers": LAYERS[:1]},
        {"on": "test"},
        {"examples": 200},
        {"arguments": {"method": "cca"}},
        {"function": "compare_layers"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_comparison_is_another(networks, change, monkeypatch):
    asked = {"name": "a", "function": "pairwise_similarity", "networks": (0, 1), "layers": LAYERS}
    asked |= {"on": "train", "examples": 250, "arguments": {"method": "svcca"}}
    compare_networks(networks, Comparison(**asked))
    monkeypatch.setattr(comparing, "_compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare_networks(networks, Comparison(**{**asked, **change}))


def test_networks_whose_training_diverged_are_left_out(networks):
    broken = type(networks)(networks.sweep, networks.store, networks.keys, networks.data_dir, {1: "loss is nan"})
    found = compare_networks(broken, Comparison("rest", "pairwise_similarity", (0, 1, 2), LAYERS)).result
    assert found.names == ("0", "2")
    with pytest.raises(ValueError, match=r"comparison 'few': the training of too many of its networks diverged: \[1\]"):
        compare_networks(broken, Comparison("few", "pairwise_similarity", (0, 1), LAYERS))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"function": "similarity"}, "choose one of compare_layers, pairwise_similarity"),
        ({"networks": (0,)}, "compares at least 2 networks, and 1 are given"),
        ({"function": "compare_layers", "networks": (0, 1, 2)}, "compares 2 networks, and 3 are given"),
        ({"layers": "hidden1"}, "must be a list of names"),
        ({"examples": 0}, "examples=0 must be a whole number"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"arguments": {"methods": "cca"}}, "no argument 'methods'.* it has method"),
        ({"arguments": {"store": "x"}}, "no argument 'store'"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_is_refused(asked, message):
    with pytest.raises(ValueError, match=f"comparison 'wrong': .*{message}"):
        Comparison(
            **{"name": "wrong", "function": "pairwise_similarity", "networks": (0, 1), "layers": LAYERS, **asked}
        )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"networks": (0, 4)}, "networks are compared on the same inputs, and these differ"),
        ({"steps": 5}, "steps=5 is of language models"),
        ({"layers": ("hidden3",)}, "no layer 'hidden3'"),
        ({"arguments": {"method": "pca"}}, "method='pca': choose one of"),
    ],
    ids=["inputs", "steps", "layer", "method"],
)
def test_what_cannot_be_done_names_the_comparison(networks, asked, message):
    whole = {"name": "wrong", "function": "pairwise_similarity", "networks": (0, 1), "layers": LAYERS, **asked}
    with pytest.raises(ValueError, match=f"comparison 'wrong': .*{message}"):
        compare_networks(networks, Comparison(**whole))


def test_language_models_need_windows(language):
    with pytest.raises(ValueError, match="comparison 'steps': language models read windows of text: give steps="):
        compare_networks(language, Comparison("steps", "similarity_over_steps", (0,), ("lstm1",)))
