"""sdkernels: what does a trained network lose when directions of its activation space are removed or perturbed?"""

from importlib.metadata import version

__version__ = version("sdkernels")

from sdkernels.analysis.ablation import ablate, cumulative_ablation, unit_importance
from sdkernels.analysis.attribution import LayerUnitAblation
from sdkernels.analysis.bases import PrincipalDirections, principal_directions, random_directions
from sdkernels.analysis.curves import AblationCurve
from sdkernels.analysis.directions import ablate_directions
from sdkernels.analysis.importance import UnitImportance
from sdkernels.analysis.monitor import AblationMonitor
from sdkernels.analysis.noise import NoiseCurve, noise_robustness
from sdkernels.analysis.sets import AblationScores
from sdkernels.analysis.unit_score import UnitScore
from sdkernels.engine.execute import SdkernelsWarning

__all__ = [
    "AblationCurve",
    "AblationMonitor",
    "AblationScores",
    "LayerUnitAblation",
    "NoiseCurve",
    "PrincipalDirections",
    "SdkernelsWarning",
    "UnitImportance",
    "UnitScore",
    "ablate",
    "ablate_directions",
    "cumulative_ablation",
    "noise_robustness",
    "principal_directions",
    "random_directions",
    "unit_importance",
]
