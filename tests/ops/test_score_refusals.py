"""score: what it refuses, and how it says so."""

import pytest
import torch

from sdkernels.ops import score
from tests.ops.backends import on_cuda

LOGITS = torch.zeros(2, 4, 3)
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"logits": LOGITS.int()}, TypeError, "score: logits are torch.int32; use one of torch.float64, "),
        ({"logits": LOGITS[0]}, ValueError, r"score: logits \[4, 3\] must be \[K, N, L\], and not empty"),
        ({"logits": LOGITS[None]}, ValueError, r"score: logits \[1, 2, 4, 3\] must be"),
        ({"logits": LOGITS[:0]}, ValueError, r"score: logits \[0, 4, 3\] must be"),
        ({"logits": LOGITS[:, :0], "labels": LABELS[:0]}, ValueError, r"score: logits \[2, 0, 3\] must be"),
        ({"logits": LOGITS[:, :, :0]}, ValueError, r"score: logits \[2, 4, 0\] must be"),
        ({"labels": LABELS.int()}, TypeError, "score: labels are torch.int32; they are int64"),
        ({"labels": LABELS[:3]}, ValueError, r"score: labels \[3\] on cpu must be \[4\] on cpu"),
        ({"labels": LABELS[:, None]}, ValueError, r"score: labels \[4, 1\] on cpu"),
        ({"labels": LABELS + 1}, ValueError, "score: label 3 of example 2 is out of range: with 3 classes"),
        ({"labels": LABELS - 1}, ValueError, "score: label -1 of example 0 is out of range"),
        ({"labels": LABELS * 10**12}, ValueError, "score: label 1000000000000 of example 1 is out of range"),
        ({"prediction": LABELS.int()}, TypeError, r"score \(prediction\): labels are torch.int32"),
        ({"prediction": LABELS[:3]}, ValueError, r"score \(prediction\): labels \[3\] on cpu must be \[4\]"),
        ({"prediction": LABELS + 1}, ValueError, r"score \(prediction\): label 3 of example 2 is out of range"),
        ({"top": 0}, ValueError, "score: top=0; it must lie in 1 to 3, the number of classes"),
        ({"top": 4}, ValueError, "score: top=4; it must lie in 1 to 3"),
        ({"margin": -0.5}, ValueError, "score: margin=-0.5; it must be at least 0"),
        ({"margin": float("nan")}, ValueError, "score: margin=nan; it must be at least 0"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_is_refused(changes, error, says):
    with pytest.raises(error, match=f"^{says}"):
        score(**{"logits": LOGITS, "labels": LABELS, **changes})


@pytest.mark.parametrize("name", ["labels", "prediction"])
@on_cuda
def test_devices_must_agree(name):
    case = {"logits": LOGITS, "labels": LABELS, "prediction": LABELS}
    with pytest.raises(ValueError, match=r"score.*on cpu must be .* on cuda"):
        score(**{n: t if n == name else t.cuda() for n, t in case.items()})


def test_the_op_itself_checks():
    with pytest.raises(ValueError, match="label 1000000000001 of example 1"):
        torch.ops.sdkernels.score(LOGITS, LABELS * (10**12 + 1), None, True, 0, False, -1.0)
