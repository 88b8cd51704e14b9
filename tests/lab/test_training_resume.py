"""A run that is left and taken up again ends at the same weights, bit for bit."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from sdkernels.lab.seeds import drawing_from
from sdkernels.lab.training import Trainer, TrainingOptions
from tests.lab.small_runs import CASES, assert_same_end, dense, finish, inputs_and_labels

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def through_json(state):
    tensors, record = state
    return tensors, json.loads(json.dumps(record))


@cases
def test_after_every_epoch(case):
    whole = case.trainer()
    states = [whole.state()]
    while not whole.finished:
        whole.run_epoch()
        states.append(whole.state())
    assert len({float(state[0]["model.out.weight" if "model.out.weight" in state[0] else "model.5.weight"].sum())
                for state in states}) == len(states), "every epoch changes the weights"  # fmt: skip
    for state in states:
        resumed = case.trainer()
        resumed.restore(*through_json(state))
        assert_same_end(finish(resumed), whole)


@cases
def test_after_every_step(case):
    whole = case.trainer()
    states = []
    while not whole.finished:
        whole.run_epoch(lambda: states.append(whole.state()))
    assert len(states) == whole.total_steps
    for state in states:
        resumed = case.trainer()
        resumed.restore(*through_json(state))
        assert_same_end(finish(resumed), whole)


@cases
def test_left_by_an_exception_after_a_step_and_run_on(case):
    whole, left = finish(case.trainer()), case.trainer()

    def leave():
        if left.step % 3 == 2:
            raise KeyboardInterrupt

    while not left.finished:
        try:
            left.run_epoch(leave)
        except KeyboardInterrupt:
            assert not left.finished
    assert_same_end(left, whole)


@cases
def test_a_trainer_that_has_run_goes_back_to_a_state(case):
    trainer = case.trainer()
    trainer.run_epoch()
    state = trainer.state()
    finish(trainer)
    result = trainer.result()
    trainer.restore(*state)
    assert trainer.epoch == 1
    assert finish(trainer).result() == result


@pytest.mark.parametrize("name", ["adam", "random items, read one by one"])
def test_draws_are_the_run_s_own(name, seeds_torch):
    """Dropout does not depend on the global random state, nor change it; another seed gives other weights."""
    case = CASES[name]
    ends = []
    for seed, around in ((7, 0), (7, 1), (8, 0)):
        torch.manual_seed(around)
        before = torch.get_rng_state()
        trainer = case.trainer(seed)
        finish(trainer)
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(trainer.state()[0]["model.fc.weight"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_dropout_draws_anew_in_every_epoch():
    options = TrainingOptions(epochs=2, optimiser="sgd", learning_rate=1e-12, batch_size=50)
    with drawing_from(0):
        model, masks = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)), []
    model[0].register_forward_hook(lambda _module, _inputs, out: masks.append(out == 0))
    finish(Trainer(model, (torch.ones(50, 6), inputs_and_labels()[1]), options, seed=0))
    assert len(masks) == 2
    assert not torch.equal(masks[0], masks[1])
    assert 0.3 < masks[0].double().mean() < 0.7


def test_memorising_ends_a_resumed_run_as_well():
    options = TrainingOptions(epochs=200, learning_rate=3e-2, batch_size=16, stop_when_memorised=True)
    case = replace(CASES["adam"], make=lambda: nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)))
    case = replace(case, options=options)
    whole = finish(case.trainer())
    assert whole.result().memorised
    assert 3 < whole.epoch < 200
    early, late = case.trainer(), case.trainer()
    for _ in range(whole.epoch - 1):
        early.run_epoch()
    late.restore(*through_json(early.state()))
    assert not late.finished
    assert_same_end(finish(late), whole)
    over = case.trainer()
    over.restore(*through_json(whole.state()))
    assert over.finished
    assert over.result() == whole.result()
    with pytest.raises(RuntimeError, match=f"over after {whole.epoch} epochs"):
        over.run_epoch()


def wider():
    model = dense()
    model.out = nn.Linear(16, 4)
    return model


def frozen():
    model = dense()
    model.fc.weight.requires_grad_(False)
    return model


STEADY = CASES["adam"]
OTHERS = {
    "options": (
        replace(STEADY, options=replace(STEADY.options, learning_rate=0.1, epochs=5)),
        r"options: epochs \(4 there, 5 here\), options: learning_rate \(0.01 there, 0.1 here\)",
    ),
    "shapes": (replace(STEADY, make=wider), r"out_features=3.*model: tensors: out.weight \(.*\[3, 16\].*\[4, 16\]"),
    "dropout": (replace(STEADY, make=lambda: dense(0.1)), r"Dropout\(p=0.4.*there, .*Dropout\(p=0.1.* here"),
    "trained": (replace(STEADY, make=frozen), "model: trained"),
    "inputs": (replace(STEADY, data=inputs_and_labels(seed=3)), r"data: sha256"),
    "labels": (replace(STEADY, data=(STEADY.data[0], STEADY.data[1].roll(1))), r"data: sha256"),
    "number": (replace(STEADY, data=inputs_and_labels((49, 6))), r"data: inputs \(\[50, 6\] there, \[49, 6\] here\)"),
    "validation": (replace(STEADY, validation=STEADY.data), "validation"),
}


@pytest.mark.parametrize(("other", "says"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_run_is_refused(other, says):
    trainer = other.trainer()
    before = trainer.state()[0]
    with pytest.raises(ValueError, match=f"(?s)state of another training run.*{says}"):
        trainer.restore(*through_json(STEADY.trainer().state()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state()[0].items()), "nothing is changed"


def test_a_state_of_another_seed_or_kind_is_refused():
    state = STEADY.trainer().state()
    with pytest.raises(ValueError, match=r"seed \(7 there, 8 here\)"):
        STEADY.trainer(seed=8).restore(*state)
    with pytest.raises(ValueError, match=r"data: kind \('in memory' there, 'token stream' here\)"):
        CASES["language model"].trainer().restore(*state)
    with pytest.raises(ValueError, match="no state of a training run"):
        STEADY.trainer().restore({}, {"format": "something else"})


def test_a_step_broken_off_in_its_middle_leaves_nothing_to_save():
    trainer = STEADY.trainer()
    trainer.run_epoch()
    state = trainer.state()

    def broken(_module, _inputs):
        raise KeyboardInterrupt

    hook = trainer.model.out.register_forward_pre_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_epoch()
    hook.remove()
    with pytest.raises(RuntimeError, match="broken off in its middle"):
        trainer.state()
    with pytest.raises(RuntimeError, match="broken off in its middle"):
        trainer.run_epoch()
    trainer.restore(*state)
    assert_same_end(finish(trainer), finish(STEADY.trainer()))


def test_a_state_is_a_copy():
    trainer = STEADY.trainer()
    trainer.run_epoch()
    tensors, _ = trainer.state()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    finish(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
