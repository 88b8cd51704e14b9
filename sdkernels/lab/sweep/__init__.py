"""Sweeps: many networks, trained once each and measured under conditions, kept in a ledger."""

from sdkernels.lab.sweep.condition import Condition
from sdkernels.lab.sweep.run import Networks, NetworksFailedError, run_sweep
from sdkernels.lab.sweep.settings import NetworkSettings
from sdkernels.lab.sweep.spec import Sweep, read_sweep

__all__ = ["Condition", "NetworkSettings", "Networks", "NetworksFailedError", "Sweep", "read_sweep", "run_sweep"]
