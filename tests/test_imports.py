"""What comes with an import and what does not, step after step in one fresh process."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest

import sdkernels

CODE = """
import json, os, sys, torch

def loaded():
    return [*sys.modules, *["GPU"] * torch.cuda.is_initialized()]

def refuse(*_, **__):
    raise RuntimeError("CUDA was started")
torch._C._cuda_init = torch.cuda._lazy_init = refuse

steps = [loaded()]
import sdkernels.ops
steps.append(loaded())
import sdkernels.analysis.monitor
steps.append(loaded())
import sdkernels as sd
import sdkernels.public
steps.append(loaded())
child = os.fork()
if child == 0:
    os._exit(torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())
assert os.waitpid(child, 0)[1] == 0
from torch import nn
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
sd.cumulative_ablation(model, "1", (torch.randn(9, 4), torch.zeros(9, dtype=torch.int64)))
steps.append(loaded())
print(json.dumps(steps))
"""

# What is optional, or takes longer than the package itself.
HEAVY = {
    *("captum", "IPython", "lightning", "matplotlib", "networkx", "pandas", "PIL", "pyarrow", "pytorch_lightning"),
    *("ray", "rich", "safetensors", "scipy", "sklearn", "sympy", "torchvision", "tqdm", "triton", "typer"),
}


@pytest.fixture(scope="module")
def steps() -> list[set[str]]:
    """The modules after torch is imported, the ops, the monitor, all that is public; and after a model has been run."""
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return [set(names) for names in json.loads(run.stdout)]


def test_importing_the_ops_imports_no_kernels(steps):
    assert "sdkernels.ops" in steps[1]
    assert not [module for module in steps[1] if module.startswith("sdkernels.ops.triton")]


def test_the_package_imports_nothing_heavy_beyond_torch(steps):
    for before, after in pairwise(steps[:4]):
        new = {module.partition(".")[0] for module in after - before}
        assert not HEAVY & new
    assert not [module for module in steps[3] - steps[0] if module.startswith(("torch._dynamo", "torch._inductor"))]
    assert not [m for m in steps[3] if m.startswith(("sdkernels.lab", "sdkernels.paper", "sdkernels.commands"))]


def test_nothing_starts_a_gpu(steps):
    assert not any("GPU" in modules for modules in steps)


def test_the_package_alone_brings_nothing_until_it_is_used():
    code = (
        "import sys, sdkernels as sd\n"
        "assert 'torch' not in sys.modules, 'at import'\n"
        "assert not hasattr(sd, '__wrapped__') and 'torch' not in sys.modules, 'when a tool asks'\n"
        "sd.AblationCurve\n"
        "assert 'torch' in sys.modules, 'at first use'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'sdkernels' has no attribute 'ablat'"):
        sdkernels.ablat  # noqa: B018
    assert {*sdkernels.__all__, "__version__", "public"} <= {*dir(sdkernels)}


def test_a_model_that_fx_follows_does_not_import_torch_export(steps):
    assert "sdkernels.engine.exported" in steps[4]
    assert not {"torch._dynamo", "torch.export._trace"} & steps[4]


def test_an_import_says_nothing_and_warns_of_nothing():
    code = "import sdkernels.public, sdkernels.lab.models, sdkernels.lab.training, sdkernels.lab.cluster"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")
