"""Mutual information of counts, against scikit-learn's, and its correction for few examples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from sdkernels.analysis.information import bits_about_class


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=80))
def test_information_agrees_with_scikit_learn(pairs):
    labels, bins = zip(*pairs, strict=True)
    counts = torch.zeros(4, 2, 5, dtype=torch.int64)
    for label, one in pairs:
        counts[label, 0, one] += 1
        counts[label, 1, 0] += 1
    found = bits_about_class(counts)
    assert found[0].item() == pytest.approx(mutual_info_score(labels, bins) / math.log(2), abs=1e-12)
    assert found[1].item() == pytest.approx(0, abs=1e-12)  # always in one bin: it says nothing


def test_information_of_a_label_is_its_entropy():
    counts = torch.diag(torch.tensor([4, 2, 1, 1]))[:, None]
    assert bits_about_class(counts).item() == pytest.approx(1.75)


def test_miller_madow_takes_off_the_bias_of_few_examples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2000, 60), generator=generator)  # 2000 units that know nothing, 60 examples
    bins = torch.randint(0, 5, (2000, 60), generator=generator)
    counts = torch.zeros(2000, 20, dtype=torch.int64).scatter_add_(1, labels * 5 + bins, torch.ones_like(labels))
    counts = counts.view(2000, 4, 5).transpose(0, 1).contiguous()
    plain, corrected = bits_about_class(counts), bits_about_class(counts, "miller-madow")
    assert plain.mean() > 0.1
    assert abs(corrected.mean()) < 0.04
    unit = counts[:, 7]
    occupied = int((unit.sum(1) > 0).sum() + (unit.sum(0) > 0).sum() - (unit > 0).sum() - 1)
    assert (corrected - plain)[7].item() == pytest.approx(occupied / (2 * 60 * math.log(2)))
    with pytest.raises(ValueError, match="correction='miller': choose 'none' or 'miller-madow'"):
        bits_about_class(counts, "miller")
