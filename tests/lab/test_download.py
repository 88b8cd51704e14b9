"""One file from servers that fail in every way: whole and verified, or a clear error and the rest next time."""

import hashlib
import json
import random

import pytest

from sdkernels.lab.fetching.download import NoAddressError, Patience, download
from sdkernels.lab.fetching.partial import FetchError, Partial
from tests.lab import faulty_server as faults
from tests.lab.faulty_server import always, etag, faulty_server

BODY = random.Random(0).randbytes(200_000)
SIZE = len(BODY)
OTHER = random.Random(1).randbytes(200_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
QUICK = Patience(timeout=0.3, tries=3, pause=0.01, progress=1000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with faulty_server() as server:
        server.files["/file.gz"] = BODY
        yield server


@pytest.fixture
def get(server, tmp_path):
    """Download /file.gz, with everything known about it unless said otherwise."""

    def get(*paths, size=SIZE, checksums=(MD5,), patience=QUICK, name="file.gz", said=None):
        addresses = tuple(server.address + path for path in paths or ("/file.gz",))
        say = said.append if said is not None else lambda text: None
        return download(
            addresses, tmp_path / name, size=size, checksums=checksums, patience=patience, say=say
        ).removeprefix(server.address)

    return get


def nothing_but(folder, *names):
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


KNOWN = {"size": SIZE, "checksums": (MD5,)}
NO_SIZE = {"size": None, "checksums": (MD5,)}
NOTHING = {"size": None, "checksums": ()}


@pytest.mark.parametrize("known", [KNOWN, NO_SIZE, NOTHING], ids=["known", "no size", "nothing known"])
@pytest.mark.parametrize(
    ("broken", "ranges"),
    [
        ([], [None]),
        ([faults.truncate(50_000)], [None, 50_000]),
        ([faults.truncate(50_000), faults.truncate(70_000)], [None, 50_000, 120_000]),
        ([faults.truncate(0)], [None, None]),
        ([faults.stall(50_000)], [None, 50_000]),
        ([faults.close()], [None, None]),
        ([faults.status(500)], [None, None]),
        ([faults.status(503, Retry_After="0"), faults.status(429)], [None, None, None]),
        ([faults.truncate(50_000), faults.ignore_range()], [None, 50_000]),
        ([faults.truncate(50_000), faults.status(416)], [None, 50_000, None]),
        ([faults.truncate(50_000), faults.wrong_range(-1)], [None, 50_000, None]),
        ([faults.truncate(50_000), faults.wrong_range(1)], [None, 50_000, None]),
        ([faults.truncate(50_000), faults.close(), faults.close()], [None, 50_000, 50_000, 50_000]),
        ([faults.other_file_truncated(OTHER, 50_000)], [None, 50_000]),  # the file changes: If-Range brings it whole
    ],
)
def test_a_fault_that_passes(server, get, tmp_path, known, broken, ranges):
    server.faults["/file.gz"] = list(broken)
    get(**known)
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert server.ranges == [None if start is None else f"bytes={start}-" for start in ranges]
    nothing_but(tmp_path, "file.gz")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (faults.status(404), "404"),
        (faults.status(403), "403"),
        (always(faults.status(500)), r"500 .*3 tries"),
        (always(faults.close()), "connection broke"),
        (always(faults.stall(0)), "no byte in 0.3 s"),
        (faults.html(), "HTML page"),
        (faults.other_file(OTHER), "serves another file: md5"),
        (faults.lie_about_length(7), "says that the file has 200,007 bytes"),
        (faults.lie_about_length(-7), "says that the file has 199,993 bytes"),
        (faults.other_file(BODY + b"more"), "says that the file has 200,004 bytes"),
        (faults.endless(), "more than the 200,000 bytes"),
        (always(faults.redirect("/file.gz")), "302"),
        (faults.redirect("file:///etc/passwd"), "302"),
        (always(faults.other_file(b"")), "416|another file|says that"),
    ],
)
def test_a_fault_that_stays_leads_to_the_next_address(server, get, tmp_path, fault, says):
    server.files["/mirror.gz"] = BODY
    server.faults["/file.gz"] = [fault]
    said = []
    assert get("/file.gz", "/mirror.gz", said=said) == "/mirror.gz"
    assert (tmp_path / "file.gz").read_bytes() == BODY
    nothing_but(tmp_path, "file.gz")

    server.faults["/file.gz"] = [fault] if getattr(fault, "always", False) else [fault, *[faults.status(404)] * 3]
    (tmp_path / "file.gz").unlink()
    with pytest.raises(NoAddressError, match=says):
        get()
    assert not (tmp_path / "file.gz").exists()


