"""An ensemble against its networks trained alone, and against itself when it is left and taken up again."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.ensemble import EnsembleMetrics, EnsembleTrainer, train_ensemble
from sdkernels.lab.ensemble.stacked import StackedMLP
from sdkernels.lab.models import convnet, mlp
from sdkernels.lab.training import DivergedError, TrainingOptions, train

DIGITS = load("digits").first(300)  # 300 = 2 x 128 + 44: the last batch is smaller
WIDE = (96, 96)  # enough to memorise a few hundred labels soon
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def networks(M: int, dtype: torch.dtype = torch.float64, hidden: tuple[int, ...] = (16, 12)) -> list[nn.Sequential]:
    return [mlp(64, hidden, 10, seed=seed).to(dtype) for seed in range(M)]


def label_sets(M: int, most: float = 1.0) -> torch.Tensor:
    """Each network's own labels, corrupted more and more, but less than ``most`` of them."""
    return torch.stack([corrupt_labels(DIGITS.labels, most * m / M, seed=m) for m in range(M)])


def inputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return DIGITS.inputs.to(dtype)


def rates(M: int, least: float = 1e-3, **options) -> list[TrainingOptions]:
    """A learning rate for each network, out of order, and some of them equal."""
    return [TrainingOptions(learning_rate=least * (1 + 3 * m % 4 / 2), **options) for m in range(M)]


def parameters(models: list[nn.Module]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for model in models for parameter in model.parameters()]


def assert_as_alone(M: int, labels, options, seeds, dtype=torch.float64, hidden=(16, 12), **tolerance) -> list:
    together, alone = networks(M, dtype, hidden), networks(M, dtype, hidden)
    results = train_ensemble(together, inputs(dtype), labels, options, seeds=seeds)
    for m, (model, result) in enumerate(zip(alone, results, strict=True)):
        own_labels = labels if labels.ndim == 1 else labels[m]
        own_options = options if isinstance(options, TrainingOptions) else options[m]
        expected = train(model, (inputs(dtype), own_labels), own_options, seed=seeds[m])
        assert (result.epochs, result.accuracy, result.memorised) == (
            expected.epochs,
            expected.accuracy,
            expected.memorised,
        )
        assert result.loss == pytest.approx(expected.loss, rel=max(tolerance["rtol"], 1e-9))
    torch.testing.assert_close(parameters(together), parameters(alone), **tolerance)
    assert not any(module.training for model in together for module in model.modules())
    return results


WAYS = {
    "adam": {},
    "weight decay": {"weight_decay": 1e-2},
    "adamw": {"optimiser": "adamw", "weight_decay": 1e-2},
    "sgd": {"optimiser": "sgd"},
    "momentum": {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    "cosine": {"schedule": "cosine", "warmup": 3},
    "step": {"schedule": "step", "milestones": (1, 2)},
    "clipped": {"optimiser": "sgd", "clip_norm": 0.1},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_seeds_rates_and_labels_of_their_own(way):
    assert_as_alone(6, label_sets(6), rates(6, epochs=3, **way), [5, 3, 8, 0, 3, 2], **EXACT)


def test_float32():
    options = rates(5, epochs=4)
    assert_as_alone(5, label_sets(5), options, range(5), torch.float32, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 8, 7)], ids=["linear", "one", "three"])
def test_depths(hidden):
    assert_as_alone(3, DIGITS.labels, TrainingOptions(epochs=2), [0, 1, 2], hidden=hidden, **EXACT)


@pytest.mark.parametrize("batch_size", [1, 100, 299, 300, 1000], ids=str)
def test_batches(batch_size):
    options = TrainingOptions(epochs=1 if batch_size == 1 else 3, batch_size=batch_size, learning_rate=1e-4)
    assert_as_alone(2, DIGITS.labels, options, [4, 5], **EXACT)


