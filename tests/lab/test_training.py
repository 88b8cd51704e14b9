"""Training of small networks in memory: what it does, step by step, and when it stops."""

import pytest
import torch
import torch.nn.functional as F

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.models import mlp
from sdkernels.lab.training import Training, TrainingOptions, evaluate, train


@pytest.fixture(scope="module")
def digits():
    return load("digits").first(60)


def test_training_memorises_and_says_so(digits):
    labels = corrupt_labels(digits.labels, 1.0, seed=0)
    options = TrainingOptions(epochs=300, learning_rate=1e-2, batch_size=16, stop_when_memorised=True)
    results = []
    for _ in range(2):
        model = mlp(64, (64, 64), 10, seed=0)
        results.append(train(model, (digits.inputs, labels), options, seed=0))
    assert results[0] == results[1]
    assert results[0].memorised
    assert results[0].accuracy == 1
    assert results[0].epochs < 300
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(digits.inputs).argmax(1), labels)


def test_training_that_does_not_memorise_says_so(digits):
    model = mlp(64, (2, 2), 10, seed=0)
    options = TrainingOptions(epochs=2, learning_rate=1e-2, batch_size=16, stop_when_memorised=True)
    result = train(model, digits, options, seed=0)
    assert not result.memorised
    assert result.epochs == 2
    assert result == evaluate(model, digits, epochs=2)


def plain_loop(model, inputs, labels, *, epochs, learning_rate, batch_size, seed, stop_when_memorised):
    """The published arithmetic, written out: what figures already made with it rely on."""
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):  # noqa: B007
        model.train()
        right = 0
        for batch in torch.randperm(len(labels), generator=generator).split(batch_size):
            logits = model(inputs[batch])
            loss = F.cross_entropy(logits, labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            right += int((logits.argmax(1) == labels[batch]).sum())
        if stop_when_memorised and right / len(labels) >= 0.98:
            model.eval()
            with torch.no_grad():
                if bool((model(inputs).argmax(1) == labels).all()):
                    break
    model.eval()
    with torch.no_grad():
        logits = model(inputs)
    right, loss = int((logits.argmax(1) == labels).sum()), float(F.cross_entropy(logits.double(), labels))
    return Training(epoch, right / len(labels), pytest.approx(loss, rel=1e-12), right == len(labels))


@pytest.mark.parametrize("stop", [True, False], ids=["until memorised", "all epochs"])
@pytest.mark.parametrize("batch_size", [16, 60, 100])
def test_equals_the_plain_loop_bit_for_bit(digits, stop, batch_size):
    labels = corrupt_labels(digits.labels, 0.5, seed=0)
    settings = {"epochs": 60, "learning_rate": 1e-2, "batch_size": batch_size, "stop_when_memorised": stop}
    expected_model, model = (mlp(64, (32, 32), 10, seed=0) for _ in range(2))
    expected = plain_loop(expected_model, digits.inputs, labels, seed=5, **settings)
    assert train(model, (digits.inputs, labels), TrainingOptions(**settings), seed=5) == expected
    assert expected.memorised
    assert (expected.epochs < 60) == stop
    for name, tensor in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
