"""nested_linear_score: the scores of the definition's logits, which whole numbers make exact."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import nested_linear, nested_linear_score, score
from tests.ops.backends import DTYPES, Backend, big, drawn
from tests.ops.nested import nested, on, random_case
from tests.ops.scored import assert_scores, loss_tolerance, scored
from tests.ops.tensors import integers, threads
from tests.ops.tolerances import of_sums, same_bits

OP = "nested_linear"

SHAPES = [  # N, C, D, L, T
    (1, 1, 1, 1, 1),
    (37, 13, 17, 10, 5),
    (65, 7, 5, 23, 4),
    (130, 64, 50, 3, 9),
    pytest.param((263, 101, 70, 11, 33), marks=big),
    pytest.param((70, 300, 5000, 7, 3), marks=big),  # more outputs than a GPU holds
    pytest.param((7, 50, 20, 1000, 3), marks=big),
]


def score_on(backend: Backend, case: dict[str, Any], labels: Tensor, **options: Any):
    options = {name: o.to(backend.device) if isinstance(o, Tensor) else o for name, o in options.items()}
    return nested_linear_score(**on(backend, case), labels=labels.to(backend.device), **options)


def absolute(backend: Backend, logits: Tensor, dtype: torch.dtype) -> float:
    """What the loss of all examples may be off by, if logits are exact."""
    return loss_tolerance(backend, dtype) * (1 + float(logits.abs().max()) + np.log(logits.shape[2])) * logits.shape[1]


@pytest.mark.parametrize(("dtype", "relu"), [*((dtype, True) for dtype in DTYPES), (torch.float32, False)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(backend, shape, dtype, relu):
    n, _, _, classes, _ = shape
    case = random_case(shape, dtype, per_point=True, whole=True) | {"relu": relu}
    logits = nested(**case).transpose(1, 2)  # [T, N, L]
    labels, prediction = integers(0, classes, [n]), integers(0, classes, [n], 1)
    options = {"top": (classes + 1) // 2, "per_class": True, "prediction": prediction, "margin": 2.0**-4}
    found = score_on(backend, case, labels, **options)
    assert_scores(found, scored(logits, labels, **options), absolute(backend, logits, dtype))


@drawn(100)
@given(st.tuples(*(st.integers(1, n) for n in (80, 20, 20, 13, 9))), st.booleans(), st.sampled_from(DTYPES), st.data())
def test_what_is_asked_for_comes(backend, shape, relu, dtype, data):
    n, _, _, classes, _ = shape
    seed = data.draw(st.integers(0, 1000), label="seed")
    case = random_case(shape, dtype, per_point=data.draw(st.booleans()), whole=True, seed=seed) | {"relu": relu}
    logits, labels = nested(**case).transpose(1, 2), integers(0, classes, [n], seed)
    options: dict[str, Any] = {
        "loss": data.draw(st.booleans(), label="loss"),
        "top": data.draw(st.none() | st.integers(1, classes), label="top"),
        "per_class": data.draw(st.booleans(), label="per_class"),
        "margin": data.draw(st.sampled_from([None, 0.0, 0.25]), label="margin"),
        "prediction": integers(0, classes, [n], seed + 1) if data.draw(st.booleans(), label="agree") else None,
    }
    found = score_on(backend, case, labels, **options)
    assert_scores(found, scored(logits, labels, **options), absolute(backend, logits, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_score_of_the_logits(backend, dtype):
    """Of logits that are not rounded to float16 or bfloat16 on the way."""
    case = random_case((120, 13, 17, 10, 5), dtype, per_point=True)
    labels, prediction = integers(0, 10, [120]), integers(0, 10, [120], 1)
    options = {"top": 3, "per_class": True, "prediction": prediction}
    found = score_on(backend, case, labels, **options)
    wide = dtype if dtype == torch.float64 else torch.float32
    exact = {name: t.to(wide) if t.is_floating_point() else t for name, t in on(backend, case).items()}
    logits = nested_linear(**exact).transpose(1, 2)
    options["prediction"] = prediction.to(backend.device)
    expected = score(logits, labels.to(backend.device), **options)
    for name in ("correct", "top", "class_correct", "agreement"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.ambiguous is None
    size = float(logits.abs().max())
    assert (found.loss - expected.loss).abs().max() < of_sums(wide) * size * 120


def test_nan_logits_are_predicted(backend):
    """A nan input that lives makes all logits nan: then class 0 wins."""
    case = random_case((5, 3, 4, 3, 2), whole=True)
    case["a"][2, case["units"][1]] = torch.nan
    case["living_in"], case["living_out"] = torch.tensor([3, 1]), torch.tensor([4, 4])
    first, second = nested(**{**case, "a": case["a"].nan_to_num()}).transpose(1, 2).argmax(2)
    expected = [int((first == 0).sum()) + int(first[2] != 0), int((second == 0).sum())]
    assert score_on(backend, case, torch.zeros(5, dtype=torch.int64)).correct.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_threads_give_the_same_bits(cpu_level, dtype):
    case, labels = random_case((700, 40, 30, 10, 6), dtype), integers(0, 10, [700])
    options = {"top": 2, "per_class": True, "prediction": integers(0, 10, [700], 1), "margin": 1e-3}
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(nested_linear_score(**case, labels=labels, **options))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_any_strides_of_labels_are_read_right(backend):
    case, labels = random_case((37, 13, 17, 10, 5), whole=True), integers(0, 10, [37])
    sparse = torch.stack([labels, labels + 10**6, labels.flip(0)], 1).to(backend.device)
    found = score_on(backend, case, sparse[:, 0], prediction=sparse[:, 2])
    logits = nested(**case).transpose(1, 2)
    expected = scored(logits, labels, prediction=labels.flip(0))
    assert_scores(found, expected, absolute(backend, logits, torch.float32))


class TestRefusals:
    case = random_case((7, 6, 5, 4, 3)) | {"labels": integers(0, 4, [7])}

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"labels": case["labels"].int()}, TypeError, "nested_linear_score: labels are torch.int32"),
            ({"labels": case["labels"][1:]}, ValueError, r"nested_linear_score: labels \[6\] on cpu must be \[7\]"),
            ({"labels": case["labels"] + 10**9}, ValueError, "nested_linear_score: label .* is out of range: with 4"),
            ({"prediction": case["labels"] - 4}, ValueError, r"nested_linear_score \(prediction\): label -4|-[123]"),
            ({"prediction": case["labels"].int()}, TypeError, r"nested_linear_score \(prediction\): labels are"),
            ({"top": 0}, ValueError, "nested_linear_score: top=0; it must lie in 1 to 4"),
            ({"top": 5}, ValueError, "nested_linear_score: top=5"),
            ({"margin": -1.0}, ValueError, "nested_linear_score: margin=-1.0; it must be at least 0"),
            ({"units": case["units"] + 1}, ValueError, "nested_linear: units is no permutation of 0..5"),
            ({"a": case["a"].half()}, TypeError, "nested_linear: a, weight, bias, head and head_bias share one of"),
            ({"a": case["a"].clone().requires_grad_()}, RuntimeError, "nested_linear has no gradient"),
        ],
        ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
    )
    def test_is_refused(self, changes, error, says):
        with pytest.raises(error, match=f"^{says}"):
            nested_linear_score(**{**self.case, **changes})
