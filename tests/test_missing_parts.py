"""What needs an optional package says so, and by which extra it comes, where none is installed."""

import json
import re
import subprocess
import sys

import pytest

from sdkernels.analysis.extras import BROUGHT, require

# One process for all cases: name, what is run, and the package and extra that the error must name. None: it runs.
CASES = {
    "results": ("curve.auc(), importance.top(3), sd.similarity(x, x, method='cka'), statistics.selectivity()", None),
    "networks": ("import sdkernels.lab.models, sdkernels.lab.datasets, sdkernels.lab.fetching, sdkernels.doctor", None),
    "doctor": ("from sdkernels import doctor; doctor.screen(doctor.examine())", None),
    "a table": ("curve.to_pandas()", "pandas [paper]"),
    "a plot": ("curve.plot()", "matplotlib [paper]"),
    "a heat map": ("importance.plot()", "matplotlib [paper]"),
    "a progress bar": ("sd.unit_importance(model, '1', data, show_progress=True)", "tqdm [paper]"),
    "clustering": (
        "from sdkernels.analysis.similarity import clustering as c; c.cut(torch.eye(3), 2)",
        "scipy [paper]",
    ),
    "the digits": ("from sdkernels.lab.datasets import load; load('digits')", "scikit-learn [paper]"),
    "the digits as a text": (
        "from sdkernels.lab.datasets import load_text; load_text('digits_tokens')",
        "scikit-learn [paper]",
    ),
    "folders of images": ("import sdkernels.lab.folders", "pillow [paper]"),
    "training": ("import sdkernels.lab.training", "a package [paper]"),
    "ensembles": ("import sdkernels.lab.ensemble", "a package [paper]"),
    "sweeps": ("import sdkernels.lab.sweep", "a package [paper]"),
    "tables of a ledger": ("import sdkernels.lab.contents", "a package [paper]"),
    "recipes": ("import sdkernels.paper.catalogue", "matplotlib [paper]"),
    "the command line": ("import sdkernels.cli", "typer [paper]"),
    "recipes' options": ("import sdkernels.paper.options", "matplotlib [paper]"),
    "several machines": ("from sdkernels.lab.cluster import RayWorkers; RayWorkers('local')", "ray [scale]"),
    "Lightning": ("sd.AblationMonitor(['1'], data).callback()", "Lightning [lightning]"),
}
CODE = """
import json, sys, importlib.abc

HIDDEN = {"PIL", "captum", "lightning", "matplotlib", "pandas", "pyarrow", "pytorch_lightning", "ray", "safetensors"}
HIDDEN |= {"scipy", "sklearn", "tomli", "tqdm", "typer"}

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
import torch
from torch import nn
import sdkernels as sd

x = torch.linspace(-1, 1, 60).view(15, 4)
data = (x, torch.arange(15) % 3)
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
curve = sd.cumulative_ablation(model, "1", data)
importance = sd.unit_importance(model, "1", data)
statistics = sd.unit_statistics(model, "1", data)
said = {}
for name, code in json.load(sys.stdin).items():
    try:
        exec(code)
        said[name] = None
    except (Exception, SystemExit) as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str | None]:
    """What every case raised in a process that finds torch and NumPy alone."""
    cases = json.dumps({name: code for name, (code, _) in CASES.items()})
    run = subprocess.run([sys.executable, "-c", CODE], input=cases, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_named_with_its_extra(said, name):
    needed = CASES[name][1]
    if needed is None:
        assert said[name] is None
    else:
        package, extra = needed.rsplit(" ", 1)
        named = r"[\w-]+" if package == "a package" else package
        fix = re.escape(f'`python -m pip install "sdkernels{extra}"`')
        assert re.match(rf"(ImportError|SystemExit): .* needs {named}: {fix}$", said[name]), said[name]


def test_the_command_line_says_it_without_a_traceback(capsys, monkeypatch):
    typer = pytest.importorskip("typer")
    from sdkernels import cli

    app = typer.Typer()
    app.command()(lambda: require("sdkernels_none.pandas", "a test"))
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setitem(BROUGHT, "sdkernels_none", ("pandas", "paper"))
    monkeypatch.setattr(sys, "argv", ["sdkernels"])
    with pytest.raises(
        SystemExit, match=r"^sdkernels: a test needs pandas: `python -m pip install \"sdkernels\[paper\]\"`$"
    ):
        cli.main()


def test_an_import_that_fails_otherwise_is_not_taken_for_a_missing_extra():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'sdkernels_none'$"):
        require("sdkernels_none", "a test")
