"""score: every backend against sorted logits and float64, in any memory layout; counts are exact."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import Score, score
from tests.ops.backends import DTYPES, Backend, big, drawn
from tests.ops.scored import assert_scores, loss_tolerance, scored
from tests.ops.tensors import integers, numbers, threads
from tests.ops.tolerances import LOSS, same_bits

OP = "score"

SHAPES = [  # K, N, L
    (1, 1, 1),
    (3, 5, 1),
    (2, 1, 7),
    (3, 37, 10),
    (2, 129, 2),
    (1, 19, 17),
    (2, 7, 257),
    (1, 3, 1000),
    pytest.param((2, 5, 3001), marks=big),
    pytest.param((3, 1025, 10), marks=big),
    pytest.param((2, 2500, 101), marks=big),
    pytest.param((300, 7, 3), marks=big),
]
EVERYTHING = {"per_class": True, "margin": 2.0**-6}


def score_on(backend: Backend, logits: Tensor, labels: Tensor, **options: Any) -> Score:
    options = {name: o.to(backend.device) if isinstance(o, Tensor) else o for name, o in options.items()}
    return score(logits.to(backend.device), labels.to(backend.device), **options)


def grid_of_logits(shape, dtype=torch.float32, seed: int = 0) -> Tensor:
    """Multiples of 1/8 of every dtype: with ties, and with margins that no rounding touches."""
    return (numbers(shape, torch.float64, seed) * 16).round().to(dtype) / 8


def error_of(backend: Backend, logits: Tensor) -> float:
    size = 1 + float(logits.double().nan_to_num(0, 0, 0).abs().max()) + np.log(logits.shape[2])
    return loss_tolerance(backend, logits.dtype) * size * logits.shape[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(backend, shape, dtype):
    _, n, classes = shape
    logits, labels, prediction = grid_of_logits(shape, dtype), integers(0, classes, [n]), integers(0, classes, [n], 1)
    for top in sorted({1, (classes + 1) // 2, classes}):
        options = {"top": top, "prediction": prediction, **EVERYTHING}
        found = score_on(backend, logits, labels, **options)
        assert_scores(found, scored(logits, labels, **options), error_of(backend, logits))


@pytest.mark.parametrize("sliced", [False, True], ids=["dense", "sliced"])
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=lambda o: "".join("KNL"[d] for d in o))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_strides_are_read_right(backend, dtype, order, sliced):
    """``order`` is that of memory, the slowest first; [K, L, N] is what nested_linear gives."""
    logits = grid_of_logits((3, 21, 11), dtype)
    back = [order.index(d) for d in range(3)]
    lying = logits.to(backend.device).permute(order).contiguous()
    if sliced:
        around = lying.new_full([2 * s + 1 for s in lying.shape], torch.nan)
        around[1::2, 1::2, 1::2] = lying
        lying = around[1::2, 1::2, 1::2]
    strided = lying.permute(back)
    assert strided.shape == logits.shape
    labels, prediction = integers(0, 11, [21]), integers(0, 11, [21], 1)
    options = {"top": 3, "prediction": prediction, **EVERYTHING}
    found = score_on(backend, strided, labels, **options)
    assert_scores(found, scored(logits, labels, **options), error_of(backend, logits))


def test_labels_and_configurations_of_any_strides(backend):
    logits, labels, prediction = grid_of_logits((1, 21, 11)), integers(0, 11, [21]), integers(0, 11, [21], 1)
    sparse = torch.stack([labels, labels + 10**6, prediction], 1).to(backend.device)
    found = score_on(backend, logits.to(backend.device).expand(4, 21, 11), sparse[:, 0], prediction=sparse[:, 2])
    expected = scored(logits.expand(4, 21, 11), labels, prediction=prediction)
    assert_scores(found, expected, error_of(backend, logits))


@drawn(120)
@given(
    *(st.integers(1, n) for n in (4, 40, 20)),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.data(),
)
def test_everything_at_random(backend, configurations, examples, classes, dtype, loss, data):
    seed = data.draw(st.integers(0, 1000), label="seed")
    logits = grid_of_logits((configurations, examples, classes), dtype, seed)
    special = data.draw(st.sampled_from([None, -torch.inf, torch.inf, torch.nan, -1e4]), label="special")
    if special is not None:
        logits.masked_fill_(numbers(logits.shape, seed=seed + 1) > 1, special)
    labels = integers(0, classes, [examples], seed)
    options: dict[str, Any] = {"loss": loss}
    options["top"] = data.draw(st.none() | st.integers(1, classes), label="top")
    options["per_class"] = data.draw(st.booleans(), label="per_class")
    if data.draw(st.booleans(), label="prediction"):
        options["prediction"] = integers(0, classes, [examples], seed + 2)
    if special in (None, -torch.inf, -1e4):  # a margin of infinite logits has no meaning
        options["margin"] = data.draw(st.sampled_from([None, 0.0, 2.0**-8, 0.25, 2.0]), label="margin")
    found = score_on(backend, logits, labels, **options)
    assert_scores(found, scored(logits, labels, **options), error_of(backend, logits))


def test_what_is_not_asked_for_is_none(backend):
    logits, labels = grid_of_logits((2, 3, 4)), integers(0, 4, [3])
    assert score_on(backend, logits, labels, loss=False)[1:] == (None,) * 5
    assert score_on(backend, logits, labels)[1:2] + score_on(backend, logits, labels)[3:] == (None,) * 4


@pytest.mark.parametrize("classes", [2, 10, 40, 600])
def test_ties_go_to_the_lowest_index(backend, classes):
    """As argmax's do: of all equal logits, and of two at any places."""
    for first, second in [(0, classes - 1), (classes // 2, classes - 1), (0, 1)]:
        labels = torch.tensor([0, first, second, classes - 1])
        logits = torch.full((2, 4, classes), -3.0)
        logits[0, :, [first, second]] = 1.5
        found = score_on(backend, logits, labels, per_class=True, top=1)
        assert torch.equal(found.top, found.correct)
        for k, winner in enumerate((first, 0)):
            assert found.correct[k] == (labels == winner).sum()
            assert found.class_correct[k].nonzero().flatten().tolist() == [winner]


def test_zeros_of_either_sign_tie(backend):
    logits = torch.tensor([[[-0.0, 0.0], [0.0, -0.0]]])
    assert score_on(backend, logits, torch.tensor([0, 0])).correct.tolist() == [2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_the_greatest(backend, dtype):
    inf, nan = torch.inf, torch.nan
    rows = [[1, nan, inf, nan], [nan, nan, nan, nan], [inf, inf, -inf, nan], [-nan, 5, 2, 3]]
    logits = torch.tensor(rows, dtype=dtype)[None]
    found = score_on(backend, logits, torch.tensor([1, 0, 3, 0]), top=1)
    assert (found.correct.tolist(), found.top.tolist()) == ([4], [4])
    ranks = [[3, 0, 2, 1], [0, 1, 2, 3], [1, 2, 3, 0], [0, 1, 3, 2]]
    for label in range(4):
        for top in range(1, 5):
            found = score_on(backend, logits, torch.full([4], label), top=top, loss=False)
            assert found.top.item() == sum(row[label] < top for row in ranks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, 40])
def test_infinite_logits_have_torch_s_losses(backend, dtype, classes):
    inf, nan = torch.inf, torch.nan
    logits = torch.full((6, 1, classes), -1.0, dtype=dtype)
    logits[0, 0, 0] = -inf  # the label's: infinitely surprised
    logits[1, 0, 1] = -inf  # another's: no part of the sum
    logits[2, 0, 1] = inf  # another's: infinitely surprised
    logits[3, 0, 0] = inf  # the label's: inf - inf
    logits[4] = -inf  # all: -inf + inf
    logits[5, 0, 2] = nan
    found = score_on(backend, logits, torch.tensor([0])).loss.tolist()
    assert found[0] == inf
    assert found[1] == pytest.approx(np.log(classes - 1), rel=1e-6)
    assert found[2] == inf
    assert all(np.isnan(found[3:]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_great_logits_do_not_overflow(backend, dtype):
    most = 6e4  # e^most is too great even for float64
    logits = torch.tensor([[[most, most, -most], [-most, -most, -most], [0, -most, -most]]], dtype=dtype)
    losses = [score_on(backend, logits[:, n : n + 1], torch.tensor([0])).loss.item() for n in range(3)]
    assert losses == pytest.approx([np.log(2), np.log(3), 0], rel=1e-6)


@pytest.mark.parametrize(("margin", "close"), [(0.0, 1), (0.124, 1), (0.125, 2), (0.25, 3), (2.0, 4)])
def test_margins_are_of_the_greatest_magnitude(backend, margin, close):
    rows = [
        [8.0, 8.0, -1.0],  # apart by 0
        [1.0, 0.0, -8.0],  # by an eighth of 8
        [8.0, 6.0, -2e3],  # by a quarter of 8: the mask does not count
        [4.0, -4.0, -1e3],  # by twice 4; exactly -1000 is a mask too
    ]
    logits, labels = torch.tensor(rows)[None], torch.tensor([0, 0, 0, 0])
    assert score_on(backend, logits, labels, margin=margin).ambiguous.tolist() == [close]


def test_one_class_is_never_ambiguous(backend):
    logits, labels = torch.tensor([[[2.0], [0.0]]]), torch.tensor([0, 0])
    found = score_on(backend, logits, labels, margin=10.0, top=1)
    assert (found.ambiguous.item(), found.correct.item(), found.loss.item()) == (0, 2, 0.0)


@pytest.mark.parametrize("classes", [5, 200])
def test_margins_are_rounded_as_specified(backend, classes):
    """first - margin * s in the dtype that is computed in: a step of a last digit to either side decides."""
    first = torch.tensor(1.7, dtype=torch.float32)
    bound = first - torch.tensor(0.1, dtype=torch.float32) * first
    below = torch.nextafter(bound, torch.tensor(0.0))
    logits = torch.zeros(1, 2, classes)
    logits[0, :, 1], logits[0, 0, 3], logits[0, 1, 3] = first, bound, below
    assert score_on(backend, logits, torch.tensor([0, 0]), margin=0.1).ambiguous.tolist() == [1]


@pytest.mark.parametrize("layout", ["KNL", "KLN"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_threads_give_the_same_bits(cpu_level, dtype, layout):
    logits, labels = numbers((3, 5000, 10), dtype), integers(0, 10, [5000])
    lying = logits if layout == "KNL" else logits.mT.contiguous().mT
    options = {"top": 3, "prediction": integers(0, 10, [5000], 1), **EVERYTHING}
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(score(lying, labels, **options))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))
    options["margin"] = None  # of these logits it would be rounded
    expected = scored(logits, labels, **options)
    assert_scores(results[0]._replace(ambiguous=None), expected, LOSS * 20 * 5000)


def test_runs_give_the_same_bits(backend):
    logits, labels = numbers((2, 300, 10)).to(backend.device), integers(0, 10, [300]).to(backend.device)
    assert same_bits(score(logits, labels).loss, score(logits, labels).loss)


def test_no_gradient_flows(backend):
    logits = grid_of_logits((2, 3, 4)).to(backend.device).requires_grad_()
    assert not score_on(backend, logits, integers(0, 4, [3])).loss.requires_grad
