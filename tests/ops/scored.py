"""score by its definition, in numpy: sorted logits and float64."""

from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from sdkernels.ops import Score
from tests.ops.backends import Backend
from tests.ops.tolerances import FLOAT32_LOSS, LOSS

COUNTS = ("correct", "top", "class_correct", "agreement", "ambiguous")


def scored(
    logits: Tensor,  # [K, N, L]
    labels: Tensor,  # [N]
    *,
    loss: bool = True,
    top: int | None = None,
    per_class: bool = False,
    prediction: Tensor | None = None,
    margin: float | None = None,
) -> dict[str, np.ndarray | None]:
    """All arguments as :func:`sdkernels.ops.score` takes them, on the CPU."""
    z, y = logits.double().numpy(), labels.numpy()
    classes = z.shape[-1]
    # best first: nan, then the greatest, then the lowest index
    order = np.lexsort((np.broadcast_to(np.arange(classes), z.shape), -z, ~np.isnan(z)), axis=-1)
    rank_of_label = (order == y[:, None]).argmax(-1)  # [K, N]
    right = rank_of_label == 0
    at_label = np.take_along_axis(z, y[None, :, None], -1)[..., 0]
    with np.errstate(all="ignore"):
        losses = (logsumexp(z, -1) - at_label).sum(1)
    return {
        "correct": right.sum(1),
        "top": None if top is None else (rank_of_label < top).sum(1),
        "loss": losses if loss else None,
        "class_correct": np.stack([right[:, y == c].sum(1) for c in range(classes)], 1) if per_class else None,
        "agreement": None if prediction is None else (order[..., 0] == prediction.numpy()).sum(1),
        "ambiguous": None if margin is None else _ambiguous(np.take_along_axis(z, order, -1), margin).sum(1),
    }


def _ambiguous(ordered: np.ndarray, margin: float) -> np.ndarray:
    """[K, N] of logits from best to worst; exact only where no product is rounded."""
    if ordered.shape[-1] == 1:
        return np.zeros(ordered.shape[:-1], bool)
    first, second = ordered[..., 0], ordered[..., 1]
    masked = ordered <= -1000
    masked[..., 0] = False
    size = np.where(masked, 0, np.abs(ordered)).max(-1)
    with np.errstate(invalid="ignore"):
        return first - second <= margin * size


def loss_tolerance(backend: Backend, dtype: torch.dtype) -> float:
    """Relative to the greatest logit, for each example."""
    return FLOAT32_LOSS if backend.name == "triton" and dtype != torch.float64 else LOSS


def assert_scores(found: Score, expected: dict[str, Any], error_of_loss: float) -> None:
    """Counts are equal; losses are within an absolute error, infinite and nan ones are the same."""
    for name in COUNTS:
        ours, truth = getattr(found, name), expected[name]
        assert (ours is None) == (truth is None), name
        if ours is not None:
            assert ours.dtype == torch.int64
            assert ours.tolist() == truth.tolist(), name
    assert (found.loss is None) == (expected["loss"] is None)
    if found.loss is not None:
        assert found.loss.dtype == torch.float64
        truth = torch.from_numpy(expected["loss"])
        torch.testing.assert_close(found.loss.cpu(), truth, rtol=0, atol=error_of_loss, equal_nan=True)
