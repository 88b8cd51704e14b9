"""The public API by name: ``sdkernels.X`` is the ``X`` of this module, which is imported when first asked for."""

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
from sdkernels.analysis.similarity.layer_similarity import LayerSimilarity
from sdkernels.analysis.similarity.over_layers import compare_layers
from sdkernels.analysis.similarity.over_networks import pairwise_similarity
from sdkernels.analysis.similarity.over_steps import similarity_over_steps
from sdkernels.analysis.similarity.over_training import similarity_over_training
from sdkernels.analysis.similarity.pairwise_result import PairwiseSimilarity
from sdkernels.analysis.similarity.result import Similarity
from sdkernels.analysis.similarity.similarity import similarity
from sdkernels.analysis.similarity.similarity_curve import SimilarityCurve
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
    "LayerSimilarity",
    "LayerUnitAblation",
    "NoiseCurve",
    "PairImportance",
    "PairwiseSimilarity",
    "PrincipalDirections",
    "RankCorrelation",
    "SdkernelsWarning",
    "SelectivityRegularizer",
    "Similarity",
    "SimilarityCurve",
    "UnitImportance",
    "UnitScore",
    "UnitStatistics",
    "ablate",
    "ablate_directions",
    "batch_norm_scale",
    "compare_layers",
    "cumulative_ablation",
    "noise_robustness",
    "pair_importance",
    "pairwise_similarity",
    "principal_directions",
    "random_directions",
    "rank_correlation",
    "similarity",
    "similarity_over_steps",
    "similarity_over_training",
    "taylor_importance",
    "unit_importance",
    "unit_statistics",
    "weight_norm",
]
