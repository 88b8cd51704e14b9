"""Curves over the steps of a sequence: against raw hooks and definitions, on language models and others."""

import math

import pytest
import torch
from torch import Tensor, nn

from sdkernels.analysis import passes
from sdkernels.analysis.similarity.over_layers import compare_layers
from sdkernels.analysis.similarity.over_networks import pairwise_similarity
from sdkernels.analysis.similarity.over_steps import similarity_over_steps
from sdkernels.analysis.similarity.over_training import similarity_over_training
from sdkernels.lab.models import lstm_language_model
from tests.analysis.similarity.collected import (
    EXAMPLES,
    SIMILARITIES,
    Batches,
    StoppedError,
    activations,
    drawn,
    hooks_of,
    means,
)

SAME = 1e-9
STEPS = 5
LAYERS = ["embedding", "lstm1", "lstm2"]
SELECT = {"lstm1": 0, "lstm2": 0}


def language_model(seed: int) -> nn.Module:
    return drawn(lambda: lstm_language_model(20, embedding=3, hidden=4, layers=2, dropout=0.5, seed=seed), seed)


def tokens(count: int = EXAMPLES) -> Tensor:
    return torch.randint(0, 20, (count, STEPS), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_each_step_is_what_definitions_give(name):
    options, similarity = SIMILARITIES[name]
    model, inputs = language_model(1), tokens()
    curve = similarity_over_steps(model, LAYERS, inputs, select=SELECT, batch_size=16, **options)
    for place, layer in enumerate(LAYERS):
        found = activations(model, layer, inputs)  # [N, T, F]
        for step in range(STEPS):
            one = 0 if step == STEPS - 1 else 1 - similarity(found[:, step], found[:, -1])
            assert float(curve.distance[place, step]) == pytest.approx(one, abs=SAME)
    assert (curve.layers, curve.moments, curve.reference) == (tuple(LAYERS), tuple(range(STEPS)), STEPS - 1)
    assert (curve.what, curve.examples) == ("steps", EXAMPLES)
    assert "positions" not in curve.settings
    if options["method"] == "cca":
        assert curve.ranks.tolist() == [[3] * STEPS, [4] * STEPS, [4] * STEPS]
    if options["method"] == "cka":
        assert curve.ranks is None


@pytest.mark.parametrize(("reference", "step"), [(0, 0), (2, 2), (-2, 3)])
def test_any_reference(reference, step):
    model, inputs = language_model(1), tokens()
    options, similarity = SIMILARITIES["pwcca second"]  # the reference weighs
    curve = similarity_over_steps(model, ["lstm2"], inputs, select=0, reference=reference, **options)
    found = activations(model, "lstm2", inputs)
    for other in range(STEPS):
        one = 0 if other == step else 1 - similarity(found[:, other], found[:, step])
        assert float(curve.distance[0, other]) == pytest.approx(one, abs=SAME)
    assert curve.reference == step


def test_units_may_stand_before_steps():
    model = drawn(lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh()), 1)
    inputs = torch.randn(90, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curve = similarity_over_steps(model, ["0", "1"], inputs, unit_dim=1)
    for place, layer in enumerate(["0", "1"]):
        found = activations(model, layer, inputs)  # [N, C, T]
        for step in range(3):
            one = 1 - SIMILARITIES["cca"][1](found[:, :, step], found[:, :, 3])
            assert float(curve.distance[place, step]) == pytest.approx(one, abs=SAME)


def test_an_output_that_is_written_into_is_seen_before():
    model = drawn(lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(inplace=True)), 1)
    inputs = torch.randn(90, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curve = similarity_over_steps(model, ["0"], inputs, unit_dim=1)
    found = activations(model, "0", inputs)
    one = 1 - SIMILARITIES["cca"][1](found[:, :, 0], found[:, :, 3])
    assert float(curve.distance[0, 0]) == pytest.approx(one, abs=SAME)


def test_a_stopped_call_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(passes, "SHARE", math.inf)
    model, inputs, store = language_model(1), tokens(), tmp_path / "work.sdk"
    unbroken = similarity_over_steps(model, LAYERS, Batches(inputs), select=SELECT)
    with pytest.raises(StoppedError):
        similarity_over_steps(model, LAYERS, Batches(inputs, stop=4), select=SELECT, store=store)
    assert hooks_of(model) == 0
    found = similarity_over_steps(model, LAYERS, Batches(inputs), select=SELECT, store=store)
    assert torch.equal(found.distance, unbroken.distance)
    again = similarity_over_steps(model, LAYERS, Batches(inputs, size=40), select=SELECT, store=store)
    assert torch.equal(again.distance, unbroken.distance)


def test_the_other_functions_take_language_models_too():
    """Inputs are integers, outputs tuples, and targets [N, T]."""
    a, b, inputs = language_model(1), language_model(2), tokens()
    x, y = (activations(model, "lstm2", inputs).movedim(2, 1) for model in (a, b))  # [N, F, T]
    one = 1 - SIMILARITIES["cca"][1](means(x), means(y))
    data = (inputs, inputs.roll(-1, 1))
    compared = compare_layers(a, b, "lstm2", data, select=0)
    assert float(compared.distance[0, 0]) == pytest.approx(one, abs=SAME)
    assert float(pairwise_similarity([a, b], "lstm2", data, select=0).distance[0, 0, 1]) == pytest.approx(one, abs=SAME)
    curve = similarity_over_training([a, b], "lstm2", inputs, select=0)
    assert float(curve.distance[0, 0]) == pytest.approx(one, abs=SAME)
    steps = [found.transpose(1, 2).flatten(0, 1) for found in (x, y)]
    each = compare_layers(a, b, "lstm2", data, select=0, positions="each")
    assert float(each.similarity[0, 0]) == pytest.approx(SIMILARITIES["cca"][1](*steps), abs=SAME)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": "head"}, ValueError, r"layer 'head' gives \[N, 2\] and no sequence \[N, T, F\]"),
        ({"layers": ["rnn", "conv"]}, ValueError, r"other numbers of steps: \{'rnn': 6, 'conv': 4\}"),
        ({"select": None}, ValueError, "gives a tuple, not one tensor; say which part holds units by select="),
        ({"layers": "gru"}, ValueError, "the model has no layer 'gru'"),
        ({"reference": 6}, ValueError, r"reference=6 must be within -6\.\.5: there are 6 steps"),
        ({"reference": 1.0}, TypeError, "reference is a float; give an int"),
        ({"solver": "svd"}, ValueError, "similarity_over_steps holds none"),
        ({"memory_fraction": 1e-12}, ValueError, "memory_fraction allows"),
        ({"method": "cka", "side": "first"}, ValueError, "side='first' says nothing to method='cka'"),
        ({"model": "m"}, TypeError, "model is a str"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_slips_are_refused(change, error, message):
    given = {"model": Mixed().double().eval(), "layers": "rnn", "data": ROWS, "select": {"rnn": 0}, "unit_dim": DIMS}
    given = {**given, **change}
    layers = [given["layers"]] if isinstance(given["layers"], str) else given["layers"]
    given["unit_dim"] = {name: dim for name, dim in DIMS.items() if name in layers}
    if given["select"] is not None:
        given["select"] = {name: 0 for name in layers if name == "rnn"}
    with pytest.raises(error, match=message):
        similarity_over_steps(**given)


DIMS = {"rnn": 2, "conv": 1}
ROWS = torch.randn(80, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.rnn, self.conv, self.head = nn.GRU(2, 3, batch_first=True), nn.Conv1d(3, 3, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.rnn(x)[0].mT).flatten(1))
