"""Training: one loop for tensors in memory, data sets read by workers, and token streams."""

from sdkernels.analysis.extras import needed_by

with needed_by("sdkernels.lab.training"):
    from sdkernels.lab.training.checkpoints import load_checkpoint
    from sdkernels.lab.training.driver import train
    from sdkernels.lab.training.evaluation import evaluate
    from sdkernels.lab.training.metrics import EpochMetrics, Training
    from sdkernels.lab.training.options import TrainingOptions
    from sdkernels.lab.training.tally import DivergedError
    from sdkernels.lab.training.trainer import Trainer

__all__ = [
    "DivergedError",
    "EpochMetrics",
    "Trainer",
    "Training",
    "TrainingOptions",
    "evaluate",
    "load_checkpoint",
    "train",
]
