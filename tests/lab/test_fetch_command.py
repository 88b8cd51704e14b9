"""Fetching by the command line, and the table of publishers."""

import re

import pytest
from typer.testing import CliRunner

from sdkernels import cli
from sdkernels.lab.fetching.data_sets import fetch, presence
from sdkernels.lab.fetching.publishers import DATA_SETS
from tests.lab.faulty_server import faulty_server
from tests.lab.small_data_sets import texts, two_files


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


# The command line. The table's entries are replaced by small sets.


@pytest.fixture
def run(monkeypatch, plain, packed):
    monkeypatch.setitem(DATA_SETS, "plain", plain)
    monkeypatch.setitem(DATA_SETS, "ptb", packed)
    monkeypatch.delenv("SDKERNELS_DATA", raising=False)
    monkeypatch.delenv("SDKERNELS_MIRROR", raising=False)
    return lambda *arguments, **environment: CliRunner().invoke(
        cli.app, ["data", *map(str, arguments)], env=environment
    )


def test_command_fetches_several(run, tmp_path):
    result = run("fetch", "plain", "ptb", "--data-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"plain: 2 files in {tmp_path / 'plain'}, downloaded big.gz, small.gz; verified" in result.output
    result = run("fetch", "ptb", SDKERNELS_DATA=str(tmp_path))
    assert f"ptb: 3 files in {tmp_path / 'ptb'}, nothing to download; verified" in result.output
    listed = run("list", "--data-dir", tmp_path).output
    assert f"Two files; in {tmp_path}: complete" in listed


def test_command_lists(run):
    output = run("list").output
    for name, data_set in DATA_SETS.items():
        assert re.search(rf"^{name} ", output, re.MULTILINE)
        assert data_set.licence in output
        assert data_set.publisher in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plain"], "--data-dir DIR"),
        (["imagenet", "--data-dir", "DIR"], "there is no data set 'imagenet'"),
        (["plain", "imagenet", "--data-dir", "DIR"], "there is no data set 'imagenet'"),
        (["plain", "--data-dir", "/dev/null/x"], "cannot write"),
        (["plain", "--data-dir", "DIR", "--from", "ftp://host"], "has to start with http"),
        (["plain", "--data-dir", "DIR", "--from", "SERVER/nowhere", "--tries", "1"], "404"),
    ],
)
def test_command_misuse_is_one_clear_line(run, server, tmp_path, arguments, says):
    places = {"DIR": str(tmp_path / "data"), "SERVER/nowhere": server.address + "/nowhere"}
    result = run("fetch", *(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert says in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("sdkernels data fetch plain" if "plain" in arguments else "sdk")
    assert "Traceback" not in result.output


def test_command_asks_a_mirror(run, server, tmp_path):
    server.files.update({f"/plain{path}": body for path, body in server.files.items()})
    assert run("fetch", "plain", "--data-dir", tmp_path, SDKERNELS_MIRROR=server.address).exit_code == 0
    assert {request.path for request in server.requests} == {"/plain/big.gz", "/plain/small.gz"}


# The table.


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_table_holds_together(name):
    data_set = DATA_SETS[name]
    assert data_set.name == name
    files = [file.name for file in data_set.files]
    assert len(set(files)) == len(files)
    assert len({len(file.elsewhere) for file in data_set.files}) == 1
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    for way in data_set.ways:
        assert sorted(files) == sorted(got for each in way for got in (each.members.values() or [each.name]))
        for each in way:
            assert each.addresses
            assert all(re.fullmatch(r"https?://[^ ]+", address) for address in each.addresses)
            assert each.checksums, "every download has a published checksum"
            unpacked = sum(file.size or 0 for file in data_set.files)
            assert each.unpacked_limit >= unpacked
    for each in [*data_set.files, *(each for way in data_set.ways for each in way)]:
        assert "/" not in each.name
        for checksum in each.checksums:
            algorithm, _, digits = checksum.partition(":")
            assert re.fullmatch(f"[0-9a-f]{{{lengths[algorithm]}}}", digits)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_table_agrees_with_the_publishers_files(data_dir, name):
    if presence(DATA_SETS[name], data_dir) != "complete":
        pytest.skip(f"{name} is not in {data_dir}")
    fetched = fetch(name, data_dir)
    assert fetched.downloaded == ()
    assert fetched.unverified == ()
