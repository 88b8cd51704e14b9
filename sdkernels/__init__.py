"""sdkernels: what does a trained network lose when directions of its activation space are removed or perturbed?"""

from importlib.metadata import version

__version__ = version("sdkernels")

from sdkernels.analysis.ablation import ablate, cumulative_ablation, unit_importance
from sdkernels.analysis.attribution import LayerUnitAblation
from sdkernels.analysis.bases import PrincipalDirections, principal_directions, random_directions
from sdkernels.analysis.correlation import RankCorrelation, rank_correlation
from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.directions import ablate_directions
from sdkernels.analysis.importance import UnitImportance
from sdkernels.analysis.monitor import AblationMonitor
from sdkernels.analysis.noise import NoiseCurve, noise_robustness
from sdkernels.analysis.pairs import pair_importance
from sdkernels.analysis.regularizer import SelectivityRegularizer
from sdkernels.analysis.sets import AblationScores
from sdkernels.analysis.statistics import UnitStatistics
from sdkernels.analysis.synergy import PairImportance
from sdkernels.analysis.taylor import taylor_importance
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.analysis.unit_statistics import unit_statistics
from sdkernels.analysis.weight_scores import batch_norm_scale, weight_norm
from sdkernels.engine.checks import SdkernelsWarning

__all__ = [
    "AblationCurve",
    "AblationMonitor",
    "AblationScores",
    "LayerUnitAblation",
    "NoiseCurve",
    "PairImportance",
    "PrincipalDirections",
    "RankCorrelation",
    "SdkernelsWarning",
    "SelectivityRegularizer",
    "UnitImportance",
    "UnitScore",
    "UnitStatistics",
    "ablate",
    "ablate_directions",
    "batch_norm_scale",
    "cumulative_ablation",
    "noise_robustness",
    "pair_importance",
    "principal_directions",
    "random_directions",
    "rank_correlation",
    "taylor_importance",
    "unit_importance",
    "unit_statistics",
    "weight_norm",
]
