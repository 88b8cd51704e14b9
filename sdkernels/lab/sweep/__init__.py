"""Sweeps: many networks, trained once each and measured under conditions, kept in a ledger."""

from sdkernels.lab.sweep.run import Networks, run_sweep
from sdkernels.lab.sweep.spec import Condition, NetworkSettings, Sweep, read_sweep

__all__ = ["Condition", "NetworkSettings", "Networks", "Sweep", "read_sweep", "run_sweep"]
