"""Checkpoints on disk: what stands in the folder, what is refused, and runs that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdkernels.lab.seeds import drawing_from
from sdkernels.lab.training import TrainingOptions, load_checkpoint, train
from sdkernels.lab.training import checkpoints as disk
from tests.lab.small_runs import CASES, assert_same_end, dense, finish

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
STEADY = CASES["adam"]


def run(case, folder, **settings):
    with drawing_from(0):
        model = case.make()
    result = train(model, case.data, case.options, seed=7, validation=case.validation, checkpoints=folder, **settings)
    return model, result


class Stop(Exception):  # noqa: N818
    pass


def stop_after(monkeypatch, writes):
    """Leave the run as if it were killed after so many files."""
    left, write = [writes], disk.write

    def counted(*arguments):
        if left[0] == 0:
            raise Stop
        left[0] -= 1
        write(*arguments)

    monkeypatch.setattr(disk, "write", counted)


@cases
def test_stopped_and_called_again_at_every_checkpoint(case, tmp_path):
    whole = finish(case.trainer())
    settings = {"every_steps": 3, "keep_epochs": (0, 1, 2)}
    run(case, tmp_path / "whole", **settings)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    kept = [f"epoch-00000{epoch}" for epoch in (0, 1, 2)]
    assert files == [f"{name}{ending}" for name in (*kept, "latest") for ending in (".json", ".safetensors")]
    for writes in (1, 3, 5):
        folder = tmp_path / str(writes)
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, writes)
            with pytest.raises(Stop):
                run(case, folder, **settings)
        model, result = run(case, folder, **settings)
        assert result == whole.result()
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        for name in kept:
            here, there = (load_file(tmp_path / run_ / f"{name}.safetensors") for run_ in (str(writes), "whole"))
            assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())


def test_a_run_that_is_over_is_only_evaluated(tmp_path):
    _, result = run(STEADY, tmp_path)
    before = (tmp_path / disk.LATEST).stat()
    model, again = run(STEADY, tmp_path)
    after = (tmp_path / disk.LATEST).stat()
    assert again == result
    assert not model.training
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino), "nothing is written"


def test_kept_epochs_are_plain_state_dicts(tmp_path):
    run(STEADY, tmp_path, keep_epochs=range(5), every=3)
    trainer = STEADY.trainer()
    for epoch in range(5):
        weights = load_file(tmp_path / f"epoch-{epoch:06d}.safetensors")
        expected = trainer.model.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        record = json.loads((tmp_path / f"epoch-{epoch:06d}.json").read_text())
        assert len(record["history"]) == epoch
        assert record["options"] == STEADY.options.record()
        if not trainer.finished:
            trainer.run_epoch()
    assert record["history"][-1]["loss"] == trainer.history[-1].loss
    assert len(disk.read(tmp_path / disk.LATEST)[1]["history"]) == 4, "the end is saved, whatever every= is"


def test_half_a_file_never_takes_the_place_of_a_whole_one(tmp_path, monkeypatch):
    trainer = STEADY.trainer()
    disk.write(tmp_path / disk.LATEST, *trainer.state())
    trainer.run_epoch()
    save = disk.save_file

    def break_off(tensors, path, metadata):
        save(tensors, path, metadata)
        Path(path).write_bytes(Path(path).read_bytes()[:99])
        raise OSError("no space left on device")

    monkeypatch.setattr(disk, "save_file", break_off)
    with pytest.raises(OSError, match="no space"):
        disk.write(tmp_path / disk.LATEST, *trainer.state())
    assert disk.read(tmp_path / disk.LATEST)[1]["step"] == 0


@pytest.mark.parametrize("name", ["epoch-000002.safetensors", "latest.safetensors", ""])
def test_load_checkpoint(tmp_path, name):
    run(STEADY, tmp_path, keep_epochs=[2])
    trainer = STEADY.trainer()
    for _ in range(2 if "epoch" in name else 4):
        trainer.run_epoch()
    with drawing_from(5):
        model = dense()
    record = load_checkpoint(str(tmp_path / name), model)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in trainer.model.state_dict().items())
    assert TrainingOptions.from_record(record["options"]) == STEADY.options
    assert len(record["history"]) == trainer.epoch
    with pytest.raises(ValueError, match=r"safetensors is a checkpoint of another model.*bn\.bias \(only there\)"):
        load_checkpoint(tmp_path / name, nn.Sequential())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing"):
        load_checkpoint(tmp_path / "nothing", model)


def truncated(content):
    return content[:-7]


def empty(_content):
    return b""


def text(_content):
    return b"Dear diary, \x93 " * 50


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("damage", [truncated, empty, text, flipped])
def test_a_damaged_file_is_named(tmp_path, damage):
    run(STEADY, tmp_path)
    latest = tmp_path / disk.LATEST
    latest.write_bytes(damage(latest.read_bytes()))
    before = latest.read_bytes()
    for load in (lambda: run(STEADY, tmp_path), lambda: load_checkpoint(latest, dense())):
        with drawing_from(0), pytest.raises(ValueError, match=r"latest\.safetensors is damaged"):
            load()
    assert latest.read_bytes() == before


def test_a_file_of_something_else_is_named(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / disk.LATEST)
    with pytest.raises(ValueError, match=r"latest\.safetensors is a safetensors file, but no checkpoint"):
        run(STEADY, tmp_path)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run(STEADY, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_of_another_run_is_refused_and_kept(tmp_path):
    run(STEADY, tmp_path)
    before = (tmp_path / disk.LATEST).read_bytes()
    other = replace(STEADY, options=replace(STEADY.options, learning_rate=0.5))
    with pytest.raises(
        ValueError, match=r"latest\.safetensors: .*learning_rate \(0.01 there, 0.5 here\).*Give another"
    ):
        run(other, tmp_path)
    with pytest.raises(ValueError, match=r"keep_epochs holds 2, but the run in .* is past it"):
        run(STEADY, tmp_path, keep_epochs=(2,))
    assert (tmp_path / disk.LATEST).read_bytes() == before


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    run(STEADY, tmp_path)
    tensors, record = disk.read(tmp_path / disk.LATEST)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64, torch.uint8}
    resumed = STEADY.trainer()
    resumed.restore(tensors, record)
    assert_same_end(resumed, finish(STEADY.trainer()))


KILLED = """
import os, sys
from collections import OrderedDict
import torch
import torch._dynamo  # which optimisers import when first made: once here, not in every child
from torch import nn
from sdkernels.lab.seeds import drawing_from
from sdkernels.lab.training import TrainingOptions, train
from tests.lab.small_runs import dense, inputs_and_labels