@pytest.mark.parametrize("steps", [1, 3, 4, 8], ids=str)
def test_a_length_in_steps_may_cut_an_epoch_short(steps):
    trainer = EnsembleTrainer(networks(2), inputs(), DIGITS.labels, TrainingOptions(steps=steps), seeds=[0, 1])
    while not trainer.finished:
        trainer.run_epoch()
    assert (trainer.step, trainer.epoch) == (steps, math.ceil(steps / 3))
    assert_as_alone(2, DIGITS.labels, TrainingOptions(steps=steps), [4, 5], **EXACT)


def test_one_network():
    assert_as_alone(1, DIGITS.labels, TrainingOptions(epochs=3), [7], **EXACT)


def test_weight_decays_of_their_own():
    options = [TrainingOptions(epochs=2, weight_decay=decay) for decay in (0.1, 0.0, 0.01, 0.1)]
    assert_as_alone(4, DIGITS.labels, options, range(4), **EXACT)


def test_each_leaves_when_it_has_memorised():
    options = rates(4, 5e-3, epochs=30, batch_size=32, stop_when_memorised=True)
    results = assert_as_alone(4, label_sets(4, 0.05), options, [0, 1, 2, 3], hidden=WIDE, **EXACT)
    ends = [result.epochs for result in results]
    assert len(set(ends)) > 2
    assert any(result.memorised for result in results)
    trainer = EnsembleTrainer(networks(4, hidden=WIDE), inputs(), label_sets(4, 0.05), options, seeds=range(4))
    while not trainer.finished:
        before = trainer.active
        metrics = trainer.run_epoch()
        assert metrics.networks == before == tuple(m for m in range(4) if ends[m] >= metrics.epoch)
    assert trainer.result() == results


def test_all_run_on_unless_told_to_stop():
    options = TrainingOptions(epochs=20, batch_size=32, learning_rate=1e-2)
    results = assert_as_alone(2, DIGITS.labels, options, [0, 1], hidden=WIDE, **EXACT)
    assert [result.epochs for result in results] == [20, 20]
    assert all(result.memorised for result in results)


def test_metrics_are_the_running_ones():
    models = networks(2)
    options = [TrainingOptions(epochs=2, learning_rate=rate, schedule="linear") for rate in (2e-3, 1e-3)]
    trainer = EnsembleTrainer(models, inputs(), DIGITS.labels, options, seeds=[0, 9])
    metrics = [trainer.run_epoch(), trainer.run_epoch()]
    assert trainer.history == metrics
    for m, seed in enumerate((0, 9)):
        model = networks(2)[m]
        optimiser = torch.optim.Adam(model.parameters())
        shuffle = torch.Generator().manual_seed(seed)
        for epoch in range(2):
            loss, right = 0.0, 0
            for k, batch in enumerate(torch.randperm(300, generator=shuffle).split(128)):
                optimiser.param_groups[0]["lr"] = options[m].learning_rate * (1 - (3 * epoch + k) / 6)
                logits, y = model(inputs()[batch]), DIGITS.labels[batch]
                own = F.cross_entropy(logits, y)
                optimiser.zero_grad()
                own.backward()
                optimiser.step()
                loss += float(own.detach()) * len(batch)
                right += int((logits.argmax(1) == y).sum())
            assert metrics[epoch].loss[m] == pytest.approx(loss / 300)
            assert metrics[epoch].accuracy[m] == right / 300
            assert metrics[epoch].learning_rate[m] == optimiser.param_groups[0]["lr"]
    assert (metrics[1].epoch, metrics[1].step, metrics[1].networks) == (2, 6, (0, 1))


def test_models_hold_their_weights_after_every_epoch():
    models, stopped = networks(2), networks(2)
    trainer = EnsembleTrainer(models, inputs(), DIGITS.labels, TrainingOptions(epochs=3), seeds=[0, 1])
    trainer.run_epoch()
    train_ensemble(stopped, inputs(), DIGITS.labels, TrainingOptions(epochs=1), seeds=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(parameters(models), parameters(stopped), strict=True))


