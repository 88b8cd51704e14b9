"""What training reads: data sets by workers, token streams, augmented images; each against its definition."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from sdkernels.lab.seeds import drawing_from
from sdkernels.lab.training import Trainer, TrainingOptions, evaluate, evaluation
from sdkernels.lab.training.augmentation import crop_flip
from tests.lab.small_runs import CASES, Language, RandomItems, assert_same_end, finish, inputs_and_labels, tokens

STEADY = CASES["adam"]


def test_a_dataset_of_the_same_tensors_trains_the_same_network():
    one, other = finish(STEADY.trainer()), finish(replace(STEADY, data=TensorDataset(*STEADY.data)).trainer())
    assert one.history == other.history
    assert one.result() == other.result()
    assert all(torch.equal(t, other.model.state_dict()[n]) for n, t in one.model.state_dict().items())


class Drawn(RandomItems):
    """Draws from all three global generators."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + random.random() + np.random.random(), y


def test_workers_do_not_change_what_is_read():
    case = replace(STEADY, data=Drawn(*STEADY.data), validation=Drawn(*STEADY.data))
    python, array = random.getstate(), np.random.get_state()[1].tolist()
    alone, helped = case.trainer(), case.trainer(workers=2)
    assert_same_end(finish(helped), finish(alone))
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == array
    assert len({metrics.loss for metrics in alone.history}) == 4
    resumed, early = case.trainer(workers=1), case.trainer(workers=2)

    def leave():
        if early.step == 6:
            raise KeyboardInterrupt

    early.run_epoch()
    with pytest.raises(KeyboardInterrupt):
        early.run_epoch(leave)
    resumed.restore(*early.state())
    assert_same_end(finish(resumed), alone)
    assert_same_end(finish(early), alone)  # its workers still had batches on the way


def test_items_draw_anew_in_every_epoch_but_not_in_evaluation():
    class Recording(RandomItems):
        seen: list = []  # noqa: RUF012

        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            self.seen.append((index, float(x.sum())))
            return x, y

    data = Recording(*inputs_and_labels((5, 6)))
    trainer = replace(STEADY, data=data).trainer()
    trainer.run_epoch()
    trainer.run_epoch()
    first, second = data.seen[:5], data.seen[5:]
    assert sorted(i for i, _ in first) == sorted(i for i, _ in second) == list(range(5))
    assert not {x for _, x in first} & {x for _, x in second}
    data.seen.clear()
    assert evaluate(trainer.model, data) == evaluate(trainer.model, data)
    assert len(data.seen) == 2 * 6  # the first item is also read for its shape
    assert data.seen[:6] == data.seen[6:]
    assert [i for i, _ in data.seen[1:6]] == list(range(5))


def test_corrupted_labels_are_another_dataset():
    class WithLabels(TensorDataset):
        @property
        def targets(self):
            return self.tensors[1].tolist()

    inputs, labels = STEADY.data
    changed = labels.clone()
    changed[[3, 4]] = (labels[[3, 4]] + 1) % 3  # none of the three items that are looked at
    state = replace(STEADY, data=WithLabels(inputs, labels)).trainer().state()
    with pytest.raises(ValueError, match="data: sha256"):
        replace(STEADY, data=WithLabels(inputs, changed)).trainer().restore(*state)
    with pytest.raises(ValueError, match="tells 3 classes apart, but labels go up to 7"):
        replace(STEADY, data=WithLabels(inputs, changed + 5)).trainer().run_epoch()


