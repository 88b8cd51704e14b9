"""Archives that are as expected, damaged, or hostile."""

import gzip
import io
import os
import struct
import tarfile
import zipfile

import pytest

from sdkernels.lab.fetching.archives import extract
from sdkernels.lab.fetching.partial import FetchError

TEXT = b"one two three\n" * 1000
WANTED = "set/train.txt"


@pytest.fixture
def folder(tmp_path):
    """Where files go; anything beside it must stay as it is."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "beside").write_text("beside")
    yield folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "folder"]
    assert (tmp_path / "beside").read_text() == "beside"
    assert not [path for path in folder.rglob("*") if path.suffix == ".unpacking"]


def tar_of(path, *members):
    """Members are (name, bytes) or TarInfo."""
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path, *members):
    """Members are (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def special(kind, name=WANTED, target="../beside"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def take(archive, folder, limit=10**6, **more):
    extract(archive, {WANTED: folder / "train.txt"}, limit=limit, **more)


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_expected_members_and_nothing_else(folder, make, prefix):
    name = "a.zip" if make is zip_of else "a.tgz"
    hostile = [("../beside", b"x"), ("/tmp/sdkernels-absolute", b"x"), ("set/../../beside", b"x"), ("README", b"x")]
    archive = make(folder / name, *hostile, (prefix + WANTED, TEXT), ("set/other.txt", b"x"))
    take(archive, folder)
    assert (folder / "train.txt").read_bytes() == TEXT
    assert sorted(path.name for path in folder.iterdir()) == [name, "train.txt"]
    assert not os.path.exists("/tmp/sdkernels-absolute")


def test_unexpected_links_are_passed_by(folder):
    links = [special(tarfile.SYMTYPE, "set"), special(tarfile.SYMTYPE, "train.txt"), special(tarfile.LNKTYPE, "x")]
    take(tar_of(folder / "a.tgz", *links, (WANTED, TEXT)), folder)
    assert (folder / "train.txt").read_bytes() == TEXT
    assert sorted(path.name for path in folder.iterdir()) == ["a.tgz", "train.txt"]


def test_a_link_in_the_target_s_place_is_replaced(folder):
    (folder / "train.txt").symlink_to("../beside")
    (folder / "train.txt.unpacking").symlink_to("../beside")
    take(tar_of(folder / "a.tgz", (WANTED, TEXT)), folder)
    assert not (folder / "train.txt").is_symlink()
    assert (folder / "train.txt").read_bytes() == TEXT


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_an_expected_member_must_be_a_file_in_tar(folder, kind):
    with pytest.raises(FetchError, match="is a link or a device"):
        take(tar_of(folder / "a.tgz", ("other", TEXT), special(kind)), folder)
    assert not (folder / "train.txt").exists()


def test_an_expected_member_must_be_a_file_in_zip(folder):
    link = zipfile.ZipInfo(WANTED)
    link.external_attr = 0o120777 << 16
    with pytest.raises(FetchError, match="is a link or a device"):
        take(zip_of(folder / "a.zip", (link, "../beside")), folder)


def test_an_encrypted_member_is_refused(folder):
    archive = zip_of(folder / "a.zip", (WANTED, TEXT))
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    with pytest.raises(FetchError, match=WANTED):
        take(archive, folder)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_twice_is_refused(folder, make):
    archive = make(folder / ("a.zip" if make is zip_of else "a.tgz"), (WANTED, TEXT), (WANTED, b"other"))
    with pytest.raises(FetchError, match=r"holds set/train\.txt twice"):
        take(archive, folder)
    assert not (folder / "train.txt").exists()


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_all_or_none(folder, make):
    archive = make(folder / ("a.zip" if make is zip_of else "a.tgz"), (WANTED, TEXT))
    members = {WANTED: folder / "train.txt", "set/test.txt": folder / "test.txt"}
    with pytest.raises(FetchError, match=r"lacks set/test\.txt"):
        extract(archive, members, limit=10**6)
    assert not (folder / "train.txt").exists()


def test_wrong_members_are_not_placed(folder):
    (folder / "train.txt").write_text("before")
    archive = tar_of(folder / "a.tgz", (WANTED, TEXT))
    asked = []
    with pytest.raises(FetchError, match=r"set/train\.txt is not the published file: it is odd"):
        take(archive, folder, wrong=lambda path, file: asked.append((path, file.read_bytes())) or "it is odd")
    assert asked == [(WANTED, TEXT)]
    assert (folder / "train.txt").read_text() == "before"


@pytest.mark.parametrize("bomb", [WANTED, "unwanted"])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_bombs(folder, make, bomb):
    archive = make(folder / ("a.zip" if make is zip_of else "a.tgz"), (bomb, bytes(5 * 10**6)), (WANTED + "x", TEXT))
    assert archive.stat().st_size < 20_000
    with pytest.raises(FetchError, match="unpacks to more than 1,000,000 bytes"):
        take(archive, folder)
    assert not (folder / "train.txt").exists()


def test_a_bomb_in_a_zip_that_lies_about_its_size(folder):
    archive = zip_of(folder / "a.zip", (WANTED, bytes(5 * 10**6)))
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace(struct.pack("<L", 5 * 10**6), struct.pack("<L", 1000)))
    with pytest.raises(FetchError, match="damaged"):
        take(archive, folder)
    assert not (folder / "train.txt").exists()


def test_a_bomb_after_the_end_of_a_tar(folder):
    archive = tar_of(folder / "a.tgz", (WANTED, TEXT))
    archive.write_bytes(archive.read_bytes() + gzip.compress(bytes(5 * 10**6)))
    with pytest.raises(FetchError, match="unpacks to more"):
        take(archive, folder)


def test_a_header_beyond_measure(folder):
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 5 * 10**6
    raw = long_name.tobuf(tarfile.GNU_FORMAT) + bytes(6 * 10**6)
    (folder / "a.tgz").write_bytes(gzip.compress(raw))
    with pytest.raises(FetchError, match="a header beyond all measure"):
        take(folder / "a.tgz", folder, limit=10**9)


def damage(archive, how):
    raw = archive.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 0xFF
    damaged = {"cut": raw[: len(raw) // 2], "flipped": bytes(flipped), "html": b"<html>sign in</html>", "empty": b""}
    crc = bytearray(raw)
    crc[-8] ^= 1  # of gzip: checked at the very end
    archive.write_bytes({**damaged, "crc": bytes(crc)}[how])


@pytest.mark.parametrize("how", ["cut", "flipped", "html", "empty", "crc"])
def test_damaged_tars(folder, how):
    archive = tar_of(folder / "a.tgz", (WANTED, os.urandom(20_000)), ("after", TEXT))
    damage(archive, how)
    with pytest.raises(FetchError, match=r"a\.tgz"):
        take(archive, folder)
    assert not (folder / "train.txt").exists()


@pytest.mark.parametrize("how", ["cut", "flipped", "html", "empty"])
def test_damaged_zips(folder, how):
    archive = zip_of(folder / "a.zip", (WANTED, os.urandom(20_000)))
    damage(archive, how)
    with pytest.raises(FetchError, match=r"a\.zip"):
        take(archive, folder)
    assert not (folder / "train.txt").exists()
