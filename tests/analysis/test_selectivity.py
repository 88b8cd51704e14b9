"""The selectivity index against its formula, written out for one unit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.analysis.selectivity import class_selectivity


def by_formula(means: list[float], counts: list[int], kind: str) -> float:
    """Of one unit, in Python's floats."""
    classes = [(mean, count) for mean, count in zip(means, counts, strict=True) if count]
    best = max(range(len(classes)), key=lambda i: classes[i][0])
    others = classes[:best] + classes[best + 1 :]
    if kind == "macro":
        other = sum(mean for mean, _ in others) / len(others)
    else:
        other = sum(mean * count for mean, count in others) / sum(count for _, count in others)
    return (classes[best][0] - other) / (classes[best][0] + other) if classes[best][0] else math.nan


@pytest.mark.parametrize("kind", ["macro", "micro"])
@given(data=st.data())
def test_selectivity_by_its_formula(kind, data):
    classes = data.draw(st.integers(2, 6))
    counts = data.draw(st.lists(st.integers(0, 9), min_size=classes, max_size=classes))
    if sum(count > 0 for count in counts) < 2:
        counts[0] = counts[-1] = 3
    numbers = st.floats(0, 1e6, allow_subnormal=False) | st.just(0.0)
    units = data.draw(st.lists(st.lists(numbers, min_size=classes, max_size=classes), min_size=1, max_size=4))
    found = class_selectivity(torch.tensor(units, dtype=torch.float64).t(), torch.tensor(counts), kind)
    expected = [by_formula(means, counts, kind) for means in units]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13, atol=1e-15, equal_nan=True)


def test_selectivity_by_hand():
    means = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [99.0, 99.0, 99.0]]).double()
    counts = torch.tensor([5, 1, 3, 0])  # the last class has no examples
    assert class_selectivity(means, counts).tolist()[:2] == [0.5, 0.0]
    assert math.isnan(class_selectivity(means, counts)[2])
    two = torch.tensor([[1.0], [0.5], [0.0]]).double()
    assert class_selectivity(two, torch.tensor([1, 3, 1]), "macro").item() == (1 - 0.25) / (1 + 0.25)
    assert class_selectivity(two, torch.tensor([1, 3, 1]), "micro").item() == (1 - 0.375) / (1 + 0.375)


def test_selectivity_needs_two_classes_and_a_known_kind():
    means = torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="the data has examples of 1 of 3"):
        class_selectivity(means, torch.tensor([0, 4, 0]))
    with pytest.raises(ValueError, match="kind='mean': 'macro' is the mean of the other classes' means"):
        class_selectivity(means, torch.tensor([1, 4, 0]), "mean")
