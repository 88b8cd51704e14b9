"""Options one by one: optimisers, schedules, clipping, precision, length; and what is refused."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdkernels.lab.seeds import drawing_from
from sdkernels.lab.training import DivergedError, Trainer, TrainingOptions, load_checkpoint, train
from sdkernels.lab.training.schedules import learning_rate, total_steps
from tests.lab.small_runs import CASES, finish, inputs_and_labels

DATA = inputs_and_labels()


def linear(seed=0):
    with drawing_from(seed):
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def plain_run(options, make_optimiser, rate=lambda step: 1e-2, after_backward=lambda model: None):
    """What training is, in plain torch; the model, and each epoch's mean loss and accuracy."""
    model, generator, history = linear(), torch.Generator().manual_seed(3), []
    optimiser, step = make_optimiser(model.parameters()), 0
    total = options.steps or options.epochs * 4
    while step < total:
        loss_sum, right, seen = 0.0, 0, 0
        for batch in torch.randperm(50, generator=generator).split(16)[: total - step]:
            optimiser.param_groups[0]["lr"] = rate(step)
            logits = model(DATA[0][batch])
            loss = F.cross_entropy(logits, DATA[1][batch])
            optimiser.zero_grad()
            loss.backward()
            after_backward(model)
            optimiser.step()
            step += 1
            loss_sum += float(loss.detach()) * len(batch)
            right += int((logits.argmax(1) == DATA[1][batch]).sum())
            seen += len(batch)
        history.append((loss_sum / seen, right / seen))
    return model, history


def assert_same_run(options, *arguments, **settings):
    trainer = finish(Trainer(linear(), DATA, options, seed=3))
    expected, history = plain_run(options, *arguments, **settings)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], tensor), name
    assert [metrics.accuracy for metrics in trainer.history] == [accuracy for _, accuracy in history]
    assert [metrics.loss for metrics in trainer.history] == pytest.approx([loss for loss, _ in history], rel=1e-12)
    return trainer


