"""SIGTERM and Ctrl-C: commands, and scripts that ask for it, end with the running tile kept, and say how to go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sdkernels as sd
from sdkernels.cli import app
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.stopping import Stopped, heed, is_asked, stopping_cleanly
from sdkernels.lab.sweep.driver import Driver
from tests.engine.stored import differences, examples, network
from tests.faults.programs import said_by
from tests.paper.small_runs import FIG1A

SPEC = """
checkpoint_seconds = 600
[network]
data = "digits"
model = "mlp"
hidden = [12]
[training]
epochs = 3
[grid]
seed = [0, 1]
[[measure]]
name = "ablation"
function = "cumulative_ablation"
layers = ["hidden1"]
orders = 2
points = 5
"""

SMALL = [text for name, value in FIG1A.items() for text in ("--set", f"{name}={json.dumps(value)}")]


# Processes


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    return said_by("signalled", tmp_path_factory.mktemp("signalled"))


# Seven tiles, and the signal in the third: how it ends, what is kept then, whether it says how to go on.
ENDS = {
    "SIGTERM, as Python has it": (-signal.SIGTERM, 2, False),
    "SIGTERM": (143, 3, True),
    "SIGTERM twice": (-signal.SIGTERM, 2, False),
    "SIGTERM, then Ctrl-C": (130, 2, False),
    "Ctrl-C": (130, 2, False),
    "SIGKILL": (-signal.SIGKILL, 2, False),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_signal_in_the_middle_of_a_call(case, signalled):
    code, kept, tells = ENDS[case]
    found = signalled[case]
    assert (found["code"], found["kept"], found["again"]) == (code, kept, 7 - kept), found["said"]
    assert found["same"]
    told = "stopped by SIGTERM; what is finished, up to example 32, is kept in"
    assert (told in found["said"] and found["said"].rstrip().endswith(".sdk: run this script again")) == tells


# Commands


def send_sigterm(monkeypatch, owner, name, *, at):
    """While a method is called for the n-th time."""
    original, calls = getattr(owner, name), []

    def called(*arguments):
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(owner, name, called)
    return calls


@pytest.mark.parametrize("at", [1, 2, 3])
def test_sigterm_ends_a_sweep_after_what_it_keeps(at, tmp_path, monkeypatch):
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    command = ["sweep", str(spec), "--out", str(tmp_path / "out")]
    handler = signal.getsignal(signal.SIGTERM)  # Ray's, where a test of it came before
    with monkeypatch.context() as patch:
        kept = send_sigterm(patch, Driver, "keep", at=at)
        stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 143, stopped.output
    assert len(kept) == at
    assert f"stopped by SIGTERM; {at} of 4 networks and results" in stopped.output
    assert stopped.output.rstrip().endswith("run the same command again to go on")
    assert signal.getsignal(signal.SIGTERM) == handler
    with monkeypatch.context() as patch:
        kept = send_sigterm(patch, Driver, "keep", at=0)
        again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert len(kept) == 4 - at


@pytest.mark.parametrize("together", [1, 2])
def test_sigterm_in_a_training_keeps_its_state(together, tmp_path, monkeypatch):
    """However far apart states are otherwise."""
    from sdkernels.lab.ensemble import EnsembleTrainer
    from sdkernels.lab.training import Trainer

    spec = tmp_path / "spec.toml"
    spec.write_text(f"together = {together}\n{SPEC}")
    command = ["sweep", str(spec), "--out", str(tmp_path / "out")]
    owner, name = (Trainer, "_take_step") if together == 1 else (EnsembleTrainer, "_train")
    steps = 3 * 12 if together == 1 else 3  # steps of one network of two, or epochs of both
    with monkeypatch.context() as patch:
        send_sigterm(patch, owner, name, at=2)
        stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 143, stopped.output
    with Ledger(tmp_path / "spec.sdk") as ledger:
        assert ledger.kinds() == {"training state": 1}
    with monkeypatch.context() as patch:
        done = send_sigterm(patch, owner, name, at=0)
        assert CliRunner().invoke(app, command).exit_code == 0
    assert len(done) == 2 * steps - 2 if together == 1 else steps - 2


@pytest.mark.slow
def test_sigterm_ends_a_sweep_of_rays_workers(tmp_path):
    pytest.importorskip("ray")
    spec, store = tmp_path / "spec.toml", tmp_path / "spec.sdk"
    spec.write_text(SPEC.replace("seed = [0, 1]", f"seed = {[*range(40)]}"))
    command = [Path(sys.executable).parent / "sdkernels", "sweep", spec.name, "--out", "out", "--ray", "local"]
    command += ["--workers", "2", "--cpus", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as sweep:
        while sweep.poll() is None and kept_in(store) < 6:
            time.sleep(0.1)
        sweep.send_signal(signal.SIGTERM)
        _, said = sweep.communicate(timeout=120)
    assert sweep.returncode == 143, said
    kept = kept_in(store)
    assert 6 <= kept < 80
    assert f"stopped by SIGTERM; {kept} of 80 networks and results" in said, said[-300:]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert kept_in(store) == 80
    with Ledger(store) as ledger:
        ledger.check()


def kept_in(store):
    """How many networks and results are in a sweep's ledger by now."""
    if not store.exists():
        return 0
    with Ledger(store) as ledger:
        return sum(ledger.kinds().get(kind, 0) for kind in ("network", "condition"))


