"""Calls beside other processes: data that workers load, forked or spawned, and calls in a child forked from a process
that has run the core already."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import sdkernels as sd
from sdkernels.lab.models import mlp
from tests.engine.stored import differences

ROOT = Path(__file__).parents[1]
EXAMPLES = 40

CALLS = {
    "cumulative_ablation": lambda m, d: sd.cumulative_ablation(m, ["relu1", "relu2"], d, orders=2, points=5),
    "ablate to means": lambda m, d: sd.ablate(m, "relu1", d, units=[[0], [1, 2]], value="mean"),
    "unit_statistics": lambda m, d: sd.unit_statistics(m, ["relu1"], d),
    "taylor_importance": lambda m, d: sd.taylor_importance(m, ["relu1"], d),
}


class Numbered(Dataset):
    """Examples made where they are loaded, which must be in a worker if ``by`` is a process's id."""

    def __init__(self, by: int | None = None) -> None:
        self.by = by

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if os.getpid() == self.by:
            raise RuntimeError("read in the process that asked")
        return torch.randn(6, generator=torch.Generator().manual_seed(index), dtype=torch.float64), index % 4


class Broken(Numbered):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 30:
            raise LookupError("example 30 is not there")
        return super().__getitem__(index)


def network() -> torch.nn.Module:
    return mlp(6, (9, 8), 4, seed=0).double().eval()


def of(data: Numbered) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = zip(*(data[i] for i in range(EXAMPLES)), strict=True)
    return torch.stack(inputs), torch.tensor(labels)


@pytest.mark.parametrize(
    ("context", "persistent"),
    [("fork", False), ("fork", True), ("spawn", True), pytest.param("spawn", False, marks=pytest.mark.slow)],
)
def test_data_that_workers_load(context, persistent):
    """After the core has run with threads of its own in this process, as every call does."""
    model, data = network(), of(Numbered())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sd.ops.random_stream("normal", 0, torch.arange(8), torch.arange(64), 512)
        loader = DataLoader(
            Numbered(by=os.getpid()),
            batch_size=8,
            num_workers=2,
            multiprocessing_context=context,
            persistent_workers=persistent,
        )
        calls = CALLS if context == "fork" else {"cumulative_ablation": CALLS["cumulative_ablation"]}
        for name, call in calls.items():
            assert not differences(call(model, loader), call(model, data), sums_within=1e-12), name
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_worker_reaches_the_caller():
    loader = DataLoader(Broken(), batch_size=8, num_workers=2, multiprocessing_context="fork")
    with pytest.raises(LookupError, match="example 30 is not there"):
        CALLS["cumulative_ablation"](network(), loader)


FORKS = """
import faulthandler, os, sys, threading
faulthandler.dump_traceback_later(50, exit=True)
import torch
import sdkernels as sd
from sdkernels.engine import turns
from tests.test_processes import CALLS, Numbered, differences, network, of

case, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
model, data = network(), of(Numbered())
expected = [call(model, data) for call in CALLS.values()]  # OpenMP's threads are there now, if there are to be any

def differ():
    found = [call(model, data) for call in CALLS.values()]
    return any(differences(one, other, sums_within=1e-12) for one, other in zip(found, expected, strict=True))

held, forked = threading.Event(), threading.Event()
def hold():
    with turns.one_at_a_time():
        held.set()
        forked.wait()
if case == "while another thread has its turn":
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
child = os.fork()
if child == 0:
    torch.set_num_threads(1 if case == "one thread in the child" else threads)
    try:
        os._exit(int(differ()))
    except RuntimeError as error:
        os._exit(3 if "torch.set_num_threads(1) first" in str(error) else 2)
forked.set()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(code or int(differ()))
"""


@pytest.mark.parametrize(
    ("case", "threads", "code"),
    [
        ("plain", 1, 0),
        ("one thread in the child", 2, 0),
        ("while another thread has its turn", 1, 0),
        ("threads in both", 2, 3),
    ],
)
def test_calls_in_a_forked_child(case, threads, code):
    """After calls in its parent, which goes on with the same results; with threads the child is refused them."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, case, str(threads)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
