"""Training of many small perceptrons side by side."""

from sdkernels.analysis.extras import needed_by

with needed_by("sdkernels.lab.ensemble"):
    from sdkernels.lab.ensemble.trainer import EnsembleMetrics, EnsembleTrainer, train_ensemble

__all__ = ["EnsembleMetrics", "EnsembleTrainer", "train_ensemble"]
