"""Data by name, label corruption, models, training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.datasets import load
from sdkernels.lab.models import mlp
from sdkernels.lab.training import evaluate, train


@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 100))
def test_corruption_keeps_the_histogram_and_touches_only_its_share(examples, fraction, seed):
    labels = torch.randint(0, 10, (examples,), generator=torch.Generator().manual_seed(seed))
    before = labels.clone()
    corrupted = corrupt_labels(labels, fraction, seed)
    assert torch.equal(labels, before)
    assert torch.equal(corrupted.bincount(minlength=10), labels.bincount(minlength=10))
    assert int((corrupted != labels).sum()) <= round(fraction * examples)
    assert torch.equal(corrupted, corrupt_labels(labels, fraction, seed))


def test_corruption_of_balanced_classes_changes_nine_tenths():
    labels = torch.arange(10).repeat(5000)
    for fraction in (0.2, 0.6, 1.0):
        changed = float((corrupt_labels(labels, fraction, seed=1) != labels).double().mean())
        assert changed == pytest.approx(0.9 * fraction, abs=0.01)
    assert not torch.equal(corrupt_labels(labels, 1.0, seed=1), corrupt_labels(labels, 1.0, seed=2))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_corruption_refuses_other_fractions(fraction):
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        corrupt_labels(torch.arange(3), fraction, seed=0)


def test_models_are_seeded():
    one, same, other = mlp(5, (4, 3), 2, seed=0), mlp(5, (4, 3), 2, seed=0), mlp(5, (4, 3), 2, seed=1)
    assert torch.equal(one.fc2.weight, same.fc2.weight)
    assert not torch.equal(one.fc2.weight, other.fc2.weight)


def test_training_memorises_and_says_so():
    data = load("digits").first(60)
    labels = corrupt_labels(data.labels, 1.0, seed=0)
    results = []
    for _ in range(2):
        model = mlp(64, (64, 64), 10, seed=0)
        results.append(
            train(
                model,
                data.inputs,
                labels,
                epochs=300,
                learning_rate=1e-2,
                batch_size=16,
                seed=0,
                stop_when_memorised=True,
            )
        )
    assert results[0] == results[1]
    assert results[0].memorised
    assert results[0].accuracy == 1
    assert results[0].epochs < 300
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(data.inputs).argmax(1), labels)


def test_training_that_does_not_memorise_says_so():
    data = load("digits").first(60)
    model = mlp(64, (2, 2), 10, seed=0)
    options = {"learning_rate": 1e-2, "batch_size": 16, "seed": 0}
    result = train(model, data.inputs, data.labels, epochs=2, stop_when_memorised=True, **options)
    assert not result.memorised
    assert result.epochs == 2
    assert result == evaluate(model, data.inputs, data.labels, 2)
    with pytest.raises(ValueError, match="at least one epoch"):
        train(model, data.inputs, data.labels, epochs=0, stop_when_memorised=True, **options)
