"""What needs an optional package, run where none is: ``python tests/missing.py``, or with ``--hide`` where some are.

Needs torch, NumPy and sdkernels alone. What does not say what it should is printed, and makes it fail.
"""

import importlib.abc
import json
import re
import sys

HIDDEN = {"PIL", "captum", "lightning", "matplotlib", "pandas", "pyarrow", "pytorch_lightning", "ray", "safetensors"}
HIDDEN |= {"scipy", "sklearn", "tomli", "tqdm", "typer"}

# One process for all cases: name, what is run, and the package and extra that the error must name. None: it runs.
CASES = {
    "results": ("curve.auc(), importance.top(3), sd.similarity(x, x, method='cka'), statistics.selectivity()", None),
    "ablations": (
        "sd.ablate(model, '1', data, units=[[0], [1, 2]]);"
        "sd.ablate_directions(model, '1', data, directions='principal');"
        "sd.noise_robustness(model, '1', data); sd.pair_importance(model, '1', data).synergy();"
        "sd.LayerUnitAblation(model, '1').attribute(x, target=0); sd.AblationMonitor(['1'], data)(model)",
        None,
    ),
    "scores": (
        "sd.rank_correlation(sd.weight_norm(model, '1', data), sd.taylor_importance(model, '1', data));"
        "sd.random_directions(6, 2, seed=0); sd.SelectivityRegularizer(model, '1', 0.1)",
        None,
    ),
    "similarities": (
        "sd.compare_layers(model, model, ['1'], data); sd.pairwise_similarity([model, model], ['1'], data)",
        None,
    ),
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


class Nothing(importlib.abc.MetaPathFinder):
    """Finds none of the optional packages."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run_cases() -> dict[str, str | None]:
    """What each case raised."""
    import torch
    from torch import nn

    import sdkernels as sd

    x = torch.linspace(-1, 1, 60).view(15, 4)
    data = (x, torch.arange(15) % 3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    curve = sd.cumulative_ablation(model, "1", data)
    importance = sd.unit_importance(model, "1", data)
    statistics = sd.unit_statistics(model, "1", data)
    known = {**locals(), "torch": torch}
    said = {}
    for name, (code, _) in CASES.items():
        try:
            exec(code, known)
            said[name] = None
        except (Exception, SystemExit) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def is_right(name: str, said: str | None) -> bool:
    """Whether a case said what it needs, and by which extra that comes."""
    needed = CASES[name][1]
    if needed is None or said is None:
        return said is needed
    package, extra = needed.rsplit(" ", 1)
    named = r"[\w-]+" if package == "a package" else package
    fix = re.escape(f'`python -m pip install "sdkernels{extra}"`')
    return re.match(rf"(ImportError|SystemExit): .* needs {named}: {fix}$", said) is not None


if __name__ == "__main__":
    if "--hide" in sys.argv:
        sys.meta_path.insert(0, Nothing())
    said = run_cases()
    print(json.dumps(said, indent=1))
    sys.exit(any(not is_right(name, what) for name, what in said.items()))
