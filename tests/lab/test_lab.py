"""Data by name, label corruption, models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.lab.corruption import corrupt_labels
from sdkernels.lab.models import mlp


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
