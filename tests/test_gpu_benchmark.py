"""``python -m python_bench.gpu`` where there is no GPU: all that can run on the CPU, on tiny shapes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from python_bench.gpu import __main__ as gpu
from python_bench.gpu import build as gpu_build
from python_bench.gpu.bits import bits_cases, differing_bits
from python_bench.gpu.build import arch_of, bounded, child_environment, counts_of
from python_bench.gpu.case import TORCH
from python_bench.gpu.clock import CheckError, Clock, ceilings, require_close, require_same_bits
from python_bench.gpu.engine import AIMS, arithmetic, sized
from python_bench.gpu.linear import linear_cases
from python_bench.gpu.perturb import perturb_cases
from python_bench.gpu.report import Report
from python_bench.gpu.sums import sums_cases
from python_bench.gpu.worker import DEAD_DEVICE, append_record, read_records, rows_of, supervise, work
from python_bench.workloads import WORKLOADS

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter's lane has tests of its own", allow_module_level=True)

CPU = torch.device("cpu")
CLOCK = Clock(CPU, quick=True)
OPS = {
    name: case
    for cases in (perturb_cases, sums_cases, linear_cases)
    for name, case in cases(CPU, "tiny", CLOCK).items()
}

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@needs_no_gpu
def test_without_a_gpu_nothing_is_run(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == gpu.NO_GPU
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class TestOptions:
    @pytest.fixture
    def stages(self, monkeypatch, tmp_path):
        """Which stages the command would run on a GPU that is not there, with its exit status."""
        about = SimpleNamespace(total_memory=2**36, multi_processor_count=132, major=9, minor=0)
        for name, gives in {
            "is_available": True,
            "get_device_name": "NVIDIA H100 80GB HBM3",
            "get_device_capability": (9, 0),
            "get_device_properties": about,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, gives=gives: gives)
        ran = []

        def run(report, stages, device, scale, capability, tf32):
            ran.append((stages, device, scale, capability, tf32))
            report.set(
                "bits", rows=[{"case": "c", "who": "w", "against": "a", "values": 1, "differing_bits": len(ran) - 1}]
            )

        monkeypatch.setattr(gpu, "run_stages", run)
        before = signal.getsignal(signal.SIGTERM)
        yield lambda *options: (gpu.main(["--out", str(tmp_path), *options]), *ran[-1])
        signal.signal(signal.SIGTERM, before)

    def test_all(self, stages, tmp_path, capsys):
        everything = ["build", "bits", "ceilings", "ops", "engine", "tests"]
        assert stages() == (0, everything, "cuda", "full", (9, 0), False)
        assert (
            json.loads((tmp_path / "gpu_nvidia_h100_80gb_hbm3.json").read_text())["setting"]["multiprocessors"] == "132"
        )
        assert "# sdkernels on NVIDIA H100 80GB HBM3" in capsys.readouterr().out
        assert stages()[0] == 1, "a bit differs"

    def test_parts(self, stages):
        assert stages("--only", "ops", "--quick")[1:4] == (["build", "ceilings", "ops"], "cuda", "quick")
        assert stages("--only", "bits")[1] == ["build", "bits"]
        assert stages("--only", "engine", "--tf32")[-1]
        assert stages("--skip-tests")[1] == ["build", "bits", "ceilings", "ops", "engine"]


@pytest.mark.usefixtures("seeds_torch")  # the opponents draw torch's normals
@pytest.mark.parametrize("name", OPS)
def test_an_op_is_checked_and_timed(name):
    measures = OPS[name]()
    assert set(measures) - {TORCH}, "no backend runs here"
    for who, measure in measures.items():
        row = measure()
        assert len(row["milliseconds"]) >= 3
        assert row["checked"]
        assert ("call_milliseconds" in row) == (who != TORCH)
        json.dumps(row)


@pytest.mark.parametrize("name", ["perturb: clamp, float32", "score: loss, 10 classes", "rank_one: affine + ReLU"])
def test_a_wrong_result_gets_no_time(name, monkeypatch):
    from sdkernels.ops import perturb, rank_one, score

    module = {"perturb": perturb, "score": score, "rank_one": rank_one}[name.split(":")[0]].__module__
    implementations = sys.modules[module].IMPLEMENTATIONS

    def wrong(*arguments):
        result = implementations["reference"](*arguments)
        for tensor in [arguments[0]] if result is None else [result] if isinstance(result, torch.Tensor) else result:
            tensor += 1
        return result

    monkeypatch.setitem(implementations, "native", wrong)
    with pytest.raises(CheckError):
        OPS[name]()["native"]()


@pytest.mark.parametrize("name", bits_cases(CPU, "tiny"))
def test_bits_are_the_same(name):
    rows = [measure() for measure in bits_cases(CPU, "tiny")[name]().values()]
    assert rows
    for row in rows:
        assert row["values"] > 100
        assert row["differing_bits"] == row["differing_values"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_differing_bits_are_counted(dtype):
    a = torch.zeros(5, dtype=dtype)
    assert differing_bits(a, a.clone()) == 0
    b = a.clone()
    b.view(torch.uint8)[[0, -1]] = torch.tensor([0b101, 0b10000000], dtype=torch.uint8)
    assert differing_bits(a, b) == 3
    with pytest.raises(ValueError, match="not alike"):
        differing_bits(a, a[:4])


def test_nan_is_never_close_and_zeros_have_signs():
    with pytest.raises(CheckError, match="nan"):
        require_close("x", torch.tensor([torch.nan]), torch.tensor([1.0]), 1.0)
    with pytest.raises(CheckError, match="1 of 2"):
        require_same_bits("x", torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))


def test_ceilings_and_the_engine_run_to_a_report(tmp_path):
    report = Report(tmp_path, "Tiny CPU 1", {"torch": "any"})
    gpu.run_stages(report, ["ceilings", "ops", "engine", "bits"], "cpu", "tiny", (9, 0))
    assert report.problems() == []
    written = json.loads((tmp_path / "gpu_tiny_cpu_1.json").read_text())
    assert [row["case"] for row in written["stages"]["ceilings"]["rows"]] == list(ceilings(CPU, "tiny"))
    assert {row["case"] for row in written["stages"]["ops"]["rows"]} == set(OPS)
    engine = {row["case"]: row for row in written["stages"]["engine"]["rows"]}
    assert set(engine) == set(WORKLOADS)
    for row in engine.values():
        assert {"sdkernels", "hook loop", "hand-written prefix cache", "torch.func.vmap"} <= set(row["ratios"])
    table = (tmp_path / "gpu_tiny_cpu_1.md").read_text()
    for said in ("0 bits differ", "hand-written prefix cache", "% of copy", "perturb: clamp, bfloat16", "plain torch"):
        assert said in table, said


def test_full_size_workloads_fill_a_gpu():
    for name, workload in WORKLOADS.items():
        full, quick = sized(name, "full"), sized(name, "quick")
        assert full.examples > workload.examples
        assert full.examples >= max(full.batches)
        assert quick.examples <= 1000
    assert set(AIMS) <= set(WORKLOADS)


@pytest.mark.parametrize("tf32", [False, True])
def test_all_contestants_have_one_precision(tf32):
    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    with arithmetic(tf32):
        assert now() == ("high" if tf32 else "highest", tf32)
    assert now() == before


def test_a_stage_that_fails_is_noted_and_the_next_begins(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(gpu, "build", broken)
    monkeypatch.setattr(gpu, "run_tests", lambda *_: {**TESTS_DONE, "failed": 2, "failures": ["tests/a.py::b"]})
    report = Report(tmp_path, "x", {})
    gpu.run_stages(report, ["build", "ceilings", "tests"], "cpu", "tiny", (9, 0))
    assert report.problems() == ["build: RuntimeError: no compiler today", "tests: 2 failed"]
    table = report.markdown_path.read_text()
    assert "4 measured" in table
    assert "`tests/a.py::b`" in table


TESTS_DONE = {"status": "done", "all_ran": True, "passed": 5, "failed": 0, "skipped": 1, "failures": []}


def test_differing_bits_make_the_command_fail(tmp_path):
    report = Report(tmp_path, "x", {})
    row = {"case": "normals", "who": "Triton", "against": "C++", "values": 9, "differing_bits": 2}
    report.set("bits", rows=[{**row, "differing_bits": 0}])
    assert report.problems() == []
    report.set("bits", rows=[row])
    assert report.problems() == ["bits: normals, Triton: 2 bits differ from C++"]


class TestWorker:
    def test_failures_are_rows(self, tmp_path):
        def fail():
            raise ValueError("in\ntwo lines")

        cases = {"a": lambda: {"x": lambda: {"n": 1}, "y": fail}, "b": fail}
        assert work(cases, tmp_path / "r") == 0
        rows = {(row["case"], row["who"]): row for row in rows_of(tmp_path / "r")}
        assert rows["a", "x"]["n"] == 1
        assert rows["a", "y"]["failed"] == "ValueError: in two lines"
        assert rows["b", "inputs"]["failed"] == "ValueError: in two lines"

    def test_a_dead_device_ends_the_process_and_the_next_goes_on(self, tmp_path):
        ran = []
        cases = {
            case: lambda case=case: {who: lambda who=who: ran.append(case + who) or {} for who in "xy"} for case in "ab"
        }
        assert work(cases, tmp_path / "r", alive=lambda: ran != ["ax"]) == DEAD_DEVICE
        assert work(cases, tmp_path / "r") == 0
        assert ran == ["ax", "ay", "bx", "by"]

    def supervised(self, tmp_path, code, limit=20.0, row_limit=10.0):
        """``code`` has ``records``, ``begun`` (how many rows were begun), ``begin()`` and ``done()``."""
        records = tmp_path / "records"
        script = tmp_path / "worker.py"
        script.write_text(
            "import json, os, sys, time\n"
            "def put(**row): open(sys.argv[1], 'a').write(json.dumps(row) + '\\n')\n"
            "begun = open(sys.argv[1]).read().count('begun') if os.path.exists(sys.argv[1]) else 0\n"
            "def begin(): put(case='c', who=str(begun), begun=True)\n"
            "def done(): put(case='c', who=str(begun), n=1)\n" + code
        )
        command = [sys.executable, str(script), str(records)]
        problem = supervise(command, records, tmp_path / "log", dict(os.environ), limit, row_limit)
        return problem, rows_of(records)

    def test_a_crash_costs_one_row(self, tmp_path):
        problem, rows = self.supervised(tmp_path, "begin()\nif begun == 0: os._exit(7)\ndone()")
        assert problem is None
        assert rows[0]["failed"] == "the process died (exit status 7)"
        assert rows[1]["n"] == 1

    def test_a_hang_costs_one_row(self, tmp_path):
        problem, rows = self.supervised(tmp_path, "begin()\nif begun == 0: time.sleep(99)\ndone()", row_limit=1.0)
        assert problem is None
        assert "not done after 1 s" in rows[0]["failed"]
        assert rows[1]["n"] == 1

    def test_time_ends_a_stage(self, tmp_path):
        problem, rows = self.supervised(tmp_path, "begin()\ntime.sleep(99)", limit=1.0)
        assert problem == "its time was up"
        assert rows == [{"case": "c", "who": "0", "failed": "the stage's time was up"}]

    def test_a_worker_that_cannot_start_is_a_problem(self, tmp_path):
        problem, rows = self.supervised(tmp_path, "raise SystemExit(5)")
        assert problem == "the process died (exit status 5), see log"
        assert rows == []

    def test_half_a_line_is_not_read(self, tmp_path):
        append_record(tmp_path / "r", {"n": 1})
        with (tmp_path / "r").open("a") as file:
            file.write('{"n":')
        assert read_records(tmp_path / "r") == [{"n": 1}]


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((12, 0), "120a")])
def test_architectures(capability, arch):
    assert arch_of(capability) == arch


class TestBuild:
    @pytest.fixture
    def commands(self, monkeypatch, tmp_path):
        """What would be run; those with CUDA fail."""
        seen = []

        def run(command, log, environment, limit):
            seen.append({k: v for k, v in environment.items() if k.startswith("SDKERNELS_CUDA")})
            log.write_text("x.cu(3): error: expected a semicolon\n")
            return int(environment["SDKERNELS_CUDA"] == "1"), 0.0

        monkeypatch.setattr(gpu_build, "bounded", run)
        return seen

    def test_a_failed_cuda_build_leaves_the_cpu(self, commands, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu_build, "find_nvcc", lambda: "/opt/cuda/bin/nvcc")
        done = gpu_build.build(tmp_path / "build.log", (9, 0), 10)
        assert done["built"] == "C++ alone"
        assert "exit status 1, see build.log: x.cu(3): error: expected a semicolon" in done["problems"][0]
        assert commands == [{"SDKERNELS_CUDA": "1", "SDKERNELS_CUDA_ARCHS": "90a"}, {"SDKERNELS_CUDA": "0"}]

    def test_without_nvcc(self, commands, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu_build, "find_nvcc", lambda: None)
        done = gpu_build.build(tmp_path / "build.log", (9, 0), 10)
        assert (done["built"], done["problems"]) == ("C++ alone", ["no nvcc, so no CUDA C++"])

    def test_the_least_metadata_lets_the_package_import(self, monkeypatch, tmp_path):
        (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
        monkeypatch.setattr(gpu_build, "ROOT", tmp_path)
        monkeypatch.setattr(sys, "path", [])
        assert gpu_build.ensure_metadata() != []
        assert gpu_build.ensure_metadata() == []
        code = "from importlib.metadata import version; print(version('sdkernels'))"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.stdout.strip() == "1.2.3", done.stderr


class TestTests:
    SUITE = "import pytest, time\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"

    def run(self, tmp_path, suite, limit):
        (tmp_path / "test_x.py").write_text(suite)
        summary, log = tmp_path / "x.xml", tmp_path / "log"
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junitxml={summary}"]
        command += ["-c", os.devnull, f"--rootdir={tmp_path}", str(tmp_path / "test_x.py")]
        return bounded(command, log, child_environment(), limit), summary, log

    def test_outcomes_are_counted(self, tmp_path):
        (status, _), summary, log = self.run(tmp_path, self.SUITE, 60)
        assert status == 1
        from_xml = counts_of(summary, log)
        from_log = counts_of(None, log)
        for counts in (from_xml, from_log):
            assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 1, 1)
            assert counts["failures"][0].endswith("::test_b")

    def test_a_suite_out_of_time_is_interrupted_and_counted(self, tmp_path):
        (status, seconds), _, log = self.run(tmp_path, self.SUITE + "def test_d(): time.sleep(99)\n", 4)
        assert status is None
        assert seconds < 30
        counts = counts_of(None, log)
        assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 1, 1)

    def test_lines_of_several_processes(self, tmp_path):
        log = tmp_path / "log"
        log.write_text(
            "tests/a.py::first[x y] \n"
            "[gw0] [ 33%] PASSED tests/a.py::first[x y] \n"
            "[gw1] [ 66%] FAILED tests/a.py::second \n"
            "[gw1] [100%] SKIPPED tests/a.py::third \n"
            "FAILED tests/a.py::second - assert 0\n"
        )
        counts = counts_of(None, log)
        assert counts == {"passed": 1, "failed": 1, "skipped": 1, "failures": ["tests/a.py::second"]}


def test_what_was_started_ends_with_the_command(tmp_path):
    """A SIGTERM reaches whoever is at work."""
    child, parent = "import time; time.sleep(60)", tmp_path / "parent.py"
    parent.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom python_bench.gpu.build import bounded\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        f"bounded([sys.executable, '-c', 'import os; print(os.getpid(), flush=True); {child}'], "
        "Path(sys.argv[1]), dict(os.environ), 60)\n"
    )
    log = tmp_path / "log"
    process = subprocess.Popen([sys.executable, str(parent), str(log)], env=child_environment())
    while not (log.exists() and len(log.read_text().splitlines()) == 2):
        time.sleep(0.05)
    pid = int(log.read_text().splitlines()[1])
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_modules_name_no_gpu_at_import():
    """Importing the command starts no CUDA and needs no package that is not installed yet."""
    code = "import sys, python_bench.gpu.__main__; assert not {'torch', 'sdkernels'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(gpu.__file__).parents[2])
