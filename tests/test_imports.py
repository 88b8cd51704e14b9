"""What comes with an import and what does not, step after step in one fresh process."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys, torch
steps = []
import sdkernels.ops
steps.append([*sys.modules, *["GPU"] * torch.cuda.is_initialized()])
import sdkernels.analysis.monitor
steps.append([*sys.modules])
import sdkernels as sd
from torch import nn
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
sd.cumulative_ablation(model, "1", (torch.randn(9, 4), torch.zeros(9, dtype=torch.int64)))
steps.append([*sys.modules])
print(json.dumps(steps))
"""


@pytest.fixture(scope="module")
def steps() -> list[set[str]]:
    """The modules after the ops are imported, after the monitor is, and after a model has been run."""
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return [set(names) for names in json.loads(run.stdout)]


def test_importing_the_ops_imports_no_kernels_and_starts_no_gpu(steps):
    assert "sdkernels.ops" in steps[0]
    assert not [module for module in steps[0] if module.startswith("sdkernels.ops.triton") or module == "GPU"]


def test_the_package_does_not_import_lightning(steps):
    assert "sdkernels.analysis.monitor" in steps[1]
    assert not [module for module in steps[1] if module.partition(".")[0] == "lightning"]


def test_a_model_that_fx_follows_does_not_import_torch_export(steps):
    assert "sdkernels.engine.exported" in steps[2]
    assert not {"torch._dynamo", "torch.export._trace"} & steps[2]
