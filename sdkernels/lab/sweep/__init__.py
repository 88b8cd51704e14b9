"""Sweeps: many networks, trained once each, measured under conditions and compared, kept in a ledger."""

from sdkernels.analysis.extras import needed_by

with needed_by("sdkernels.lab.sweep"):
    from sdkernels.lab.sweep.comparison import Comparing, Comparison, compare_networks
    from sdkernels.lab.sweep.condition import Condition
    from sdkernels.lab.sweep.run import Networks, NetworksFailedError, run_sweep
    from sdkernels.lab.sweep.settings import NetworkSettings
    from sdkernels.lab.sweep.spec import Sweep, read_sweep

__all__ = [
    "Comparing",
    "Comparison",
    "Condition",
    "NetworkSettings",
    "Networks",
    "NetworksFailedError",
    "Sweep",
    "compare_networks",
    "read_sweep",
    "run_sweep",
]
