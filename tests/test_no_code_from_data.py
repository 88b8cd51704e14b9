"""Data runs no code and leaves its folder nowhere: what reads files, what names them, and what is written of names."""

import ast
import html
import io
import re
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import sdkernels as sd
from sdkernels.lab.contents import export
from sdkernels.lab.sweep.condition import is_file_name
from sdkernels.lab.sweep.spec import parse_sweep
from sdkernels.lab.training import TrainingOptions, load_checkpoint, train
from sdkernels.paper.claims import Claim, claims_table
from sdkernels.paper.claims.claim import HOLDS
from sdkernels.paper.reproduce import reproduce

PACKAGE = Path(sd.__file__).parent

# What may make code, or a program's run, of data: as it is called, by the last parts of its name.
DANGEROUS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input", "os.system", "os.popen", "os.startfile"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "marshal.loads"),
    *("marshal.load", "shelve.open", "joblib.load", "dill.load", "dill.loads", "torch.load", "np.load", "numpy.load"),
    *("pd.read_pickle", "pd.eval", "yaml.load", "yaml.unsafe_load", "runpy.run_path", "shutil.unpack_archive"),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "importlib.import_module"),
    *("tar.extract", "tar.extractall", "opened.extract", "opened.extractall", "archive.extractall", "np.fromregex"),
    *("code.interact", "ctypes.CDLL", "types.FunctionType", "torch.jit.load", "torch.hub.load"),
}

# Where it is done all the same, and why no data decides what is run.
ALLOWED = {
    ("lab/readers/safe_pickle.py", "pickle.Unpickler"): "names lead to stand-ins, and instructions are looked at first",
    ("lab/cluster/worker.py", "pickle.loads"): "between processes of one user's cluster, and no file",
    ("lab/cluster/dispatch.py", "cloudpickle.loads"): "as above",
    ("lab/cluster/ray_workers.py", "importlib.import_module"): "ray, by a name that stands there",
    ("__init__.py", "importlib.import_module"): "the public API, by its name",
    ("ops/backend.py", "importlib.import_module"): "the package's own modules",
    ("doctor.py", "importlib.import_module"): "packages of a table that stands there",
    ("analysis/extras.py", "importlib.import_module"): "packages that callers name in full",
    ("analysis/lightning_callback.py", "importlib.import_module"): "as above",
    ("engine/digested_code.py", "types.FunctionType"): "asked of a function's type, and none is made",
}


def calls_in(text: str) -> set[str]:
    """Dangerous calls, and other uses of what is dangerous to call, by the last two parts of their names."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = ast.unparse(node)
            last = ".".join(name.split(".")[-2:])
            found |= {last} & DANGEROUS
        if isinstance(node, ast.Call) and any(word.arg == "shell" for word in node.keywords):
            found.add("shell=")
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & DANGEROUS
    return found


def test_no_file_is_read_by_what_could_run_it():
    files = {path: calls_in(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert len(files) > 200
    found = {(path.relative_to(PACKAGE).as_posix(), name) for path, names in files.items() for name in names}
    assert found - {*ALLOWED} == set(), "say among ALLOWED why no data decides what this runs, or do without"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(x)",
        "from pickle import loads\nloads(x)",
        "torch.load(path)",
        "x = eval\nx('1')",
        "subprocess.run('ls ' + name, shell=True)",
        "with tarfile.open(p) as tar:\n    tar.extractall()",
    ],
)
def test_dangerous_calls_are_seen(text):
    assert calls_in(text)


def test_numpy_arrays_are_read_without_pickle():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("format.read_array"):
                assert any(word.arg == "allow_pickle" and word.value.value is False for word in node.keywords), path


ESCAPING = ["..", "../x", "/tmp/x", "a/b", "a\\b", "C:x", "C:\\x", "x\x00y", "a\nb", "", ".", " ", "x.", "a|b", "a<b"]


class TestPaths:
    @pytest.mark.parametrize("name", ESCAPING)
    def test_names_of_files_lead_nowhere_else(self, name):
        assert not is_file_name(name)
        network = {"data": "digits", "model": "mlp", "hidden": [4]}
        text = {"network": network, "training": {"epochs": 1}}
        with pytest.raises(ValueError, match="names a f"):
            parse_sweep({**text, "name": name}, "sweep")
        measure = {"name": name, "function": "unit_importance", "layers": ["hidden1"]}
        with pytest.raises(ValueError, match="names a f"):
            parse_sweep({**text, "measure": [measure]}, "sweep")

    @pytest.mark.parametrize("figure", ["../fig1a", "/fig1a", "fig1a/..", "fig1a\x00"])
    def test_figures_lead_nowhere_else(self, figure, tmp_path):
        with pytest.raises(ValueError, match="there is no recipe"):
            reproduce(figure, out=tmp_path / "out")
        with pytest.raises(ValueError, match="there is no preset"):
            reproduce("fig1a", figure, out=tmp_path / "out")
        assert not [*tmp_path.iterdir()]

    def test_names_within_a_checkpoint_are_no_paths(self, tmp_path):
        """A parameter's name stands in the file; no file is called by it."""
        model = nn.Sequential()
        with torch.random.fork_rng(devices=[]):
            model.add_module("/x\\y\x01", nn.Linear(2, 2))
        data = torch.ones(4, 2), torch.arange(4) % 2
        train(model, data, TrainingOptions(epochs=1), seed=0, checkpoints=tmp_path / "run")
        load_checkpoint(tmp_path / "run", model)
        assert {path.name for path in tmp_path.rglob("*")} == {"run", "latest.safetensors", "latest.json"}


