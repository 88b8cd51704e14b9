"""Whatever is written outside the ledger: a disk that is full, a folder that is read-only, a stop in the middle."""

import resource
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import sdkernels as sd
from sdkernels.lab.contents import export
from sdkernels.lab.sweep import table
from sdkernels.lab.training import checkpoints
from sdkernels.paper.drawing import new_figure
from sdkernels.paper.run_folder import RunFolder
from tests.engine.stored import examples, network
from tests.engine.test_ledger_faults import as_nobody


@cache
def result(version):
    return sd.unit_importance(network(seed=version), "3", examples(), outcomes=True)


def frame(version):
    return pd.DataFrame({"version": [version] * 4000, "number": np.arange(4000) + version})


def save_figure(form, path, version):
    drawn, axes = new_figure()
    axes.flat[0].set_title(str(version))
    RunFolder(path.parent, {}, [path.name]).write(path.name, lambda partial: drawn.savefig(partial, format=form))


def save_json(path, version):
    RunFolder(path.parent, {}, [path.name]).write_json(path.name, {"version": [version] * 4000})


# By the name of what is written: (path, version) -> None.
WRITERS = {
    "result.npz": lambda path, version: result(version).save(path),
    "networks.csv": lambda path, version: table._write(frame(version).to_csv(), path),
    "exported.csv": lambda path, version: export(frame(version), path),
    "latest.safetensors": lambda path, version: checkpoints.write(
        path, {"weight": torch.full((5000,), float(version))}, {"version": version}
    ),
    "report.json": save_json,
    "figure.png": partial(save_figure, "png"),
    "figure.pdf": partial(save_figure, "pdf"),
}


@contextmanager
def full_disk(folder):
    """A file system that has no byte left."""
    rest = folder / "rest"
    with rest.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    yield
    rest.unlink()


@contextmanager
def no_longer_files(_folder):
    """No file may have more than 200 bytes, as by a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder):
    """For a user who is not root."""
    folder.chmod(0o555)
    try:
        with as_nobody():
            yield
    finally:
        folder.chmod(0o777)


@pytest.fixture
def folder():
    """A small disk of its own where that may be made; every user may enter it."""
    outer = Path(tempfile.mkdtemp())
    outer.chmod(0o755)
    inner = outer / "work"
    inner.mkdir()
    inner.chmod(0o777)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", inner], capture_output=True, check=False)
    yield inner, made.returncode == 0
    if made.returncode == 0:
        subprocess.run(["umount", inner], check=True)
    shutil.rmtree(outer)


@pytest.mark.parametrize("fault", [full_disk, no_longer_files, read_only], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", WRITERS)
def test_the_old_file_stays_whole(name, fault, folder):
    """And nothing is left beside it; with the fault gone, the new one takes its place."""
    folder, is_small = folder
    if fault is full_disk and not is_small:
        pytest.skip("mounts no tmpfs here: needs root")
    folder.chmod(0o777)
    path, write = folder / name, WRITERS[name]
    write(path, 1)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with fault(folder), pytest.raises(OSError, match=r"No space|too large|Permission denied|cannot be written"):
        write(path, 2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    write(path, 2)
    assert path.read_bytes() != before[name]


@pytest.mark.parametrize("name", WRITERS)
def test_ctrl_c_before_the_file_gets_its_name(name, tmp_path, monkeypatch):
    path, write = tmp_path / name, WRITERS[name]
    write(path, 1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def replace(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write(path, 2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