def test_a_language_model_is_trained_by_truncated_back_propagation():
    """Plain torch: B pieces side by side, T tokens a step, the state carried and detached."""
    case = CASES["language model"]
    with drawing_from(0):
        plain = Language()
        plain.lstm.dropout = 0.0
        model = Language()
        model.lstm.dropout = 0.0
        model.load_state_dict(plain.state_dict())
    trainer = Trainer(model, case.data, case.options, seed=0, validation=case.validation)
    optimiser = torch.optim.Adam(plain.parameters(), lr=1e-2)
    pieces = case.data[:188].view(4, 47)
    for _ in range(3):
        state, loss_sum, right = None, 0.0, 0
        for begin in (0, 10, 20, 30, 40):
            x = pieces[:, begin : min(begin + 10, 46)]
            y = pieces[:, begin + 1 : min(begin + 10, 46) + 1]
            logits, state = plain(x, state)
            state = tuple(part.detach() for part in state)
            loss = F.cross_entropy(logits.reshape(-1, 11), y.reshape(-1))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss_sum += float(loss.detach()) * y.numel()
            right += int((logits.argmax(-1) == y).sum())
        metrics = trainer.run_epoch()
        assert metrics.loss == pytest.approx(loss_sum / (4 * 46), rel=1e-12)
        assert metrics.accuracy == right / (4 * 46)
        assert metrics.perplexity == pytest.approx(np.exp(loss_sum / (4 * 46)))
        with torch.no_grad():
            held_out = case.validation.view(4, 15)
            logits, _ = plain(held_out[:, :-1], None)
            expected = F.cross_entropy(logits.double().reshape(-1, 11), held_out[:, 1:].reshape(-1))
        assert metrics.validation_loss == pytest.approx(float(expected), rel=1e-6)
        assert metrics.validation_perplexity == pytest.approx(float(expected.exp()), rel=1e-6)
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_token_stream_is_evaluated_in_one_piece_by_default():
    with drawing_from(0):
        model = Language().eval()
    text = tokens(100)
    with torch.no_grad():
        logits, _ = model(text[None, :-1], None)
    expected = float(F.cross_entropy(logits[0].double(), text[1:]))
    result = evaluate(model, text)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.accuracy == float((logits[0].argmax(1) == text[1:]).double().mean())
    assert result.perplexity == pytest.approx(np.exp(expected), rel=1e-6)


