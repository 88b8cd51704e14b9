"""Families: the masks of their configurations, and what ``units=`` takes and refuses."""

import numpy as np
import pytest
import torch

from sdkernels.engine.choices import make_sets
from sdkernels.engine.families import Cumulative, Sets, Singles

COUNTS = (3, 2)
FLAT = r"write \[\[0, 3\]\] for one set of two units, or \[\[0\], \[3\]\] for two sets of one"


def cumulative() -> Cumulative:
    return Cumulative(torch.tensor([[4, 0, 1, 3, 2], [0, 1, 2, 3, 4]]), torch.tensor([0, 2, 5]), COUNTS)


FAMILIES = {
    "cumulative": (cumulative(), ["00000", "10001", "11111", "00000", "11000", "11111"]),
    "singles": (Singles(COUNTS), ["10000", "01000", "00100", "00010", "00001"]),
    "sets": (Sets(make_sets([[1], [], [0, 4]], COUNTS), COUNTS), ["01000", "00000", "10001"]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_of_any_run_of_configurations(name):
    family, rows = FAMILIES[name]
    expected = torch.tensor([[unit == "1" for unit in row] for row in rows])
    assert family.configurations == len(rows)
    assert torch.equal(family.is_ablating, expected.any(1))
    for start in range(len(rows)):
        for stop in range(start + 1, len(rows) + 1):
            first, second = family.ablated(slice(start, stop))
            assert first.dtype == torch.bool
            assert torch.equal(first, expected[start:stop, :3])
            assert torch.equal(second, expected[start:stop, 3:])
    assert torch.equal(torch.cat(family.ablated(slice(None)), 1), expected)


def test_single_units_make_only_the_masks_that_are_asked_for():
    family = Singles((1 << 20, 1 << 20))  # all masks together would be 4 TiB
    first, second = family.ablated(slice((1 << 20) - 1, (1 << 20) + 1))
    assert first.nonzero().tolist() == [[0, (1 << 20) - 1]]
    assert second.nonzero().tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("units", "rows"),
    [
        ([[0], [3, 4]], ["10000", "00011"]),
        (([4, 1],), ["01001"]),
        ([[]], ["00000"]),
        ([range(5), range(0)], ["11111", "00000"]),
        ([torch.tensor([1, 2]), torch.tensor([], dtype=torch.int32)], ["01100", "00000"]),
        ([np.array([1, 4], dtype=np.int16), (np.int64(2),)], ["01001", "00100"]),
        (np.array([[0], [1, 2]], dtype=object), ["10000", "01100"]),
        (torch.tensor([[True, False, True, False, False]]), ["10100"]),
        (np.array([[False] * 5, [True] * 5]), ["00000", "11111"]),
    ],
    ids=str,
)
def test_sets(units, rows):
    masks = make_sets(units, COUNTS)
    assert masks.dtype == torch.bool
    assert ["".join("1" if unit else "0" for unit in mask) for mask in masks] == rows


def test_sets_do_not_share_memory_with_the_users_tensor():
    given = torch.zeros(2, 5, dtype=torch.bool)
    masks = make_sets(given, COUNTS)
    given.fill_(True)
    assert not masks.any()


@pytest.mark.parametrize(
    ("units", "error", "says"),
    [
        ([0, 3], ValueError, rf"units\[0\] is the single number 0: .*{FLAT}"),
        ([[0], 3], ValueError, rf"units\[1\] is the single number 3: .*{FLAT}"),
        (range(3), ValueError, FLAT),
        ([torch.tensor(3)], ValueError, rf"units\[0\] is the single number 3: .*{FLAT}"),
        (torch.tensor([0, 3]), ValueError, rf"units is a flat torch.int64 tensor \[2\]: .*{FLAT}"),
        (np.array([0, 3]), ValueError, FLAT),
        ([], ValueError, r"units is empty.*\[\[\]\] is one set that ablates nothing"),
        ([[0], [-1]], ValueError, r"units\[1\] names unit -1; the pooled units of all layers are 0\.\.4"),
        ([[0], [1, 5]], ValueError, r"units\[1\] names unit 5; the pooled units of all layers are 0\.\.4"),
        ([[1, 0, 1]], ValueError, r"units\[0\] names unit 1 more than once"),
        ([[0.0, 1.0]], ValueError, r"units\[0\] must hold integers 0\.\.4; got torch.float32 \[2\]"),
        ([torch.full((2,), 0.5)], ValueError, r"units\[0\] must hold integers"),
        ([[[0]]], ValueError, r"units\[0\] must hold integers 0\.\.4; got torch.int64 \[1, 1\]"),
        ([torch.zeros(1, 5)], ValueError, r"units\[0\] \[1, 5\] must be a 1-d set"),
        ([[True, False]], ValueError, r"units\[0\] holds bools; masks come as one bool tensor \[K, 5\]"),
        ([torch.ones(5).bool()], ValueError, r"units\[0\] holds bools"),
        ([["relu"]], TypeError, r"units\[0\] must hold integers"),
        ([[0, None]], TypeError, r"units\[0\] must hold integers"),
        ([[0], "12"], TypeError, r"units\[1\] is a str"),
        ([[0], None], TypeError, r"units\[1\] is a NoneType"),
        ([{0, 1}], TypeError, r"units\[0\] is a set; give a list, a range or a 1-d tensor"),
        ("all", TypeError, "units is a str; give a list of index lists"),
        (3, TypeError, "units is a int"),
        (iter([[0]]), TypeError, "units is a list_iterator"),
        (torch.full((2, 5), 0.5), ValueError, r"units is a torch.float32 tensor \[2, 5\]; give a bool tensor \[K, 5\]"),
        (torch.ones(2, 5).long(), ValueError, r"units is a torch.int64 tensor \[2, 5\]; give a bool tensor"),
        (torch.ones(2, 4).bool(), ValueError, r"units \[2, 4\] must be \[K, 5\]"),
        (torch.ones(5).bool(), ValueError, r"units \[5\] must be \[K, 5\]"),
        (torch.zeros(0, 5).bool(), ValueError, r"units \[0, 5\] must be \[K, 5\]: .*K at least 1"),
    ],
    ids=lambda value: type(value).__name__ if "0x" in str(value) else str(value),
)
def test_bad_sets_are_refused(units, error, says):
    with pytest.raises(error, match=says):
        make_sets(units, COUNTS)