torch.set_num_threads(1)

def go(folder):
    with drawing_from(0):
        model = dense()
    options = TrainingOptions(epochs=60, batch_size=16, optimiser="adamw", schedule="cosine")
    train(model, inputs_and_labels(), options, seed=7, checkpoints=folder, every_steps=3)

for line in sys.stdin:  # a child a line: torch is imported once
    child = os.fork()
    if child == 0:
        go(line.strip())
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


def test_killed_at_random_moments_it_ends_at_the_same_weights(tmp_path):
    chance = random.Random(0)
    root = Path(__file__).parent.parent.parent
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def start(folder):
        parent.stdin.write(f"{folder}\n")
        parent.stdin.flush()
        return int(parent.stdout.readline())

    def progress():
        latest = tmp_path / "killed" / disk.LATEST
        return latest.stat().st_mtime_ns if latest.exists() else None

    try:
        start(tmp_path / "whole")
        assert int(parent.stdout.readline()) == 0
        kills, steps = 0, []
        while True:
            before, child = progress(), start(tmp_path / "killed")
            if kills < 6:
                deadline = time.monotonic() + 60
                while progress() == before and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.02))  # a checkpoint is written every few milliseconds
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            if int(parent.stdout.readline()) == 0:
                break
            kills += 1
            if (tmp_path / "killed" / disk.LATEST).exists():
                steps.append(disk.read(tmp_path / "killed" / disk.LATEST)[1]["step"])
    finally:
        parent.stdin.close()
        parent.wait()
        parent.stdout.close()
    assert kills >= 5
    assert len(set(steps)) >= 5, "it went on in between"
    whole, killed = (disk.read(tmp_path / name / disk.LATEST) for name in ("whole", "killed"))
    assert all(torch.equal(tensor, whole[0][name]) for name, tensor in killed[0].items())
    for record in (whole[1], killed[1]):
        record["seconds"] = 0
        for metrics in record["history"]:
            metrics["seconds"] = 0
    assert whole[1] == killed[1]
