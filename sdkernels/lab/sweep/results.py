"""Results of a sweep's measures and comparisons: what each function gives, and its bytes in the ledger."""

import tempfile
from pathlib import Path
from typing import Any

import sdkernels as sd
from sdkernels.analysis.scored import Scored

Result = Scored | sd.UnitStatistics
Compared = sd.LayerSimilarity | sd.PairwiseSimilarity | sd.SimilarityCurve

RESULTS: dict[str, type[Result | Compared]] = {
    "cumulative_ablation": sd.AblationCurve,
    "unit_importance": sd.UnitImportance,
    "noise_robustness": sd.NoiseCurve,
    "unit_statistics": sd.UnitStatistics,
    "compare_layers": sd.LayerSimilarity,
    "pairwise_similarity": sd.PairwiseSimilarity,
    "similarity_over_training": sd.SimilarityCurve,
    "similarity_over_steps": sd.SimilarityCurve,
}


def summary(result: Result) -> dict[str, float]:
    """A few numbers that say what came out."""
    if isinstance(result, sd.UnitStatistics):
        return _of_units(result)
    found = {"accuracy": float(result.baseline["accuracy"])}
    if isinstance(result, sd.AblationCurve):
        auc = result.auc()
        found |= {"auc": float(auc.mean()), "auc_sd": float(auc.std()) if len(auc) > 1 else 0.0}
    elif isinstance(result, sd.NoiseCurve):
        found |= {"lowest": float(result.accuracy.mean(0).min())}
    elif isinstance(result, sd.UnitImportance):
        importance = result.importance("accuracy")
        found |= {"importance": float(importance.mean()), "importance_sd": float(importance.std())}
    return found


def _of_units(result: sd.UnitStatistics) -> dict[str, float]:
    """Mean selectivity of the units that have one, mean mutual information in bits, and how many units are dead."""
    found = {"dead": float(result.dead.sum())}
    if int((result.class_examples > 0).sum()) > 1:
        found["selectivity"] = float(result.selectivity(negative="nan").values.nanmean())
    if result.edges is not None:
        cells = result.edges.shape[1] + 1
        found["mutual_information"] = float(result.mutual_information(min(20, cells)).values.mean())
    return found


def to_bytes(result: Result | Compared) -> bytes:
    """The file that ``result.save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        result.save(path)
        return path.read_bytes()


def from_bytes(function: str, content: bytes) -> Any:
    """The opposite of :func:`to_bytes`: what this function gave."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        path.write_bytes(content)
        return RESULTS[function].load(path)
