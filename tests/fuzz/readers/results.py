"""Saved results: each class's ``load``, and what it gives saved again."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sdkernels as sd
from tests.fuzz.readers.npz import changed_npz
from tests.fuzz.readers.reader import Reader


def _made() -> dict[str, Any]:
    """A result of each class."""
    draw = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(20, 4, generator=draw), torch.randint(3, (20,), generator=draw)
    models = [_model(seed) for seed in (1, 2, 3)]
    model, data = models[0], (inputs, labels)
    activations = [torch.randn(30, width, generator=draw) for width in (3, 4)]
    statistics = sd.unit_statistics(model, ["1"], data, cells=4, mean_maps=True)
    return {
        "AblationCurve": sd.cumulative_ablation(model, ["1"], data, orders=2, points=3, seed=0, outcomes=True),
        "UnitImportance": sd.unit_importance(model, ["1"], data),
        "NoiseCurve": sd.noise_robustness(model, ["1"], data, scales=(0.0, 1.0), repeats=2, seed=0),
        "UnitStatistics": statistics,
        "UnitScore": statistics.selectivity(negative="nan"),
        "Similarity": sd.similarity(*activations, method="pwcca"),
        "LayerSimilarity": sd.compare_layers(model, models[1], ["0", "1"], data, method="cka"),
        "PairwiseSimilarity": sd.pairwise_similarity(models, ["1"], data, method="cka"),
        "SimilarityCurve": sd.similarity_over_training(models, ["1"], data, method="cka"),
    }


def _model(seed: int) -> nn.Module:
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, 4, 5), nn.ReLU(), nn.utils.skip_init(nn.Linear, 5, 3))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return model.eval()


@cache
def _saved(name: str) -> bytes:
    return _all_saved()[name]


@cache
def _all_saved() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder) / "result.npz", {}
        for name, result in _made().items():
            result.save(path)
            found[name] = path.read_bytes()
    return found


def _reads(name: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        found = getattr(sd, name).load(path)
        again = path.with_name("again.npz")
        found.save(again)
        other = type(found).load(again)
        for field in fields(found):
            assert _same(getattr(found, field.name), getattr(other, field.name)), f"{field.name} saved again differs"
        found.to_pandas()
        repr(found)

    return read


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        same_kind = isinstance(other, Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return same_kind and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)


def _change(content: bytes, draw: random.Random) -> bytes:
    return changed_npz(content, draw)


_NAMES = (
    *("AblationCurve", "UnitImportance", "NoiseCurve", "UnitStatistics", "UnitScore", "Similarity", "LayerSimilarity"),
    *("PairwiseSimilarity", "SimilarityCurve"),
)
READERS = [
    Reader(f"results_{name}", "result.npz", lambda name=name: [_saved(name)], _reads(name), _change) for name in _NAMES
]
