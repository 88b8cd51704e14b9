"""Work shared among processes and machines, by Ray."""

from sdkernels.lab.cluster.dispatch import WorkerLostError
from sdkernels.lab.cluster.ray_workers import RayWorkers

__all__ = ["RayWorkers", "WorkerLostError"]
