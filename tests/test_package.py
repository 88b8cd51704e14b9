"""The package as a whole: what is public, who imports whom, what importing starts, what README says."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import sdkernels

ROOT = Path(sdkernels.__file__).parent
REPOSITORY = ROOT.parent
LAYERS = ["ops", "engine", "analysis", "lab", "paper"]  # each imports only from itself and those before it


def test_public_names():
    results = ["AblationCurve", "AblationScores", "NoiseCurve", "PairImportance", "PrincipalDirections"]
    results += ["RankCorrelation", "UnitImportance", "UnitScore", "UnitStatistics"]
    results += ["LayerSimilarity", "PairwiseSimilarity", "Similarity", "SimilarityCurve"]
    tools = ["AblationMonitor", "LayerUnitAblation", "SelectivityRegularizer"]
    functions = ["ablate", "ablate_directions", "batch_norm_scale", "compare_layers", "cumulative_ablation"]
    functions += ["noise_robustness", "pair_importance", "pairwise_similarity", "principal_directions"]
    functions += ["random_directions", "rank_correlation", "similarity", "similarity_over_steps"]
    functions += ["similarity_over_training", "taylor_importance", "unit_importance", "unit_statistics", "weight_norm"]
    assert sdkernels.__all__ == [*sorted([*results, *tools, "SdkernelsWarning"]), *functions]
    for name in sdkernels.__all__:
        public = getattr(sdkernels, name)
        assert public.__doc__, name
    for name in (*tools, *functions):
        assert "Example:" in getattr(sdkernels, name).__doc__, name


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards_only(layer):
    allowed = {*LAYERS[: LAYERS.index(layer) + 1], "__version__"}
    for path in (ROOT / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported: list[str] = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: name modules in full"
                names = [alias.name for alias in node.names] if node.module == "sdkernels" else [""]
                imported = [f"{node.module}.{name}" for name in names]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            for module in imported:
                if module.startswith("sdkernels."):
                    assert module.split(".")[1] in allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize("layer", ["ops", "engine", "analysis"])
def test_the_library_needs_torch_and_numpy_alone(layer):
    modules = [f"sdkernels.{layer}.{p.stem}" for p in (ROOT / layer).glob("*.py") if p.stem != "__init__"]
    modules.append("sdkernels.public")
    forbidden = ["pandas", "matplotlib", "tqdm", "sklearn", "safetensors", "typer", "scipy"]
    code = f"import sys\nfor name in {forbidden}: sys.modules[name] = None\nimport {', '.join(modules)}\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_starts_no_gpu_and_draws_nothing():
    code = (
        "import torch; state = torch.get_rng_state()\n"
        "import sdkernels.public, sdkernels.cli, sdkernels.doctor\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert torch.equal(state, torch.get_rng_state())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_core_knows_neither_python_nor_torch():
    for path in (REPOSITORY / "csrc" / "core").iterdir():
        assert not re.search(r"#include\s*[<\"](pybind11|Python|torch|ATen|c10)", path.read_text()), path.name


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def test_readme_example_works_when_pasted(tmp_path):
    (example,) = readme_blocks("python")
    assert len(example.strip().splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "tensor(" in done.stdout


def test_readme_begins_with_the_two_commands():
    commands = "".join(readme_blocks("sh")).strip().splitlines()
    assert commands[0] == 'python -m pip install -c constraints.txt ".[paper]" && sdkernels reproduce fig1a'
    assert commands[1] == 'python -m pip install -c constraints.txt -e ".[test]" && pytest -n auto --dist loadfile'


def test_every_dependency_is_pinned_for_ci():
    names = {re.split(r"[\[<>=!~; ]", dependency)[0] for dependency in requires("sdkernels") or ()} - {"sdkernels"}
    pins = {line.split("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pins, names - pins