HOSTILE = [
    *("a$b$c$", r"$\bad", "$", "_hidden", "<script>alert(1)</script>", "a & b", '"quoted"', "it's", "a|b", "100 %"),
    *("=cmd()", "+1", "@x", r"\frac{1}{2}", "ünï"),
]


class TestPictures:
    """Layers' and networks' names are drawn letter for letter, in a picture that no name breaks."""

    def texts(self, ax, tmp_path) -> set[str]:
        with mpl.rc_context({"svg.fonttype": "none"}):
            file = io.StringIO()
            ax.figure.savefig(file, format="svg")
        ax.figure.savefig(tmp_path / "picture.pdf")
        assert "<script" not in file.getvalue()
        return {html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", file.getvalue())}

    def axes(self):
        return Figure(figsize=(12, 9)).subplots()

    def score(self, name):
        values = torch.arange(4.0 * len(HOSTILE)) % 7
        return sd.UnitScore(name=name, values=values, layers=tuple(HOSTILE), unit_counts=(4,) * len(HOSTILE))

    def test_a_score(self, tmp_path):
        drawn = self.texts(self.score(r"of $\bad").plot(self.axes()), tmp_path)
        assert {*HOSTILE, r"of $\bad"} <= drawn

    def test_two_scores(self, tmp_path):
        drawn = self.texts(sd.rank_correlation(self.score("$a$"), self.score("_b")).plot(self.axes()), tmp_path)
        assert {"$a$", "_b"} <= drawn
        assert {*HOSTILE} <= {text.rpartition(": ")[0] for text in drawn}

    @pytest.mark.parametrize("metric", ["accuracy", "class_accuracy"])
    def test_importances(self, metric, tmp_path):
        model = nn.Sequential()
        with torch.random.fork_rng(devices=[]):
            for name in HOSTILE:
                model.add_module(name, nn.Linear(2, 2))
        data = torch.ones(6, 2), torch.arange(6) % 2
        importance = sd.unit_importance(model.eval(), [*model], data, metrics=("accuracy", "class_accuracy"))
        assert {*HOSTILE} <= self.texts(importance.plot(self.axes(), metric=metric), tmp_path)

    def test_networks(self, tmp_path):
        count = len(HOSTILE)
        distance = (1 - torch.eye(count, dtype=torch.float64))[None]
        result = sd.PairwiseSimilarity(names=tuple(HOSTILE), layers=(r"$\bad",), distance=distance)
        assert {r"$\bad"} <= self.texts(result.plot(layer=r"$\bad", ax=self.axes(), by="names"), tmp_path)


class TestTables:
    @pytest.mark.parametrize("name", [*HOSTILE, "a,b", "a\nb", "a\r\nb"])
    def test_csv_gives_names_back_as_they_are(self, name, tmp_path):
        """No sign is put before =, +, - or @: these are data files for programs, and a name would be another one."""
        path = tmp_path / "table.csv"
        export(pd.DataFrame({"layer": [name, "other"], name: [1, 2]}), path)
        read = pd.read_csv(path, lineterminator="\n")
        assert read["layer"].tolist() == [name, "other"]
        assert read[name].tolist() == [1, 2]

    @pytest.mark.parametrize("name", [*HOSTILE, "a\nb", "a | b", "<img src=x onerror=alert(1)>", "<!-- a", "</td>"])
    def test_markdown_stays_a_table_without_html(self, name):
        claim = Claim.found(f"Of {name}.", "1", 0.5, 0.1, 0.9, HOLDS, name)
        *_, row = lines = claims_table([claim]).splitlines()
        assert len(lines) == 3
        assert len(re.findall(r"(?<!\\)\|", row)) == 6
        assert not re.search(r"(?<!\\)<[A-Za-z/!?]", row)