@pytest.mark.parametrize("known", [NO_SIZE, NOTHING], ids=["no size", "nothing known"])
def test_a_length_too_long_is_not_believed(server, get, known):
    server.faults["/file.gz"] = [always(faults.lie_about_length(7))]
    with pytest.raises(NoAddressError, match=r"stopped after|has no bytes|answers with"):
        get(**known)


def test_a_length_too_short_shows_in_the_checksum(server, get, tmp_path):
    server.faults["/file.gz"] = [faults.lie_about_length(-7)]
    with pytest.raises(NoAddressError, match="another file: md5"):
        get(**NO_SIZE)
    nothing_but(tmp_path)


def test_without_a_length_size_and_checksum_tell(server, get, tmp_path):
    server.faults["/file.gz"] = [faults.without_length(), faults.without_length(10_000)]
    get()
    assert (tmp_path / "file.gz").read_bytes() == BODY
    (tmp_path / "file.gz").unlink()
    get()  # ends early, is continued
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert server.ranges == [None, None, "bytes=10000-"]


def test_a_crawl_is_a_stall(server, get):
    server.faults["/file.gz"] = [always(faults.drip(0.05))]
    with pytest.raises(NoAddressError, match=r"only \S+ bytes in"):
        get(patience=Patience(timeout=0.2, tries=2, pause=0.01, slowest=1000))


def test_wrongly_joined_bytes_are_thrown_away(server, get, tmp_path):
    server.faults["/file.gz"] = [faults.truncate(50_000), faults.shifted_bytes(1)]
    said = []
    get(said=said)
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert server.ranges == [None, "bytes=50000-", None]
    assert any("once more from the start" in text for text in said)


def test_a_server_that_always_joins_wrongly_is_left(server, get, tmp_path):
    server.faults["/file.gz"] = [faults.truncate(50_000), faults.shifted_bytes(1)] * 10
    with pytest.raises(NoAddressError, match="serves another file"):
        get()
    assert len(server.requests) == 4
    nothing_but(tmp_path)


def test_a_server_that_begins_anew_each_time_gets_nowhere(server, get):
    server.faults["/file.gz"] = [faults.other_file_truncated(OTHER[k:] + OTHER[:k], 50_000) for k in range(20)]
    with pytest.raises(NoAddressError, match="3 tries"):
        get(**NOTHING)
    assert len(server.requests) <= 4


def test_the_next_run_continues(server, get, tmp_path):
    server.faults["/file.gz"] = [faults.truncate(50_000), *[faults.status(500)] * 3]
    with pytest.raises(NoAddressError, match="50,000 bytes are kept, and the same command continues"):
        get(**NOTHING)
    assert (tmp_path / "file.gz.partial").read_bytes() == BODY[:50_000]
    assert json.loads((tmp_path / "file.gz.partial.json").read_text())["etag"] == etag(BODY)
    server.requests.clear()
    get(**NOTHING)
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert [(request.range, request.if_range) for request in server.requests] == [("bytes=50000-", etag(BODY))]


def test_the_next_run_begins_anew_if_the_file_has_changed(server, get, tmp_path):
    server.files["/file.gz"] = OTHER
    server.faults["/file.gz"] = [faults.truncate(50_000), *[faults.status(500)] * 3]
    with pytest.raises(NoAddressError):
        get(**NOTHING)
    server.files["/file.gz"] = BODY
    get(**NOTHING)
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert server.requests[-1].status == 200


def test_the_next_address_continues_if_a_checksum_vouches(server, get, tmp_path):
    server.files["/mirror.gz"] = BODY
    server.faults["/file.gz"] = [faults.truncate(50_000), *[faults.status(500)] * 3]
    assert get("/file.gz", "/mirror.gz") == "/mirror.gz"
    assert [(request.range, request.if_range) for request in server.asked("/mirror.gz")] == [("bytes=50000-", None)]
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_the_next_address_begins_anew_if_nothing_vouches(server, get, tmp_path):
    server.files["/mirror.gz"] = BODY
    server.faults["/file.gz"] = [faults.other_file_truncated(OTHER, 50_000), *[faults.status(500)] * 3]
    get("/file.gz", "/mirror.gz", **NOTHING)
    assert server.asked("/mirror.gz")[0].range is None
    assert (tmp_path / "file.gz").read_bytes() == BODY


