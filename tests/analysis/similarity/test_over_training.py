"""Curves over training: against raw hooks and definitions; what is held of checkpoints; stopped and gone on with."""

import copy
import gc
import math
import weakref

import pytest
import torch
from torch import nn

from sdkernels.analysis import passes
from sdkernels.analysis.similarity.over_training import similarity_over_training
from sdkernels.engine.checks import SdkernelsWarning
from tests.analysis.similarity.collected import (
    EXAMPLES,
    SIMILARITIES,
    Batches,
    StoppedError,
    activations,
    convolutions,
    counted,
    each,
    hooks_of,
    images,
    means,
    passes_in,
)

SAME = 1e-9
LAYERS = ["1", "4", "6"]
STEPS = [0, 10, 40, 90]


@pytest.fixture
def checkpoints() -> dict[int, nn.Module]:
    """From one set of weights to another, along a line."""
    begin, end = convolutions(4, 1), convolutions(4, 2)
    found = {}
    for step in STEPS:
        model = copy.deepcopy(end)
        for tensor, first, last in zip(model.parameters(), begin.parameters(), end.parameters(), strict=True):
            tensor.data = torch.lerp(first.data, last.data, step / 90)
        found[step] = model
    return found


def expected(checkpoints, similarity, inputs, reference=90, rows=means, layers=LAYERS) -> torch.Tensor:
    found = []
    for layer in layers:
        activation = {step: rows(activations(model, layer, inputs)) for step, model in checkpoints.items()}
        found.append(
            [0 if step == reference else 1 - similarity(activation[step], activation[reference]) for step in STEPS]
        )
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_each_checkpoint_is_what_definitions_give(name, checkpoints):
    options, similarity = SIMILARITIES[name]
    inputs = images()
    curve = similarity_over_training(checkpoints, LAYERS, inputs, batch_size=16, **options)
    assert torch.allclose(curve.distance, expected(checkpoints, similarity, inputs), rtol=0, atol=SAME)
    assert (curve.layers, curve.moments, curve.reference, curve.what) == (tuple(LAYERS), tuple(STEPS), 90, "training")
    assert curve.examples == EXAMPLES
    if options["method"] == "cca":
        assert curve.ranks.tolist() == [[4] * 4, [6] * 4, [4] * 4]
        assert curve.settings["solvers"] == {"cholesky": 18}


@pytest.mark.parametrize(("reference", "step"), [(0, 0), (1, 10), (-2, 40), (3, 90)])
def test_any_reference(reference, step, checkpoints):
    inputs = images()
    options, similarity = SIMILARITIES["pwcca second"]  # the reference weighs
    curve = similarity_over_training(checkpoints, LAYERS, inputs, reference=reference, **options)
    assert curve.reference == step
    assert torch.allclose(curve.distance, expected(checkpoints, similarity, inputs, step), rtol=0, atol=SAME)


def test_each_position(checkpoints):
    inputs = images(30)
    curve = similarity_over_training(checkpoints, ["0", "3"], inputs, positions="each")
    table = expected(checkpoints, SIMILARITIES["cca"][1], inputs, rows=each, layers=["0", "3"])
    assert torch.allclose(curve.distance, table, rtol=0, atol=SAME)


def test_however_checkpoints_come(checkpoints):
    inputs, end = images(), checkpoints[90]
    before = {name: value.clone() for name, value in end.state_dict().items()}
    states = {step: model.state_dict() for step, model in checkpoints.items()}
    expected = similarity_over_training(checkpoints, LAYERS, inputs).distance
    ways = {
        "state dicts": (states, end),
        "functions of state dicts": ({step: lambda step=step: states[step] for step in STEPS}, end),
        "functions of models": ({step: lambda step=step: copy.deepcopy(checkpoints[step]) for step in STEPS}, None),
        "pairs": (list(checkpoints.items()), None),
        "a list": (list(checkpoints.values()), None),
        "an iterator": (iter(checkpoints.items()), None),
        "a mixture": ([states[0], checkpoints[10], lambda: states[40], lambda: checkpoints[90]], end),
    }
    for name, (given, model) in ways.items():
        curve = similarity_over_training(given, LAYERS, inputs, model=model)
        assert torch.equal(curve.distance, expected), name
        assert curve.moments == (tuple(range(4)) if name in ("a list", "a mixture") else tuple(STEPS))
    assert all(torch.equal(value, before[name]) for name, value in end.state_dict().items())
    modules = similarity_over_training(states, [end[1], end[4], end[6]], inputs, model=end)
    assert torch.equal(modules.distance, expected)


def test_two_are_held_at_a_time(checkpoints):
    states = {step: copy.deepcopy(model.state_dict()) for step, model in checkpoints.items()}
    alive: list[weakref.ref] = []
    most = 0

    def load(step: int) -> nn.Module:
        nonlocal most
        model = convolutions(4, 1)
        model.load_state_dict(states[step])
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive) + 1)
        alive.append(weakref.ref(model))
        return model

    similarity_over_training({step: lambda step=step: load(step) for step in STEPS}, "4", images())
    assert len(alive) == 4
    assert most == 2