@pytest.mark.parametrize("figures", [["fig1a"], ["all"]], ids=["one", "all"])
def test_sigterm_ends_a_reproduction(figures, tmp_path, monkeypatch):
    from sdkernels.paper import catalogue

    monkeypatch.delenv("SDKERNELS_DATA", raising=False)
    monkeypatch.setattr(catalogue, "RECIPES", {"fig1a": catalogue.RECIPES["fig1a"]})
    command = ["reproduce", *figures, "--out", str(tmp_path), *SMALL]
    with monkeypatch.context() as patch:
        send_sigterm(patch, Driver, "keep", at=2)
        stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 143, stopped.output
    assert "run the same command again to go on" in stopped.output
    assert not list(tmp_path.glob("fig1a-quick/*"))
    assert CliRunner().invoke(app, command).exit_code == 0


# What it does to the process


def send():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_pass_keeps_its_state(tmp_path):
    calls = {"store": tmp_path / "work.sdk", "batch_size": 8}
    whole = sd.unit_statistics(network(), ["1", "3"], examples())
    inputs, labels = examples()
    seen = []

    class Sends(list):
        def __iter__(self):
            for start in range(0, len(labels), 8):
                seen.append(start)
                if len(seen) == 5:  # the first batch is looked at by itself
                    send()
                yield inputs[start : start + 8], labels[start : start + 8]

    with pytest.raises(Stopped, match="its state after 32 examples is kept in"), stopping_cleanly():
        sd.unit_statistics(network(), ["1", "3"], Sends(), **calls)
    with Ledger(calls["store"]) as ledger:
        (state,) = ledger.items("pass")
    assert state.description["examples"] == 32
    found = sd.unit_statistics(network(), ["1", "3"], Sends(), **calls)
    assert not differences(found, whole)


def test_a_call_that_keeps_nothing_says_so():
    def sent(logits, labels):
        if not is_asked():  # the second one would end this process
            send()
        return logits[:, 0]

    with pytest.raises(Stopped, match="nothing of this call is kept"), stopping_cleanly():
        sd.unit_importance(network(), "3", examples(), metrics=sent, method="loop")


def test_nothing_is_left_of_it():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_cleanly():
        assert signal.getsignal(signal.SIGTERM) != before
        heed("nothing")
        send()
        assert is_asked()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not is_asked()
    heed("nothing")


def test_in_another_thread_it_does_nothing():
    found = []

    def work():
        with stopping_cleanly():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
