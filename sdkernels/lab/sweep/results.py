"""Results of a sweep's measures: what each function gives, a few numbers of it, and its bytes in the ledger."""

import tempfile
from pathlib import Path

import sdkernels as sd
from sdkernels.analysis.scored import Scored

RESULTS: dict[str, type[Scored]] = {
    "cumulative_ablation": sd.AblationCurve,
    "unit_importance": sd.UnitImportance,
    "noise_robustness": sd.NoiseCurve,
}


def summary(result: Scored) -> dict[str, float]:
    """A few numbers that say what came out."""
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


def to_bytes(result: Scored) -> bytes:
    """The file that ``result.save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        result.save(path)
        return path.read_bytes()


def from_bytes(function: str, content: bytes) -> Scored:
    """The opposite of :func:`to_bytes`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        path.write_bytes(content)
        return RESULTS[function].load(path)
