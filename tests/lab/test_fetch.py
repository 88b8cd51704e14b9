"""Whole data sets, kills, and two processes at once."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sdkernels import cli
from sdkernels.lab.fetching import data_sets as fetch_module
from sdkernels.lab.fetching.data_sets import FetchError, fetch, presence
from sdkernels.lab.fetching.folder_lock import alone_in
from sdkernels.lab.fetching.publishers import DataFile
from tests.lab import faulty_server as faults
from tests.lab.faulty_server import faulty_server
from tests.lab.small_data_sets import ARCHIVE, BODY, QUICK, TEXTS, md5, names, texts, two_files


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with faulty_server() as server:
        yield server


@pytest.fixture
def plain(server):
    return two_files(server)


@pytest.fixture
def packed(server):
    return texts(server)


def test_plain_files(server, plain, tmp_path):
    fetched = fetch(plain, tmp_path / "new" / "data", patience=QUICK)
    folder = tmp_path / "new" / "data" / "plain"
    assert fetched.files == (folder / "big.gz", folder / "small.gz")
    assert fetched.downloaded == ("big.gz", "small.gz")
    assert fetched.unverified == ()
    assert (folder / "big.gz").read_bytes() == BODY
    assert names(folder) == [".fetched.json", "big.gz", "small.gz"]


def test_what_is_there_is_verified_and_not_downloaded(server, plain, tmp_path):
    fetch(plain, tmp_path, patience=QUICK)
    server.requests.clear()
    assert fetch(plain, tmp_path, patience=QUICK).downloaded == ()
    (tmp_path / "plain" / "big.gz").write_bytes(BODY[:-1] + b"x")
    said = []
    assert fetch(plain, tmp_path, patience=QUICK, say=said.append).downloaded == ("big.gz",)
    assert "big.gz is there but is not the published file (md5" in said[0]
    assert [request.path for request in server.requests] == ["/big.gz"]
    assert (tmp_path / "plain" / "big.gz").read_bytes() == BODY


def test_complete_data_need_no_writing(server, plain, tmp_path, monkeypatch):
    fetch(plain, tmp_path, patience=QUICK)
    monkeypatch.setattr(fetch_module, "alone_in", None)
    monkeypatch.setattr(Path, "mkdir", None)
    assert fetch(plain, tmp_path, patience=QUICK).downloaded == ()


def test_an_archive(server, packed, tmp_path):
    fetched = fetch(packed, tmp_path, patience=QUICK)
    assert names(tmp_path / "ptb") == [".fetched.json", *sorted(TEXTS)]
    assert all((tmp_path / "ptb" / name).read_bytes() == text for name, text in TEXTS.items())
    assert fetched.unverified == ()
    record = json.loads((tmp_path / "ptb" / ".fetched.json").read_text())["files"]
    assert record["ptb.train.txt"]["sha256"] == hashlib.sha256(TEXTS["ptb.train.txt"]).hexdigest()
    assert record["ptb.train.txt"]["from"] == server.address + "/simple-examples.tgz"
    assert "simple-examples.tgz" not in record

    server.requests.clear()
    assert fetch(packed, tmp_path, patience=QUICK).downloaded == ()
    assert not server.requests
    (tmp_path / "ptb" / "ptb.test.txt").write_bytes(TEXTS["ptb.test.txt"].replace(b"sat", b"ate"))
    assert fetch(packed, tmp_path, patience=QUICK).downloaded == ("simple-examples.tgz",)
    assert (tmp_path / "ptb" / "ptb.test.txt").read_bytes() == TEXTS["ptb.test.txt"]


def test_it_lies_where_the_reader_looks(server, packed, tmp_path):
    from sdkernels.lab.readers.text import load_text

    fetch(packed, tmp_path, patience=QUICK)
    assert len(load_text("ptb", tmp_path).train) == 50 * 5  # with <eos>


def test_the_second_way(server, packed, tmp_path):
    del server.files["/simple-examples.tgz"]
    server.files.update({f"/{name}": text for name, text in TEXTS.items()})
    fetched = fetch(packed, tmp_path, patience=QUICK)
    assert fetched.downloaded == tuple(TEXTS)
    assert all((tmp_path / "ptb" / name).read_bytes() == text for name, text in TEXTS.items())


def test_no_way(server, packed, tmp_path):
    server.files.clear()
    with pytest.raises(FetchError, match=r"(?s)tgz: 404 .*train.txt: 404 .*put simple-examples.tgz or ptb.train.txt"):
        fetch(packed, tmp_path, patience=QUICK)


def test_files_of_unknown_checksum_are_kept_and_named(server, packed, tmp_path):
    (tmp_path / "ptb").mkdir()
    for name in TEXTS:
        (tmp_path / "ptb" / name).write_text("mine")
    assert fetch(packed, tmp_path, patience=QUICK).unverified == tuple(TEXTS)
    (tmp_path / "ptb" / "ptb.train.txt").write_text("")
    assert fetch(packed, tmp_path, patience=QUICK).unverified == ()
    assert (tmp_path / "ptb" / "ptb.valid.txt").read_bytes() == TEXTS["ptb.valid.txt"]


def test_no_published_checksum_is_said(server, plain, tmp_path):
    files = tuple(DataFile(file.name) for file in plain.files)
    way = tuple(replace(each, size=None, checksums=()) for each in plain.ways[0])
    said = []
    fetched = fetch(replace(plain, files=files, ways=(way,)), tmp_path, patience=QUICK, say=said.append)
    assert fetched.unverified == ("big.gz", "small.gz")
    assert "no published checksum for big.gz" in said[0]


def test_an_archive_put_there_by_hand_is_used_and_stays(server, packed, tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "simple-examples.tgz").write_bytes(ARCHIVE)
    assert fetch(packed, tmp_path, patience=QUICK).downloaded == ()
    assert not server.requests
    assert names(tmp_path / "ptb") == [".fetched.json", *sorted(TEXTS), "simple-examples.tgz"]


def test_a_stop_between_download_and_unpacking(server, packed, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_module, "extract", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch(packed, tmp_path, patience=QUICK)
    server.requests.clear()
    fetch(packed, tmp_path, patience=QUICK)
    assert not server.requests
    assert names(tmp_path / "ptb") == [".fetched.json", *sorted(TEXTS)]


def test_an_archive_unpacked_by_hand_is_enough(server, packed, tmp_path):
    files = tuple(DataFile(name, len(text), md5(text), (f"data/{name}",)) for name, text in TEXTS.items())
    (tmp_path / "ptb" / "data").mkdir(parents=True)
    for name, text in TEXTS.items():
        (tmp_path / "ptb" / "data" / name).write_bytes(text)
    fetched = fetch(replace(packed, files=files), tmp_path, patience=QUICK)
    assert fetched.files[0] == tmp_path / "ptb" / "data" / "ptb.train.txt"
    assert not server.requests
    assert presence(replace(packed, files=files), tmp_path) == "complete"


def test_wrong_members_of_a_right_archive(server, packed, tmp_path):
    files = tuple(DataFile(name, None, md5(b"other")) for name in TEXTS)
    with pytest.raises(FetchError, match="is not the published file: md5"):
        fetch(replace(packed, files=files), tmp_path, patience=QUICK)
    assert not (tmp_path / "ptb" / "ptb.train.txt").exists()


def test_a_mirror(server, plain, tmp_path):
    server.files.update({f"/base/plain{path}": body for path, body in server.files.items()})
    fetch(plain, tmp_path, mirror=server.address + "/base/", patience=QUICK)
    assert [request.path for request in server.requests] == ["/base/plain/big.gz", "/base/plain/small.gz"]


def test_the_checksums_hold_for_a_mirror(server, plain, tmp_path):
    server.files["/plain/big.gz"] = b"x" * len(BODY)
    with pytest.raises(FetchError, match="serves another file"):
        fetch(plain, tmp_path, mirror=server.address, patience=QUICK)


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://host", "/tmp/mirror", ""])
def test_a_mirror_that_is_no_address(plain, tmp_path, mirror):
    with pytest.raises(ValueError, match="has to start with http"):
        fetch(plain, tmp_path, mirror=mirror)


def test_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="there is no data set 'imagenet' to fetch; there are mnist, "):
        fetch("imagenet", tmp_path)


def test_a_full_disk_is_seen_before(server, plain, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 299_999})
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match=r"big\.gz needs 0\.3 MB in .* where 0\.3 MB are free"):
        fetch(plain, tmp_path, patience=QUICK)
    assert not server.requests
    (tmp_path / "plain" / "big.gz.partial").write_bytes(BODY[:1])  # what is there needs no room again
    fetch(plain, tmp_path, patience=QUICK)


def test_a_folder_that_cannot_be_made(plain, tmp_path):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(FetchError, match=r"cannot write .*plain: File exists"):
        fetch(plain, tmp_path)
    with pytest.raises(FetchError, match="cannot write /dev/null/x/plain"):
        fetch(plain, Path("/dev/null/x"))


def test_a_read_only_folder(server, plain, tmp_path, monkeypatch):
    def refuses(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("sdkernels.lab.fetching.folder_lock.os.open", refuses)
    with pytest.raises(FetchError, match=r"cannot write .*plain/\.fetching: Permission denied"):
        fetch(plain, tmp_path, patience=QUICK)
    assert not server.requests


def test_presence(server, plain, tmp_path):
    assert presence(plain, tmp_path) == "nothing"
    server.faults["/big.gz"] = [faults.truncate(200_000), *[faults.status(500)] * 2]
    with pytest.raises(FetchError):
        fetch(plain, tmp_path, patience=QUICK)
    assert presence(plain, tmp_path) == "nothing, 0.2 MB of a download"
    (tmp_path / "plain" / "small.gz").write_bytes(b"small")
    assert presence(plain, tmp_path) == "1 of 2 files, 0.2 MB of a download"
    fetch(plain, tmp_path, patience=QUICK)
    assert presence(plain, tmp_path) == "complete"


def test_two_at_once(server, plain, tmp_path):
    server.faults["/big.gz"] = [faults.stall(100_000)]
    said, results = [], []
    first = threading.Thread(
        target=lambda: results.append(fetch(plain, tmp_path, patience=replace(QUICK, timeout=0.5)))
    )
    first.start()
    assert server.sent.wait(5)
    results.append(fetch(plain, tmp_path, patience=QUICK, say=said.append))
    first.join()
    assert sorted(len(result.downloaded) for result in results) == [0, 2]
    assert said == [f"plain: another process is fetching into {tmp_path / 'plain'}; waiting for it"]
    assert [request.range for request in server.asked("/big.gz")] == [None, "bytes=100000-"]
    assert (tmp_path / "plain" / "big.gz").read_bytes() == BODY
    assert names(tmp_path / "plain") == [".fetched.json", "big.gz", "small.gz"]


def test_the_lock_keeps_many_apart(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(5):
            with alone_in(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 20
    assert names(tmp_path) == []


# Kills, in processes of their own: the command as a user runs it, its table replaced by a small set.

COMMAND = f"""
import sys, types
package = types.ModuleType("sdkernels")
package.__path__ = [{str(Path(cli.__file__).parent)!r}]
sys.modules["sdkernels"] = package  # without its __init__, which takes two seconds to import torch
from sdkernels.lab.fetching.publishers import DATA_SETS, DataFile, DataSet, Download
address, checksum, folder = sys.argv[1:]
file = DataFile("big.gz", 300_000, (checksum,))
way = (Download("big.gz", (address + "/big.gz",), 300_000, (checksum,)),)
DATA_SETS["plain"] = DataSet("plain", "", "", "", (file,), (way,))
sys.argv = ["sdkernels", "data", "fetch", "plain", "--data-dir", folder, "--timeout", "20"]
from sdkernels.cli import main
main()
"""


def start(server, folder):
    arguments = [sys.executable, "-c", COMMAND, server.address, *md5(BODY), str(folder)]
    environment = {**os.environ, "no_proxy": "*"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
def test_killed_and_continued(server, plain, tmp_path, how):
    server.faults["/big.gz"] = [faults.stall(200_000)]
    process = start(server, tmp_path)
    partial = tmp_path / "plain" / "big.gz.partial"
    until = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size == 200_000) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(how)
    try:
        _, errors = process.communicate(timeout=8)
    except subprocess.TimeoutExpired:  # Python drops a Ctrl-C that comes inside of a destructor: people press it again
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert partial.read_bytes() == BODY[:200_000]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "what has arrived is kept: run `sdkernels data fetch plain" in errors
        assert "Traceback" not in errors
        return
    assert process.returncode == -signal.SIGKILL
    again = start(server, tmp_path)
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert "downloaded big.gz; verified" in output
    assert (tmp_path / "plain" / "big.gz").read_bytes() == BODY
    assert [request.range for request in server.asked("/big.gz")] == [None, "bytes=200000-"]
    assert names(tmp_path / "plain") == [".fetched.json", "big.gz"]
