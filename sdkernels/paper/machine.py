"""What a report says of where and by what it was made."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from sdkernels.analysis.measure import versions


def describe_machine(device: str) -> dict[str, Any]:
    """Device, processor, cores, threads, versions."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": dict(versions()),
    }


def _processor() -> str:
    """Its name, as Linux says it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
