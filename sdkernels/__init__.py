"""sdkernels: what does a trained network lose when directions of its activation space are removed or perturbed?"""

from importlib.metadata import version

__version__ = version("sdkernels")

from sdkernels.analysis.ablation import cumulative_ablation
from sdkernels.analysis.curves import AblationCurve
from sdkernels.engine.execute import SdkernelsWarning

__all__ = ["AblationCurve", "SdkernelsWarning", "cumulative_ablation"]