@pytest.mark.parametrize("part", [1, 35, 10_000])
def test_many_logits_are_scored_in_parts(part, monkeypatch):
    with drawing_from(0):
        model = Language().eval()
    text = tokens(190)
    whole = evaluate(model, text, batch_size=4)
    seen, original = [], F.cross_entropy

    def noted(logits, labels, **how):
        seen.append(len(labels))
        return original(logits, labels, **how)

    monkeypatch.setattr(F, "cross_entropy", noted)
    monkeypatch.setattr(evaluation, "_PART", part)
    monkeypatch.setattr(evaluation, "_AT_ONCE", 11 * 4 * 35 - 1)  # the first step of 46 tokens a piece has one more
    parts = evaluate(model, text, batch_size=4)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-14)
    assert parts.accuracy == whole.accuracy
    rows = {1: 1, 35: 3, 10_000: 140}[part]
    assert seen == [*[rows] * (140 // rows), *([140 % rows] if 140 % rows else []), 4 * 11]


def test_crop_flip_is_one_of_all_shifts_and_mirrorings():
    images = torch.randn(400, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    made = crop_flip(images, torch.Generator().manual_seed(1))
    padded = F.pad(images, (4, 4, 4, 4))
    chosen = torch.zeros(9, 9, 2)
    matched = torch.zeros(400)
    for down in range(9):
        for right in range(9):
            cut = padded[:, :, down : down + 6, right : right + 5]
            for flip, candidate in enumerate((cut, cut.flip(3))):
                same = (candidate == made).flatten(1).all(1)
                matched += same
                chosen[down, right, flip] += same.sum()
    assert (matched >= 1).all(), "every image is a shift of itself"
    for dim in ((1, 2), (0, 2)):  # 400 / 9 = 44 each
        assert (chosen.sum(dim) > 20).all()
        assert (chosen.sum(dim) < 75).all()
    assert (chosen.sum((0, 1)) > 160).all()


def test_augmentation_is_of_images_in_training_alone():
    case, seen = CASES["sgd with momentum, steps, augmented"], []
    trainer = case.trainer()
    inputs = case.data[0]
    trainer.model.register_forward_pre_hook(lambda module, x: seen.append((module.training, x[0])))
    finish(trainer)
    whole = [bool((x[:, None] == inputs[None]).flatten(2).all(2).any(1).all()) for training, x in seen if not training]
    assert all(whole), "evaluation sees the images as they are"
    assert len(whole) >= 4
    assert not any((x[:, None] == inputs[None]).flatten(2).all(2).any(1).all() for training, x in seen if training)
    options = TrainingOptions(epochs=1, batch_size=16, augmentation="crop_flip")
    with pytest.raises(ValueError, match=r"needs images \[N, C, H, W\]; got \(16, 6\)"):
        replace(STEADY, options=options).trainer().run_epoch()
    with pytest.raises(ValueError, match="not of a token stream"):
        replace(CASES["language model"], options=options).trainer()


BAD = {
    "no examples": ((torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)), ValueError, "has no example"),
    "other number": ((torch.zeros(3, 6), torch.zeros(2, dtype=torch.int64)), ValueError, r"\(3, 6\).*\(2,\) differ"),
    "float labels": ((torch.zeros(3, 6), torch.zeros(3)), ValueError, r"labels must be int64 \[N\]; got torch.float32"),
    "negative": ((torch.zeros(2, 6), torch.tensor([0, -1])), ValueError, "labels hold -1; classes count from 0"),
    "too many": ((torch.zeros(2, 6), torch.tensor([0, 3])), ValueError, "tells 3 classes apart, but labels go up to 3"),
    "float tokens": (torch.zeros(50), ValueError, r"token stream is int64 \[M\]; got torch.float32"),
    "few tokens": (torch.zeros(31, dtype=torch.int64), ValueError, "31 tokens in 16 pieces"),
    "negative tokens": (torch.arange(-1, 99), ValueError, "tokens hold -1"),
    "a list": ([1, 2], TypeError, "cannot train on list"),
    "an empty dataset": (TensorDataset(torch.zeros(0)), ValueError, "has no example"),
    "no labels": (
        TensorDataset(torch.zeros(5, 6)),
        TypeError,
        r"item \d of TensorDataset is not \(input tensor, label",
    ),
    "negative label": (
        TensorDataset(torch.zeros(5, 6), torch.full((5,), -2)),
        ValueError,
        r"item \d of TensorDataset has label -2",
    ),
}


@pytest.mark.parametrize(("data", "error", "says"), BAD.values(), ids=BAD)
def test_bad_data_is_refused(data, error, says):
    with pytest.raises(error, match=says):
        replace(STEADY, data=data).trainer().run_epoch()


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.zeros(1)), output

    def forward(self, *inputs):
        return self.output(*inputs)


def test_models_that_give_something_else_are_refused():
    def run(output, data):
        replace(STEADY, make=lambda: Returns(output), data=data).trainer().run_epoch()

    labelled, text = STEADY.data, tokens()
    with pytest.raises(ValueError, match=r"the model gives \(16, 3, 1\) for inputs \(16, 6\); training needs logits"):
        run(lambda x: x[:, :3, None], labelled)
    with pytest.raises(ValueError, match="the model gives tuple"):
        run(lambda x: (x, x), labelled)
    with pytest.raises(ValueError, match="this one gives Tensor"):
        run(lambda x, state: x, text)
    with pytest.raises(ValueError, match=r"the model gives logits \(11, 16, 4\) for tokens \(16, 10\)"):
        run(lambda x, state: (torch.zeros(11, 16, 4), state), tokens(16 * 11))
    with pytest.raises(TypeError, match="state must be None, a tensor, or tuples and lists of such; got dict"):
        run(lambda x, state: (torch.zeros(*x.shape, 11), {}), text)
    with pytest.raises(ValueError, match="Flatten has no parameters to train"):
        replace(STEADY, make=nn.Flatten).trainer()
    with pytest.raises(ValueError, match=r"has parameters on cpu, meta"):
        replace(STEADY, make=lambda: nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3, device="meta"))).trainer()
    with pytest.raises(ValueError, match="weight of the model has no shape yet"):
        replace(STEADY, make=lambda: nn.LazyLinear(3)).trainer()
