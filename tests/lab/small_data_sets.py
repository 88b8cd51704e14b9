"""Data sets of a few files, which a test's own server publishes."""

import hashlib
import io
import random
import tarfile

from sdkernels.lab.fetching.data_sets import Patience
from sdkernels.lab.fetching.publishers import DataFile, DataSet, Download

QUICK = Patience(timeout=2, tries=2, pause=0.01, progress=1000)
BODY = random.Random(0).randbytes(300_000)
TEXTS = {f"ptb.{split}.txt": f"{split} the <unk> sat\n".encode() * 50 for split in ("train", "valid", "test")}


def md5(data):
    return (f"md5:{hashlib.md5(data).hexdigest()}",)


def tgz(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = tgz({f"./simple-examples/data/{name}": text for name, text in TEXTS.items()} | {"./simple-examples/x": b"x"})


def two_files(server):
    """Two files side by side."""
    contents = {"big.gz": BODY, "small.gz": b"small"}
    server.files.update({f"/{name}": body for name, body in contents.items()})
    files = tuple(DataFile(name, len(body), md5(body)) for name, body in contents.items())
    way = tuple(Download(f.name, (f"{server.address}/{f.name}",), f.size, f.checksums) for f in files)
    return DataSet("plain", "Two files", "nobody", "none", files, (way,))


def texts(server):
    """Three texts in an archive, or one by one."""
    server.files["/simple-examples.tgz"] = ARCHIVE
    members = {f"simple-examples/data/{name}": name for name in TEXTS}
    archive = Download(
        "simple-examples.tgz", (server.address + "/simple-examples.tgz",), len(ARCHIVE), md5(ARCHIVE), members
    )
    plain = tuple(Download(name, (f"{server.address}/{name}",), None, md5(text)) for name, text in TEXTS.items())
    return DataSet("ptb", "Texts", "nobody", "none", tuple(DataFile(name) for name in TEXTS), ((archive,), plain))


def names(folder):
    return sorted(path.name for path in folder.iterdir())