RESUMED = {
    "adam": {},
    "momentum": {"optimiser": "sgd", "momentum": 0.9, "schedule": "cosine", "weight_decay": 1e-3},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("way", RESUMED.values(), ids=RESUMED)
def test_a_run_goes_on_bit_for_bit(way, dtype):
    M, data, labels = 5, inputs(dtype), label_sets(5, 0.05)
    options = rates(M, 5e-3, epochs=20, batch_size=32, stop_when_memorised=True, **way)
    whole, models = networks(M, dtype, WIDE), networks(M, dtype, WIDE)
    expected = EnsembleTrainer(whole, data, labels, options, seeds=range(M))
    while not expected.finished:
        expected.run_epoch()
    actives = {metrics.networks for metrics in expected.history}
    if way == {}:
        assert len(actives) > 1, "some leave before others"
    trainer = EnsembleTrainer(models, data, labels, options, seeds=range(M))
    while not trainer.finished:
        if trainer.epoch % 3 != 1:
            tensors, record = trainer.state()
            record = json.loads(json.dumps(record))
            trainer.run_epoch()  # lost: the state must not see it
            models = networks(M, dtype, WIDE)
            trainer = EnsembleTrainer(models, data, labels, options, seeds=range(M))
            trainer.restore(tensors, record)
        trainer.run_epoch()
    assert all(torch.equal(a, b) for a, b in zip(parameters(models), parameters(whole), strict=True))
    assert trainer.history == expected.history
    assert trainer.result() == expected.result()


def test_a_finished_run_can_be_taken_up():
    options = TrainingOptions(epochs=40, batch_size=32, learning_rate=5e-3, stop_when_memorised=True)
    trainer = EnsembleTrainer(networks(2, hidden=WIDE), inputs(), DIGITS.labels, options, seeds=[0, 1])
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.active == ()
    again = networks(2, hidden=WIDE)
    taken = EnsembleTrainer(again, inputs(), DIGITS.labels, options, seeds=[0, 1])
    taken.restore(*trainer.state())
    assert taken.finished
    assert taken.result() == trainer.result()
    assert all(torch.equal(a, b) for a, b in zip(parameters(again), parameters(trainer.models), strict=True))
    with pytest.raises(RuntimeError, match="training is over after"):
        taken.run_epoch()


def test_other_runs_are_not_taken_up():
    def trainer(M=2, labels=DIGITS.labels, seeds=(0, 1), hidden=(4,), **options) -> EnsembleTrainer:
        given = TrainingOptions(**{"epochs": 2, **options})
        return EnsembleTrainer(networks(M, hidden=hidden), inputs(), labels, given, seeds=seeds)

    tensors, record = trainer().state()
    for other, what in (
        (trainer(seeds=(0, 2)), "seeds"),
        (trainer(learning_rate=0.5), "learning_rate|options"),
        (trainer(labels=9 - DIGITS.labels), "sha256"),
        (trainer(hidden=(5,)), "model"),
        (trainer(M=3, seeds=(0, 1, 2)), "options"),
    ):
        with pytest.raises(ValueError, match=rf"state of another ensemble; it differs in .*({what})"):
            other.restore(tensors, record)
    with pytest.raises(ValueError, match="no state of an ensemble"):
        trainer().restore(tensors, {**record, "format": "sdkernels.training/1"})


def test_an_epoch_broken_off_is_not_saved(monkeypatch):
    trainer = EnsembleTrainer(networks(2), inputs(), DIGITS.labels, TrainingOptions(epochs=2), seeds=[0, 1])
    before = trainer.state()

    def broken(*_given) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._optimiser, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_epoch()
    for go_on in (trainer.state, trainer.run_epoch):
        with pytest.raises(RuntimeError, match="broken off in its middle"):
            go_on()
    trainer.restore(*before)
    trainer.run_epoch()
    expected = EnsembleTrainer(networks(2), inputs(), DIGITS.labels, TrainingOptions(epochs=2), seeds=[0, 1])
    expected.run_epoch()
    assert all(torch.equal(a, b) for a, b in zip(parameters(trainer.models), parameters(expected.models), strict=True))


def test_what_diverges():
    models = networks(3, torch.float32)
    options = [TrainingOptions(epochs=3, optimiser="sgd", learning_rate=rate) for rate in (0.1, 1e30, 0.05)]
    with pytest.raises(DivergedError, match=r"network 1 \(learning_rate=1e\+30\) are not finite"):
        train_ensemble(models, inputs(torch.float32), DIGITS.labels, options, seeds=range(3))
    models, kept = networks(3, torch.float32), networks(3, torch.float32)[::2]
    results = train_ensemble(models, inputs(torch.float32), DIGITS.labels, options, seeds=range(3), drop_diverged=True)
    assert math.isnan(results[1].loss)
    assert not results[1].memorised
    assert [result.epochs for result in results] == [3, 1, 3]
    alone = train_ensemble(kept, inputs(torch.float32), DIGITS.labels, options[::2], seeds=[0, 2])
    assert [replace(r, loss=0) for r in results[::2]] == [replace(r, loss=0) for r in alone]
    torch.testing.assert_close(parameters(models[::2]), parameters(kept), rtol=1e-4, atol=1e-6)


def test_one_row_of_nan_spoils_no_other():
    models = networks(3)
    with torch.no_grad():
        models[1].fc1.weight[0, 0] = torch.nan
    options = TrainingOptions(epochs=2)
    train_ensemble(models, inputs(), DIGITS.labels, options, seeds=range(3), drop_diverged=True)
    alone = networks(3)
    train(alone[2], (inputs(), DIGITS.labels), options, seed=2)
    torch.testing.assert_close(parameters(models[2:]), parameters(alone[2:]), **EXACT)


def test_gradients_are_those_of_autograd():
    models, data = networks(4), inputs()
    stack = StackedMLP(models)
    assert stack.parameters.data_ptr() % 64 == 0
    generator = torch.Generator().manual_seed(0)
    for batch in (9, 31, 9, 4):  # workspaces share their memory
        chosen = torch.randint(0, 300, (4, batch), generator=generator)
        labels = label_sets(4).gather(1, chosen)
        guesses, losses = torch.empty_like(labels), data.new_empty(4, batch).fill_(torch.nan)
        stack.gradients.fill_(torch.nan)
        stack.step(data, chosen, labels, guesses, losses)
        for m, model in enumerate(models):
            logits = model(data[chosen[m]])
            own = F.cross_entropy(logits, labels[m], reduction="none")
            slopes = torch.autograd.grad(own.mean(), list(model.parameters()))
            found = [view[m] for view in stack._views(stack.gradients)]
            torch.testing.assert_close(found, list(slopes), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(losses[m], own.detach(), rtol=1e-10, atol=1e-12)
            assert torch.equal(guesses[m], logits.argmax(1))


class Doubled(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def tied() -> nn.Module:
    """One module in two places."""
    model = networks(1, hidden=(64,))[0]
    return nn.Sequential(model.fc1, model.relu1, model.fc1, model.relu1, model.out)


def frozen() -> nn.Module:
    model = networks(1)[0]
    model.fc1.bias.requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = networks(1)[0]
    model.relu1.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return model


def test_one_relu_in_many_places():
    models, alone = networks(2), networks(2)
    shared = [nn.Sequential(m.fc1, m.relu1, m.fc2, m.relu1, m.out) for m in models]
    options = TrainingOptions(epochs=2)
    train_ensemble(shared, inputs(), DIGITS.labels, options, seeds=[0, 1])
    train_ensemble(alone, inputs(), DIGITS.labels, options, seeds=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(parameters(models), parameters(alone), strict=True))


REFUSED = {
    "no network": (lambda a: {"models": [], "seeds": []}, "at least one network"),
    "another kind": (lambda a: {"models": [convnet(width=1 / 64, seed=0)]}, "Linear .with bias., ReLU"),
    "no bias": (
        lambda a: {"models": [nn.Sequential(nn.Linear(64, 10, bias=False, device="meta"))]},
        "Linear .with bias.",
    ),
    "tanh": (
        lambda a: {"models": [nn.Sequential(networks(1)[0].fc1, nn.Tanh(), networks(1)[0].out)]},
        "Linear .with bias., ReLU, ..., Linear; not Sequential: .*Tanh",
    ),
    "dropout": (
        lambda a: {"models": [mlp(64, (5,), 10, seed=0, dropout=0.1).double()]},
        "Linear .with bias., ReLU, ..., Linear; not Sequential: .*Dropout",
    ),
    "two architectures": (
        lambda a: {"models": [networks(1)[0], networks(1, hidden=(3,))[0]]},
        "network 1 is .*one arch",
    ),
    "two dtypes": (lambda a: {"models": [networks(1)[0], networks(1, torch.float32)[0]]}, "network 1 is .*float32"),
    "one network twice": (lambda a: {"models": [a["models"][0]] * 2}, "networks 0 and 1 share parameters"),
    "a shared layer": (
        lambda a: {"models": [a["models"][0], nn.Sequential(*a["models"][0])]},
        "networks 0 and 1 share parameters",
    ),
    "a tied layer": (lambda a: {"models": [tied()]}, "networks 0 and 0 share parameters, or layers within one"),
    "its own forward": (lambda a: {"models": [Doubled(*networks(1)[0])]}, "not Doubled"),
    "frozen": (lambda a: {"models": [frozen()]}, "fc1.bias of a network is frozen"),
    "hooks": (lambda a: {"models": [hooked()]}, "forward hooks, which an ensemble would not run"),
    "seeds": (lambda a: {"seeds": [0]}, "2 networks, 2 options and 1 seeds"),
    "options": (lambda a: {"options": [a["options"]]}, "2 networks, 1 options and 2 seeds"),
    "negative seed": (lambda a: {"seeds": [0, -1]}, "seed=-1"),
    "batch sizes": (
        lambda a: {"options": [a["options"], replace(a["options"], batch_size=3)]},
        r"batch_size \(128 there, 3 here\).*learning_rate and weight_decay alone",
    ),
    "bfloat16": (lambda a: {"options": replace(a["options"], precision="bfloat16")}, "precision='bfloat16' is not"),
    "compile": (lambda a: {"options": replace(a["options"], compile=True)}, "compile=True is not"),
    "augmentation": (lambda a: {"options": replace(a["options"], augmentation="crop_flip")}, "augmentation='crop"),
    "input dtype": (
        lambda a: {"inputs": a["inputs"].float()},
        r"inputs torch.float32 \(300, 64\) must be torch.float64",
    ),
    "input width": (lambda a: {"inputs": a["inputs"][:, :-1]}, r"\(300, 63\) must be torch.float64 \[N, 64\]"),
    "no example": (lambda a: {"inputs": a["inputs"][:0], "labels": a["labels"][:0]}, "at least one example"),
    "label dtype": (lambda a: {"labels": a["labels"].int()}, "labels torch.int32"),
    "label sets": (
        lambda a: {"labels": a["labels"].repeat(3, 1)},
        r"labels torch.int64 \(3, 300\) must be .*\[2, 300\]",
    ),
    "label range": (lambda a: {"labels": a["labels"] + 1}, "labels go from 1 to 10; the networks tell classes 0 to 9"),
    "negative label": (lambda a: {"labels": a["labels"] - 1}, "labels go from -1 to 8"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(change, message):
    given = {
        "models": networks(2),
        "inputs": inputs(),
        "labels": DIGITS.labels,
        "options": TrainingOptions(epochs=1),
        "seeds": [0, 1],
    }
    given |= change(given)
    with pytest.raises(ValueError, match=message):
        train_ensemble(given["models"], given["inputs"], given["labels"], given["options"], seeds=given["seeds"])


def test_metrics_are_plain():
    assert EnsembleMetrics(1, 2, (0,), (0.5,), (1.0,), (1e-3,), seconds=1.0) == EnsembleMetrics(
        1, 2, (0,), (0.5,), (1.0,), (1e-3,), seconds=2.0
    )