@pytest.mark.parametrize(
    "record",
    [None, "", "[]", '{"address": 3}', '{"address": "elsewhere"}', '{"address": "HERE", "etag": "W/\\"weak\\""}'],
    ids=["none", "empty", "no object", "no text", "another address", "weak tag"],
)
def test_bytes_that_nothing_vouches_for_are_not_joined(server, get, tmp_path, record):
    (tmp_path / "file.gz.partial").write_bytes(OTHER[:50_000])
    if record is not None:
        (tmp_path / "file.gz.partial.json").write_text(record.replace("HERE", server.address + "/file.gz"))
    get(**NOTHING)
    assert server.ranges == [None]
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_a_date_vouches_too(server, get, tmp_path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    (tmp_path / "file.gz.partial").write_bytes(BODY[:50_000])
    record = {"address": server.address + "/file.gz", "etag": 'W/"weak"', "last_modified": date}
    (tmp_path / "file.gz.partial.json").write_text(json.dumps(record))
    get(**NOTHING)
    assert (server.requests[0].range, server.requests[0].if_range) == ("bytes=50000-", date)


@pytest.mark.parametrize("start", [BODY, OTHER, BODY + b"more"], ids=["whole", "wrong", "too long"])
def test_a_partial_file_of_full_length(server, get, tmp_path, start):
    (tmp_path / "file.gz.partial").write_bytes(start)
    get()
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert server.ranges == ([] if start == BODY else [None])
    nothing_but(tmp_path, "file.gz")


def test_encoded_text_is_refused(server, get):
    server.faults["/file.gz"] = [faults.other_file(BODY, Content_Encoding="gzip")] * 2
    with pytest.raises(NoAddressError, match="Content-Encoding gzip"):
        get(name="file.txt")
    get(name="file.gz")  # some servers call a .gz file so


def test_redirects_are_followed(server, get, tmp_path):
    server.faults["/moved.gz"] = [always(faults.redirect("/file.gz"))]
    server.faults["/file.gz"] = [faults.truncate(50_000)]
    get("/moved.gz")
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert [request.range for request in server.asked("/file.gz")] == [None, "bytes=50000-"]


def test_it_says_its_name(server, get):
    get()
    assert server.requests[0].agent == "sdkernels-data-fetch"


def test_pauses_double_and_the_server_s_wish_counts(server, get, monkeypatch):
    server.faults["/file.gz"] = [faults.status(500)] * 3 + [
        faults.status(503, Retry_After=k) for k in ("7", "900", "x")
    ]
    slept = []
    monkeypatch.setattr("sdkernels.lab.fetching.download.time.sleep", slept.append)
    get(patience=Patience(tries=9, pause=1.0))
    assert slept == [1.0, 2.0, 4.0, 8.0, 30.0, 30.0]


@pytest.mark.parametrize(
    "address", ["http://no-such-host.invalid/file.gz", "http://127.0.0.1:1/file.gz", "http://127.0.0.1:no/file.gz", "x"]
)
def test_addresses_that_lead_nowhere(server, tmp_path, address):
    with pytest.raises(NoAddressError):
        download((address,), tmp_path / "file.gz", patience=QUICK)
    download((address, server.address + "/file.gz"), tmp_path / "file.gz", patience=QUICK)
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_an_error_of_the_disk_is_not_retried(server, get, tmp_path, monkeypatch):
    class Full:
        def __init__(self, path):
            self.file = path.open("ab", buffering=0)
            self.room = 30_000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            taken = self.file.write(data[: min(self.room, 7001)])  # short writes, then none
            self.room -= taken
            if not taken:
                raise OSError(28, "No space left on device")
            return taken

    full = monkeypatch.context()
    with full as patch:
        patch.setattr(Partial, "_open", lambda partial: Full(partial.path), raising=True)
        with pytest.raises(FetchError, match=r"cannot write .*file.gz.partial: No space left on device; make room"):
            get("/file.gz", "/file.gz")
    assert len(server.requests) == 1
    assert (tmp_path / "file.gz.partial").read_bytes() == BODY[:30_000]
    get()
    assert server.ranges == [None, "bytes=30000-"]
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_a_link_in_the_place_of_the_partial_file_is_not_written_through(server, get, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "file.gz.partial").symlink_to(tmp_path / "precious")
    get()
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "file.gz").read_bytes() == BODY