OPTIMISERS = {
    "adam": ({"weight_decay": 0.1}, lambda p: torch.optim.Adam(p, weight_decay=0.1)),
    "adamw": ({"weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, weight_decay=0.1)),
    "adamw without decay": ({"optimiser": "adamw"}, lambda p: torch.optim.AdamW(p, weight_decay=0.0)),
    "sgd": ({"momentum": 0.9, "weight_decay": 0.01}, lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.01)),
}


@pytest.mark.parametrize(("name", "case"), OPTIMISERS.items(), ids=OPTIMISERS)
def test_optimisers(name, case):
    settings, make_optimiser = case
    options = TrainingOptions(epochs=3, batch_size=16, learning_rate=1e-2, **{"optimiser": name.split()[0], **settings})
    trainer = assert_same_run(options, make_optimiser)
    assert [(metrics.epoch, metrics.step) for metrics in trainer.history] == [(1, 4), (2, 8), (3, 12)]


@pytest.mark.parametrize("steps", [1, 4, 6, 12])
def test_a_length_in_steps(steps):
    options = TrainingOptions(steps=steps, batch_size=16, learning_rate=1e-2)
    trainer = assert_same_run(options, torch.optim.Adam)
    assert trainer.step == steps
    assert trainer.epoch == trainer.result().epochs == math.ceil(steps / 4)


def test_the_gradient_is_clipped():
    def clip(model):
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        assert norm > 0.05, "something is clipped"
        for p in model.parameters():
            p.grad.mul_(0.05 / (norm + 1e-6))

    options = TrainingOptions(steps=1, batch_size=16, learning_rate=1e-2, clip_norm=0.05, optimiser="sgd")
    trainer = finish(Trainer(linear(), DATA, options, seed=3))
    expected, _ = plain_run(options, lambda p: torch.optim.SGD(p, lr=1e-2), after_backward=clip)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


SCHEDULES = {
    "constant": ({}, lambda s: 1.0),
    "linear": ({"schedule": "linear"}, lambda s: 1 - s / 20),
    "cosine": ({"schedule": "cosine"}, lambda s: math.cos(math.pi * s / 40) ** 2),
    "step": ({"schedule": "step", "milestones": (2, 4)}, lambda s: 1.0 if s < 8 else 0.1 if s < 16 else 0.01),
    "half": ({"schedule": "step", "milestones": (1,), "decay": 0.5}, lambda s: 1.0 if s < 4 else 0.5),
    "warm-up": ({"warmup": 4}, lambda s: (0.25, 0.5, 0.75)[s] if s < 3 else 1.0),
    "warm-up, linear": ({"warmup": 4, "schedule": "linear"}, lambda s: (s + 1) / 4 if s < 4 else 1 - (s - 4) / 16),
    "warm-up, cosine": (
        {"warmup": 4, "schedule": "cosine"},
        lambda s: (s + 1) / 4 if s < 4 else math.cos(math.pi * (s - 4) / 32) ** 2,
    ),
}


@pytest.mark.parametrize(("settings", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(settings, expected):
    options = TrainingOptions(epochs=5, learning_rate=0.5, **settings)
    assert [learning_rate(options, s, 4) for s in range(20)] == pytest.approx([0.5 * expected(s) for s in range(20)])
    assert total_steps(options, 4) == 20


def test_milestones_are_in_the_unit_of_the_length():
    options = TrainingOptions(steps=9, schedule="step", milestones=(3, 7), learning_rate=1.0)
    assert [learning_rate(options, s, 4) for s in range(9)] == pytest.approx([1.0] * 3 + [0.1] * 4 + [0.01] * 2)


def test_the_schedule_reaches_the_optimiser():
    options = TrainingOptions(epochs=3, batch_size=16, learning_rate=1e-2, schedule="linear", warmup=2)
    trainer = assert_same_run(options, torch.optim.Adam, rate=lambda s: learning_rate(options, s, 4))
    assert [metrics.learning_rate for metrics in trainer.history] == [learning_rate(options, s, 4) for s in (3, 7, 11)]


def test_bfloat16_is_of_the_forward_pass_in_training():
    options = TrainingOptions(epochs=2, batch_size=16, learning_rate=1e-2, precision="bfloat16")
    model, seen = linear(), set()
    model.register_forward_hook(lambda module, _, logits: seen.add((module.training, logits.dtype)))
    trainer = Trainer(model, DATA, options, seed=3, validation=DATA)
    losses = [metrics.loss for metrics in (trainer.run_epoch(), trainer.run_epoch())]
    trainer.result()
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    _, whole = plain_run(options, torch.optim.Adam)
    assert losses == pytest.approx([loss for loss, _ in whole], rel=1e-2)
    assert losses != [loss for loss, _ in whole]
    (one,) = finish(Trainer(linear(), DATA, replace(options, epochs=None, steps=1), seed=3)).history
    assert float(torch.tensor(one.loss).bfloat16()) != one.loss, "the loss itself is taken in float32"


def test_a_loss_that_is_no_number_says_where_and_leaves_the_checkpoint(tmp_path):
    data = (DATA[0].clone(), DATA[1])
    options = TrainingOptions(epochs=5, batch_size=16, learning_rate=1e-2)
    trainer = Trainer(linear(), data, options, seed=3)
    trainer.run_epoch()
    data[0][7] = math.nan
    weights = [p.clone() for p in trainer.model.parameters()]
    order = torch.Generator().manual_seed(3)
    torch.randperm(50, generator=order)
    step = 5 + torch.randperm(50, generator=order).tolist().index(7) // 16
    with pytest.raises(DivergedError, match=f"the loss is nan in epoch 2, step {step}: .*Lower learning_rate"):
        trainer.run_epoch()
    assert step == 5 or not all(torch.equal(p, w) for p, w in zip(trainer.model.parameters(), weights, strict=True))
    assert all(p.isfinite().all() for p in trainer.model.parameters())

    wild = replace(options, optimiser="sgd", learning_rate=1e-2)
    model = linear()
    calls = []

    def explode(_module, _inputs, output):
        calls.append(1)
        return output * (math.nan if len(calls) == 8 else 1)  # the last step of epoch 2

    model.register_forward_hook(explode)
    with pytest.raises(DivergedError, match="in epoch 2, step 8"):
        train(model, DATA, wild, seed=3, checkpoints=tmp_path)
    fresh = linear()
    assert len(load_checkpoint(tmp_path, fresh)["history"]) == 1
    assert all(p.isfinite().all() for p in fresh.parameters())


def test_weights_that_the_last_step_spoilt_are_not_saved(tmp_path):
    model = linear()
    hook = model[0].weight.register_hook(lambda grad: grad * math.inf)
    options = TrainingOptions(steps=4, batch_size=16)
    with pytest.raises(DivergedError, match=r"in epoch 1, step 2"):  # seen by the loss of the next step
        train(model, DATA, options, seed=0, checkpoints=tmp_path)
    model = linear()
    hook.remove()
    model[0].weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(DivergedError, match=r"0\.weight is not finite in epoch 1, step 1"):
        train(model, DATA, replace(options, steps=1), seed=0, checkpoints=tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_are_plain_values():
    options = TrainingOptions(epochs=9, schedule="step", milestones=[3, 6], clip_norm=1)
    assert TrainingOptions.from_record(json.loads(json.dumps(options.record()))) == options
    assert hash(options) == hash(replace(options))
    with pytest.raises(ValueError, match="no training option learning"):
        TrainingOptions.from_record({"epochs": 3, "learning": 1})


REFUSED = [
    ({}, "give epochs= or steps="),
    ({"epochs": 1, "steps": 1}, "not both"),
    ({"epochs": 0}, "epochs=0 must be a whole number, at least one"),
    ({"epochs": 1.5}, r"epochs=1\.5"),
    ({"epochs": True}, "epochs=True"),
    ({"steps": -1}, "steps=-1"),
    ({"epochs": 1, "batch_size": 0}, "batch_size=0"),
    ({"epochs": 1, "unroll": 0}, "unroll=0"),
    ({"epochs": 1, "batch_size": None}, "batch_size=None"),
    ({"epochs": 1, "warmup": -1}, "warmup=-1"),
    ({"epochs": 1, "optimiser": "lion"}, "optimiser='lion': choose 'adam' or 'adamw' or 'sgd'"),
    ({"epochs": 1, "schedule": "wave"}, "choose 'constant' or"),
    ({"epochs": 1, "precision": "float16"}, "choose 'float32' or 'bfloat16'"),
    ({"epochs": 1, "augmentation": "flip"}, "choose 'none' or 'crop_flip'"),
    ({"epochs": 1, "compile": 1}, "compile=1 must be True or False"),
    ({"epochs": 1, "stop_when_memorised": None}, "stop_when_memorised=None must be"),
    ({"epochs": 1, "learning_rate": 0}, "learning_rate=0 must"),
    ({"epochs": 1, "learning_rate": math.nan}, "learning_rate=nan must"),
    ({"epochs": 1, "learning_rate": "fast"}, "learning_rate='fast' must"),
    ({"epochs": 1, "weight_decay": -1}, "weight_decay=-1"),
    ({"epochs": 1, "optimiser": "sgd", "momentum": 1}, "momentum=1 must be"),
    ({"epochs": 1, "momentum": 0.9}, "is of optimiser='sgd'; adam has its own"),
    ({"epochs": 1, "clip_norm": 0}, "clip_norm=0"),
    ({"epochs": 1, "decay": 1}, "decay=1"),
    ({"epochs": 3, "schedule": "step"}, "schedule='step' needs milestones"),
    ({"epochs": 3, "milestones": (1,)}, "no other schedule has them"),
    ({"epochs": 9, "schedule": "step", "milestones": (3, 3)}, "that rise"),
    ({"epochs": 9, "schedule": "step", "milestones": (0,)}, "from 1 that rise"),
    ({"epochs": 9, "schedule": "step", "milestones": 3}, "must be a tuple"),
    ({"epochs": 9, "schedule": "step", "milestones": (9,)}, "over after 9"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_bad_options_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        TrainingOptions(**settings)


def test_bad_runs_are_refused(tmp_path):
    options = TrainingOptions(epochs=2, batch_size=16)
    with pytest.raises(ValueError, match="warmup=8 takes the whole run of 8 steps"):
        train(linear(), DATA, replace(options, warmup=8), seed=0)
    with pytest.raises(ValueError, match="seed=-1"):
        train(linear(), DATA, options, seed=-1)
    for settings in ({"keep_epochs": [1]}, {"every": 2}, {"every_steps": 2}):
        with pytest.raises(ValueError, match="give checkpoints=FOLDER"):
            train(linear(), DATA, options, seed=0, **settings)
    for settings in ({"every": 0}, {"every_steps": 0}):
        with pytest.raises(ValueError, match="at least one apart"):
            train(linear(), DATA, options, seed=0, checkpoints=tmp_path / "x", **settings)
    for epoch in (-1, 3):
        with pytest.raises(ValueError, match=f"keep_epochs holds {epoch}; the run has epochs 0"):
            train(linear(), DATA, options, seed=0, checkpoints=tmp_path / "x", keep_epochs=[epoch])
    assert not list(tmp_path.iterdir())


def test_metrics_are_a_mapping():
    metrics = CASES["adam"].trainer().run_epoch()
    assert dict(metrics) == metrics.record()
    assert metrics["loss"] == metrics.loss
    assert metrics.validation_perplexity is None
    assert replace(metrics, loss=1000.0).perplexity == math.inf
    with pytest.raises(KeyError, match="no metric 'top5'"):
        metrics["top5"]


def test_the_bar_says_how_it_goes(capsys):
    options = TrainingOptions(epochs=3, batch_size=16, learning_rate=1e-2)
    result = train(linear(), DATA, options, seed=0, show_progress=True, description="corrupted 0.2")
    said = capsys.readouterr().err
    assert "corrupted 0.2: 100%" in said
    assert "12/12 [00:00<00:00, " in said.split("\r")[-1]
    assert f"epochs=3, accuracy={result.accuracy:.4f}, loss={result.loss:.4g}" in said
    train(linear(), DATA, options, seed=0)
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_it_trains_as_it_does_otherwise(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    options = TrainingOptions(steps=5, batch_size=25, learning_rate=1e-2)
    expected = finish(Trainer(linear(), DATA, options, seed=3))
    compiled = finish(Trainer(linear(), DATA, replace(options, compile=True), seed=3))
    assert [m.loss for m in compiled.history] == pytest.approx([m.loss for m in expected.history], rel=1e-5)
    assert compiled.model.state_dict().keys() == expected.model.state_dict().keys()
    assert compiled.result().loss == pytest.approx(expected.result().loss, rel=1e-5)


def test_a_model_that_cannot_be_compiled_is_said(monkeypatch):
    def refuse(model, mode=None):
        def forward(*inputs):
            raise RuntimeError("no compiler\nand more")

        return forward

    monkeypatch.setattr(torch, "compile", refuse)
    options = TrainingOptions(epochs=1, compile=True)
    with pytest.raises(RuntimeError, match=r"compile=True: the first .*\(RuntimeError: no compiler\).*compile=False"):
        train(linear(), DATA, options, seed=0)