def test_a_stopped_call_goes_on(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(passes, "SHARE", math.inf)
    inputs, store = images(), tmp_path / "work.sdk"
    unbroken = similarity_over_training(checkpoints, LAYERS, Batches(inputs), method="pwcca")
    calls = 0

    class Breaking(Batches):
        def __iter__(self):
            nonlocal calls
            calls += 1
            return iter(Batches(self.inputs, stop=3 if calls == 4 else None))  # two readings a checkpoint

    with pytest.raises(StoppedError):
        similarity_over_training(checkpoints, LAYERS, Breaking(inputs), method="pwcca", store=store)
    with counted() as seen:
        found = similarity_over_training(checkpoints, LAYERS, Batches(inputs), method="pwcca", store=store)
    assert passes_in(seen) == 2 * (EXAMPLES - 3 * 16) + 2 * EXAMPLES  # the rest of the second, and the third
    assert torch.equal(found.distance, unbroken.distance)
    with counted() as seen:
        data = Batches(inputs, size=40)
        again = similarity_over_training(checkpoints, LAYERS, data, method="pwcca", store=store)
    assert passes_in(seen) == 0
    assert torch.equal(again.distance, unbroken.distance)
    assert again.settings == unbroken.settings
    with counted() as seen:
        other = similarity_over_training(
            checkpoints, LAYERS, Batches(inputs), method="pwcca", side="second", store=store
        )
    assert passes_in(seen) == 6 * EXAMPLES
    assert not torch.equal(other.distance, unbroken.distance)


def test_what_is_kept_of_finished_checkpoints_is_small(checkpoints, tmp_path):
    store = tmp_path / "work.sdk"
    similarity_over_training(checkpoints, ["0"], images(), positions="each", store=store)
    from sdkernels.engine.ledger import Ledger

    with Ledger(store) as ledger:
        items = list(ledger.items("pass"))
    assert len(items) == 3
    assert all(item.description["finished"] for item in items)
    assert items[0].description["networks"] == ["checkpoint 0", "checkpoint 90, the reference"]


def test_progress_is_of_all_passes(checkpoints, capsys):
    similarity_over_training(checkpoints, "1", images(), batch_size=10, show_progress=True)
    assert f"{6 * EXAMPLES}/{6 * EXAMPLES}" in capsys.readouterr().err


def test_a_warning_is_said_once(checkpoints):
    with pytest.warns(SdkernelsWarning, match=r"layer '1' of checkpoint 0 .* And so for 2 of the other pairs") as said:
        similarity_over_training(checkpoints, "1", images(15))
    assert len(said) == 1


STATE = convolutions(4, 1).state_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"checkpoints": STATE}, TypeError, "checkpoints is one state dict"),
        ({"checkpoints": convolutions(4, 1)}, TypeError, "checkpoints is a Sequential"),
        ({"checkpoints": 3}, TypeError, "checkpoints is a int"),
        ({"checkpoints": [convolutions(4, 1)]}, ValueError, "checkpoints are 1; give at least two"),
        ({"checkpoints": [STATE, copy.deepcopy(STATE)]}, ValueError, "checkpoint 1 is a state dict; say by model="),
        ({"checkpoints": [STATE, STATE], "model": convolutions(4, 1)}, ValueError, "0 and 1 are the same tensors"),
        (
            {"checkpoints": [convolutions(4, 1)] * 2},
            ValueError,
            r"0 and 1 are the same tensors.*copy.deepcopy\(model\)",
        ),
        ({"checkpoints": [("a", 1), ("a", 2)]}, ValueError, "the label 'a' twice"),
        ({"checkpoints": [(None, 1), ("a", 2)]}, TypeError, "a label None"),
        ({"checkpoints": ["a", "b"]}, TypeError, "checkpoint 1 is a str; give a torch.nn.Module, a state dict, or"),
        (
            {"checkpoints": [{}, copy.deepcopy(STATE)], "model": convolutions(5, 1)},
            ValueError,
            "1 does not fit the model",
        ),
        ({"model": "m"}, TypeError, "model is a str"),
        ({"reference": 2}, ValueError, r"reference=2 must be within -2\.\.1: there are 2 checkpoints"),
        ({"reference": "end"}, TypeError, "reference is a str; give an int"),
        ({"layers": "9"}, ValueError, "checkpoint 1: the model has no layer '9'"),
        ({"checkpoints": [convolutions(4, 1).train(), convolutions(4, 2)]}, ValueError, "checkpoint 0: .* train mode"),
        ({"checkpoints": [convolutions(4, 1), convolutions(4, 2).train()]}, ValueError, "1, the reference: .* train"),
        ({"solver": "svd"}, ValueError, "similarity_over_training holds none"),
        ({"memory_fraction": 1e-12}, ValueError, "memory_fraction allows"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_slips_are_refused(change, error, message):
    given = {"checkpoints": [convolutions(4, 1), convolutions(4, 2)], "layers": "4", "data": images()}
    with pytest.raises(error, match=message):
        similarity_over_training(**{**given, **change})


def test_nothing_stays_behind_an_error(checkpoints):
    with pytest.raises(StoppedError):
        similarity_over_training(checkpoints, "4", Batches(images(), stop=3))
    assert [hooks_of(model) for model in checkpoints.values()] == [0] * 4
